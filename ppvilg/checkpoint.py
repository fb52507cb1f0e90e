"""Run folders: checkpoints written whole or not at all, and the weights read back from them.

run/
  config.yml                     the resolved config
  checkpoints/step-00001000/     model.safetensors, average.safetensors, optimizer-*.safetensors, state.json;
                                 of P processes each writes what it holds: model-00000-of-0000P.safetensors, ...
  tokenizer/, text/              what else the model needs, as in a model folder (ppvilg/folder.py)
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401, lets numpy know bfloat16
import numpy as np
import paddle
from paddle import nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ppvilg.files import whole_file

if TYPE_CHECKING:
    from ppvilg.train.context import ParallelContext

Arrays = dict[str, np.ndarray]


def save_arrays(arrays: Arrays, path: Path) -> None:
    """Write one safetensors file, whole or not at all."""
    with whole_file(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def load_arrays(path: Path) -> Arrays:
    """Read a safetensors file; a missing or truncated one is a `ValueError`."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"cannot read {path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): use another checkpoint") from None


@dataclass(frozen=True)
class ShardedTensor:
    """What one process holds of a tensor: from `offset` on, of one of shape `shape`."""

    array: np.ndarray
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, array: np.ndarray) -> "ShardedTensor":
        """A tensor that the process holds all of."""
        return cls(array, (0,) * array.ndim, array.shape)

    @classmethod
    def split(cls, array: np.ndarray, axis: int, rank: int, count: int) -> "ShardedTensor":
        """Part number `rank` of a tensor that is divided into `count` equal parts along an axis."""
        offset, shape = [0] * array.ndim, list(array.shape)
        offset[axis], shape[axis] = rank * array.shape[axis], count * array.shape[axis]
        return cls(array, tuple(offset), tuple(shape))


