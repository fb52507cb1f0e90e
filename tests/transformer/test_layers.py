"""Layers with gradients of their own against paddle's."""

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg.transformer.layers import FeedForward, LayerNorm, Linear


def paddles_linear(layer):
    return lambda x: F.linear(x, layer.weight, layer.bias)


def paddles_norm(layer):
    return lambda x: F.layer_norm(x, [x.shape[-1]], layer.weight, layer.bias, layer.epsilon)


def paddles_feed_forward(layer):
    return lambda x: paddles_linear(layer.down)(F.gelu(paddles_linear(layer.up)(paddles_norm(layer.norm)(x)), approximate=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Linear(5, 7), paddles_linear),
        (Linear(5, 7, bias=False), paddles_linear),
        (LayerNorm(5), paddles_norm),
        (FeedForward(5, 3, 0.1), paddles_feed_forward),
    ],
)
def test_values_and_gradients_are_paddles(ours, theirs):
    for parameter in ours.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    x = paddle.randn([11, 5]) * 2 + 1
    x.stop_gradient = False
    results = []
    for function in (ours, theirs(ours)):
        y = function(x)
        gradients = paddle.grad((y * paddle.cos(y)).sum(), [x, *ours.parameters()])
        results.append([y.numpy(), *(gradient.numpy() for gradient in gradients)])
    for mine, paddles in zip(*results, strict=True):
        np.testing.assert_allclose(mine, paddles, rtol=1e-4, atol=1e-4 * np.abs(paddles).max())


def test_norm_of_equal_values_has_finite_gradients():
    norm, x = LayerNorm(4), paddle.ones([2, 4])
    x.stop_gradient = False
    gradients = paddle.grad(norm(x)[:, 0].sum(), [x, *norm.parameters()])
    assert all(np.isfinite(gradient.numpy()).all() for gradient in gradients)
