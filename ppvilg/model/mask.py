"""Who sees whom: the attention mask of one layer in one direction, described once.

A sequence is kept in the same order in memory for both directions, text slots first:

    slot      0 .. m-1        m .. m+n-1
    holds     text tokens     image tokens, in raster order

An image -> text sequence may have q slots for a question between them, which is read beside the image:

    slot      0 .. m-1        m .. m+q-1         m+q .. m+q+n-1
    holds     text tokens     question tokens    image tokens

The directions differ in what is the prefix and what the target (UniLM; paper 3.1.2): prefix tokens see the whole prefix that
their kind of layer shows, a target token sees the whole prefix and the target tokens up to itself that its kind of layer shows.
Kinds only concern image tokens among themselves; texts are always seen in full (paper 3.1.4):

    kind            text -> image                          image -> text
    dense           all image tokens up to itself          all image tokens
    row             itself and the W before it             those of its row
    column          those above it in its column           those of its column
    convolution     the kernel around it, up to itself     the kernel around it

A question is a text of the prefix: its tokens see each other and the image, image tokens see it as they see a text that they
are generated from, and the target, the answer, sees both.

With `causal_text` a prefix text's tokens see only those up to themselves (GPTs over text and image).
W is the number of columns, so a row layer's query reaches the token right above its own (DALL·E); with `strict_row` it stays
inside its row. `text_sees` and `image_sees` are the definition. The dense mask, the blocks that training computes, and the
cache slots of decoding are all derived from these two functions.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from ppvilg.config import AttentionKind


class Direction(Enum):
    """Which modality is generated from the other."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_TEXT = "image_to_text"


@dataclass(frozen=True)
class Blocks:
    """One part of the sequence (text, question or image), cut into groups of queries that share their keys."""

    queries: np.ndarray
    """Int [groups, size]: the slots of each group's queries; every slot of the part once."""
    prefix: slice | None
    """Slots that all queries see besides their group's keys: for the target the whole prefix, for an image a question."""
    keys: np.ndarray
    """Int [groups, keys]: the slots that a group reads; any slot where there is none, which the mask hides."""
    mask: np.ndarray
    """Bool [groups, size, keys], True where the query sees the key."""


