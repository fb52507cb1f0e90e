"""What training a transformer in a layout takes, worked out without a GPU: parameters, FLOPs, memory, messages, time.

Everything is counted from the config by the same rules as the model computes by; bytes are checked against what processes on
CPUs send and keep (tests/parallel/test_plan_bytes.py), seconds against nothing: bandwidths and the share of the peak are the
user's to give. What is left out, because it is small beside the rest: the arithmetic of norms, softmax, GELU and optimizer, the
sums of scalars, and what CUDA needs for itself. Texts count as long as they may be.

A product of [a, b] and [b, c] is 2abc FLOPs. Sizes are in bytes. m and n are the text and image slots of a sequence; a pair is
computed in both directions, so it has 2(m + n) rows.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from ppvilg.config import AttentionKind, ParallelConfig, ViLGExperiment
from ppvilg.errors import UserError
from ppvilg.parallel import pipeline
from ppvilg.parallel.collectives import BUCKET
from ppvilg.parallel.sharding import TIED, owners
from ppvilg.transformer.pattern import Direction, Pattern

Kind = Literal["embeddings", "layers", "head"]

_FLOAT32 = 4  # bytes
_RECOMPUTE = ("none", "full")


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


# Parameters


@dataclass(frozen=True)
class Weight:
    """One parameter tensor of `ViLG`, under its name there."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    cut: bool = False
    """Whether the processes of mp share it out; the others all hold it."""
    layer: int | None = None

    def values(self, mp: int = 1) -> int:
        """How many of its values one process has."""
        return math.prod(self.shape) // (mp if self.cut else 1)


def weights(config: ViLGExperiment) -> list[Weight]:
    """All parameters of the transformer, in the order of `ViLG.named_parameters`.

    Raises `UserError` where the config does not train a transformer alone.
    """
    if config.task != "vilg":
        raise UserError(f"task: {config.task!r} cannot be planned: give the config of a transformer (task: vilg)")
    if config.transformer.reconstructor:
        raise UserError("transformer.reconstructor: its decoder cannot be planned: add -o transformer.reconstructor=false")
    text, hidden, (rows, columns) = config.text, config.transformer.hidden, config.grid
    codes, text_width = config.vqgan.codebook.size, _text_width(config)
    found = []
    if not config.transformer.tie_embeddings:
        found.append(Weight("text_head", (hidden, text.vocabulary_size), "head", cut=True))
        found.append(Weight("image_head", (hidden, codes), "head", cut=True))
    found.append(Weight("text_embedding.weight", (text.vocabulary_size, text_width), "embeddings", cut=True))
    found.append(Weight("image_embedding.weight", (codes, hidden), "embeddings", cut=True))
    if text_width != hidden:
        found.append(Weight("text_projection.weight", (text_width, hidden), "embeddings"))
    tables = {"text_position": text.max_length, "row_position": rows, "column_position": columns, "segment": 4}
    found += [Weight(f"{name}.weight", (length, hidden), "embeddings") for name, length in tables.items()]
    for layer in range(config.transformer.layers):
        found += _layer_weights(layer, hidden, _ffn_width(config))
    return [*found, Weight("norm.weight", (hidden,), "head"), Weight("norm.bias", (hidden,), "head")]


def _layer_weights(layer: int, hidden: int, wide: int) -> list[Weight]:
    """One layer's: what makes queries, keys, values and the wide rows is cut by columns, what reads them by rows (Megatron-LM,
    Shoeybi et al. 2019)."""
    shapes = {
        "attention.norm.weight": ((hidden,), False),
        "attention.norm.bias": ((hidden,), False),
        "attention.query.weight": ((hidden, hidden), True),
        "attention.query.bias": ((hidden,), True),
        "attention.key.weight": ((hidden, hidden), True),
        "attention.value.weight": ((hidden, hidden), True),
        "attention.out.weight": ((hidden, hidden), True),
        "attention.out.bias": ((hidden,), False),
        "ffn.norm.weight": ((hidden,), False),
        "ffn.norm.bias": ((hidden,), False),
        "ffn.up.weight": ((hidden, wide), True),
        "ffn.up.bias": ((wide,), True),
        "ffn.down.weight": ((wide, hidden), True),
        "ffn.down.bias": ((hidden,), False),
    }
    return [Weight(f"blocks.{layer}.{name}", shape, "layers", cut, layer) for name, (shape, cut) in shapes.items()]


