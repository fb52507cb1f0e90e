"""Initial weights, which are the same however many processes share the model."""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import paddle

STD = 0.02
_ENDS_OF_RESIDUAL_BRANCHES = ("attention.out.weight", "mlp.down.weight")


@paddle.no_grad()
def init_weights(parameters: Mapping[str, paddle.Tensor], seed: int, layers: int, mp_group=None) -> None:
    """Draw all matrices of a transformer from N(0, 0.02²), those that end a residual branch 1/√(2 layers) as wide (GPT-2);
    biases and norms stay as they were built, 0 and 1.

    What a parameter is drawn depends on the seed and on its name alone, the name that it has in one process.
    """
    for name, parameter in parameters.items():
        if parameter.ndim > 1:
            whole = draw_weight(name, whole_shape(parameter, mp_group), seed, layers)
            _set(parameter, own_part(parameter, whole, mp_group))


def draw_weight(name: str, shape: list[int], seed: int, layers: int) -> np.ndarray:
    """The whole matrix float32 that `init_weights` gives to the parameter of a name."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    std = STD / math.sqrt(2 * layers) if name.endswith(_ENDS_OF_RESIDUAL_BRANCHES) else STD
    return generator.standard_normal(shape, np.float32) * np.float32(std)


@paddle.no_grad()
def set_weights(parameters: Mapping[str, paddle.Tensor], arrays: Mapping[str, np.ndarray], mp_group=None) -> None:
    """Give parameters the values of whole arrays of their names; arrays of parameters that are not here are skipped."""
    for name in arrays.keys() & parameters.keys():
        _set(parameters[name], own_part(parameters[name], arrays[name], mp_group))


@contextmanager
def built_in(dtype: str) -> Iterator[None]:
    """Inside this context layers are built with weights of a dtype."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def _set(parameter: paddle.Tensor, values: np.ndarray) -> None:
    """In the parameter's own precision."""
    parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))


def whole_shape(parameter: paddle.Tensor, mp_group=None) -> list[int]:
    """The shape of the parameter that this is all of, or a tensor parallel process's part."""
    shape = list(parameter.shape)
    if parameter.is_distributed:
        shape[parameter.split_axis] *= mp_group.nranks
    return shape


def own_part(parameter: paddle.Tensor, whole: np.ndarray, mp_group=None) -> np.ndarray:
    """What the parameter holds of a whole array."""
    if not parameter.is_distributed:
        return whole
    return np.split(whole, mp_group.nranks, axis=parameter.split_axis)[mp_group.rank]
