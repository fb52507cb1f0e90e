"""The paper's filter on characters: captions have no special characters (ERNIE-ViLG, on its data), which it
doesn't define."""

import unicodedata
from dataclasses import dataclass, field
from typing import Literal

from ppvilg.config.models import STRICT
from ppvilg.data.filters.pairs import ReadyFilter, judge_captions

PUNCTUATION = ",.!?;:'\"()-/%&，。！？；：、“”‘’（）《》〈〉「」『』—…·"


@dataclass(frozen=True, kw_only=True)
class SpecialCharacters:
    """Drops captions with a special character: all but letters and their accents, decimal digits and spaces of any script
    (Unicode's categories L, M, Nd, Zs), and the punctuation of ordinary sentences. So emoji, ★, ①, #, @, _, |, ~, <, {, 【 and
    control characters are special."""

    __pydantic_config__ = STRICT
    filter: Literal["special_characters"] = "special_characters"
    punctuation: str = PUNCTUATION
    """That isn't special."""
    languages: list[str] = field(default_factory=lambda: ["zh"])
    """Of the captions that are looked at; the others stay."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`."""

        def judge(text: str) -> str | None:
            return None if all(map(ordinary, text)) else "a special character"

        def ordinary(character: str) -> bool:
            category = unicodedata.category(character)
            return (
                category[0] == "L"
                or category in ("Nd", "Zs")
                or character in self.punctuation
                # Variation selectors make emoji of other characters.
                or (category[0] == "M" and not unicodedata.name(character).startswith("VARIATION SELECTOR"))
            )

        return ReadyFilter(self.filter, lambda pairs: judge_captions(pairs, self.languages, judge))
