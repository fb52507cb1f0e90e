"""Who sees whom: the attention pattern of one layer in one direction, described once.

The sequence is kept in the same order in memory for both directions, text slots first:

    slot      0 .. m-1        m .. m+n-1
    holds     text tokens     image tokens, in raster order

What tells the directions apart is who is source and who is target (UniLM; paper 3.1.2): source tokens see all of the source
that their kind of layer shows, a target token sees all source tokens and the target tokens up to itself that its kind of
layer shows. Only image tokens know kinds; texts are always seen in full (paper 3.1.4):

    kind            text -> image                          image -> text
    dense           all image tokens up to itself          all image tokens
    row             itself and the W before it             those of its row
    column          those above it in its column           those of its column
    convolution     the kernel around it, up to itself     the kernel around it

W is the number of columns, so a row layer's query reaches the token right above its own (DALL·E); with `strict_row` it stays
inside its row. The two functions `text_sees` and `image_sees` are the definition. The mask, the blocks that training computes
in, and the cache slots of decoding are all drawn from them.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from ppvilg.config import AttentionKind

HIDDEN = -1e9  # added to the scores of keys that a query does not see


class Direction(Enum):
    """Which part of the sequence is written from the other."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_TEXT = "image_to_text"


@dataclass(frozen=True)
class Blocks:
    """One part of the sequence cut into groups of queries that share their keys."""

    queries: np.ndarray
    """Int [groups, size]: the tokens of each group, every token of the part once."""
    keys: np.ndarray
    """Int [groups, keys]: the tokens that a group reads; 0 where there is none, which the mask hides."""
    mask: np.ndarray
    """Bool [groups, size, keys], True where the query sees the key."""


@dataclass(frozen=True)
class CacheSlots:
    """Where the target part's tokens are kept in decoding: `groups` rings of `capacity` slots.

    Target token k belongs to ring k mod `groups` and is its (k div `groups`)-th; it overwrites the one `capacity` before.
    """

    groups: int
    capacity: int

    def write(self, positions: np.ndarray) -> np.ndarray:
        """The slot, counted over all rings, that target tokens int [B] are written to."""
        return positions % self.groups * self.capacity + positions // self.groups % self.capacity

    def ring(self, positions: np.ndarray) -> np.ndarray:
        """The slots int [B, capacity], counted over all rings, of the rings of target tokens int [B]."""
        return (positions % self.groups * self.capacity)[:, None] + np.arange(self.capacity)

    def held(self, positions: np.ndarray) -> np.ndarray:
        """The target tokens int [B, capacity] that these slots hold once the tokens are written; negative: none yet."""
        turn = (positions // self.groups)[:, None]
        newest = turn - (turn - np.arange(self.capacity)) % self.capacity
        return np.where(newest < 0, -1, newest * self.groups + (positions % self.groups)[:, None])


@dataclass(frozen=True)
class Pattern:
    """The visible pairs of slots for m text slots and a grid of rows x columns image slots.

    `kernel` (odd) is the width and height of the convolution kind's window.
    """

    text_length: int
    rows: int
    columns: int
    direction: Direction
    kind: AttentionKind = "dense"
    kernel: int = 11
    strict_row: bool = False

    @property
    def image_length(self) -> int:
        """n, the number of image slots."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """m + n, the number of slots."""
        return self.text_length + self.image_length

    @property
    def to_image(self) -> bool:
        """Whether the image is the target."""
        return self.direction is Direction.TEXT_TO_IMAGE

    @property
    def _wraps(self) -> bool:
        """Whether row layers reach over the row's start."""
        return self.to_image and not self.strict_row

    def text_sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether text tokens see text tokens; int arrays of token numbers, broadcast against each other -> bool."""
        return np.broadcast_to(True, np.broadcast(queries, keys).shape) if self.to_image else keys <= queries

    def image_sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether image tokens see image tokens; int arrays of token numbers, broadcast against each other -> bool."""
        query_row, query_column = queries // self.columns, queries % self.columns
        key_row, key_column = keys // self.columns, keys % self.columns
        if self.kind == "row":
            near = queries - keys <= self.columns if self._wraps else query_row == key_row
        elif self.kind == "column":
            near = query_column == key_column
        elif self.kind == "convolution":
            near = np.maximum(abs(query_row - key_row), abs(query_column - key_column)) <= self.kernel // 2
        else:
            near = np.broadcast_to(True, np.broadcast(queries, keys).shape)
        return near & (keys <= queries) if self.to_image else near

    def target_sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether target tokens see target tokens; as `text_sees` and `image_sees`."""
        return self.image_sees(queries, keys) if self.to_image else self.text_sees(queries, keys)

    def mask(self) -> np.ndarray:
        """Bool [m+n, m+n]: True where the query slot (row) sees the key slot (column)."""
        m = self.text_length
        text, image = np.arange(m), np.arange(self.image_length)
        visible = np.empty((self.length, self.length), dtype=bool)
        visible[:m, :m] = self.text_sees(text[:, None], text)
        visible[m:, m:] = self.image_sees(image[:, None], image)
        visible[m:, :m] = self.to_image  # the target sees the whole source, the source nothing of the target
        visible[:m, m:] = not self.to_image
        return visible

    def text_blocks(self) -> Blocks:
        """The text part: one group."""
        text = np.arange(self.text_length)[None]
        return Blocks(text, text, self.text_sees(text[:, :, None], text[:, None, :]))

    def image_blocks(self) -> Blocks:
        """The image part: its rows, its columns, or one group where that reads most of the picture anyway."""
        image = np.arange(self.image_length).reshape(self.rows, self.columns)
        above = below = 0  # rows that a group reads besides its own
        rows = 1  # of a group
        if self.kind == "column":
            image = image.T
        elif self.kind == "row":
            above = int(self._wraps)
        elif self.kind == "convolution":
            above = self.kernel // 2
            below = 0 if self.to_image else above
            # Fewer rows waste scores on keys outside the window's reach, more rows copy less.
            rows = max(k for k in range(1, max(1, above) + 1) if self.rows % k == 0)
        if self.kind == "dense" or (self.kind != "column" and 2 * (above + rows + below) > self.rows):
            rows, above, below = len(image), 0, 0
        padded = np.pad(image, ((above, below), (0, 0)), constant_values=-1)
        queries = image.reshape(len(image) // rows, -1)
        keys = np.stack([padded[i : i + above + rows + below].ravel() for i in range(0, len(image), rows)])
        mask = self.image_sees(queries[:, :, None], keys[:, None, :]) & (keys >= 0)[:, None, :]
        return Blocks(queries, np.maximum(keys, 0), mask)

    def cache_slots(self) -> CacheSlots:
        """Where decoding keeps the target: no more than a later token can still see."""
        if not self.to_image:
            return CacheSlots(1, self.text_length)
        if self.kind == "column":
            return CacheSlots(self.columns, self.rows)
        reach = self.kernel // 2
        kept = {
            "dense": self.image_length,
            "row": self.columns + int(self._wraps),
            "convolution": reach * self.columns + reach + 1,  # back to the window's first row and column
        }[self.kind]
        return CacheSlots(1, min(kept, self.image_length))
