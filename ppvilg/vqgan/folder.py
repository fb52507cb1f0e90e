"""An image tokenizer as a folder: config.yml and model.safetensors."""

from pathlib import Path

import paddle
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ppvilg.config import Config, load_config, save_config
from ppvilg.errors import UserError
from ppvilg.vqgan.model import VQGAN

CONFIG, WEIGHTS = "config.yml", "model.safetensors"


def save_vqgan(model: VQGAN, config: Config, folder: str | Path) -> None:
    """Write the tokenizer so that `load_vqgan` reads it back; the config comes last and makes the folder complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    temporary = folder / f"{WEIGHTS}.tmp"
    save_file(weights, temporary, metadata={"format": "np"})
    temporary.rename(folder / WEIGHTS)
    temporary = folder / f"{CONFIG}.tmp"
    save_config(config, temporary)
    temporary.rename(folder / CONFIG)


def load_vqgan(folder: str | Path) -> VQGAN:
    """The tokenizer in a folder, in evaluation mode.

    Raises `UserError` if a file is missing or unreadable, or if the weights do not fit the config.
    """
    folder = Path(folder)
    config = load_config(folder / CONFIG)
    model = VQGAN(config.vqgan, config.data.image_size)
    load_weights(model, read_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))
    model.eval()
    return model


def read_safetensors(path: str | Path) -> dict:
    """Tensors by name as numpy arrays; raises `UserError` if the file can't be read."""
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None


def load_weights(layer: paddle.nn.Layer, weights: dict, path: str) -> None:
    """Set every weight and buffer of a layer from numpy arrays of the same names; raises as `check_weights` does."""
    check_weights(weights, {name: tensor.shape for name, tensor in layer.state_dict().items()}, path)
    layer.set_state_dict({name: paddle.to_tensor(array) for name, array in weights.items()})


def check_weights(weights: dict, shapes: dict[str, list[int]], path: str) -> None:
    """Raise `UserError` naming `path` and the first weight that is missing, unknown or of another shape."""
    for problem, names in (
        ("lacks", shapes.keys() - weights.keys()),
        ("has the unknown", weights.keys() - shapes.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path} does not hold the expected weights: it {problem} {min(names)}{more}")
    for name, shape in shapes.items():
        if list(weights[name].shape) != list(shape):
            raise UserError(
                f"{path} does not hold the expected weights: {name} is {list(weights[name].shape)}, not {list(shape)}"
            )
