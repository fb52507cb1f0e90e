"""Run folders: checkpoints written whole or not at all, and the weights read back from them.

    run/
      config.yml                     the resolved config
      checkpoints/step-00001000/     model.safetensors, average.safetensors, optimizer-*.safetensors, state.json;
                                     of P processes each writes what it holds: model-00000-of-0000P.safetensors, ...
      tokenizer/                     (transformer runs) config.yml and model.safetensors of the frozen image tokenizer
      text/                          (transformer runs) the text tokenizer's vocabulary

A folder with config.yml and model.safetensors (a converted or merged model) is read like a run.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ppvilg.config import TrainingExperiment, load_config, save_config
from ppvilg.errors import UserError
from ppvilg.parallel.topology import Axis, Topology

Arrays = dict[str, np.ndarray]


def save_arrays(arrays: Arrays, path: Path) -> None:
    """Write one safetensors file under a temporary name and rename it."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    os.replace(temporary, path)


def load_arrays(path: Path) -> Arrays:
    """Read a safetensors file; a missing or truncated one is a `UserError`."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): use another checkpoint") from None


@dataclass(frozen=True)
class Piece:
    """What one process holds of an array: from `offset` on, of one of shape `shape`."""

    array: np.ndarray
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, array: np.ndarray) -> "Piece":
        """An array that is held as a whole."""
        return cls(array, (0,) * array.ndim, array.shape)

    @classmethod
    def cut(cls, array: np.ndarray, dim: int | None, axis: Axis) -> "Piece":
        """The axis's part of an array that is cut along `dim`, if it is."""
        if dim is None:
            return cls.whole(array)
        offset, shape = [0] * array.ndim, list(array.shape)
        offset[dim], shape[dim] = axis.rank * array.shape[dim], axis.size * array.shape[dim]
        return cls(array, tuple(offset), tuple(shape))


