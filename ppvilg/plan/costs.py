"""What a layout takes under Fleet: parameters, FLOPs, memory, messages and time, worked out from shapes.

Parameters are those of the model itself, built without memory (`stages`). What processes on a CPU were measured to hold, and what
is arithmetic, is said in tools/plan.py. Left out, because they are small beside the rest: norms, softmax and GELU in the FLOPs, sums
of scalars, and what CUDA needs for itself. Texts count as long as they may be.

A product of [a, b] and [b, c] is 2abc FLOPs. Sizes are in bytes. m and n are the text and image slots of a sequence; a pair is
computed in both directions, so it has 2(m + n) rows.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise

import paddle
from paddle.distributed import fleet
from paddle.distributed.communication.group import Group
from paddle.distributed.fleet.layers.mpu.random import MODEL_PARALLEL_RNG, get_rng_state_tracker

from ppvilg.config import AttentionKind, ViLGExperiment
from ppvilg.model.config import ViLGConfig, vilg_config
from ppvilg.model.mask import AttentionMask, Direction
from ppvilg.model.vilg import ViLG
from ppvilg.train.fleet import SEGMENT_SIZE
from ppvilg.train.pipe import stage_starts

_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Cluster:
    """The GPUs. The defaults are nominal figures of A100 machines (NVIDIA's data sheets of A100 and DGX A100), which nobody has
    measured with this code: give what yours reach."""

    gpus: int
    memory: float = 80e9
    """Bytes of one GPU."""
    per_machine: int = 8
    peak: float = 312e12
    """FLOPs per second of one GPU at the config's precision, bf16 for A100."""
    utilization: float = 0.4
    """Share of the peak that a GPU reaches while it computes."""
    inside: float = 300e9
    """Bytes per second and direction that a GPU exchanges within its machine; 300 GB/s is NVLink's nominal rate."""
    across: float = 25e9
    """The same with other machines; 25 GB/s is the nominal rate of one 200 Gb/s InfiniBand card for each GPU."""

    def bandwidth(self, span: int) -> float:
        """Bytes per second within groups that each lie in `span` consecutive ranks."""
        return self.inside if min(self.gpus, self.per_machine) % span == 0 else self.across


# Parameters, and who holds what


@dataclass(frozen=True)
class Stage:
    """What one process of a pipeline stage holds."""

    number: int
    count: int
    kinds: Counter[AttentionKind]
    """How many of its blocks are of each kind."""
    sizes: dict[str, int]
    """How many values of each parameter, by its name in `ViLG`."""
    tied: int
    """Values of the tables that the first and the last stage both hold."""

    @property
    def is_first(self) -> bool:
        """Whether the embedding is here."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """Whether the head is here."""
        return self.number == self.count - 1

    @property
    def values(self) -> int:
        """All of them."""
        return sum(self.sizes.values())


def parameter_sizes(config: ViLGConfig, mp: int = 1) -> dict[str, int]:
    """How many values of each parameter a tensor parallel process holds; the model is built, but not allocated."""
    with paddle.LazyGuard(), _no_processes():
        model = ViLG(config, Group(0, 0, list(range(mp))) if mp > 1 else None)
    return {name: parameter.size for name, parameter in model.named_parameters()}


@contextmanager
def _no_processes() -> Iterator[None]:
    """What Fleet's layers ask for when they are made, without a job."""
    tracker = get_rng_state_tracker()
    states, had = tracker.get_states_tracker(), hasattr(fleet.fleet, "_user_defined_strategy")
    if not had:
        fleet.fleet._user_defined_strategy = fleet.DistributedStrategy()
    if MODEL_PARALLEL_RNG not in states:
        tracker.add(MODEL_PARALLEL_RNG, 0)
    yield
    tracker.set_states_tracker(states)
    if not had:
        del fleet.fleet._user_defined_strategy


def stages(config: ViLGExperiment) -> list[Stage]:
    """The pipeline of a layout. Raises `ValueError` for a model with a reconstructor, which is not planned."""
    if config.transformer.reconstructor:
        raise ValueError("transformer.reconstructor: its decoder cannot be planned: add -o transformer.reconstructor=false")
    model, parallel = vilg_config(config), config.parallel
    everything, count = parameter_sizes(model, parallel.mp_degree), parallel.pp_degree
    # Layer 0 is the embedding, layer i block i - 1.
    ends = [*stage_starts(model, count)[1:-1], model.layers + 1]
    found, tables = [], ("embedding.text.weight", "embedding.image.weight")
    tied = tables if model.tie_embeddings and count > 1 else ()
    for number, (start, end) in enumerate(pairwise([1, *ends])):
        blocks = range(start - 1, end - 1)
        parts = [f"blocks.{i}." for i in blocks]
        parts += ["embedding."] if number == 0 else []
        parts += ["head.", *tied] if number == count - 1 else []
        sizes = {name: size for name, size in everything.items() if name.startswith(tuple(parts))}
        kinds = Counter(model.kinds[i] for i in blocks)
        shared = sum(everything[name] for name in tied) if number in (0, count - 1) else 0
        found.append(Stage(number, count, kinds, sizes, shared))
    return found


def owned_values(config: ViLGExperiment, stage: Stage) -> list[int]:
    """How many values each process of the sharding group updates, as Fleet shares them out."""
    parallel, sizes = config.parallel, list(stage.sizes.values())
    if parallel.sharding_stage == 3:
        large, small = _sliced(stage)
        return [large // parallel.sharding_degree + small] * parallel.sharding_degree
    owned = [0] * parallel.sharding_degree
    for size in sorted(sizes, reverse=True) if parallel.sharding_stage == 1 else sizes:
        owned[owned.index(min(owned))] += size
    return owned


def _sliced(stage: Stage) -> tuple[int, int]:
    """Values of the parameters that stage 3 slices, and of those that every process keeps whole."""
    large = sum(size for size in stage.sizes.values() if size > SEGMENT_SIZE)
    return large, stage.values - large


# FLOPs


@dataclass(frozen=True)
class Scores:
    """What the attention of one head computes in blocks."""

    pairs: int
    """Scores of queries and keys, those included that are computed and then hidden."""
    to_prefix: int
    """Those of them in rows that have a prefix before their block's own keys."""
    keys: int
    """Rows that are gathered for the blocks."""


@lru_cache(maxsize=64)
def _scores(mask: AttentionMask) -> Scores:
    source, target = mask.blocks()
    to_prefix = target.mask.size + target.queries.size * (mask.length - mask.target_length)
    return Scores(source.mask.size + to_prefix, to_prefix, source.keys.size + target.keys.size)


def pair_scores(config: ViLGExperiment, kind: AttentionKind) -> Scores:
    """Those of both directions of a pair in a layer of a kind, of one head."""
    both = [_scores(vilg_config(config).mask(kind, direction, config.text.max_length)) for direction in Direction]
    return Scores(*(sum(getattr(one, field.name) for one in both) for field in fields(Scores)))


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward; a backward has two products for each of the forward."""

    layers: float
    head: float
    embedding: float
    """The projection of a text table of another width."""
    recompute: float
    """What the backward computes again."""

    @property
    def model(self) -> float:
        """What the result needs: all but what is computed again."""
        return self.layers + self.head + self.embedding

    @property
    def done(self) -> float:
        """What the GPUs compute."""
        return self.model + self.recompute


def pair_flops(config: ViLGExperiment, stage: Stage) -> Flops:
    """What a stage computes for one pair, all tensor parallel processes together."""
    hidden, m, multiplier = config.transformer.hidden, config.text.max_length, config.transformer.ffn_multiplier
    # Queries, keys, values, output and the two products of the MLP; scores, and the sums of values by them.
    products = 2 * 2 * (m + config.image_tokens) * (4 + 2 * multiplier) * hidden**2
    layers = sum(count * (products + 4 * pair_scores(config, kind).pairs * hidden) for kind, count in stage.kinds.items())
    head = 2 * hidden * (config.image_tokens * config.vqgan.codebook.size + (m - 1) * config.text.vocabulary_size)
    width = config.text.embedding_width or hidden
    projection = 4 * m * width * hidden if width != hidden else 0
    recompute = layers if config.parallel.recompute == "full" else 0
    return Flops(3 * layers, 3 * head if stage.is_last else 0, 3 * projection if stage.is_first else 0, recompute)


def step_flops(config: ViLGExperiment) -> Flops:
    """What all GPUs together compute for one optimizer step."""
    [whole] = stages(replace(config, parallel=replace(config.parallel, mp_degree=1, pp_degree=1)))
    flops = pair_flops(config, whole)
    return Flops(*(getattr(flops, field.name) * config.train.batch_size for field in fields(Flops)))


# Memory


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what is in them."""

    weights: float
    gradients: float
    """Float32 where the weights are not and are not offloaded (Fleet's main gradients)."""
    optimizer: float
    """Float32 weights, moments and moving average of what the process owns."""
    fetched: float
    """Stage 3: the weights of the layer that is computed and of the next one."""
    activations: float
    """What forward passes keep for their backward."""
    recomputed: float
    """What one layer keeps while its backward runs, if it is computed again."""
    logits: float
    """What the losses keep of the vocabularies, and its gradient."""
    workspace: float
    """Gradients within one layer's backward."""
    messages: float
    """The gradients that come up the pipeline and go on."""
    update: float
    """After the backward: gradients laid end to end to be summed over data parallel processes."""

    @property
    def standing(self) -> float:
        """Between two steps, when gradients are dropped."""
        return self.weights + self.optimizer

    @property
    def total(self) -> float:
        """When most is there: in a backward or in the update after it."""
        backward = self.fetched + self.activations + self.recomputed + self.logits + self.workspace + self.messages
        return self.standing + self.gradients + max(backward, self.update)


def memory(config: ViLGExperiment, stage: Stage, owner: int | None = None) -> Memory:
    """Of a process of a pipeline stage, number `owner` of its sharding group; without a number, of that which owns most."""
    parallel, width, gradient = config.parallel, _width(config), _gradient_width(config)
    owned = owned_values(config, stage)
    own = max(owned) if owner is None else owned[owner]
    level, largest = _level(config), max(stage.sizes.values())
    present = {0: stage.values, 1: stage.values, 2: own + largest, 3: own + largest}[level]
    # AdamW's two moments, a float32 weight beside another one, and the moving average.
    states = 2 + (parallel.precision != "fp32" or parallel.offload) + bool(config.train.ema_decay)
    in_flight = min(config.train.gradient_accumulation_steps, stage.count - stage.number)  # 1F1B
    layer = max(_layer_bytes(config, kind) for kind in stage.kinds)
    softmax = _softmax_bytes(config)
    held = stage.values if level < 3 else _sliced(stage)[1] if parallel.offload else own
    return Memory(
        weights=width * held,
        gradients=gradient * (largest if parallel.offload else present),
        optimizer=0 if parallel.offload else _FLOAT32 * states * own,
        fetched=width * 2 * largest if level == 3 else 0,
        activations=in_flight * _kept_bytes(config, stage),
        recomputed=layer if parallel.recompute == "full" else 0,
        # Probabilities and their gradient; where tensor parallelism shares out the vocabularies, the logits as well.
        logits=softmax * (3 if parallel.mp_degree > 1 else 2) if stage.is_last else 0,
        workspace=layer,
        messages=((not stage.is_first) + (not stage.is_last)) * _rows_bytes(config),
        update=gradient * own if parallel.dp_degree > 1 and level < 2 else 0,
    )


def forward_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """What a forward pass over one micro-batch keeps for its backward on a stage, by paddle's functions."""
    return _kept_bytes(config, stage) + (_softmax_bytes(config) if stage.is_last else 0)


def _width(config: ViLGExperiment) -> int:
    """Bytes of a weight or an activation."""
    return _FLOAT32 if config.parallel.precision == "fp32" else 2


def _gradient_width(config: ViLGExperiment) -> int:
    return _width(config) if config.parallel.offload else _FLOAT32


def _level(config: ViLGExperiment) -> int:
    """The sharding stage; 0 where there is nobody to share with."""
    return config.parallel.sharding_stage if config.parallel.sharding_degree > 1 else 0


def _rows_bytes(config: ViLGExperiment) -> int:
    """[rows of a micro-batch, hidden]."""
    rows = 2 * config.micro_batch * (config.text.max_length + config.image_tokens)
    return rows * config.transformer.hidden * _width(config)


def _layer_bytes(config: ViLGExperiment, kind: AttentionKind) -> float:
    """What one block of a kind keeps of a micro-batch, computed by paddle's functions (`ops.block_attention`)."""
    model, mp, rows = config.transformer, config.parallel.mp_degree, _rows_bytes(config)
    scores, of_pair = pair_scores(config, kind), config.micro_batch * _width(config)
    m, n = config.text.max_length, config.image_tokens
    # What norms read and what they give; queries, weighted values (twice: before and after padding is cleared).
    kept = 4 * rows + 3 * rows / mp
    # Keys and values of blocks; queries, keys and values of the part that sees a prefix; probabilities, whole and in two pieces.
    kept += (2 * scores.keys + 3 * (m + n)) * model.hidden * of_pair / mp
    kept += (scores.pairs + scores.to_prefix) * model.heads * of_pair / mp
    kept += 2 * rows * model.ffn_multiplier / mp  # GELU's input and output
    return kept + (2 * rows // _width(config) if model.dropout else 0)  # which values were dropped, a byte for each


def _kept_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """What a stage keeps of each micro-batch until its backward, apart from the losses."""
    rows, row, model = _rows_bytes(config), config.micro_batch * _width(config), config.transformer
    full = config.parallel.recompute == "full"
    kept = sum(count * (rows if full else _layer_bytes(config, kind)) for kind, count in stage.kinds.items())
    width = config.text.embedding_width or model.hidden
    if stage.is_first and width != model.hidden:
        kept += 2 * row * config.text.max_length * width
    # What the last norm and the head read, or what went down the pipeline.
    return kept + rows + (row * _targets(config) * model.hidden if stage.is_last else 0)


def _targets(config: ViLGExperiment) -> int:
    """Slots of a pair whose next token is decided: n for its image, m - 1 for its text."""
    return config.image_tokens + config.text.max_length - 1


def _softmax_bytes(config: ViLGExperiment) -> float:
    """Probabilities of all targets of a micro-batch, in float32."""
    text = (config.text.max_length - 1) * config.text.vocabulary_size
    image = config.image_tokens * config.vqgan.codebook.size
    return config.micro_batch * (text + image) * _FLOAT32 / config.parallel.mp_degree


# Messages and time


@dataclass(frozen=True)
class Communication:
    """Bytes of the tensors that one process passes to calls of each kind in one optimizer step.

    A tensor counts once for each call, whatever the process's part in it. Sums of scalars are not counted.
    """

    dp_all_reduce: float
    """Gradients of what the process owns; in stage 3 whole gradients, after each micro-batch."""
    sharding_reduce: float
    """Gradients to their owners: stage 1 after the last micro-batch, stages 2 and 3 after each; in stage 3 an all_reduce."""
    sharding_broadcast: float
    """Stages 1 and 2: updated weights from their owners."""
    sharding_all_gather: float
    """Stage 3: each layer's weights for each time that it is computed."""
    mp_all_reduce: float
    """Sums within layers, embedding and head, of each micro-batch."""
    pp_send_receive: float
    """Rows down and their gradients up the pipeline, of each micro-batch."""
    tied_all_reduce: float
    """Gradients of the tables that the first and the last stage share."""


def communication(config: ViLGExperiment, stage: Stage) -> Communication:
    """Of the process of a pipeline stage that owns most."""
    parallel, parts, level = config.parallel, config.train.gradient_accumulation_steps, _level(config)
    width, gradient, own = _width(config), _gradient_width(config), max(owned_values(config, stage))
    large, small = _sliced(stage)
    repeated = parts * large + small
    recomputed = parallel.recompute == "full"
    neighbours = (not stage.is_first) + (not stage.is_last)
    return Communication(
        dp_all_reduce=gradient * (repeated if level == 3 else own) if parallel.dp_degree > 1 else 0,
        sharding_reduce=gradient * {0: 0, 1: stage.values, 2: parts * stage.values, 3: repeated}[level],
        sharding_broadcast=width * stage.values if level in (1, 2) else 0,
        sharding_all_gather=width * parts * (2 + recomputed) * large if level == 3 else 0,
        mp_all_reduce=parts * _mp_bytes(config, stage) if parallel.mp_degree > 1 else 0,
        pp_send_receive=parts * neighbours * 2 * _rows_bytes(config),
        tied_all_reduce=gradient * stage.tied,
    )


def _mp_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """For one micro-batch: after attention and MLP of each block, again where they are computed again, and the gradients of what
    they read; embedded rows; the gradients of what the head reads, and three numbers of each target."""
    row, hidden = config.micro_batch * _width(config), config.transformer.hidden
    total = (6 if config.parallel.recompute == "full" else 4) * sum(stage.kinds.values()) * _rows_bytes(config)
    if stage.is_first:
        total += 2 * row * (config.text.max_length * (config.text.embedding_width or hidden) + config.image_tokens * hidden)
    return total + (row * _targets(config) * (hidden + 3) if stage.is_last else 0)


@dataclass(frozen=True)
class Seconds:
    """How long an optimizer step takes if nothing happens at the same time as anything else."""

    compute: float
    """Products, those that are computed again included."""
    bubble: float
    """Waiting for the pipeline to fill and to empty."""
    dp: float
    sharding: float
    mp: float
    pp: float

    @property
    def total(self) -> float:
        """One step."""
        return sum(getattr(self, field.name) for field in fields(self))

    def days(self, config: ViLGExperiment, pairs: float) -> float:
        """To train on so many pairs."""
        return self.total * pairs / config.train.batch_size / 86400


def seconds(config: ViLGExperiment, stage: Stage, cluster: Cluster) -> Seconds:
    """A step's, if all stages were like this one.

    An all_reduce of b bytes by k processes moves 2b(k - 1)/k through each of them (ring), any other call b.
    """
    parallel, parts, level = config.parallel, config.train.gradient_accumulation_steps, _level(config)
    sent, sharding = communication(config, stage), parallel.sharding_degree
    # The axes lie within one another: of each, the groups lie in so many consecutive ranks.
    inner = parallel.mp_degree * sharding
    to_mp, to_sharding = cluster.bandwidth(parallel.mp_degree), cluster.bandwidth(inner)
    to_pp, to_dp = cluster.bandwidth(inner * stage.count), cluster.bandwidth(parallel.world_size)
    flops = pair_flops(config, stage).done * config.micro_batch * parts / parallel.mp_degree
    compute = flops / (cluster.peak * cluster.utilization)
    mp, rows = sent.mp_all_reduce * _ring(parallel.mp_degree) / to_mp, sent.pp_send_receive / to_pp
    reduce = sent.sharding_reduce * (_ring(sharding) if level == 3 else 1) / to_sharding
    return Seconds(
        compute=compute,
        bubble=(compute + mp + rows) * (stage.count - 1) / parts,
        dp=sent.dp_all_reduce * _ring(parallel.dp_degree) / to_dp,
        sharding=reduce + (sent.sharding_broadcast + sent.sharding_all_gather) / to_sharding,
        mp=mp,
        pp=rows + sent.tied_all_reduce * _ring(2) / to_pp,
    )


def _ring(processes: int) -> float:
    return 2 * (processes - 1) / processes
