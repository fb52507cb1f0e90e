"""Files of torch, read without running anything that they hold. The only module that needs torch."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def read_torch(path: Path, entries: tuple[str, ...] = ("state_dict",), keep_precision: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a torch pickle, either a state_dict or a training checkpoint with one, by name: as float32 arrays, or with
    `keep_precision` in the file's precision, where numpy has it.

    In a checkpoint it is the first of `entries` that is there.

    No code of the file is run: it is read with `weights_only`, and objects of unknown classes, which Lightning stores
    beside the weights, become empty stand-ins. Raises `ValueError` if torch is missing or the file holds no weights.
    """
    try:
        import torch
    except ImportError:
        raise ValueError("conversion needs torch: pip install -r requirements-convert.txt") from None
    unknown = []
    try:
        if zipfile.is_zipfile(path):  # files of torch before 1.6, such as VGG16's, are no zip and can't be searched
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type("StandIn", (_StandIn,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # torch raises many kinds here (RuntimeError, ValueError, UnpicklingError, KeyError ...)
        if not unknown:
            raise ValueError(f"{path} is not a torch checkpoint, or is damaged") from None
        raise ValueError(
            f"{path} can't be read without running code from {', '.join(sorted(unknown))}; if you trust it, save its "
            "state_dict alone: torch.save(torch.load(PATH, weights_only=False)['state_dict'], NEW_PATH)"
        ) from None
    state = content
    if isinstance(content, dict):
        state = next((content[entry] for entry in entries if entry in content), content)
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state_dict: expected weights by name, or a checkpoint with `{entries[-1]}`")
    keeps = (torch.float16,) if keep_precision else ()
    return {name: (x if x.dtype in keeps else x.float()).contiguous().numpy() for name, x in state.items()}


class _StandIn:
    """Takes the place of any class in a pickle: accepts whatever it is built from and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass
