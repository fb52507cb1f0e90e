"""Files of paddle.save, read without running anything that they hold."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray

from ppvilg.checkpoint import Arrays


def _bytes(text: str, _: str) -> bytes:
    """How protocol 2 writes bytes."""
    return text.encode("latin1")


# What a state_dict is made of; numpy's module had another name before numpy 2.
_GLOBALS = {
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
}
_NAMES = "StructuredToParameterName@@"  # the parameters' internal names, which older versions store beside them


def read_paddle(path: Path) -> Arrays:
    """The arrays of a .pdparams file by name; raises `ValueError` for a file that is something else, or names code to run."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        arrays = {name: _array(value) for name, value in content.items() if name != _NAMES}
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a file of paddle.save, or is damaged: {error}") from None
    except Exception:  # a damaged pickle raises many kinds (EOFError, KeyError, AttributeError, ValueError ...)
        raise ValueError(f"{path} is not a file of paddle.save, or is damaged") from None
    if not arrays:
        raise ValueError(f"{path} holds no weights")
    return arrays


def _array(value: Any) -> np.ndarray:
    """What stands for a tensor: an array, or since paddle 2.1 its internal name and an array."""
    array = value[1] if isinstance(value, tuple) else value
    if not isinstance(array, np.ndarray):
        raise pickle.UnpicklingError(f"it holds a {type(array).__name__} where an array is expected")
    return array


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of weights")
        return _GLOBALS[module, name]
