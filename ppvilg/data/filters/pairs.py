"""What filters look at, and what they say about it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ppvilg.data.records import Record


@dataclass(frozen=True)
class Pair:
    """An image with its captions."""

    record: Record
    size: tuple[int, int] | None = None
    """(width, height) of the whole image, upright; None until a filter needs it."""
    squares: Mapping[int, np.ndarray] = field(default_factory=dict)
    """{side: uint8 [side, side, 3]}: the square in the middle of the image at each side that is needed, as
    `ppvilg.data.images.decode_image` cuts it; empty until then. The whole image isn't kept: a batch of large ones would fill
    the memory."""

    def captions(self) -> Iterator[tuple[str, str]]:
        """(language, text) of every caption in the record's order."""
        for language, texts in self.record.captions.items():
            for text in texts:
                yield language, text


@dataclass(frozen=True)
class Verdict:
    """What a filter says about one pair."""

    pair: str | None = None
    """Why the whole pair is dropped; None: it isn't."""
    captions: tuple[str | None, ...] | None = None
    """For each of `Pair.captions()` why it is dropped or None; None: all captions stay."""


Check = Callable[[Sequence[Pair]], list[Verdict]]
"""Judges each pair on its own: what else is among the pairs makes no difference."""


@dataclass(frozen=True)
class ReadyFilter:
    """A filter that has loaded what it needs."""

    name: str
    check: Check
    needs_image: bool = False
    """Whether it looks at `Pair.size` or `Pair.squares`."""
    side: int | None = None
    """Of the square that it looks at."""


class Filter(Protocol):
    """Options of a filter in a config: a frozen dataclass with its name in the key `filter`."""

    filter: str

    def setup(self) -> ReadyFilter:
        """Load what the filter needs (a dictionary, a model), once for each worker; raises `ValueError` where it is missing."""


def judge_captions(pairs: Sequence[Pair], languages: Sequence[str], judge: Callable[[str], str | None]) -> list[Verdict]:
    """Verdicts from a function of one caption, which is asked about captions in these languages only."""
    return [
        Verdict(captions=tuple(judge(text) if language in languages else None for language, text in pair.captions()))
        for pair in pairs
    ]