def parameters(config: ViLGExperiment) -> dict[Kind, int]:
    """The number of the model's values of each kind."""
    sums: dict[Kind, int] = {"embeddings": 0, "layers": 0, "head": 0}
    for weight in weights(config):
        sums[weight.kind] += weight.values()
    return sums


def _text_width(config: ViLGExperiment) -> int:
    return config.text.embedding_width or config.transformer.hidden


def _ffn_width(config: ViLGExperiment) -> int:
    return config.transformer.ffn_multiplier * config.transformer.hidden


# Pipeline stages, and who owns what


@dataclass(frozen=True)
class Share:
    """How many of its stage's values belong to one process of the sharding group."""

    owned: int
    """Those that it updates."""
    layers: int
    """Those of them that are in layers."""
    lacking: int
    """Those of one layer, at most, that belong to others."""


@dataclass(frozen=True)
class Held:
    """How many values a process of a stage has to do with; only its share of what mp cuts."""

    whole: int
    """All of the stage's."""
    layers: int
    """Those of its layers."""
    layer: int
    """Those of one layer."""
    table: int
    """Those of its largest tensor outside the layers; 0 if there is none."""
    largest: int
    """Those of its largest tensor."""
    tied: int
    """Those of the tables that the first and the last stage both hold."""
    shares: tuple[Share, ...]
    """Of each process of the sharding group."""

    @property
    def busiest(self) -> int:
        """Which process of the sharding group owns most."""
        return max(range(len(self.shares)), key=lambda rank: self.shares[rank].owned)


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    number: int
    layers: range
    kinds: dict[AttentionKind, int]
    """How many of its layers are of each kind."""
    first: bool
    """Whether the embeddings are here."""
    last: bool
    """Whether the head is here."""
    held: Held


def stages(config: ViLGExperiment) -> list[Stage]:
    """The pipeline; depends on the model and on mp, sharding and pp, not on how the batch is cut."""
    everything, kinds = weights(config), config.transformer.attention.kinds(config.transformer.layers)
    cut, found = pipeline.stages(config, config.parallel.pp_degree), []
    for number, layers in enumerate(cut):
        first, last = number == 0, number == len(cut) - 1
        held = _held(config, everything, layers, first, last)
        found.append(Stage(number, layers, Counter(kinds[layers.start : layers.stop]), first, last, held))
    return found


def _held(config: ViLGExperiment, everything: list[Weight], layers: range, first: bool, last: bool) -> Held:
    mp, sharding = config.parallel.mp_degree, config.parallel.sharding_degree
    tied = TIED if config.transformer.tie_embeddings and first != last else ()

    def here(weight: Weight) -> bool:
        if weight.layer is not None:
            return weight.layer in layers
        return weight.name in tied or (first if weight.kind == "embeddings" else last)

    mine = [weight for weight in everything if here(weight)]
    sizes = {weight.name: weight.values(mp) for weight in mine}
    of_layers = sum(sizes[weight.name] for weight in mine if weight.kind == "layers")
    layer = of_layers // len(layers)
    owner = owners(sizes, sharding)
    owned, in_layers = Counter(), [Counter({i: 0 for i in layers}) for _ in range(sharding)]
    for weight in mine:
        owned[owner[weight.name]] += sizes[weight.name]
        if weight.layer is not None:
            in_layers[owner[weight.name]][weight.layer] += sizes[weight.name]
    return Held(
        whole=sum(sizes.values()),
        layers=of_layers,
        layer=layer,
        table=max((sizes[weight.name] for weight in mine if weight.kind != "layers"), default=0),
        largest=max(sizes.values()),
        tied=sum(sizes[name] for name in tied),
        shares=tuple(Share(owned[rank], sum(of.values()), layer - min(of.values())) for rank, of in enumerate(in_layers)),
    )


# FLOPs


@dataclass(frozen=True)
class Scores:
    """What the attention of one head computes of one sequence, and what it needs to know for it."""

    pairs: int
    """Scores of queries and keys, those included that are computed and then hidden."""
    bias: int
    """Values of the masks that are added to them."""
    indices: int
    """Places of the keys that groups share."""
    order: int
    """Places of the tokens that do not stand in the order of their groups, there and back; the same for all heads."""


