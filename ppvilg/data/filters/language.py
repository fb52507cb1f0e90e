"""Captions in another language than their label says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from ppvilg.config.models import STRICT
from ppvilg.data.filters.pairs import Pair, ReadyFilter, Verdict

_LANGUAGES = ["zh", "en", "ja", "ko", "de", "es", "fr", "it", "pt", "ru", "vi", "th", "ar"]


@dataclass(frozen=True, kw_only=True)
class Language:
    """Drops captions whose label is of other languages than the wanted ones, or that py3langid is sure are in another language
    than their label says. It chooses among few languages: among all 140 that it knows, short captions are of anything."""

    __pydantic_config__ = STRICT
    filter: Literal["language"] = "language"
    wanted: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["zh", "en"])
    among: Annotated[list[str], Field(min_length=2)] = field(default_factory=lambda: list(_LANGUAGES))
    """What captions may turn out to be in, as ISO 639-1 codes. Captions with a label that isn't among them stay."""
    sure: Annotated[float, Field(gt=0.5, lt=1)] = 0.9
    """Probability of another language at which a caption is dropped."""

    def setup(self) -> ReadyFilter:
        """As a `Filter`; raises `ValueError` for languages that py3langid doesn't know."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        unknown = sorted(set(self.among) - set(identifier.labels))
        if unknown:
            raise ValueError(f"the language filter doesn't know {', '.join(unknown)}: it takes {', '.join(identifier.labels)}")
        identifier.set_languages(self.among)

        def judge(label: str, text: str) -> str | None:
            if label not in self.wanted:
                return "a language that is not wanted"
            language, probability = identifier.classify(text)
            wrong = label in self.among and language != label and probability >= self.sure
            return "another language than its label" if wrong else None

        def check(pairs: Sequence[Pair]) -> list[Verdict]:
            return [Verdict(captions=tuple(judge(*caption) for caption in pair.captions())) for pair in pairs]

        return ReadyFilter(self.filter, check)
