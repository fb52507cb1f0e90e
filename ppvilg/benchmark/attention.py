"""One attention layer of each kind against dense attention with a mask."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg import ops
from ppvilg.benchmark.runner import Competitor, Timing, compare
from ppvilg.config import AttentionConfig
from ppvilg.model.attention import Attention
from ppvilg.model.layers import LayerNorm
from ppvilg.model.mask import AttentionMask, Direction

MASKED = "dense with mask"
KINDS = ["dense", "row", "column", "convolution"]


@dataclass(frozen=True)
class LayerSizes:
    """A layer, and `batch` sequences of each direction: a text and a grid of side x side image tokens."""

    hidden: int
    heads: int
    text_length: int
    side: int
    batch: int


def compare_attention(sizes: LayerSizes, repetitions: int, projections: bool) -> list[Timing]:
    """Forward and backward of each kind; with or without norm and projections, which cost the same whatever the kind. `MASKED`
    computes every score and masks those of a row layer, as one does without blocks."""
    competitors = [Competitor(name, layer_step, (sizes, name, projections)) for name in (MASKED, *KINDS)]
    return compare(competitors, repetitions, 2 * sizes.batch, "sequences")


def layer_step(sizes: LayerSizes, name: str, projections: bool) -> Callable[[], None]:
    """Forward and backward of one layer."""
    config = AttentionConfig()
    grid, kind = (sizes.side, sizes.side), "row" if name == MASKED else name
    masks = [AttentionMask(sizes.text_length, *grid, d, kind, config.kernel, config.strict_row) for d in Direction]
    shape = [2 * sizes.batch, masks[0].length, sizes.heads, sizes.hidden // sizes.heads]
    key_mask = paddle.ones(shape[:2], "bool")
    dense_with_mask = _dense_with_mask(masks, sizes.batch, sizes.heads) if name == MASKED else None
    norm, layer = LayerNorm(sizes.hidden), Attention(sizes.hidden, sizes.heads)
    inputs = [paddle.randn([*shape[:2], sizes.hidden] if projections else shape) for _ in range(1 if projections else 3)]
    for x in inputs:
        x.stop_gradient = False

    def attend(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        return dense_with_mask(q, k, v) if dense_with_mask else ops.sparse_attention(q, k, v, masks, key_mask)

    def whole(x: paddle.Tensor) -> paddle.Tensor:
        x = norm(x)
        q, k, v = (project(x).reshape(shape) for project in (layer.query, layer.key, layer.value))
        return layer.out(attend(q, k, v).flatten(2))

    def run() -> None:
        y = whole(*inputs) if projections else attend(*inputs)
        paddle.autograd.backward([y], [paddle.ones_like(y)])
        for tensor in (*inputs, *norm.parameters(), *layer.parameters()):
            tensor.clear_gradient(False)

    return run


def _dense_with_mask(masks: list[AttentionMask], batch: int, heads: int) -> Callable[..., paddle.Tensor]:
    """softmax(q k^T / sqrt(width) + bias) v, written out: on a CPU paddle's `scaled_dot_product_attention` is no faster."""
    bias = np.stack([np.where(mask.mask(), 0, -1e9).astype(np.float32) for mask in masks])
    # Laid out in full: paddle's addition of a broadcast [S, 1, L, L] is slower than its softmax.
    bias = paddle.to_tensor(bias).repeat_interleave(batch, 0).unsqueeze(1).expand([-1, heads, -1, -1]).contiguous()

    def attend(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
        scores = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True) + bias
        return paddle.matmul(F.softmax(scores), v).transpose([0, 2, 1, 3])

    return attend