class Stored:
    """The arrays of one name in a checkpoint's folder, whatever number of processes wrote them; read piece by piece.

    Raises `UserError` where a file is missing or damaged.
    """

    def __init__(self, folder: Path, name: str):
        self.title = str(folder / name)
        # By (offset, shape), because some pieces are written by several processes.
        self._pieces: dict[str, dict[tuple[tuple[int, ...], tuple[int, ...]], Path]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The whole arrays' shapes by name."""
        for path in _files(folder, name):
            with _open(path) as file:
                cuts = json.loads((file.metadata() or {}).get(_CUTS, "{}"))
                for key in file.keys():  # noqa: SIM118, it is no mapping
                    own = file.get_slice(key).get_shape()
                    offset, shape = cuts.get(key, ([0] * len(own), own))
                    self._pieces.setdefault(key, {}).setdefault((tuple(offset), tuple(own)), path)
                    self.shapes[key] = tuple(shape)

    def read(self, key: str, offset: tuple[int, ...] | None = None, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The array, or its part of a shape from an offset on."""
        if key not in self.shapes:
            raise UserError(f"{self.title} does not hold the expected weights: it lacks {key}")
        offset, shape = offset or (0,) * len(self.shapes[key]), self.shapes[key] if shape is None else shape
        found, missing = None, math.prod(shape)
        for (first, own), path in self._pieces[key].items():
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
            raise UserError(f"{self.title}: a part of {key} is missing: use another checkpoint")
        return found

    def like(self, piece: Piece, key: str) -> np.ndarray:
        """What a process reads that holds such a piece; raises `UserError` where the whole has another shape."""
        if key in self.shapes and self.shapes[key] != piece.shape:
            expected, found = list(piece.shape), list(self.shapes[key])
            raise UserError(f"{self.title} does not hold the expected weights: {key} is {found}, not {expected}")
        return self.read(key, piece.offset, piece.array.shape)

    def all(self) -> Arrays:
        """Every array, whole."""
        return {key: self.read(key) for key in self.shapes}


_CUTS = "cuts"


def _files(folder: Path, name: str) -> list[Path]:
    """`{name}.safetensors`, or what each of several processes wrote of it."""
    single = folder / f"{name}.safetensors"
    parts = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    if parts and not single.is_file():
        count = int(parts[0].stem.rpartition("-of-")[2])
        if len(parts) != count:
            raise UserError(f"{folder}: of {count} files {name}-*-of-{count:05d}.safetensors {count - len(parts)} are missing")
        return parts
    return [single]


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): use another checkpoint") from None


def save_pieces(pieces: dict[str, Piece], folder: Path, name: str, rank: int, processes: int) -> None:
    """Write what one of several processes holds."""
    path = folder / (f"{name}.safetensors" if processes == 1 else f"{name}-{rank:05d}-of-{processes:05d}.safetensors")
    cuts = {key: (piece.offset, piece.shape) for key, piece in pieces.items() if piece.array.shape != piece.shape}
    arrays = {key: np.ascontiguousarray(piece.array) for key, piece in pieces.items()}
    save_file(arrays, path, {_CUTS: json.dumps(cuts)} if cuts else None)


def save_checkpoint(
    run: Path, state: dict[str, int], files: dict[str, dict[str, Piece]], keep: int, topology: Topology | None = None
) -> Path:
    """Write `{name}.safetensors` for each of `files`, all processes what they hold, and `state`, which has the `step`; then
    remove all but the newest `keep`.

    The folder gets its name when everything is on disk, so that a process killed at any moment leaves the last one whole.
    """
    topology = topology or Topology()
    writers = topology.processes // topology.dp.size
    final = run / "checkpoints" / f"step-{state['step']:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    if topology.leads:
        for left in final.parent.glob(".step-*.tmp"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
    topology.wait()
    for name, pieces in files.items() if topology.dp.rank == 0 else ():  # the others hold the same
        save_pieces(pieces, temporary, name, topology.rank % writers, writers)
    topology.wait()
    if topology.leads:
        (temporary / "state.json").write_text(json.dumps(state))
        if final.exists():  # a resumed run that comes past the same step
            _remove(final)
        os.replace(temporary, final)
        for old in checkpoints(run)[:-keep]:
            _remove(old)
    topology.wait()
    return final


def _remove(folder: Path) -> None:
    """Remove a checkpoint, which is never half there under its name."""
    temporary = folder.with_name(f".{folder.name}.old.tmp")
    os.replace(folder, temporary)
    shutil.rmtree(temporary)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / "state.json").is_file())


def checkpoint_state(folder: Path) -> dict[str, int]:
    """What `save_checkpoint` got as the state of a checkpoint."""
    return json.loads((folder / "state.json").read_text())


def weights_file(folder: str | Path) -> Path:
    """The file with a model folder's weights: the averaged ones of a run's newest checkpoint, if it has them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: train a model first or give the folder of one")
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    newest = checkpoints(folder)
    if not newest:
        raise UserError(f"{folder} holds no model.safetensors and no complete checkpoint: give another folder")
    for name in ("average", "model"):
        if (newest[-1] / f"{name}.safetensors").is_file():
            return newest[-1] / f"{name}.safetensors"
    raise UserError(f"{newest[-1]} was written by several processes: merge it first, tools/merge_checkpoint.py {folder}")


def merge(run: str | Path, output: str | Path) -> Path:
    """From the newest checkpoint of a run, whatever number of processes wrote it, make a model folder with one file of weights:
    the averaged ones, if there are any. Returns the checkpoint that was read.

    Raises `UserError` where there is none, a file of it is missing, or the output folder exists.
    """
    run, output = Path(run), Path(output)
    if not run.is_dir():
        raise UserError(f"there is no folder {run}: give the folder of a training run")
    found = checkpoints(run)
    if not found:
        raise UserError(f"{run} holds no complete checkpoint")
    if output.exists():
        raise UserError(f"{output} exists already: give a new folder")
    averaged = any(found[-1].glob("average*.safetensors"))
    arrays = Stored(found[-1], "average" if averaged else "model").all()
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_arrays(arrays, temporary / "model.safetensors")
    config = load_config(run / "config.yml", kind=TrainingExperiment)
    alone = dataclasses.replace(config, parallel=type(config.parallel)())
    save_config(alone, temporary / "config.yml")
    for part in ("tokenizer", "text"):
        if (run / part).is_dir():
            shutil.copytree(run / part, temporary / part)
    os.replace(temporary, output)
    return found[-1]


def model_config(folder: str | Path, task: str) -> TrainingExperiment:
    """The config of a model folder, which must be of the given task."""
    path = Path(folder) / "config.yml"
    if not path.is_file():
        raise UserError(f"there is no {path}: {folder} is not a run or model folder of this project")
    config = load_config(path, kind=TrainingExperiment)
    if config.task != task:
        raise UserError(f"{folder} holds a model of task `{config.task}`, but one of task `{task}` is needed here")
    return config


def load_weights(model: nn.Layer, path: Path) -> None:
    """Fill a model with a file's weights; names or shapes that differ are a `UserError`."""
    fill(model, load_arrays(path), str(path))


def fill(model: nn.Layer, arrays: Arrays, source: str) -> None:
    """Set every parameter and buffer of a model from arrays that came from `source`; raises as `check_weights` does."""
    check_weights(arrays, {name: tensor.shape for name, tensor in model.state_dict().items()}, source)
    model.set_state_dict({name: paddle.to_tensor(array) for name, array in arrays.items()})


def check_weights(arrays: Arrays, shapes: dict[str, list[int]], source: str) -> None:
    """Raise `UserError` naming `source` and the first weight that is missing, unknown or of another shape."""
    for problem, names in (
        ("lacks", shapes.keys() - arrays.keys()),
        ("has the unknown", arrays.keys() - shapes.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{source} does not hold the expected weights: it {problem} {min(names)}{more}")
    for name, shape in shapes.items():
        found = list(arrays[name].shape)
        if found != list(shape):
            raise UserError(f"{source} does not hold the expected weights: {name} is {found}, not {list(shape)}")


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