@lru_cache(maxsize=64)
def scores(pattern: Pattern) -> Scores:
    """As `ppvilg.transformer.attention` computes a pattern: text and image part within themselves, and the target's part with
    the whole source besides."""
    m, n = pattern.text_length, pattern.image_length
    image = pattern.image_blocks()
    within = m * m + image.mask.size
    unmasked = 0 if pattern.to_image or not image.mask.all() else image.mask.size
    flat = image.queries.ravel()
    shared_keys = image.queries.shape != image.keys.shape or (image.queries != image.keys).any()
    return Scores(
        pairs=within + m * n,
        bias=within + m * n - unmasked,
        indices=image.keys.size if shared_keys else 0,
        order=2 * n if (flat[1:] < flat[:-1]).any() else 0,
    )


def pair_scores(config: ViLGExperiment, kind: AttentionKind) -> Scores:
    """Those of both directions of a pair in a layer of a kind, of one head."""
    attention = config.transformer.attention
    both = [
        scores(Pattern(config.text.max_length, *config.grid, direction, kind, attention.kernel, attention.strict_row))
        for direction in Direction
    ]
    return Scores(*(sum(getattr(one, field.name) for one in both) for field in fields(Scores)))


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward; a backward has two products for each of the forward."""

    layers: float
    head: float
    embeddings: float
    """The projection of a text table of another width."""
    recompute: float
    """What the backward computes again."""

    @property
    def model(self) -> float:
        """What the result needs: all but what is computed again."""
        return self.layers + self.head + self.embeddings

    @property
    def done(self) -> float:
        """What the GPUs compute."""
        return self.model + self.recompute

    def times(self, count: float) -> "Flops":
        """Those of so many."""
        return Flops(*(getattr(self, field.name) * count for field in fields(self)))


def pair_flops(config: ViLGExperiment, stage: Stage) -> Flops:
    """What a stage computes for one pair, all processes of mp together."""
    hidden, rows, m = config.transformer.hidden, _pair_rows(config), config.text.max_length
    # Queries, keys, values, output; scores and the sums of values by them; the two products of the feed-forward part.
    attention = sum(
        count * (2 * rows * 4 * hidden**2 + 2 * 2 * pair_scores(config, kind).pairs * hidden)
        for kind, count in stage.kinds.items()
    )
    feed_forward = len(stage.layers) * 2 * rows * 2 * hidden * _ffn_width(config)
    head = 2 * hidden * (config.image_tokens * config.vqgan.codebook.size + (m - 1) * config.text.vocabulary_size)
    projection = 2 * 2 * m * _text_width(config) * hidden if _text_width(config) != hidden else 0
    again = attention + feed_forward if config.parallel.recompute == "full" else 0
    return Flops(
        layers=3 * (attention + feed_forward),
        head=3 * head if stage.last else 0,
        embeddings=3 * projection if stage.first else 0,
        recompute=again,
    )


def step_flops(config: ViLGExperiment) -> Flops:
    """What all GPUs together compute for one optimizer step."""
    return pair_flops(config, _undivided(config)).times(config.train.batch_size)


def _undivided(config: ViLGExperiment) -> Stage:
    """The whole model as one stage."""
    return stages(replace(config, parallel=replace(config.parallel, sharding_degree=1, mp_degree=1, pp_degree=1)))[0]


def _pair_rows(config: ViLGExperiment) -> int:
    """Rows of both directions of a pair."""
    return 2 * (config.text.max_length + config.image_tokens)


# Memory


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what is in them."""

    weights: float
    """Those that stand; in stage 3 of the layers only the owned ones."""
    gradients: float
    optimizer: float
    """Float32 weights, moments and average."""
    fetched: float
    """Stage 3: one layer's weights that others own, and the message they come in."""
    activations: float
    """What the forward keeps for the backward."""
    masks: float
    """Masks and places of the attention's views."""
    logits: float
    """What the losses keep of the vocabularies, and its gradient."""
    workspace: float
    """What lies between within one layer's backward."""
    messages: float
    """The gradients that come up the pipeline and go on."""
    update: float
    """After the backward: float32 gradients, or those that are laid end to end to be sent."""

    @property
    def standing(self) -> float:
        """Between two steps."""
        return self.weights + self.optimizer

    @property
    def total(self) -> float:
        """When most is there: in a backward or in the update after it."""
        backward = self.fetched + self.activations + self.masks + self.logits + self.workspace + self.messages
        return self.standing + self.gradients + max(backward, self.update)


