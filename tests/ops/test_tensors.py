"""Tensors of arrays, and that they cost a process that runs for weeks nothing."""

import gc

import numpy as np
import pytest

from ppvilg.ops import from_numpy


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3, 4)])
def test_a_tensor_has_the_array_s_values_dtype_and_shape(dtype, shape):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    tensor = from_numpy(array)
    assert tensor.numpy().dtype == array.dtype
    assert tensor.shape == list(shape)
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_tensor_of_an_array_that_is_not_contiguous():
    array = np.arange(12).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(from_numpy(array).numpy(), array)


def test_a_tensor_is_a_copy():
    array = np.zeros(3, np.int64)
    tensor = from_numpy(array)
    array[:] = 1
    assert not tensor.numpy().any()


def test_nothing_stays_of_a_tensor_that_is_gone():
    """`paddle.to_tensor` leaves a list in memory at each call."""
    array = np.zeros(3, np.int64)
    from_numpy(array)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        from_numpy(array)
    gc.collect()
    assert len(gc.get_objects()) < before + 10
