"""Which process does what: its place on each axis of the layout, and the groups it talks to.

The axes from the outermost to the innermost are dp, pp, sharding, mp: the processes of one machine, which have consecutive
ranks, first share each other's matrices, then sharding, as the paper keeps it (section 3.2).
"""

import os
from dataclasses import dataclass, field, replace
from itertools import pairwise

import paddle
import paddle.distributed as dist

from ppvilg.config import ParallelConfig
from ppvilg.errors import UserError


@dataclass(frozen=True)
class Axis:
    """One way of sharing work: `size` processes, of which this is number `rank`; `ranks` are their global ranks."""

    size: int = 1
    rank: int = 0
    ranks: tuple[int, ...] = (0,)
    group: object = None

    def sum_(self, x: paddle.Tensor) -> paddle.Tensor:
        """Add up x over the axis, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def max_(self, x: paddle.Tensor) -> paddle.Tensor:
        """The largest of x over the axis, in place."""
        if self.size > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MAX, group=self.group)
        return x

    def cut(self, length: int) -> slice:
        """This process's part of `length` equal things."""
        part = length // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


ALONE = Axis()


@dataclass(frozen=True)
class Topology:
    """A process's place in the layout; without arguments that of a process that works alone."""

    dp: Axis = ALONE
    sharding: Axis = ALONE
    mp: Axis = ALONE
    pp: Axis = ALONE
    ends: Axis = ALONE
    """The first and the last pipeline stage, which share tied tables."""
    neighbours: dict[tuple[int, int], object] = field(default_factory=dict)
    """Groups of two global ranks (sender, receiver) that follow one another in the pipeline."""
    rank: int = 0

    @property
    def data_ranks(self) -> int:
        """Into how many parts a batch is cut."""
        return self.dp.size * self.sharding.size

    @property
    def data_rank(self) -> int:
        """Which part of the batch is this process's."""
        return self.dp.rank * self.sharding.size + self.sharding.rank

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.data_ranks * self.mp.size * self.pp.size

    @property
    def first_stage(self) -> bool:
        """Whether the embeddings are here."""
        return self.pp.rank == 0

    @property
    def last_stage(self) -> bool:
        """Whether the head is here."""
        return self.pp.rank == self.pp.size - 1

    @property
    def leads(self) -> bool:
        """Whether this process, of all, makes folders and writes logs: one that knows the losses."""
        return self.data_rank == self.mp.rank == 0 and self.last_stage

    def mean_of_parts(self, x: paddle.Tensor) -> paddle.Tensor:
        """The mean of x over the parts of the batch, in place."""
        if self.data_ranks > 1:
            self.sharding.sum_(self.dp.sum_(x)).scale_(1 / self.data_ranks)
        return x

    def any(self, said: bool) -> bool:
        """Whether any process says so."""
        if self.processes == 1:
            return said
        answer = paddle.to_tensor([int(said)])
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer.item())

    def wait(self) -> None:
        """For all processes to come this far."""
        if self.processes > 1:
            dist.barrier()


def launched_processes() -> int:
    """How many processes paddle.distributed.launch has started; 1 without it."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def join(config: ParallelConfig) -> Topology:
    """This process's place among those that were launched, connected to the others.

    Raises `UserError` if their number is not the config's.
    """
    found = launched_processes()
    if found != config.world_size:
        raise UserError(
            f"parallel: dp {config.dp_degree} x sharding {config.sharding_degree} x mp {config.mp_degree} x pp "
            f"{config.pp_degree} are {config.world_size} processes, but "
            f"{found} {'is' if found == 1 else 'are'} running: launch {config.world_size} with "
            f"python -m paddle.distributed.launch --nproc_per_node, or change the parallel section"
        )
    if found == 1:
        return Topology()
    dist.init_parallel_env()
    return _connected(config)


def place(config: ParallelConfig, rank: int) -> Topology:
    """The place of a rank in a layout, without any connection: to build or count what that process would hold."""
    lists = _rank_lists(config)
    axes = {}
    for axis, groups in lists.items():
        ranks = next(group for group in groups if rank in group)
        axes[axis] = Axis(len(ranks), ranks.index(rank), ranks)
    return Topology(**axes, rank=rank)


def _rank_lists(config: ParallelConfig) -> dict[str, list[tuple[int, ...]]]:
    """The groups of global ranks along each axis."""
    from paddle.distributed import fleet

    topology = fleet.CommunicateTopology(
        ["dp", "pp", "sharding", "mp"], [config.dp_degree, config.pp_degree, config.sharding_degree, config.mp_degree]
    )
    return {axis: [tuple(ranks) for ranks in topology.get_comm_list(axis)] for axis in ("dp", "sharding", "mp", "pp")}


def _connected(config: ParallelConfig) -> Topology:
    """All processes call this and make all groups in the same order, as paddle demands; equal groups are made once."""
    rank = dist.get_rank()
    groups: dict[tuple[int, ...], object] = {tuple(range(config.world_size)): dist.get_group(0)}

    def connected(axis: Axis) -> Axis:
        return replace(axis, group=groups[axis.ranks]) if axis.size > 1 else axis

    lists = _rank_lists(config)
    ends = [(ranks[0], ranks[-1]) for ranks in lists["pp"]] if config.pp_degree > 1 else []
    for ranks in [group for axis in lists.values() for group in axis] + ends:
        if len(ranks) > 1 and ranks not in groups:
            groups[ranks] = dist.new_group(list(ranks))
    # A group for each sender and receiver, because gloo matches messages by their number within a group.
    pairs = [pair for stages in lists["pp"] for a, b in pairwise(stages) for pair in ((a, b), (b, a))]
    neighbours = {pair: dist.new_group(list(pair)) for pair in pairs}
    alone = place(config, rank)
    axes = {axis: connected(getattr(alone, axis)) for axis in lists}
    mine = next((pair for pair in ends if rank in pair), None)
    both = connected(Axis(2, mine.index(rank), mine)) if mine else ALONE
    return replace(alone, **axes, ends=both, neighbours=neighbours)
