"""Run folders: checkpoints written whole or not at all, and the weights read back from them.

    run/
      config.yml                     the resolved config
      checkpoints/step-00001000/     model.safetensors, average.safetensors, optimizer-*.safetensors, state.json
      tokenizer/                     (transformer runs) config.yml and model.safetensors of the frozen image tokenizer
      text/                          (transformer runs) the text tokenizer's vocabulary

A folder with config.yml and model.safetensors (a converted or merged model) is read like a run.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ppvilg.config import Config, load_config
from ppvilg.errors import UserError

Arrays = dict[str, np.ndarray]


def to_arrays(state: dict[str, paddle.Tensor]) -> Arrays:
    """Tensors copied to numpy arrays."""
    return {name: tensor.numpy() for name, tensor in state.items()}


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


def save_checkpoint(run: Path, step: int, files: dict[str, Arrays], keep: int) -> Path:
    """Write `{name}.safetensors` for each of `files` and the step number; then remove all but the newest `keep`."""
    final = run / "checkpoints" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, arrays in files.items():
        save_arrays(arrays, temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step}))
    if final.exists():  # a resumed run that comes past the same step
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Arrays]]:
    """(step, arrays by file name) of one checkpoint."""
    step = json.loads((folder / "state.json").read_text())["step"]
    return step, {path.stem: load_arrays(path) for path in sorted(folder.glob("*.safetensors"))}


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
    average = newest[-1] / "average.safetensors"
    return average if average.is_file() else newest[-1] / "model.safetensors"


def model_config(folder: str | Path, task: str) -> Config:
    """The config of a model folder, which must be of the given task."""
    path = Path(folder) / "config.yml"
    if not path.is_file():
        raise UserError(f"there is no {path}: {folder} is not a run or model folder of this project")
    config = load_config(path)
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
