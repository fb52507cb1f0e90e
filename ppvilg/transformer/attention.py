"""Multi-head self-attention under a pattern: over the whole sequence in training, slot by slot with a cache in decoding."""

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg.transformer.layers import Linear
from ppvilg.transformer.pattern import Pattern

_HIDDEN = -1e9  # added to the scores of keys that a query does not see


def attention_bias(patterns: list[Pattern], text_valid: paddle.Tensor, heads: int) -> paddle.Tensor:
    """What is added to the scores so that each query sees only its pattern's slots and no padding.

    `text_valid` bool [B, m] is True for real tokens. Returns float32 [len(patterns) * B, heads, m+n, m+n]: the batch once
    for each pattern. It is laid out in full, since paddle's broadcasting addition is several times slower.
    """
    batch, m = text_valid.shape
    length = patterns[0].length
    keys = paddle.concat([text_valid, paddle.ones([batch, length - m], dtype="bool")], axis=1)
    biases = []
    for pattern in patterns:
        visible = paddle.to_tensor(pattern.mask()).unsqueeze(0) & keys.unsqueeze(1)
        # A padded slot sees itself, so that its (unused) row has a softmax.
        visible = visible | paddle.eye(length).astype("bool").unsqueeze(0)
        biases.append(paddle.where(visible, paddle.zeros([]), paddle.full([], _HIDDEN)))
    return paddle.concat(biases).unsqueeze(1).expand([-1, heads, -1, -1]).contiguous()


class Cache:
    """Keys and values of one layer for all m+n slots, allocated once; slots are filled as they are decoded."""

    def __init__(self, batch: int, heads: int, length: int, width: int):
        self.keys = paddle.zeros([batch, heads, length, width])
        self.values = paddle.zeros([batch, heads, length, width])

    def write(self, slots: slice, keys: paddle.Tensor, values: paddle.Tensor) -> None:
        """Fill `slots` with keys and values [batch, heads, len(slots), width]."""
        self.keys[:, :, slots] = keys
        self.values[:, :, slots] = values


class SelfAttention(nn.Layer):
    """Multi-head attention of width `hidden`; the scores get a bias that hides what the pattern does not show."""

    def __init__(self, hidden: int, heads: int, out_std: float):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(hidden, 3 * hidden)
        self.out = Linear(hidden, hidden, std=out_std)

    def forward(self, x: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        """[B, m+n, hidden] with bias [B, heads, m+n, m+n] -> [B, m+n, hidden]."""
        queries, keys, values = self._project(x)
        return self._attend(queries, keys, values, bias)

    def cached(self, x: paddle.Tensor, cache: Cache, slots: slice, bias: paddle.Tensor) -> paddle.Tensor:
        """Attention of the given slots only: [B, len(slots), hidden] with bias [B, heads, len(slots), m+n]."""
        queries, keys, values = self._project(x)
        cache.write(slots, keys, values)
        return self._attend(queries, cache.keys, cache.values, bias)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `length` slots."""
        hidden = self.out.weight.shape[0]
        return Cache(batch, self.heads, length, hidden // self.heads)

    def _project(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, L, hidden] -> queries, keys, values, each [B, heads, L, width]; the queries are scaled."""
        batch, length, hidden = x.shape
        width = hidden // self.heads
        qkv = self.qkv(x).reshape([batch, length, 3, self.heads, width]).transpose([2, 0, 3, 1, 4])
        queries, keys, values = qkv.unbind(0)
        return queries * width**-0.5, keys, values

    def _attend(self, queries, keys, values, bias) -> paddle.Tensor:
        scores = paddle.matmul(queries, keys, transpose_y=True) + bias
        context = paddle.matmul(F.softmax(scores), values)
        batch, heads, length, width = context.shape
        return self.out(context.transpose([0, 2, 1, 3]).reshape([batch, length, heads * width]))
