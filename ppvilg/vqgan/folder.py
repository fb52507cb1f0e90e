"""An image tokenizer as a folder: a training run, or config.json and model.safetensors."""

from pathlib import Path

from ppvilg.folder import ImageTokenizerConfig, read_config, read_weights, write_model
from ppvilg.vqgan.model import VQGAN


def save_vqgan(model: VQGAN, folder: str | Path) -> None:
    """Write the tokenizer so that `load_vqgan` reads it back; the config comes last and makes the folder complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, ImageTokenizerConfig(model.config, model.image_size), model)


def load_vqgan(folder: str | Path) -> VQGAN:
    """The tokenizer in a folder (of a run: its newest checkpoint), in evaluation mode.

    Raises `ValueError` if a file is missing or unreadable, or if the weights do not fit the config.
    """
    config = read_config(folder, ImageTokenizerConfig)
    model = VQGAN(config.vqgan, config.image_size)
    read_weights(model, folder)
    return model


def summary(config: ImageTokenizerConfig) -> str:
    """A line that says what a tokenizer is, e.g. `f = 16, 16384 codes, 256 pixels`."""
    return f"f = {config.vqgan.downsampling}, {config.vqgan.codebook.size} codes, {config.image_size} pixels"
