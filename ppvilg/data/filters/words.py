"""The paper's filters on words: captions have fewer than 15 words and at least one noun (ERNIE-ViLG, on its data).

Words are what jieba cuts Chinese into, so captions in other languages pass, unless the config names theirs too.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from ppvilg.config.models import STRICT, Positive
from ppvilg.data.filters.pairs import ReadyFilter, judge_captions

if TYPE_CHECKING:
    from jieba.posseg import POSTokenizer


@dataclass(frozen=True, kw_only=True)
class CaptionLength:
    """Drops captions that are too long. A word is a piece that jieba cuts and that has a letter or a digit in it; punctuation
    is none."""

    __pydantic_config__ = STRICT
    filter: Literal["caption_length"] = "caption_length"
    fewer_than: Positive = 15
    """Words."""
    languages: list[str] = field(default_factory=lambda: ["zh"])
    """Of the captions that are looked at; the others stay."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`."""
        cut = _tagger().tokenizer.lcut
        reason = f"{self.fewer_than} words or more"

        def judge(text: str) -> str | None:
            words = sum(any(character.isalnum() for character in word) for word in cut(text))
            return None if words < self.fewer_than else reason

        return ReadyFilter(self.filter, lambda pairs: judge_captions(pairs, self.languages, judge))


@dataclass(frozen=True, kw_only=True)
class Noun:
    """Drops captions without a noun: a word whose part of speech is, for jieba, of the nouns (tags that begin with n, names
    of people, places and organisations among them)."""

    __pydantic_config__ = STRICT
    filter: Literal["noun"] = "noun"
    languages: list[str] = field(default_factory=lambda: ["zh"])
    """Of the captions that are looked at; the others stay."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`."""
        cut = _tagger().lcut

        def judge(text: str) -> str | None:
            return None if any(word.flag.startswith("n") for word in cut(text)) else "no noun"

        return ReadyFilter(self.filter, lambda pairs: judge_captions(pairs, self.languages, judge))


@cache
def _tagger() -> "POSTokenizer":
    """Of its own dictionary, so that words somebody adds to jieba's shared one change nothing here; a process loads it once."""
    import logging

    import jieba
    from jieba.posseg import POSTokenizer

    jieba.setLogLevel(logging.WARNING)
    tagger = POSTokenizer(jieba.Tokenizer())
    tagger.initialize()
    return tagger
