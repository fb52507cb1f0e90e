"""Where a process stands among those that train together."""

from dataclasses import dataclass

import paddle
import paddle.distributed as dist
from paddle.autograd import PyLayer


@dataclass(frozen=True)
class ParallelContext:
    """The groups of processes that this one belongs to, None where the group would be itself alone; the defaults are those of a
    process that trains alone."""

    world_size: int = 1
    rank: int = 0
    dp_group: object = None
    sharding_group: object = None
    mp_group: object = None
    pp_group: object = None

    @property
    def data_world_size(self) -> int:
        """Into how many parts a batch is divided."""
        return _size(self.dp_group) * _size(self.sharding_group)

    @property
    def data_rank(self) -> int:
        """Which part of the batch is this process's."""
        return _rank(self.dp_group) * _size(self.sharding_group) + _rank(self.sharding_group)

    @property
    def is_first_stage(self) -> bool:
        """Whether the embedding is here."""
        return _rank(self.pp_group) == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the head is here, and so the losses are known."""
        return _rank(self.pp_group) == _size(self.pp_group) - 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process, of all, makes folders and writes logs; it is one that knows the losses."""
        return self.data_rank == 0 and _rank(self.mp_group) == 0 and self.is_last_stage

    @property
    def replica_size(self) -> int:
        """How many processes hold the model and the optimizer's state once; their ranks are consecutive."""
        return self.world_size // _size(self.dp_group)

    @property
    def replica(self) -> int:
        """To which of these this process belongs."""
        return _rank(self.dp_group)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world_size == 1:
            return flag
        answer = paddle.to_tensor([int(flag)])
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer.item())

    def mean(self, x: paddle.Tensor) -> paddle.Tensor:
        """The mean of x over the parts of the batch."""
        x = x / self.data_world_size
        for group in (self.sharding_group, self.dp_group):
            if group is not None:
                dist.all_reduce(x, group=group)
        return x

    def all_gather(self, x: paddle.Tensor) -> paddle.Tensor:
        """The rows [N, ...] of all parts of the batch, one part after another; a row gets the gradients of all that use it."""
        for group in (self.sharding_group, self.dp_group):
            if group is not None:
                x = _AllGather.apply(x, group)
        return x


class _AllGather(PyLayer):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group, ctx.rows = group, x.shape[0]
        parts: list[paddle.Tensor] = []
        dist.all_gather(parts, x, group=group)
        return paddle.concat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        first = ctx.group.rank * ctx.rows
        return gradient[first : first + ctx.rows]


def _size(group: object) -> int:
    return 1 if group is None else group.nranks


def _rank(group: object) -> int:
    return 0 if group is None else group.rank