@dataclass(frozen=True)
class CacheSlots:
    """Where decoding keeps the target part's tokens: `groups` rings of `capacity` slots.

    Target token k belongs to ring k mod `groups` and is its (k div `groups`)-th; it overwrites the one `capacity` before.
    """

    groups: int
    capacity: int

    def write(self, positions: np.ndarray) -> np.ndarray:
        """The slot, counted over all rings, that target tokens int [B] are written to."""
        return positions % self.groups * self.capacity + positions // self.groups % self.capacity

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The slots int [B, capacity], counted over all rings, that target tokens int [B] read: those of their ring."""
        return (positions % self.groups * self.capacity)[:, None] + np.arange(self.capacity)

    def held(self, positions: np.ndarray) -> np.ndarray:
        """The target tokens int [B, capacity] that these slots hold once the tokens are written; negative: none yet."""
        turn = (positions // self.groups)[:, None]
        newest = turn - (turn - np.arange(self.capacity)) % self.capacity
        return np.where(newest < 0, -1, newest * self.groups + (positions % self.groups)[:, None])


@dataclass(frozen=True)
class PromptMask:
    """A text of `length` slots alone: every slot sees every other, or if it is `causal` those up to itself."""

    length: int
    causal: bool = False

    def blocks(self) -> tuple[Blocks]:
        """One part, one group."""
        slots = np.arange(self.length)[None]
        visible = np.ones((1, self.length, self.length), bool)
        return (Blocks(slots, None, slots, np.tril(visible) if self.causal else visible),)


@dataclass(frozen=True)
class AttentionMask:
    """The visible pairs of slots for m text slots and a grid of rows x columns image slots.

    `kernel` (odd) is the width and height of the convolution kind's window, `question_length` is q, of image -> text. Raises
    `ValueError` for slots for a question that an image is to be generated from.
    """

    text_length: int
    rows: int
    columns: int
    direction: Direction
    kind: AttentionKind = "dense"
    kernel: int = 11
    strict_row: bool = False
    causal_text: bool = False
    question_length: int = 0

    def __post_init__(self):
        if self.to_image and self.question_length:
            raise ValueError(f"question_length is {self.question_length}: give 0, images are generated from a text alone")

    @property
    def image_length(self) -> int:
        """n, the number of image slots."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """m + q + n, the number of slots."""
        return self.text_length + self.question_length + self.image_length

    @property
    def to_image(self) -> bool:
        """Whether the image is the target."""
        return self.direction is Direction.TEXT_TO_IMAGE

    @property
    def text_slots(self) -> slice:
        """The text's slots."""
        return slice(0, self.text_length)

    @property
    def question_slots(self) -> slice:
        """The question's slots."""
        return slice(self.text_length, self.text_length + self.question_length)

    @property
    def image_slots(self) -> slice:
        """The image's slots."""
        return slice(self.text_length + self.question_length, self.length)

    @property
    def prefix_slots(self) -> slice:
        """The prefix's slots: the text's, or the question's and the image's."""
        return self.text_slots if self.to_image else slice(self.text_length, self.length)

    @property
    def target_length(self) -> int:
        """The number of target tokens."""
        return self.image_length if self.to_image else self.text_length

    @property
    def _wraps(self) -> bool:
        """Whether row layers reach over the row's start."""
        return self.to_image and not self.strict_row

    def text_sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether text tokens see text tokens; int arrays of token numbers, broadcast against each other -> bool."""
        full = self.to_image and not self.causal_text
        return np.broadcast_to(True, np.broadcast(queries, keys).shape) if full else keys <= queries

    def image_sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether image tokens see image tokens; int arrays of token numbers, broadcast against each other -> bool."""
        query_row, query_column = queries // self.columns, queries % self.columns
        key_row, key_column = keys // self.columns, keys % self.columns
        if self.kind == "row":
            local = queries - keys <= self.columns if self._wraps else query_row == key_row
        elif self.kind == "column":
            local = query_column == key_column
        elif self.kind == "convolution":
            local = np.maximum(abs(query_row - key_row), abs(query_column - key_column)) <= self.kernel // 2
        else:
            local = np.broadcast_to(True, np.broadcast(queries, keys).shape)
        return local & (keys <= queries) if self.to_image else local

    def target_sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether target tokens see target tokens; as `text_sees` and `image_sees`."""
        return self.image_sees(queries, keys) if self.to_image else self.text_sees(queries, keys)

    def mask(self) -> np.ndarray:
        """Bool [m+q+n, m+q+n]: True where the query slot (row) sees the key slot (column)."""
        text, image = np.arange(self.text_length), np.arange(self.image_length)
        target = self.image_slots if self.to_image else self.text_slots
        visible = np.zeros((self.length, self.length), dtype=bool)
        visible[self.text_slots, self.text_slots] = self.text_sees(text[:, None], text)
        visible[self.image_slots, self.image_slots] = self.image_sees(image[:, None], image)
        visible[target, self.prefix_slots] = True  # and the prefix sees no target
        visible[self.question_slots, self.prefix_slots] = True
        visible[self.image_slots, self.question_slots] = True
        return visible

    def blocks(self) -> tuple[Blocks, ...]:
        """The parts of the sequence, which together hold every query once: text and image, or question, image and text."""
        return self._blocks

    @cached_property
    def _blocks(self) -> tuple[Blocks, ...]:
        if self.to_image:
            return self._text_blocks(None), self._image_blocks(self.text_slots)
        text = self._text_blocks(self.prefix_slots)
        if not self.question_length:
            return self._image_blocks(None), text
        return self._question_blocks(), self._image_blocks(self.question_slots), text

    def _question_blocks(self) -> Blocks:
        """One group, which reads all of the prefix."""
        queries, keys = (np.arange(slots.start, slots.stop)[None] for slots in (self.question_slots, self.prefix_slots))
        return Blocks(queries, None, keys, np.ones((1, queries.size, keys.size), bool))

    def _text_blocks(self, prefix: slice | None) -> Blocks:
        """One group."""
        text = np.arange(self.text_length)[None]
        return Blocks(text, prefix, text, self.text_sees(text[:, :, None], text[:, None, :]))

    def _image_blocks(self, prefix: slice | None) -> Blocks:
        """The image's rows, its columns, or one group where that reads most of the image anyway."""
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
        first = self.image_slots.start
        return Blocks(first + queries, prefix, first + np.maximum(keys, 0), mask)

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
