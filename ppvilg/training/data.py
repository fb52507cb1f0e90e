"""What both tasks do with the data: open its splits, say what was left out, pick samples to look at."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.config import ImageDataConfig
from ppvilg.data.pictures import decode_picture
from ppvilg.data.sources import Source, open_source


def open_splits(data: ImageDataConfig, seed: int) -> tuple[Source, Source]:
    """The training and the validation source; pictures that no manifest vouches for are each decoded once to check them."""
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


def report(run: Path, *sources: Source) -> None:
    """Write to the run's folder what each source had to leave out, and print it where anything was."""
    text = "\n".join(str(source.report) for source in sources)
    (run / "data_report.txt").write_text(text + "\n", "utf-8")
    tqdm.write(text)


def pictures(source: Source, indices: list[int], size: int) -> np.ndarray:
    """Pictures uint8 [len(indices), size, size, 3]."""
    return np.stack([decode_picture(source[i].picture, size) for i in indices])


def spread(samples: int, count: int) -> list[int]:
    """`count` indices (or all) spread evenly over a source."""
    return [int(i) for i in np.linspace(0, samples - 1, min(count, samples))]
