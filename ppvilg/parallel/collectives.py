"""Sums over processes as steps of a computation with gradients, and many small sums as few large ones."""

from collections.abc import Callable

import paddle
import paddle.distributed as dist
from paddle.autograd import PyLayer

from ppvilg.parallel.topology import Axis

BUCKET = 2**25
"""A message is sent as soon as it has so many values."""


def summed(x: paddle.Tensor, axis: Axis) -> paddle.Tensor:
    """The sum of the processes' parts; its gradient is every part's."""
    return x if axis.size == 1 else _Summed.apply(x, axis)


def shared(x: paddle.Tensor, axis: Axis) -> paddle.Tensor:
    """x, which all processes of the axis hold and of which each computes a part; its gradient is the sum of theirs."""
    return x if axis.size == 1 else _Shared.apply(x, axis)


def gathered(x: paddle.Tensor, axis: Axis) -> paddle.Tensor:
    """The rows [N, ...] of all processes, one after another; a process's rows get the gradients of all that use them."""
    return x if axis.size == 1 else _Gathered.apply(x, axis)


class _Gathered(PyLayer):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        parts = [paddle.empty_like(x) for _ in range(axis.size)]
        dist.all_gather(parts, x, group=axis.group)
        return paddle.concat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = ctx.axis.sum_(gradient.clone())
        return gradient[ctx.axis.cut(gradient.shape[0])]


class _Summed(PyLayer):
    @staticmethod
    def forward(ctx, x, axis):
        return axis.sum_(x.clone())

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()


class _Shared(PyLayer):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.axis.sum_(gradient.clone())


@paddle.no_grad()
def together(tensors: list[paddle.Tensor], message: Callable[[paddle.Tensor], object]) -> None:
    """Apply an in-place message (a sum, a broadcast) to tensors of one dtype that are laid out end to end."""
    bucket, size = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.size
        if size >= BUCKET:
            _one_message(bucket, message)
            bucket, size = [], 0
    if bucket:
        _one_message(bucket, message)


def _one_message(tensors: list[paddle.Tensor], message: Callable[[paddle.Tensor], object]) -> None:
    flat = paddle.concat([tensor.flatten() for tensor in tensors])
    message(flat)
    first = 0
    for tensor in tensors:
        paddle.assign(flat[first : first + tensor.size].reshape(tensor.shape), tensor)
        first += tensor.size
