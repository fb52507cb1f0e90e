"""A run's folder: what is checked before anything is written into it.

A run keeps frozen copies of all that its weights were trained with: the config, the vocabulary, the image tokenizer. Going on
from its checkpoints with anything else would make another model of it, so that is refused and the copies stay as they are.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from ppvilg.config import TrainingExperiment, load_config
from ppvilg.text import TextTokenizer

_MODEL_SECTIONS = ("task", "data.image_size", "text", "vqgan", "transformer", "dual_encoder")
_FREE = (  # of those sections, what may change from one part of a run to the next
    "text.vocabulary",  # the file itself is compared
    "text.embeddings",
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


def save_vocabulary(run: Path, tokenizer: TextTokenizer) -> None:
    """Keep a copy of the vocabulary beside the checkpoints."""
    (run / "text").mkdir(exist_ok=True)
    tokenizer.save(run / "text")


def check_vocabulary(run: Path, tokenizer: TextTokenizer) -> None:
    """Raise `ValueError` if a run was trained with another vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        name = tokenizer.save(Path(folder))
        new, own = Path(folder) / name, run / "text" / name
        if not own.is_file() or own.read_bytes() != new.read_bytes():
            raise ValueError(f"{own} differs from text.vocabulary: resume {run} with the vocabulary that it was trained with")


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
