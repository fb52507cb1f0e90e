"""A run's folder: what is checked before anything is written into it.

A run keeps frozen copies of all that its weights were trained with: the config, the vocabulary, the image tokenizer. Going on
from its checkpoints with anything else would make another model of it, so that is refused and the copies stay as they are.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ppvilg.checkpoint import checksum, weights_file
from ppvilg.config import TrainingExperiment, load_config
from ppvilg.folder import ImageTokenizerConfig, read_config, write_config
from ppvilg.train.task import Task

_MODEL_SECTIONS = ("task", "data.image_size", "text", "vqgan", "transformer", "dual_encoder")
_FREE = (  # of those sections, what may change from one part of a run to the next
    "text.vocabulary",  # the file itself is compared
    "text.embeddings",
    "text.encoder.model",
    "text.encoder.train",
    "text.encoder.learning_rate_scale",
    "text.styles",
    "vqgan.loss",
    "vqgan.dropout",
    "vqgan.codebook.commitment",
    "vqgan.codebook.ema_decay",
    "vqgan.codebook.temperature",
    "vqgan.codebook.kl_weight",
    "transformer.dropout",
    "dual_encoder.dropout",
    "dual_encoder.temperature",
)


def check_config(run: Path, config: TrainingExperiment) -> None:
    """Raise `ValueError` if a run has trained another model than a config describes."""
    own = dict(_model_keys(load_config(run / "config.yml", kind=TrainingExperiment)))
    new = dict(_model_keys(config))
    for key in own.keys() | new.keys():
        if own.get(key) != new.get(key):
            raise ValueError(
                f"{run} was trained with {key}: {own.get(key)!r}, but the config says {new.get(key)!r}: "
                f"resume it with the same model, or give another train.output"
            )


def check_frozen(run: Path, task: Task) -> None:
    """Raise `ValueError` if the copies that a run keeps are not what a task trains with."""
    if task.text_tokenizer is not None:
        with tempfile.TemporaryDirectory() as folder:
            name = task.text_tokenizer.save(Path(folder))
            _check_equal(Path(folder) / name, run / "text" / name, "text.vocabulary")
    if task.image_tokenizer is not None:
        _check_equal(weights_file(task.image_tokenizer), run / "tokenizer" / "model.safetensors", "train.tokenizer")


def save_frozen(run: Path, task: Task) -> None:
    """Copy into a new run's folder what its model needs besides its weights."""
    if task.text_tokenizer is not None:
        (run / "text").mkdir(exist_ok=True)
        task.text_tokenizer.save(run / "text")
    if task.image_tokenizer is not None:
        (run / "tokenizer").mkdir(exist_ok=True)
        shutil.copyfile(weights_file(task.image_tokenizer), run / "tokenizer" / "model.safetensors")
        write_config(read_config(task.image_tokenizer, ImageTokenizerConfig), run / "tokenizer")


def _check_equal(new: Path, own: Path, key: str) -> None:
    if not own.is_file() or checksum(own) != checksum(new):
        raise ValueError(f"{own} is not what {key} gives: resume the run with what it was trained with")


def _model_keys(config: TrainingExperiment) -> list[tuple[str, Any]]:
    """The keys, with their values, that decide which model is trained."""
    found: list[tuple[str, Any]] = []

    def walk(key: str, value: Any) -> None:
        if key in _FREE:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}.{name}" if key else name, inner)
        elif key.startswith(_MODEL_SECTIONS):
            found.append((key, value))

    walk("", dataclasses.asdict(config))
    return found
