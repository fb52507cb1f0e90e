"""Captions with words from a list."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from ppvilg.config.models import STRICT
from ppvilg.data.filters.pairs import Pair, ReadyFilter, Verdict


@dataclass(frozen=True, kw_only=True)
class BlockedWords:
    """Drops captions of any language with a word of a list. Upper and lower case, full and half width are the same. Words
    of alphabets (Latin, Greek, Cyrillic) and numbers are found as whole words, Chinese ones anywhere."""

    __pydantic_config__ = STRICT
    filter: Literal["blocked_words"] = "blocked_words"
    file: str
    """UTF-8, a word or several on each line; empty lines and those that begin with # are left out."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`; raises `ValueError` for a file that is missing or empty."""
        try:
            lines = Path(self.file).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"the blocked words {self.file} cannot be read: give a text file in UTF-8") from None
        words = {_normalized(line) for line in lines if line.strip() and not line.startswith("#")}
        if not words:
            raise ValueError(f"the list of blocked words {self.file} is empty: write a word on each line")
        lengths = sorted({len(word) for word in words})

        def judge(text: str) -> str | None:
            return "a blocked word" if _contains(_normalized(text), words, lengths) else None

        def check(pairs: Iterable[Pair]) -> list[Verdict]:
            return [Verdict(captions=tuple(judge(text) for _, text in pair.captions())) for pair in pairs]

        return ReadyFilter(self.filter, check)


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _contains(text: str, words: set[str], lengths: list[int]) -> bool:
    """Looks parts of the text up, so that the time does not grow with the list."""
    joined = [False, *(_of_alphabet(a) and _of_alphabet(b) for a, b in pairwise(text)), False]
    for first in range(len(text)):
        if joined[first]:
            continue
        for length in lengths:
            last = first + length
            if last > len(text):
                break
            if not joined[last] and text[first:last] in words:
                return True
    return False


def _of_alphabet(character: str) -> bool:
    """Whether it makes a longer word with its neighbour; letters without case, as Chinese ones, don't."""
    return unicodedata.category(character) in ("Ll", "Lu", "Mn", "Nd")
