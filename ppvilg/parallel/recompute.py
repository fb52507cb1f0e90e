"""Computing something again in the backward pass instead of keeping what it went through."""

from collections.abc import Callable

import paddle
from paddle.autograd import PyLayer

Run = Callable[[paddle.Tensor], paddle.Tensor]


def recomputed(run: Run, x: paddle.Tensor) -> paddle.Tensor:
    """run(x), of which only x is kept; random numbers are drawn alike both times."""
    return _Recomputed.apply(x, run) if paddle.is_grad_enabled() else run(x)


class _Recomputed(PyLayer):
    @staticmethod
    def forward(ctx, x, run):
        ctx.run, ctx.random = run, paddle.get_rng_state()
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx, gradient):
        (kept,) = ctx.saved_tensor()
        x = kept.detach()
        x.stop_gradient = False
        now = paddle.get_rng_state()
        paddle.set_rng_state(ctx.random)
        with paddle.enable_grad():
            y = ctx.run(x)
        paddle.set_rng_state(now)
        paddle.autograd.backward([y], [gradient])
        return x.grad
