"""The fast layers equal paddle's own, forwards and backwards."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppvilg.vqgan.layers import Conv2D, UpsampleConv2D, group_norm


def assert_same(ours, theirs, ours_forward, theirs_forward, shape):
    """Same state_dict keys; after copying the weights the same output and gradients to 1e-5 of their size."""
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.set_state_dict(ours.state_dict())
    x = paddle.randn(shape)
    results = []
    for layer, forward in ((ours, ours_forward), (theirs, theirs_forward)):
        inputs = x.clone().detach()
        inputs.stop_gradient = False
        output = forward(inputs)
        weighting = paddle.arange(output.size, dtype="float32").reshape(output.shape).cos()
        (output * weighting).sum().backward()
        grads = {name: p.grad.numpy() for name, p in layer.named_parameters()}
        results.append({"output": output.numpy(), "input": inputs.grad.numpy(), **grads})
    for name, expected in results[1].items():
        np.testing.assert_allclose(results[0][name], expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (3, 2, [0, 1, 0, 1])], ids=["3x3", "1x1", "downsample"]
)
def test_conv_equals_paddles(kernel, stride, padding):
    ours = Conv2D(6, 10, kernel, stride, padding)
    theirs = nn.Conv2D(6, 10, kernel, stride, padding)
    assert_same(ours, theirs, ours, theirs, [3, 6, 8, 6])


def test_upsampling_conv_equals_nearest_neighbour_then_conv():
    ours, theirs = UpsampleConv2D(6, 10), nn.Conv2D(6, 10, 3, padding=1)
    assert_same(ours, theirs, ours, lambda x: theirs(F.interpolate(x, scale_factor=2, mode="nearest")), [3, 6, 5, 7])


def test_conv_starts_like_torchs():
    layer = Conv2D(16, 64, 3)
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert np.abs(values).max() <= 1 / 12
        assert np.abs(values).max() > 0.9 / 12


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (32, 32), (16, 16), (48, 16), (6, 2), (3, 1)])
def test_group_norm_takes_fewer_groups_where_32_do_not_fit(channels, groups):
    layer = group_norm(channels)
    x = paddle.randn([2, channels, 4, 4]) * 3 + 1
    grouped = x.numpy().reshape(2, groups, -1)
    mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-5)
