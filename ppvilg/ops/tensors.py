"""Tensors made of numpy arrays in processes that run for weeks."""

import numpy as np
import paddle


def from_numpy(array: np.ndarray) -> paddle.Tensor:
    """A copy of an array as a tensor, on the device in use.

    `paddle.to_tensor` never frees about 160 bytes of each call, in paddle 3.3's binding; a server that calls it for every token
    grows by some 200 MB an hour.
    """
    if not paddle.in_dynamic_mode():  # the array becomes a constant of the program
        return paddle.to_tensor(array)
    tensor = paddle.empty(array.shape, str(array.dtype))
    tensor.get_tensor().set(array, paddle.framework._current_expected_place())
    return tensor