class CheckpointReader:
    """The tensors of one name in a checkpoint's folder, whatever number of processes wrote them; read part by part.

    Raises `ValueError` where a file is missing or damaged.
    """

    def __init__(self, folder: Path, name: str):
        self.title = str(folder / name)
        # By (offset, shape), because some parts are written by several processes.
        self._parts: dict[str, dict[tuple[tuple[int, ...], tuple[int, ...]], Path]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The whole tensors' shapes by name."""
        for path in _files(folder, name):
            with _open(path) as file:
                split = json.loads((file.metadata() or {}).get(_SPLIT, "{}"))
                for key in file.keys():  # noqa: SIM118, it is no mapping
                    own = file.get_slice(key).get_shape()
                    offset, shape = split.get(key, ([0] * len(own), own))
                    self._parts.setdefault(key, {}).setdefault((tuple(offset), tuple(own)), path)
                    self.shapes[key] = tuple(shape)

    def read(self, key: str, offset: tuple[int, ...] | None = None, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The tensor, or its part of a shape from an offset on."""
        if key not in self.shapes:
            raise ValueError(f"{self.title} does not hold the expected weights: it lacks {key}")
        offset, shape = offset or (0,) * len(self.shapes[key]), self.shapes[key] if shape is None else shape
        found, missing = None, math.prod(shape)
        for (first, own), path in self._parts[key].items():
            # Along each dimension what is both wanted and in this file.
            bounds = zip(first, own, offset, shape, strict=True)
            ranges = [(max(f, o), min(f + have, o + want)) for f, have, o, want in bounds]
            if any(low >= high for low, high in ranges):
                continue
            inside = tuple(slice(low - f, high - f) for (low, high), f in zip(ranges, first, strict=True))
            with _open(path) as file:
                part = file.get_slice(key)[inside] if inside else file.get_tensor(key)
            found = np.empty(shape, part.dtype) if found is None else found
            found[tuple(slice(low - o, high - o) for (low, high), o in zip(ranges, offset, strict=True))] = part
            missing -= part.size
        if missing:
            raise ValueError(f"{self.title}: a part of {key} is missing: use another checkpoint")
        return found

    def like(self, shard: ShardedTensor, key: str) -> np.ndarray:
        """The part that a process holds of `shard`'s tensor; raises `ValueError` where the whole has another shape."""
        if key in self.shapes and self.shapes[key] != shard.shape:
            expected, found = list(shard.shape), list(self.shapes[key])
            raise ValueError(f"{self.title} does not hold the expected weights: {key} is {found}, not {expected}")
        return self.read(key, shard.offset, shard.array.shape)

    def all(self) -> Arrays:
        """Every tensor, whole."""
        return {key: self.read(key) for key in self.shapes}


_SPLIT = "split"


def _files(folder: Path, name: str) -> list[Path]:
    """`{name}.safetensors`, or what each of several processes wrote of it."""
    single = folder / f"{name}.safetensors"
    parts = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    if parts and not single.is_file():
        count = int(parts[0].stem.rpartition("-of-")[2])
        if len(parts) != count:
            raise ValueError(f"{folder}: of {count} files {name}-*-of-{count:05d}.safetensors {count - len(parts)} are missing")
        return parts
    return [single]


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise ValueError(f"cannot read {path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): use another checkpoint") from None


def save_shards(shards: dict[str, ShardedTensor], folder: Path, name: str, rank: int = 0, count: int = 1) -> None:
    """Write what one of several processes holds."""
    path = folder / (f"{name}.safetensors" if count == 1 else f"{name}-{rank:05d}-of-{count:05d}.safetensors")
    split = {key: (shard.offset, shard.shape) for key, shard in shards.items() if shard.array.shape != shard.shape}
    arrays = {key: np.ascontiguousarray(shard.array) for key, shard in shards.items()}
    with whole_file(path) as temporary:
        save_file(arrays, temporary, {_SPLIT: json.dumps(split)} if split else None)


def save_checkpoint(
    run: Path, state: dict[str, Any], files: dict[str, dict[str, ShardedTensor]], keep: int, context: "ParallelContext"
) -> Path:
    """Write `{name}.safetensors` for each of `files`, all processes what they hold, and `state`, which has the `step`; then
    remove all but the newest `keep`.

    The folder gets its name when everything is on disk, so that a process killed at any moment leaves the last one whole.
    """
    final = run / "checkpoints" / f"step-{state['step']:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    if context.is_main_process:
        for left in final.parent.glob(".step-*.tmp"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
    context.barrier()
    try:
        for name, shards in files.items() if context.replica == 0 else ():  # the other replicas hold the same
            save_shards(shards, temporary, name, context.rank % context.replica_size, context.replica_size)
        context.barrier()
        if context.is_main_process:
            (temporary / "state.json").write_text(json.dumps(state))
            if final.exists():  # a resumed run that comes past the same step
                _remove(final)
            os.replace(temporary, final)
    except BaseException:  # Ctrl-C too; no process goes on without the others
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if context.is_main_process:
        for old in checkpoints(run)[:-keep]:
            _remove(old)
    context.barrier()
    return final


def _remove(folder: Path) -> None:
    """Remove a checkpoint, which is never half there under its name."""
    temporary = folder.with_name(f".{folder.name}.old.tmp")
    os.replace(folder, temporary)
    shutil.rmtree(temporary)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / "state.json").is_file())


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` got as the state of a checkpoint."""
    return json.loads((folder / "state.json").read_text())


def weights_file(folder: str | Path) -> Path:
    """The file with a model folder's weights: the averaged ones of a run's newest checkpoint, if it has them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: train a model first or give the folder of one")
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    newest = checkpoints(folder)
    if not newest:
        raise ValueError(f"{folder} holds no model.safetensors and no complete checkpoint: give another folder")
    for name in ("average", "model"):
        if (newest[-1] / f"{name}.safetensors").is_file():
            return newest[-1] / f"{name}.safetensors"
    raise ValueError(f"{newest[-1]} was written by several processes: merge it first, tools/merge_checkpoint.py {folder}")


def weights_reader(folder: Path) -> CheckpointReader:
    """The weights of a model folder, of a run its newest checkpoint's averaged ones, whatever number of processes wrote them.

    Raises `ValueError` for a folder that has none.
    """
    found = checkpoints(folder)
    if (folder / "model.safetensors").is_file() or not found:
        return CheckpointReader(weights_file(folder).parent, "model")
    averaged = any(found[-1].glob("average*.safetensors"))
    return CheckpointReader(found[-1], "average" if averaged else "model")


def load_weights(model: nn.Layer, path: Path) -> None:
    """Fill a model with a file's weights, each in the precision of the model's; names or shapes that differ are a `ValueError`.

    The weights are read one after another, so that they are in memory once.
    """
    tensors = model.state_dict()
    with _open(path) as file:
        found = {name: file.get_slice(name).get_shape() for name in _names(file)}
    check_shapes(found, {name: tensor.shape for name, tensor in tensors.items()}, str(path))
    for name, tensor in tensors.items():
        _set(tensor, _load_array(path, name))


def load_tensors(path: Path) -> dict[str, paddle.Tensor]:
    """A file's weights, read one after another, so that they are in memory once; raises `ValueError` as `load_arrays` does."""
    with _open(path) as file:
        names = _names(file)
    return {name: paddle.to_tensor(_load_array(path, name)) for name in names}


def _names(file) -> list[str]:
    return list(file.keys())


def _load_array(path: Path, name: str) -> np.ndarray:
    with _open(path) as file:  # anew, because what has been read of a file stays in memory until it is closed
        return file.get_tensor(name)


def file_dtype(path: Path) -> str:
    """The floating-point type of a file's weights: float16 or bfloat16 where all have it, else float32."""
    with _open(path) as file:
        found = {file.get_slice(name).get_dtype() for name in _names(file)}
    found = {dtype for dtype in found if "F" in dtype}
    return {("F16",): "float16", ("BF16",): "bfloat16"}.get(tuple(found), "float32")


def fill(model: nn.Layer, arrays: Arrays, source: str) -> None:
    """Set every parameter and buffer of a model from arrays that came from `source`; raises as `check_weights` does."""
    tensors = model.state_dict()
    check_weights(arrays, {name: tensor.shape for name, tensor in tensors.items()}, source)
    for name, tensor in tensors.items():
        _set(tensor, arrays[name])


def _set(tensor: paddle.Tensor, array: np.ndarray) -> None:
    """Give a tensor an array's values in its own precision."""
    if tensor.dtype == paddle.bfloat16:  # paddle takes no such array
        tensor.set_value(paddle.to_tensor(array.astype("float32")).astype("bfloat16"))
    else:
        tensor.set_value(array.astype(str(tensor.dtype).removeprefix("paddle."), copy=False))


def check_weights(arrays: Arrays, shapes: dict[str, list[int]], source: str) -> None:
    """Raise `ValueError` naming `source` and the first weight that is missing, unknown or of another shape."""
    check_shapes({name: array.shape for name, array in arrays.items()}, shapes, source)


def check_shapes(found: dict[str, list[int]], shapes: dict[str, list[int]], source: str) -> None:
    """As `check_weights`, of the shapes that were found."""
    for problem, names in (
        ("lacks", shapes.keys() - found.keys()),
        ("has the unknown", found.keys() - shapes.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{source} does not hold the expected weights: it {problem} {min(names)}{more}")
    for name, shape in shapes.items():
        if list(found[name]) != list(shape):
            raise ValueError(f"{source} does not hold the expected weights: {name} is {list(found[name])}, not {list(shape)}")


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