def memory(config: ViLGExperiment, stage: Stage, owner: int | None = None) -> Memory:
    """Of a process of a pipeline stage that is number `owner` of its sharding group; without a number, of that which owns
    most."""
    width, in_flight, values = _width(config), _in_flight(config, stage), stage.held
    share = values.shares[values.busiest if owner is None else owner]
    level = _sharding_stage(config)
    return Memory(
        weights=width * (values.whole - values.layers + share.layers if level == 3 else values.whole),
        gradients=width * _gradients_present(values, share, level),
        optimizer=_optimizer_bytes(config) * share.owned,
        fetched=width * (share.lacking + values.layer) if level == 3 else 0,
        activations=in_flight * _kept_bytes(config, stage) + _computed_again(config, stage),
        masks=in_flight * _mask_bytes(config, stage),
        # A stage that has the head computes one micro-batch at a time.
        logits=_logits_bytes(config) + _softmax_bytes(config) if stage.last else 0,
        workspace=_workspace_bytes(config, stage),
        messages=((not stage.first) + (not stage.last)) * _rows_bytes(config),
        update=_update_bytes(config, values, share),
    )


def kept_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """What a forward over one micro-batch keeps for its backward on a stage: what
    `ppvilg.benchmark.training.activation_bytes` measures."""
    logits = _logits_bytes(config) if stage.last else 0
    return _kept_bytes(config, stage) + _mask_bytes(config, stage) + logits


def _width(config: ViLGExperiment) -> int:
    """Bytes of a weight, a gradient or an activation."""
    return _FLOAT32 if config.parallel.precision == "fp32" else 2


def _sharding_stage(config: ViLGExperiment) -> int:
    """0 where there is nobody to share with."""
    return config.parallel.sharding_stage if config.parallel.sharding_degree > 1 else 0


def _gradients_present(values: Held, share: Share, level: int) -> int:
    """From stage 2 on a gradient is gone to its owner before the next layer's is there, those of tied tables excepted."""
    if level < 2:
        return values.whole
    return min(values.whole, share.owned + values.tied + max(values.layer, values.table))


def _has_masters(config: ViLGExperiment) -> bool:
    """Whether the optimizer works on float32 copies of the weights."""
    return config.parallel.precision != "fp32" or config.parallel.offload


def _optimizer_bytes(config: ViLGExperiment) -> int:
    """For each owned value: AdamW's two moments, the float32 weight if that is a copy, the moving average; all on the CPU if
    they are offloaded."""
    if config.parallel.offload:
        return 0
    return _FLOAT32 * (2 + _has_masters(config) + bool(config.train.ema_decay))


def _update_bytes(config: ViLGExperiment, values: Held, share: Share) -> int:
    """Messages are joined, sent and taken apart one after the other; float32 gradients are all there at once, unless each goes
    to the CPU."""
    joined = min(values.whole, BUCKET + values.largest) + values.largest if config.parallel.data_world_size > 1 else 0
    copied = (values.largest if config.parallel.offload else share.owned) if _has_masters(config) else 0
    return max(_width(config) * joined, _FLOAT32 * copied)


def _in_flight(config: ViLGExperiment, stage: Stage) -> int:
    """Micro-batches whose backward is to come, at most (1F1B; PipeDream, Narayanan et al. 2019)."""
    return min(config.train.gradient_accumulation_steps, config.parallel.pp_degree - stage.number)


def _rows_bytes(config: ViLGExperiment) -> int:
    """[rows of a micro-batch, hidden]."""
    return config.micro_batch * _pair_rows(config) * config.transformer.hidden * _width(config)


def _layer_bytes(config: ViLGExperiment, kind: AttentionKind) -> tuple[float, float]:
    """What one layer of a kind keeps of a micro-batch, in its attention and in its feed-forward part."""
    model, mp = config.transformer, config.parallel.mp_degree
    rows, dropped = _rows_bytes(config), _dropped_bytes(config)
    softmax = config.micro_batch * pair_scores(config, kind).pairs * model.heads * _width(config)
    # The input; grouped queries, keys and values, and the context; the weights of the values.
    attention = rows + (4 * rows + softmax) / mp + dropped
    return attention, rows + rows * model.ffn_multiplier / mp + dropped


