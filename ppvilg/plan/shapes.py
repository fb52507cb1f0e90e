"""Which parameters each process of a layout holds: those of the model, built without memory, as Fleet shares them out."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import paddle
from paddle.distributed import fleet
from paddle.distributed.communication.group import Group
from paddle.distributed.fleet.layers.mpu.random import MODEL_PARALLEL_RNG, get_rng_state_tracker
from paddle.distributed.fleet.utils.log_util import set_log_level

from ppvilg.config import AttentionKind, ViLGExperiment
from ppvilg.model.config import ViLGConfig, untrained_parameters, vilg_config
from ppvilg.model.vilg import ViLG
from ppvilg.train.fleet import SEGMENT_SIZE
from ppvilg.train.pipe import stage_starts


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
    untrained: tuple[str, ...] = ()
    """What the names of parameters begin with that are not trained."""

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

    @property
    def trained(self) -> dict[str, int]:
        """The sizes of the parameters that are trained."""
        return {name: size for name, size in self.sizes.items() if not name.startswith(self.untrained)}

    @property
    def trained_values(self) -> int:
        """All of them."""
        return sum(self.trained.values())


def parameter_sizes(config: ViLGConfig, mp: int = 1) -> dict[str, int]:
    """How many values of each parameter a tensor parallel process holds; the model is built, but not allocated."""
    with paddle.LazyGuard(), without_processes():
        model = ViLG(config, Group(0, 0, list(range(mp))) if mp > 1 else None)
    return {name: parameter.size for name, parameter in model.named_parameters()}


@contextmanager
def without_processes() -> Iterator[None]:
    """What Fleet's layers ask for when they are made, without a job."""
    set_log_level("WARNING")
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
    """The pipeline of a layout. Raises `ValueError` for a reconstructor and for a text encoder, which are not planned."""
    if config.transformer.reconstructor:
        raise ValueError("transformer.reconstructor: its decoder cannot be planned: add -o transformer.reconstructor=false")
    if config.text.encoder is not None:
        raise ValueError("text.encoder: its layers cannot be planned: add -o text.encoder=null")
    model, parallel = vilg_config(config), config.parallel
    everything, count = parameter_sizes(model, parallel.mp_degree), parallel.pp_degree
    # Layer 0 is the embedding, layer i block i - 1.
    ends = [*stage_starts(model, count)[1:-1], model.layers + 1]
    untrained = untrained_parameters(config)
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
        found.append(Stage(number, count, kinds, sizes, shared, untrained))
    return found


def owned_values(config: ViLGExperiment, stage: Stage) -> list[int]:
    """How many values each process of the sharding group updates, as Fleet shares them out."""
    parallel, sizes = config.parallel, list(stage.trained.values())
    if parallel.sharding_stage == 3:
        large, small = sliced_values(stage.trained)
        return [large // parallel.sharding_degree + small] * parallel.sharding_degree
    owned = [0] * parallel.sharding_degree
    for size in sorted(sizes, reverse=True) if parallel.sharding_stage == 1 else sizes:
        owned[owned.index(min(owned))] += size
    return owned


def sliced_values(sizes: dict[str, int]) -> tuple[int, int]:
    """Values of the parameters that stage 3 slices, and of those that every process keeps whole."""
    large = sum(size for size in sizes.values() if size > SEGMENT_SIZE)
    return large, sum(sizes.values()) - large


def parameter_counts(config: ViLGExperiment) -> dict[str, int]:
    """How many values the whole model has: embedding, blocks, head."""
    counts: Counter[str] = Counter()
    for name, size in parameter_sizes(vilg_config(config)).items():
        counts[name.partition(".")[0]] += size
    return dict(counts)
