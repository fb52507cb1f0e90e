"""An image tokenizer as a folder: a training run, or config.yml and model.safetensors."""

from pathlib import Path

from ppvilg import checkpoint
from ppvilg.config import VQGANExperiment, save_config
from ppvilg.vqgan.model import VQGAN


def save_vqgan(model: VQGAN, config: VQGANExperiment, folder: str | Path) -> None:
    """Write the tokenizer so that `load_vqgan` reads it back; the config comes last and makes the folder complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    checkpoint.save_arrays(arrays, folder / "model.safetensors")
    save_config(config, folder / "config.yml")


def load_vqgan(folder: str | Path) -> VQGAN:
    """The tokenizer in a folder (of a run: its newest checkpoint), in evaluation mode.

    Raises `UserError` if a file is missing or unreadable, or if the weights do not fit the config.
    """
    config = checkpoint.model_config(folder, "vqgan")
    model = VQGAN(config.vqgan, config.data.image_size)
    checkpoint.load_weights(model, checkpoint.weights_file(folder))
    model.eval()
    return model
