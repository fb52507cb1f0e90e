"""Multi-head self-attention under a mask: over whole sequences, over a prefix alone, or for the next token with a cache."""

from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg import ops
from ppvilg.model.kv_cache import Cache, Prefix, StepInputs
from ppvilg.model.layers import column_linear, matrix, row_linear
from ppvilg.model.mask import AttentionMask

ABSORBED = ("key_by_head", "value_by_head")
"""What `Attention.absorb_projections` keeps."""


class Attention(nn.Layer):
    """Attention of width `hidden`; tensor parallel processes have some of the heads each.

    Keys and values have no bias: one of the keys adds the same to all of a query's scores and drops out of the softmax, one of
    the values adds a constant to the context, which the output's bias already does.
    """

    def __init__(self, hidden: int, heads: int, mp_group=None):
        super().__init__()
        self.heads = heads // (1 if mp_group is None else mp_group.nranks)
        self.width = hidden // heads
        self.query = column_linear(hidden, hidden, mp_group=mp_group, shared=True)
        self.key = column_linear(hidden, hidden, bias=False, mp_group=mp_group, shared=True)
        self.value = column_linear(hidden, hidden, bias=False, mp_group=mp_group, shared=True)
        self.out = row_linear(hidden, hidden, mp_group)

    def forward(self, x: paddle.Tensor, masks: Sequence[AttentionMask], key_mask: paddle.Tensor) -> paddle.Tensor:
        """Sequences [S, L, hidden], shared evenly among `masks` in their order, key_mask bool [S, L] -> [S, L, hidden]."""
        return self.out(ops.sparse_attention(*self._projections(x), masks, key_mask).flatten(2))

    def prefill(
        self, x: paddle.Tensor, masks: Sequence[AttentionMask] | None, key_mask: paddle.Tensor, causal: bool
    ) -> tuple[paddle.Tensor, Prefix]:
        """As `forward`, and the keys and values that targets read. Without masks every query sees every key that the key mask
        allows, or if `causal` those up to itself."""
        q, k, v = self._projections(x)
        context = ops.sparse_attention(q, k, v, masks, key_mask, causal)
        return self.out(context.flatten(2)), Prefix(k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3]))

    def decode_step(self, x: paddle.Tensor, prefix: Prefix, cache: Cache, step: StepInputs) -> paddle.Tensor:
        """The next target token of each sequence: [B, hidden] -> [B, hidden]. An
        `AbsorbedCache` needs `absorb_projections` before the first step."""
        q = self.query(x).reshape([-1, self.heads, self.width]) * self.width**-0.5
        local = cache.update(self, x, step)
        local_scores = cache.scores(self, q, local)
        weights = F.softmax(paddle.concat([prefix.scores(q), local_scores], axis=-1) + step.bias)
        count = local_scores.shape[-1]
        context = prefix.context(weights[:, :, :-count]) + cache.context(self, weights[:, :, -count:], local)
        return self.out(context.flatten(1))

    def absorb_projections(self) -> None:
        """Keep the matrices of keys and values by head as well, as an `AbsorbedCache` reads them: `key_by_head`
        [heads, width, hidden] and `value_by_head` [heads, hidden, width]; they are no part of the state_dict."""
        by_head = [self.key.weight.shape[0], self.heads, self.width]
        key = matrix(self.key).reshape(by_head).transpose([1, 2, 0])
        value = matrix(self.value).reshape(by_head).transpose([1, 0, 2])
        for name, matrices in zip(ABSORBED, (key, value), strict=True):
            self.register_buffer(name, matrices, persistable=False)

    def _projections(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries, keys and values [S, L, heads, width] of [S, L, hidden]."""
        shape = [0, 0, self.heads, self.width]
        return self.query(x).reshape(shape), self.key(x).reshape(shape), self.value(x).reshape(shape)
