"""The splits of a data set, and samples of them to look at or to measure on."""

from pathlib import Path

import numpy as np

from ppvilg.config import ImageDataConfig
from ppvilg.data.pictures import decode_picture
from ppvilg.data.sources import Source, open_source


def open_splits(data: ImageDataConfig, seed: int) -> tuple[Source, Source]:
    """The training and the validation source; images that no manifest vouches for are each decoded once to check them."""
    sources = []
    for split in (data.train_split, data.validation_split):
        source = open_source(
            data.path,
            split,
            keep=data.keep,
            captions=data.captions,
            validation_fraction=data.validation_fraction,
            seed=seed,
        )
        vouched = (Path(data.path) / "manifest.json").is_file()
        sources.append(source if vouched else source.check())
    return sources[0], sources[1]


def load_images(source: Source, indices: list[int], size: int) -> np.ndarray:
    """Images uint8 [len(indices), size, size, 3]."""
    return np.stack([decode_picture(source[i].picture, size) for i in indices])


def evenly_spaced(samples: int, count: int) -> list[int]:
    """`count` indices (or all) spread evenly over a source."""
    return [int(i) for i in np.linspace(0, samples - 1, min(count, samples))]
