"""The files of torch before 1.6, without torch.

EfficientNet-Lite0's package holds such a file, and evaluation has to work without torch. Libraries that read torch's files
without it (PaddleNLP's load_torch, ptloader, pt-safe-loader) read only the zip files of later versions.
"""

import pickle
from collections import OrderedDict
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided


def read_legacy_torch(file: BytesIO) -> dict[str, np.ndarray]:
    """The tensors of a state_dict; raises `KeyError`, and runs nothing, where the file names anything else.

    Five pickles (magic number, version, byte order and sizes, state_dict, the storages' keys), then, in the keys' order, each
    storage's number of elements (int64) and elements.
    """
    for _ in range(3):
        _Unpickler(file).load()
    state = _Unpickler(file)
    tensors = state.load()  # views of storages that are still empty
    for key in _Unpickler(file).load():
        file.seek(8, 1)
        file.readinto(state.storages[key])
    return tensors


def _view(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    return as_strided(storage[offset:], shape, [storage.itemsize * stride for stride in strides])


_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _GLOBALS[module, name]

    def persistent_load(self, identifier: tuple) -> np.ndarray:
        _, dtype, key, _, elements, *_ = identifier
        return self.storages.setdefault(key, np.empty(elements, dtype))
