"""Attention in blocks against dense attention with the mask: forward and gradients."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from paddle.nn import functional as F

from ppvilg.transformer.attention import SelfAttention, view
from ppvilg.transformer.pattern import Direction, Pattern
from tests.transformer.test_pattern import patterns

BATCH, HIDDEN, HEADS = 2, 12, 3


def dense(attention: SelfAttention, x: paddle.Tensor, pattern: Pattern, text_valid: paddle.Tensor) -> paddle.Tensor:
    """The same layer with all scores and the whole mask."""
    length = pattern.text_length + pattern.rows * pattern.columns
    keys = paddle.concat([text_valid, paddle.ones([BATCH, length - pattern.text_length], "bool")], 1)
    visible = paddle.to_tensor(pattern.mask()) & keys.unsqueeze(1) | paddle.to_tensor(np.eye(length, dtype=bool))

    rows = attention.norm(x.flatten(0, 1))

    def heads(x):
        return x.reshape([BATCH, length, HEADS, -1]).transpose([0, 2, 1, 3])

    queries, keys, values = heads(attention.query(rows)), heads(attention.key(rows)), heads(attention.value(rows))
    scores = paddle.matmul(queries, keys, transpose_y=True) * (HIDDEN // HEADS) ** -0.5
    weights = F.softmax(paddle.where(visible.unsqueeze(1), scores, paddle.full([], -np.inf)))
    return attention.out(paddle.matmul(weights, values).transpose([0, 2, 1, 3]).reshape(rows.shape)).reshape(x.shape)


@settings(deadline=None, max_examples=80)
@given(patterns())
def test_blocks_equal_the_dense_mask(pattern):
    check([pattern])


@pytest.mark.parametrize("kind", ["dense", "row", "column", "convolution"])
@pytest.mark.parametrize(("rows", "columns", "kernel"), [(9, 7, 3), (7, 9, 5), (13, 4, 11)])
def test_both_directions_at_once_on_odd_grids(kind, rows, columns, kernel):
    check([Pattern(6, rows, columns, direction, kind, kernel) for direction in Direction])


def check(several: list[Pattern]) -> None:
    first = several[0]
    m = first.text_length
    attention = SelfAttention(HIDDEN, HEADS, out_std=0.3)
    for parameter in attention.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.5)
    valid = paddle.arange(m).unsqueeze(0) < paddle.to_tensor([[m], [max(1, m - 2)]])
    x = paddle.randn([len(several) * BATCH, m + first.rows * first.columns, HIDDEN])
    weight = paddle.randn(x.shape)  # of every output that is used: padded slots are not
    used = paddle.concat([valid, paddle.ones([BATCH, first.rows * first.columns], "bool")], 1)
    weight = weight * paddle.concat([used] * len(several)).unsqueeze(-1).astype(x.dtype)

    def in_blocks(x):
        rows = paddle.concat([x[:, :m].flatten(0, 1), x[:, m:].flatten(0, 1)])
        y = attention(rows, [view(pattern, valid, HEADS) for pattern in several])
        texts, images = y.split([len(x) * m, len(y) - len(x) * m])
        return paddle.concat([texts.reshape([len(x), m, -1]), images.reshape([len(x), -1, HIDDEN])], axis=1)

    def in_full(x):
        parts = zip(x.split(len(several)), several, strict=True)
        return paddle.concat([dense(attention, part, pattern, valid) for part, pattern in parts])

    results = []
    for function in (in_blocks, in_full):
        x.stop_gradient = False
        y = function(x) * weight
        gradients = paddle.grad(y.sum(), [x, *attention.parameters()])
        results.append([y.numpy(), *(gradient.numpy() for gradient in gradients)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