def _kept_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """What a stage keeps of each micro-batch until its backward."""
    rows, row = _rows_bytes(config), config.micro_batch * _width(config)
    kept = sum(count * _kept_of_layer(config, kind) for kind, count in stage.kinds.items())
    if stage.first and config.micro_batch > 1:  # the places of both directions, which are spread over the pairs
        kept += _pair_rows(config) * config.transformer.hidden * _width(config)
    if stage.first and config.parallel.mp_degree > 1:  # found rows, of which some are another process's
        kept += _embedded_bytes(config)
    if stage.first and _text_width(config) != config.transformer.hidden:
        kept += 2 * row * config.text.max_length * _text_width(config)
    if stage.last:  # what the last norm and the two heads read
        kept += rows + row * _targets(config) * config.transformer.hidden
    else:  # what went down the pipeline
        kept += rows
    return kept


def _kept_of_layer(config: ViLGExperiment, kind: AttentionKind) -> float:
    rows, (attention, feed_forward) = _rows_bytes(config), _layer_bytes(config, kind)
    if config.parallel.recompute == "full":
        return rows
    return attention + feed_forward


def _embedded_bytes(config: ViLGExperiment) -> int:
    """Rows of both directions as the tables give them."""
    of_pair = config.text.max_length * _text_width(config) + config.image_tokens * config.transformer.hidden
    return 2 * config.micro_batch * of_pair * _width(config)


def _dropped_bytes(config: ViLGExperiment) -> int:
    """Which values of a layer's rows were dropped, a byte for each."""
    return _rows_bytes(config) // _width(config) if config.transformer.dropout else 0


def _computed_again(config: ViLGExperiment, stage: Stage) -> float:
    """What is there of one layer while its backward runs, besides what it kept."""
    if config.parallel.recompute == "full":
        return max(sum(_layer_bytes(config, kind)) for kind in stage.kinds)
    return 0


def _workspace_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """Of one layer about as much again as it keeps, or where mp makes that little the whole rows in a norm's backward, nine at
    once, and the feed-forward part's wide ones."""
    wide = config.transformer.ffn_multiplier / config.parallel.mp_degree
    return max((9 + wide) * _rows_bytes(config), *(sum(_layer_bytes(config, kind)) for kind in stage.kinds))


def _mask_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """The views of a micro-batch, one for each kind of layer and direction: masks and int64 places."""
    heads = config.transformer.heads // config.parallel.mp_degree
    found = [pair_scores(config, kind) for kind in stage.kinds]
    total = sum((of.bias * _width(config) + of.indices * 8) * heads + of.order * 8 for of in found)
    return total * config.micro_batch


def _targets(config: ViLGExperiment) -> int:
    """Slots of a pair whose next token is decided: n for its picture, m - 1 for its text."""
    return config.image_tokens + config.text.max_length - 1


def _logits_bytes(config: ViLGExperiment) -> float:
    """What the losses keep: the softmax, but where mp cuts the vocabularies the logits and their exponentials."""
    return _softmax_bytes(config) * (2 if config.parallel.mp_degree > 1 else 1)


def _softmax_bytes(config: ViLGExperiment) -> float:
    """Probabilities of all targets of a micro-batch, in float32."""
    text = (config.text.max_length - 1) * config.text.vocabulary_size
    image = config.image_tokens * config.vqgan.codebook.size
    return config.micro_batch * (text + image) * _FLOAT32 / config.parallel.mp_degree


# Messages


@dataclass(frozen=True)
class Communication:
    """Bytes of the tensors that one process passes to calls of each kind in one optimizer step.

    A tensor counts once for each call, whatever the process's part in it: a broadcast counts as much for the sender as for the
    receivers, a send and a receive count once each. Sums of scalars (norm of the gradients, losses) are not counted.
    """

    dp_all_reduce: float
    """Gradients of what the process owns, after the last micro-batch."""
    sharding_reduce: float
    """Gradients to their owners: stage 1 after the last micro-batch, stages 2 and 3 after each; tied tables' after the last."""
    sharding_broadcast: float
    """Updated weights from their owners; in stage 3 those outside the layers only."""
    layer_broadcast: float
    """Stage 3: each layer's weights before its forward and its backward, of each micro-batch, unless they are there still."""
    mp_all_reduce: float
    """Sums within layers, embeddings and heads, of each micro-batch."""
    pp_send_receive: float
    """Rows down and their gradients up the pipeline, of each micro-batch."""
    tied_all_reduce: float
    """Gradients of the tables that the first and the last stage share, after the last micro-batch."""


