"""What a layout takes under Fleet, worked out from shapes: FLOPs, memory, messages, time. tools/plan.py says what was measured.

Left out, because they are small beside the rest: norms, softmax and GELU in the FLOPs, sums of scalars, and what CUDA needs for
itself. Texts count as long as they may be. Everything is of one optimizer step; sizes are in bytes.

A product of [a, b] and [b, c] is 2abc FLOPs. m and n are the text and image slots of a sequence; a pair is computed in the
directions that are trained, so it has 2(m + n) rows, or m + n.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ppvilg.config import AttentionKind, ViLGExperiment
from ppvilg.model.config import trained_directions, vilg_config
from ppvilg.model.mask import AttentionMask, Direction
from ppvilg.plan.shapes import Stage, owned_values, sliced_values, stages

Amounts = dict[str, float]


@dataclass(frozen=True)
class Cluster:
    """The GPUs. The defaults are nominal figures of A100 machines (NVIDIA's data sheets of A100 and DGX A100), which nobody has
    measured with this code: give what yours reach."""

    gpus: int
    memory: float = 80e9
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


# FLOPs


class Scores(NamedTuple):
    """What the attention of one head computes in blocks: scores, hidden ones included; those of them in rows that also see a
    prefix; rows of keys that are gathered."""

    pairs: int
    with_prefix: int
    keys: int


@lru_cache(maxsize=64)
def _scores(mask: AttentionMask) -> Scores:
    pairs = with_prefix = keys = 0
    for blocks in mask.blocks():
        scores = blocks.mask.size
        if blocks.prefix is not None:
            scores += blocks.queries.size * (blocks.prefix.stop - blocks.prefix.start)
            with_prefix += scores
        pairs, keys = pairs + scores, keys + blocks.keys.size
    return Scores(pairs, with_prefix, keys)


def pair_scores(config: ViLGExperiment, kind: AttentionKind) -> Scores:
    """Those of the directions of a pair in a layer of a kind."""
    masks = [vilg_config(config).mask(kind, one, config.text.max_length) for one in trained_directions(config.train)]
    return Scores(*map(sum, zip(*map(_scores, masks), strict=True)))


def pair_flops(config: ViLGExperiment, stage: Stage) -> Amounts:
    """What a stage computes for one pair, forward and backward, all tensor parallel processes together: `layers`, `head`,
    `embedding` (the projection of a text table of another width), and `recompute`, what the backward computes again."""
    model, m, width = config.transformer, config.text_tokens, config.text.embedding_width or config.transformer.hidden
    # Queries, keys, values, output and the two products of the MLP; scores, and the sums of values by them.
    directions = config.train.sequences_per_pair
    products = directions * 2 * (m + config.image_tokens) * (4 + 2 * model.ffn_multiplier) * model.hidden**2
    scores = sum(count * 4 * pair_scores(config, kind).pairs * model.hidden for kind, count in stage.kinds.items())
    layers = products * sum(stage.kinds.values()) + scores
    head = 2 * model.hidden * _logits(config)
    projection = directions * 2 * m * width * model.hidden if width != model.hidden else 0
    return {  # a backward has two products for each of the forward
        "layers": 3 * layers,
        "head": 3 * head * stage.is_last,
        "embedding": 3 * projection * stage.is_first,
        "recompute": layers * (config.parallel.recompute == "full"),
    }


def step_flops(config: ViLGExperiment) -> Amounts:
    """What all GPUs together compute."""
    [whole] = stages(replace(config, parallel=replace(config.parallel, mp_degree=1, pp_degree=1)))
    return {name: flops * config.train.batch_size for name, flops in pair_flops(config, whole).items()}


# Memory


def memory(config: ViLGExperiment, stage: Stage) -> Amounts:
    """Of the process of a pipeline stage that owns most, by what is in it:

    weights; gradients (float32 beside narrower weights, unless offloaded: Fleet's main gradients); optimizer (AdamW's moments,
    moving average, float32 weights beside narrower ones); fetched (stage 3: the weights of the layer that is computed);
    activations that forward passes keep; recomputed (what one layer keeps while its backward runs); logits (what the losses
    keep, and its gradient); workspace (gradients within one layer); messages (gradients that come up the pipeline and go on);
    update (after the backward: gradients laid end to end to be summed over data parallel processes).
    """
    parallel, width, gradient, level = config.parallel, _width(config), _gradient_width(config), _level(config)
    own, largest = max(owned_values(config, stage)), max(stage.trained.values())
    states = 2 + bool(config.train.ema_decay) + (parallel.precision != "fp32")
    # Stages 2 and 3 have the gradient of one parameter at a time besides their own.
    gradients = stage.trained_values if level < 2 else largest if parallel.offload else own + largest
    large, small = sliced_values(stage.sizes)
    weights = stage.values if level < 3 else small + (0 if parallel.offload else large // parallel.sharding_degree)
    in_flight = min(config.train.gradient_accumulation_steps, stage.count - stage.number)  # 1F1B
    layer = max(_layer_bytes(config, kind) for kind in stage.kinds)
    return {
        "weights": width * weights,
        "gradients": gradient * gradients,
        "optimizer": 0 if parallel.offload else 4 * states * own,
        "fetched": width * largest * (level == 3),
        "activations": in_flight * _kept_bytes(config, stage),
        "recomputed": layer * (parallel.recompute == "full"),
        # Where tensor parallelism shares out the vocabularies, the losses keep the logits as well.
        "logits": _softmax_bytes(config) * (3 if parallel.mp_degree > 1 else 2) * stage.is_last,
        "workspace": layer,
        "messages": (2 - stage.is_first - stage.is_last) * _between_bytes(config),
        "update": gradient * own * (parallel.dp_degree > 1 and level < 2),
    }


def peak(found: Amounts) -> float:
    """When most is there: in a backward, or in the update after it."""
    standing = found["weights"] + found["gradients"] + found["optimizer"]
    return standing + max(sum(found.values()) - standing - found["update"], found["update"])


def forward_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """What a forward pass over one micro-batch keeps for its backward on a stage, by paddle's functions."""
    return _kept_bytes(config, stage) + _softmax_bytes(config) * stage.is_last


def _width(config: ViLGExperiment) -> int:
    """Bytes of a weight or an activation."""
    return 4 if config.parallel.precision == "fp32" else 2


def _gradient_width(config: ViLGExperiment) -> int:
    return _width(config) if config.parallel.offload else 4


def _level(config: ViLGExperiment) -> int:
    """The sharding stage; 0 where there is nobody to share with."""
    return config.parallel.sharding_stage if config.parallel.sharding_degree > 1 else 0


def _rows_bytes(config: ViLGExperiment) -> int:
    """[rows of a micro-batch, hidden]."""
    sequences = config.train.sequences_per_pair * config.micro_batch
    rows = sequences * (config.text_tokens + config.image_tokens)
    return rows * config.transformer.hidden * _width(config)


def _between_bytes(config: ViLGExperiment) -> float:
    """Those of them that a process has between two layers."""
    return _rows_bytes(config) / (config.parallel.mp_degree if config.parallel.sequence_parallel else 1)


def _layer_bytes(config: ViLGExperiment, kind: AttentionKind) -> float:
    """What one block of a kind keeps of a micro-batch, computed by paddle's functions (`ops.block_attention`)."""
    model, rows, scores = config.transformer, _rows_bytes(config), pair_scores(config, kind)
    of_pair = config.micro_batch * _width(config)
    slots = config.train.sequences_per_pair * (config.text_tokens + config.image_tokens)
    prefix = slots - sum(_target_slots(config))
    # Queries, and weighted values before and after padding is cleared.
    shared = 3 * rows
    # Keys and values of the blocks, and those of the prefix once more for the target.
    shared += 2 * (scores.keys + prefix) * model.hidden * of_pair
    # Probabilities, and once more in two pieces where there is a prefix.
    shared += (scores.pairs + scores.with_prefix) * model.heads * of_pair
    shared += 2 * rows * model.ffn_multiplier  # GELU's input and output
    dropped = 2 * rows // _width(config) if model.dropout else 0  # which values, a byte for each
    # What norms read, and what they give; tensor parallel queries, keys and values have each a copy of that.
    norms = 4 if model.sandwich_norm else 2
    between = norms * _between_bytes(config) + (4 if config.parallel.mp_degree > 1 else 2) * rows
    return between + shared / config.parallel.mp_degree + dropped


def _kept_bytes(config: ViLGExperiment, stage: Stage) -> float:
    """What a stage keeps of each micro-batch until its backward, apart from the losses."""
    rows, row, model = _rows_bytes(config), config.micro_batch * _width(config), config.transformer
    full, width = config.parallel.recompute == "full", config.text.embedding_width or model.hidden
    between = _between_bytes(config)
    kept = sum(count * (between if full else _layer_bytes(config, kind)) for kind, count in stage.kinds.items())
    texts = config.train.sequences_per_pair * row * config.text_tokens
    kept += texts * width * (stage.is_first and width != model.hidden)
    # What the last norm and the head read (its own norm once more), or what went down the pipeline.
    head = (1 + model.head_norm) * row * sum(_decided(config)) * model.hidden
    return kept + (rows + head if stage.is_last else between)


def _target_slots(config: ViLGExperiment) -> tuple[int, int]:
    """How many of a pair's slots are a target's: the image's n, the text's m, 0 where they are no target."""
    directions = trained_directions(config.train)
    image, text = (direction in directions for direction in (Direction.TEXT_TO_IMAGE, Direction.IMAGE_TO_TEXT))
    return image * config.image_tokens, text * config.text.max_length


def _decided(config: ViLGExperiment) -> tuple[int, int]:
    """How many tokens of a pair are decided: all of the image, those of the text after the first."""
    image, text = _target_slots(config)
    return image, max(text - 1, 0)


def _logits(config: ViLGExperiment) -> int:
    """Of a pair."""
    image, text = _decided(config)
    return image * config.vqgan.codebook.size + text * config.text.vocabulary_size


def _softmax_bytes(config: ViLGExperiment) -> float:
    """Probabilities of all targets of a micro-batch, in float32."""
    return config.micro_batch * _logits(config) * 4 / config.parallel.mp_degree


# Messages and time


def communication(config: ViLGExperiment, stage: Stage) -> Amounts:
    """Bytes of the tensors that the process of a stage that owns most passes to calls of each kind; each call counts once:

    dp all_reduce (gradients of what it owns; in stage 3 whole gradients, after each micro-batch); sharding reduce (stage 1
    after the last micro-batch, stage 2 after each) or all_reduce (stage 3); sharding broadcast (updated weights) or all_gather
    (stage 3: each layer's weights for each time that it is computed); mp all_reduce and pp send/receive (of each micro-batch);
    tied all_reduce (tables that the first and the last stage share).
    """
    parallel, parts, level = config.parallel, config.train.gradient_accumulation_steps, _level(config)
    width, gradient, own = _width(config), _gradient_width(config), max(owned_values(config, stage))
    large, small = sliced_values(stage.trained)
    repeated = parts * large + small
    summed, gathered = _mp_bytes(config, stage) if parallel.mp_degree > 1 else (0, 0)
    return {
        "dp all_reduce": gradient * (repeated if level == 3 else own) * (parallel.dp_degree > 1),
        "sharding reduce": gradient * stage.trained_values * (0, 1, parts, 0)[level],
        "sharding all_reduce": gradient * repeated * (level == 3),
        "sharding broadcast": width * stage.trained_values * (level in (1, 2)),
        "sharding all_gather": width * parts * (3 if parallel.recompute == "full" else 2) * large * (level == 3),
        "mp all_reduce": parts * summed,
        "mp gather/scatter": parts * gathered,
        "pp send/receive": parts * (2 - stage.is_first - stage.is_last) * 2 * _between_bytes(config),
        "tied all_reduce": gradient * stage.tied,
    }


def _mp_bytes(config: ViLGExperiment, stage: Stage) -> tuple[float, float]:
    """For one micro-batch what is summed, and what is gathered or scattered.

    After attention and MLP of each block, again where they are computed again, and the gradients of what queries, keys, values
    and the MLP read: sums of all rows, or with shared out sequences a gather before and a scatter after. Embedded rows; the
    gradients of what the head reads, and three numbers of each target.
    """
    row, hidden, blocks = config.micro_batch * _width(config), config.transformer.hidden, sum(stage.kinds.values())
    text_width, recomputed = config.text.embedding_width or hidden, config.parallel.recompute == "full"
    embedded = config.text_tokens * text_width + config.image_tokens * hidden
    summed = config.train.sequences_per_pair * row * embedded * stage.is_first
    summed += row * sum(_decided(config)) * (hidden + 3) * stage.is_last
    if not config.parallel.sequence_parallel:
        return summed + (8 if recomputed else 6) * blocks * _rows_bytes(config), 0
    return summed, ((18 if recomputed else 12) * blocks + stage.is_first + stage.is_last) * _rows_bytes(config)


def seconds(config: ViLGExperiment, stage: Stage, cluster: Cluster) -> Amounts:
    """How long a step takes if all stages are like this one and nothing overlaps: `compute` (products, those that are computed
    again included), `bubble` (waiting for the pipeline to fill and to empty), and messages by axis.

    An all_reduce of b bytes by k processes moves 2b(k - 1)/k through each of them (ring), any other call b.
    """
    parallel, sent = config.parallel, communication(config, stage)
    # The axes lie within one another: of each, the groups lie in so many consecutive ranks.
    sizes = {"mp": parallel.mp_degree, "sharding": parallel.sharding_degree, "pp": stage.count, "dp": parallel.dp_degree}
    found, span = {}, 1
    for axis, size in sizes.items():
        span *= size
        moved = sum(sent[name] for name in sent if name.startswith(axis) and not name.endswith("all_reduce"))
        found[axis] = (moved + sent.get(f"{axis} all_reduce", 0) * 2 * (size - 1) / size) / cluster.bandwidth(span)
    found["pp"] += sent["tied all_reduce"] / cluster.bandwidth(span // parallel.dp_degree)
    flops = sum(pair_flops(config, stage).values()) * config.micro_batch * config.train.gradient_accumulation_steps
    compute = flops / parallel.mp_degree / (cluster.peak * cluster.utilization)
    waiting = (compute + found["mp"] + found["pp"]) * (stage.count - 1) / config.train.gradient_accumulation_steps
    return {"compute": compute, "bubble": waiting} | found
