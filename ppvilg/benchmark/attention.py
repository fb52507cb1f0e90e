"""One attention layer of each kind against the dense one."""

from collections.abc import Callable

import paddle

from ppvilg.benchmark.timing import Timing, interleaved
from ppvilg.config import AttentionConfig
from ppvilg.transformer.attention import SelfAttention, view
from ppvilg.transformer.pattern import Direction, Pattern

KINDS = ["dense", "row", "column", "convolution"]


def time_attention(
    hidden: int, heads: int, text_length: int, side: int, batch: int, repetitions: int, directions: list[Direction]
) -> list[Timing]:
    """Forward and backward of a layer over `batch` sequences of each direction, text and a grid of side x side."""
    attention = SelfAttention(hidden, heads, out_std=0.02)
    length = text_length + side * side
    x = paddle.randn([len(directions) * batch, length, hidden])
    x.stop_gradient = False
    gradient = paddle.randn(x.shape)
    valid = paddle.ones([batch, text_length], dtype="bool")

    def run_of(kind: str) -> Callable[[], None]:
        config = AttentionConfig()
        patterns = [Pattern(text_length, side, side, d, kind, config.kernel, config.strict_row) for d in directions]
        views = [view(pattern, valid, heads) for pattern in patterns]

        def run() -> None:
            paddle.autograd.backward([attention(x, views)], [gradient])
            x.clear_gradient(set_to_zero=False)
            attention.clear_gradients(set_to_zero=False)

        return run

    runs = {kind: run_of(kind) for kind in KINDS}
    return interleaved(runs, repetitions, len(directions) * batch, "sequences")