def communication(config: ViLGExperiment, stage: Stage, owner: int) -> Communication:
    """Of a process of a pipeline stage that is number `owner` of its sharding group."""
    parallel, parts, width = config.parallel, config.train.gradient_accumulation_steps, _width(config)
    values, level = stage.held, _sharding_stage(config)
    freed = values.layers if level == 3 else 0
    reduced = values.whole if level < 2 else parts * (values.whole - values.tied) + values.tied
    neighbours = (not stage.first) + (not stage.last)
    return Communication(
        dp_all_reduce=width * values.shares[owner].owned if parallel.dp_degree > 1 else 0,
        sharding_reduce=width * reduced if level else 0,
        sharding_broadcast=width * (values.whole - freed) if level else 0,
        layer_broadcast=width * values.layer * _fetches(config, stage) if level == 3 else 0,
        mp_all_reduce=parts * _mp_bytes(config, stage) if parallel.mp_degree > 1 else 0,
        pp_send_receive=parts * neighbours * 2 * _rows_bytes(config),
        tied_all_reduce=width * values.tied,
    )


def _fetches(config: ViLGExperiment, stage: Stage) -> int:
    """How often a layer's weights come in a step. A layer that was the last one computed is still there: that where a forward
    and a backward follow one another, and the only one of a stage always."""
    layers = len(stage.layers)
    if layers == 1:
        return 1
    passes = [
        what for what, _ in pipeline.order(stage.number, config.parallel.pp_degree, config.train.gradient_accumulation_steps)
    ]
    return layers * len(passes) - sum(before != after for before, after in pairwise(passes))


def _mp_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """Sums over mp for one micro-batch: after the attention and the feed-forward part of each layer, again where they are
    computed again, and of the gradients of what they read; of embedded rows; of the gradients of what the heads read, and for
    each target its largest logit, its sum of exponentials and its own logit."""
    again = 2 if config.parallel.recompute == "full" else 0
    total = (4 + again) * len(stage.layers) * _rows_bytes(config)
    hidden = config.transformer.hidden
    if stage.first:
        total += _embedded_bytes(config)
    if stage.last:
        total += config.micro_batch * _targets(config) * (hidden + 3) * _width(config)
    return total


# Time


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

    An all-reduce of b bytes by k processes moves 2b(k - 1)/k through each of them (ring), any other call b.
    """
    parallel, parts = config.parallel, config.train.gradient_accumulation_steps
    sent = communication(config, stage, stage.held.busiest)
    # The axes lie within one another: of each, the groups lie in so many consecutive ranks.
    in_sharding = parallel.mp_degree * parallel.sharding_degree
    to_mp, to_sharding = cluster.bandwidth(parallel.mp_degree), cluster.bandwidth(in_sharding)
    to_pp, to_dp = cluster.bandwidth(in_sharding * parallel.pp_degree), cluster.bandwidth(parallel.world_size)
    pairs = config.micro_batch * parts
    compute = pair_flops(config, stage).done * pairs / parallel.mp_degree / (cluster.peak * cluster.utilization)
    mp = sent.mp_all_reduce * _ring(parallel.mp_degree) / to_mp
    rows = sent.pp_send_receive / to_pp
    fetch = sent.layer_broadcast / to_sharding
    reduce = sent.sharding_reduce / to_sharding
    repeated = compute + mp + rows + fetch + (reduce if _sharding_stage(config) > 1 else 0)
    return Seconds(
        compute=compute,
        bubble=repeated * (parallel.pp_degree - 1) / parts,
        dp=sent.dp_all_reduce * _ring(parallel.dp_degree) / to_dp,
        sharding=reduce + fetch + sent.sharding_broadcast / to_sharding,
        mp=mp,
        pp=rows + sent.tied_all_reduce * _ring(2) / to_pp,
    )


def _ring(processes: int) -> float:
    return 2 * (processes - 1) / processes


# Search


@dataclass(frozen=True)
class Plan:
    """A layout, which is its config's, and what it takes."""

    config: ViLGExperiment
    memory: Memory
    """Of the GPU that needs most."""
    seconds: Seconds


@dataclass(frozen=True)
class Misfits:
    """Layouts of one sort that do not fit with any number of micro-batches."""

    count: int
    closest: Plan
    """The one that needs the least memory."""


