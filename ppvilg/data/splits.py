"""The splits that an experiment's config names, and images out of them."""

from pathlib import Path

import numpy as np

from ppvilg.config import EvalDataConfig, ImageDataConfig
from ppvilg.data.images import decode_image
from ppvilg.data.report import Report
from ppvilg.data.sources import EmptySplitError, Source, open_source


def open_split(
    data: ImageDataConfig | EvalDataConfig,
    split: str,
    seed: int,
    keep: dict[str, list[str]] | None = None,
    questions: bool = False,
) -> Source:
    """A split of a config's data, of samples with captions or with questions; `keep` takes the place of the config's own."""
    return open_source(
        data.path,
        split,
        keep=data.keep if keep is None else keep,
        captions=data.captions,
        questions=questions,
        validation_fraction=data.validation_fraction,
        seed=seed,
    )


def open_splits(data: ImageDataConfig, seed: int, questions: bool = False) -> tuple[Source, Source]:
    """The training and the validation source; images that no manifest vouches for are each decoded once to check them.

    Data without a sample for validation are validated on those they train on, which the report says.
    """
    training = _checked(data, data.train_split, seed, questions)
    try:
        return training, _checked(data, data.validation_split, seed, questions)
    except EmptySplitError:
        if data.validation_split != ImageDataConfig.validation_split:
            raise
    report = Report(f"{data.path} (validation)", notes=[_NO_VALIDATION])
    return training, Source(training.records, training.content, report, training.prepared, training.tokens)


_NO_VALIDATION = "there is no sample for validation, which reads the training samples and says only how well they are learned"


def _checked(data: ImageDataConfig, split: str, seed: int, questions: bool) -> Source:
    source = open_split(data, split, seed, questions=questions)
    return source if (Path(data.path) / "manifest.json").is_file() else source.check()


def load_images(source: Source, indices: list[int], size: int) -> np.ndarray:
    """Images uint8 [len(indices), size, size, 3]."""
    return np.stack([decode_image(source[i].image, size) for i in indices])


def evenly_spaced(samples: int, count: int) -> list[int]:
    """`count` indices (or all) spread evenly over a source."""
    return [int(i) for i in np.linspace(0, samples - 1, min(count, samples))]
