"""Each C++ kernel against paddle's functions in float64, and paddle's functions where the kernels are not for."""

import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg import ops
from ppvilg.ops import extension

SHAPES = [(1, 1), (3, 5), (2, 7, 33), (5, 301), (3, 70, 257)]


@pytest.fixture(autouse=True)
def _kernels():
    if not extension.available():
        pytest.skip("the C++ kernels cannot be built here")


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype("float32")


def results(function, *arrays: np.ndarray, dtype: str) -> list[np.ndarray]:
    """The result and the gradients of its sum, weighted at random."""
    tensors = [paddle.to_tensor(array.astype(dtype), stop_gradient=False) for array in arrays]
    result = function(*tensors)
    paddle.autograd.backward([result], [paddle.to_tensor(draw(*result.shape, seed=9).astype(dtype))])
    return [result.numpy(), *(t.grad.numpy() for t in tensors)]


def check(function, reference, *arrays: np.ndarray, atol: float = 2e-6) -> None:
    """Equal to the reference in float64, up to `atol` times the largest value."""
    for ours, theirs in zip(
        results(function, *arrays, dtype="float32"), results(reference, *arrays, dtype="float64"), strict=True
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear(shape):
    weight, bias = draw(shape[-1], 19, seed=1), draw(19, seed=2)
    check(ops.linear, F.linear, draw(*shape), weight, bias)
    check(ops.linear, F.linear, draw(*shape), weight)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 4, 7), (2, 33, 16, 16)])
def test_channel_bias(shape):
    def function(add):
        return lambda x, bias: add(x * 2, bias)

    expected = function(lambda x, bias: x + bias.reshape([1, -1, 1, 1]))
    check(function(ops.add_channel_bias), expected, draw(*shape), draw(shape[1], seed=1))


def test_linear_inside_a_graph():
    """The gradient that passes through uncopied is not changed by what else uses it."""

    def function(linear):
        def f(x, weight, bias):
            y = linear(x, weight, bias)
            z = linear(y + x, weight, bias) + y
            return (z * y + F.relu(y)).reshape([-1, 6]) + linear(y, weight, bias).reshape([-1, 6])

        return f

    check(function(ops.linear), function(F.linear), draw(4, 9, 6), draw(6, 6, seed=1), draw(6, seed=2))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_layer_norm(shape):
    check(
        lambda x, w, b: ops.layer_norm(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, [shape[-1]], w, b, 1e-5),
        3 + draw(*shape, scale=2),
        draw(shape[-1], seed=1),
        draw(shape[-1], seed=2),
        atol=1e-5,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_gelu(shape):
    check(ops.gelu, lambda x: F.gelu(x, approximate=True), draw(*shape, scale=3))


def test_gelu_of_extreme_values():
    values = np.array([-1e4, -100, -20, -10, -1e-20, 0, 1e-20, 10, 20, 100, 1e4, np.inf, np.nan], dtype="float32")
    np.testing.assert_allclose(
        ops.gelu(paddle.to_tensor(values)).numpy(), [0, 0, 0, 0, -5e-21, 0, 5e-21, *values[7:]], atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(shape):
    labels = paddle.to_tensor(np.random.default_rng(3).integers(0, shape[-1], shape[:-1]))
    check(
        lambda x: ops.cross_entropy(x, labels),
        lambda x: F.cross_entropy(x, labels.unsqueeze(-1), reduction="none").squeeze(-1),
        draw(*shape, scale=8),
    )


def test_cross_entropy_of_extreme_values():
    logits = paddle.to_tensor(np.array([[1e4, 0, -1e4], [-1e30, -1e30, 0], [0, np.nan, 0]], dtype="float32"))
    losses = ops.cross_entropy(logits, paddle.to_tensor([1, 2, 0])).numpy()
    np.testing.assert_array_equal(losses, [1e4, 0, np.nan])
    with pytest.raises(Exception, match="a label is outside of the 3 classes"):
        ops.cross_entropy(logits, paddle.to_tensor([0, 1, 3]))


def test_no_rows():
    x = paddle.zeros([0, 4])
    weight, bias = paddle.ones([4]), paddle.zeros([4])
    assert ops.layer_norm(x, weight, bias, 1e-5).shape == ops.gelu(x).shape == [0, 4]
    assert ops.linear(x, paddle.ones([4, 3]), paddle.ones([3])).shape == [0, 3]


def test_kernels_are_for_float32_on_a_cpu_in_dynamic_mode():
    x = paddle.ones([2, 3])
    assert extension.has_kernels(x)
    assert not extension.has_kernels(x, x.astype("float64"))
    paddle.enable_static()
    try:
        with paddle.static.program_guard(paddle.static.Program()):
            x = paddle.static.data("x", [-1, 3], "float32")
            assert not extension.has_kernels(x)
            assert ops.gelu(ops.layer_norm(x, paddle.ones([3]), paddle.zeros([3]), 1e-5)).shape == [-1, 3]
    finally:
        paddle.disable_static()


def test_bfloat16_losses_are_float32():
    assert ops.cross_entropy(paddle.ones([2, 3], "bfloat16"), paddle.to_tensor([0, 2])).dtype == paddle.float32


STRIDED = """
import paddle, numpy as np
from ppvilg import ops
from ppvilg.ops import extension
x = paddle.to_tensor(np.random.default_rng(0).standard_normal([3, 40]).astype("float32"))
assert extension.available() and not x.T.is_contiguous()
np.testing.assert_array_equal(ops.gelu(x.T).numpy(), ops.gelu(x).numpy().T)
"""


def test_strided_views():
    """Where someone has turned paddle's lazy views on."""
    subprocess.run([sys.executable, "-c", STRIDED], check=True, env={**os.environ, "FLAGS_use_stride_kernel": "1"})