@dataclass(frozen=True)
class Search:
    """All layouts of a number of GPUs."""

    fitting: list[Plan]
    """Those that fit, the fastest first, each with the number of micro-batches that makes it fastest."""
    misfits: list[Misfits]
    """The others, by sharding stage and recompute."""
    refused: dict[str, int]
    """Why the batch cannot be cut for some, and for how many."""


def plan(config: ViLGExperiment, cluster: Cluster) -> Plan:
    """What the config's own layout takes."""
    return _plan(config, stages(config), cluster)


def _plan(config: ViLGExperiment, parts: list[Stage], cluster: Cluster) -> Plan:
    return Plan(
        config,
        max((memory(config, stage) for stage in parts), key=lambda found: found.total),
        max((seconds(config, stage, cluster) for stage in parts), key=lambda found: found.total),
    )


def search(config: ViLGExperiment, cluster: Cluster) -> Search:
    """Try every layout of the cluster's GPUs; precision and offload are the config's.

    Raises `UserError` where the machines are not all full.
    """
    if cluster.gpus > cluster.per_machine and cluster.gpus % cluster.per_machine:
        raise UserError(f"--gpus: {cluster.gpus} is not a multiple of --per-machine {cluster.per_machine}")
    fitting: list[Plan] = []
    misfits: dict[tuple, list[Plan]] = {}
    refused: dict[str, int] = {}
    pipelines: dict[tuple[int, int, int], list[Stage]] = {}
    for layout in layouts(config, cluster):
        batch = config.train.batch_size
        if batch % layout.data_world_size:
            why = f"train.batch_size {batch} is not a multiple of dp x sharding = {layout.data_world_size}"
            refused[why] = refused.get(why, 0) + 1
            continue
        cut, of = (layout.sharding_degree, layout.mp_degree, layout.pp_degree), replace(config, parallel=layout)
        if cut not in pipelines:
            pipelines[cut] = stages(of)
        plans = _micro_batched(of, pipelines[cut], cluster)
        fits = [found for found in plans if found.memory.total <= cluster.memory]
        if fits:
            fitting.append(min(fits, key=_speed))
        else:
            sort = (layout.sharding_degree > 1, layout.sharding_stage, _RECOMPUTE.index(layout.recompute))
            misfits.setdefault(sort, []).append(min(plans, key=lambda found: found.memory.total))
    groups = [Misfits(len(plans), min(plans, key=lambda found: found.memory.total)) for _, plans in sorted(misfits.items())]
    return Search(sorted(fitting, key=_speed), groups, refused)


def _speed(found: Plan) -> tuple[float, float]:
    """To sort by: of layouts that are equally fast the one that needs less memory comes first."""
    return found.seconds.total, found.memory.total


def _micro_batched(config: ViLGExperiment, parts: list[Stage], cluster: Cluster) -> list[Plan]:
    """The layout with its batch cut into each possible number of micro-batches."""
    counts = divisors(config.train.batch_size // config.parallel.data_world_size)
    cuts = [replace(config, train=replace(config.train, gradient_accumulation_steps=count)) for count in counts]
    return [_plan(cut, parts, cluster) for cut in cuts]


def layouts(config: ViLGExperiment, cluster: Cluster) -> Iterator[ParallelConfig]:
    """All that use every GPU, with mp and sharding within machines."""
    model, machine = config.transformer, min(cluster.gpus, cluster.per_machine)
    cuttable = math.gcd(model.heads, config.text.vocabulary_size, config.vqgan.codebook.size)
    for mp in divisors(math.gcd(machine, cuttable)):
        for sharding in divisors(machine // mp):
            for pp in divisors(cluster.gpus // (mp * sharding)):
                if pp > model.layers:
                    continue
                dp = cluster.gpus // (mp * sharding * pp)
                sizes = {"dp_degree": dp, "sharding_degree": sharding, "mp_degree": mp, "pp_degree": pp}
                for recompute in _RECOMPUTE:
                    # Stage 3 frees a layer's weights after its forward, so that has to be computed again.
                    most = 1 if sharding == 1 or pp > 1 else 3 if recompute == "full" and mp == 1 else 2
                    for stage in range(1, most + 1):
                        yield replace(config.parallel, **sizes, sharding_stage=stage, recompute=recompute)


def divisors(number: int) -> list[int]:
    """From 1 to the number itself."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
