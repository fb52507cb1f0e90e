"""The splits that an experiment's config names, and images out of them."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.config import EvalDataConfig, ImageDataConfig
from ppvilg.data.images import decode_image
from ppvilg.data.sources import Source, open_source


def open_split(
    data: ImageDataConfig | EvalDataConfig, split: str, seed: int, keep: dict[str, list[str]] | None = None
) -> Source:
    """A split of a config's data; `keep` takes the place of the config's own."""
    return open_source(
        data.path,
        split,
        keep=data.keep if keep is None else keep,
        captions=data.captions,
        validation_fraction=data.validation_fraction,
        seed=seed,
    )


def open_splits(data: ImageDataConfig, seed: int) -> tuple[Source, Source]:
    """The training and the validation source; images that no manifest vouches for are each decoded once to check them."""
    sources = [open_split(data, split, seed) for split in (data.train_split, data.validation_split)]
    if not (Path(data.path) / "manifest.json").is_file():
        sources = [source.check() for source in sources]
    return sources[0], sources[1]


def write_reports(run: Path, *sources: Source) -> None:
    """Write to the run's folder what each source had to leave out, and print it."""
    text = "\n".join(str(source.report) for source in sources)
    (run / "data_report.txt").write_text(text + "\n", "utf-8")
    tqdm.write(text)


def load_images(source: Source, indices: list[int], size: int) -> np.ndarray:
    """Images uint8 [len(indices), size, size, 3]."""
    return np.stack([decode_image(source[i].image, size) for i in indices])


def evenly_spaced(samples: int, count: int) -> list[int]:
    """`count` indices (or all) spread evenly over a source."""
    return [int(i) for i in np.linspace(0, samples - 1, min(count, samples))]
