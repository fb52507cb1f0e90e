"""One attention layer of each kind against dense attention with a mask."""

from collections.abc import Callable

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg.benchmark.timing import Timing, interleaved
from ppvilg.config import AttentionConfig
from ppvilg.transformer.attention import BlockAttention, SelfAttention, view
from ppvilg.transformer.pattern import HIDDEN, Direction, Pattern

MASKED = "dense with mask"
KINDS = ["dense", "row", "column", "convolution"]


def time_attention(
    hidden: int, heads: int, text_length: int, side: int, batch: int, repetitions: int, projections: bool
) -> list[Timing]:
    """Forward and backward over `batch` sequences of each direction, text and a grid of side x side; with or without the four
    projections, which cost the same whatever the kind. `MASKED` computes every score and masks, as one does without blocks."""
    attention = SelfAttention(hidden, heads, out_std=0.02)
    rows = 2 * batch * (text_length + side * side)
    inputs = [_leaf(rows, hidden) for _ in range(1 if projections else 3)]
    gradient = paddle.randn([rows, hidden])

    def run_of(attend: Callable[..., paddle.Tensor]) -> Callable[[], None]:
        def run() -> None:
            if projections:
                x = inputs[0]
                x = attention.norm(x)
                y = attention.out(attend(attention.query(x), attention.key(x), attention.value(x)))
            else:
                y = attend(*inputs)
            paddle.autograd.backward([y], [gradient])
            for x in inputs:
                x.clear_gradient(False)
            attention.clear_gradients(set_to_zero=False)

        return run

    config = AttentionConfig()
    patterns = {
        kind: [Pattern(text_length, side, side, d, kind, config.kernel, config.strict_row) for d in Direction] for kind in KINDS
    }
    runs = {MASKED: run_of(_masked(patterns["row"], batch, heads))}
    runs |= {kind: run_of(_blocks(patterns[kind], batch, heads)) for kind in KINDS}
    return interleaved(runs, repetitions, 2 * batch, "sequences")


def _leaf(rows: int, hidden: int) -> paddle.Tensor:
    x = paddle.randn([rows, hidden])
    x.stop_gradient = False
    return x


def _blocks(patterns: list[Pattern], batch: int, heads: int) -> Callable[..., paddle.Tensor]:
    valid = paddle.ones([batch, patterns[0].text_length], dtype="bool")
    views = [view(pattern, valid, heads) for pattern in patterns]
    return lambda queries, keys, values: BlockAttention.apply(queries, keys, values, views, heads)


def _masked(patterns: list[Pattern], batch: int, heads: int) -> Callable[..., paddle.Tensor]:
    bias = np.stack([np.where(pattern.mask(), 0, HIDDEN).astype(np.float32) for pattern in patterns])
    bias = paddle.to_tensor(bias).repeat_interleave(batch, 0).unsqueeze(1).expand([-1, heads, -1, -1]).contiguous()
    shape = [2 * batch, patterns[0].length, heads, -1]

    def attend(queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor) -> paddle.Tensor:
        split = [t.reshape(shape).transpose([0, 2, 1, 3]) for t in (queries, keys, values)]
        scores = paddle.matmul(split[0] * split[0].shape[-1] ** -0.5, split[1], transpose_y=True) + bias
        return paddle.matmul(F.softmax(scores), split[2]).transpose([0, 2, 1, 3]).reshape(queries.shape)

    return attend
