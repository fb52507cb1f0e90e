"""Filters of pairs of images and captions: the paper's and those any corpus needs, by name in a config.

`setup_filters` loads what they need, `apply_filters` runs them and counts in a `Funnel` what they drop.
"""

from typing import Annotated

from pydantic import Discriminator

from ppvilg.data.filters.apply import apply_filters, decode_pairs, setup_filters
from ppvilg.data.filters.blocked import BlockedWords
from ppvilg.data.filters.characters import SpecialCharacters
from ppvilg.data.filters.duplicates import caption_hash, image_hash
from ppvilg.data.filters.funnel import Example, Funnel, Step, choose_examples
from ppvilg.data.filters.language import Language
from ppvilg.data.filters.pairs import Filter, Pair, ReadyFilter, Verdict
from ppvilg.data.filters.shape import AspectRatio, ImageSize
from ppvilg.data.filters.similarity import Similarity
from ppvilg.data.filters.words import CaptionLength, Noun

AnyFilter = Annotated[
    CaptionLength | Noun | SpecialCharacters | Language | BlockedWords | ImageSize | AspectRatio | Similarity,
    Discriminator("filter"),
]
"""A filter's options in a config; the key `filter` says which."""

__all__ = [
    "AnyFilter",
    "AspectRatio",
    "BlockedWords",
    "CaptionLength",
    "Example",
    "Filter",
    "Funnel",
    "ImageSize",
    "Language",
    "Noun",
    "Pair",
    "ReadyFilter",
    "Similarity",
    "SpecialCharacters",
    "Step",
    "Verdict",
    "apply_filters",
    "caption_hash",
    "choose_examples",
    "decode_pairs",
    "image_hash",
    "setup_filters",
]
