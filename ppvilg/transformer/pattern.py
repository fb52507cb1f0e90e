"""Who sees whom: the attention pattern of one layer in one direction, described once.

The sequence is kept in the same order in memory for both directions, text slots first:

    slot      0 .. m-1        m .. m+n-1
    holds     text tokens     image tokens, in raster order

What tells the directions apart is the mask (UniLM; paper 3.1.2): source tokens see all source tokens, a target token sees
all source tokens and the target tokens up to itself.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np


class Direction(Enum):
    """Which part of the sequence is written from the other."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_TEXT = "image_to_text"


@dataclass(frozen=True)
class Pattern:
    """The visible pairs of slots for m text slots and a grid of rows x columns image slots."""

    text_length: int
    rows: int
    columns: int
    direction: Direction

    @property
    def image_length(self) -> int:
        """n, the number of image slots."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """m + n, the number of slots."""
        return self.text_length + self.image_length

    @property
    def source(self) -> slice:
        """The slots of the part that is given."""
        return self._text if self.direction is Direction.TEXT_TO_IMAGE else self._image

    @property
    def target(self) -> slice:
        """The slots of the part that is written."""
        return self._image if self.direction is Direction.TEXT_TO_IMAGE else self._text

    def mask(self) -> np.ndarray:
        """Bool [m+n, m+n]: True where the query slot (row) sees the key slot (column)."""
        visible = np.zeros((self.length, self.length), dtype=bool)
        targets = self.target.stop - self.target.start
        visible[self.source, self.source] = True
        visible[self.target, self.source] = True
        visible[self.target, self.target] = np.tri(targets, dtype=bool)
        return visible

    @property
    def _text(self) -> slice:
        return slice(0, self.text_length)

    @property
    def _image(self) -> slice:
        return slice(self.text_length, self.length)
