"""Which pairs of a split are evaluated, and which training images stand beside them as baselines."""

from dataclasses import dataclass

import numpy as np

from ppvilg.config import EvalExperiment
from ppvilg.data.loader import canonical_caption
from ppvilg.data.records import Record
from ppvilg.data.sources import Source
from ppvilg.data.splits import open_split
from ppvilg.text import TextTokenizer


@dataclass(frozen=True)
class Pair:
    """One image of the split with the caption it is evaluated with."""

    index: int
    """Of the image in the source."""
    key: str
    caption: str
    references: list[str]
    """All captions of the image in the caption's language."""
    style: str | None
    """What the image's metadata calls its style."""


@dataclass(frozen=True)
class Chosen:
    """The pairs of an evaluation with their source."""

    source: Source
    pairs: list[Pair]
    overlong: int
    """Pairs left out because their caption has more tokens than the model reads."""


def choose_pairs(config: EvalExperiment, split: str, text: TextTokenizer, max_length: int) -> Chosen:
    """The pairs that the config asks for, those whose caption the model can read; raises `ValueError` if none is left."""
    languages = config.data.languages
    source = open_split(config.data, split, config.data.seed, config.keep)
    candidates: list[tuple[int, str]] = []
    for i, record in enumerate(source.records):
        texts = of_one_language(record, languages)
        candidates += [(i, caption) for caption in (texts[:1] if config.captions == "canonical" else texts)]
    if config.samples is not None and config.samples < len(candidates):
        drawn = np.random.default_rng(config.seed).choice(len(candidates), config.samples, replace=False)
        candidates = [candidates[i] for i in sorted(drawn)]
    pairs = []
    for i, caption in candidates:
        if len(text.encode(caption)) <= max_length:
            record = source.records[i]
            pairs.append(Pair(i, record.key, caption, of_one_language(record, languages), _style(record)))
    if not pairs:
        raise ValueError(f"no caption of the split {split} is short enough: the model reads {max_length - 2} tokens at most")
    return Chosen(source, pairs, len(candidates) - len(pairs))


def others_of_the_styles(config: EvalExperiment, pairs: list[Pair]) -> tuple[Source, list[int]] | None:
    """For each pair a real training image of its style, no image twice while there are enough: what the distance
    between real images and real images is. None where the config names no training split."""
    if config.training_split is None:
        return None
    source = open_split(config.data, config.training_split, config.data.seed, config.keep)
    order = np.random.default_rng([config.seed, 1]).permutation(len(source))
    by_style: dict[str | None, list[int]] = {}
    for i in order:
        by_style.setdefault(_style(source.records[i]), []).append(int(i))
    taken: dict[str | None, int] = {}
    chosen = []
    for pair in pairs:
        style = pair.style if pair.style in by_style else None
        there = by_style.get(style) or [int(i) for i in order]
        turn = taken.get(style, 0)
        taken[style] = turn + 1
        chosen.append(there[turn % len(there)])
    return source, chosen


def nearest_by_caption(config: EvalExperiment, pairs: list[Pair]) -> tuple[Source, list[int]] | None:
    """For each pair the image whose caption is nearest, of those that the model was trained on: what looking things up
    instead of drawing them would give. None where the config names no training split.

    Nearest by the cosine of the captions' TF-IDF over sequences of one to three characters; of equals, the first.
    """
    if config.training_split is None:
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer

    source = open_split(config.data, config.training_split, config.data.seed)
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3))
    known = vectorizer.fit_transform([canonical_caption(r.captions, config.data.languages) for r in source.records])
    asked = vectorizer.transform([pair.caption for pair in pairs])
    return source, [int(np.argmax((asked[i] @ known.T).toarray())) for i in range(len(pairs))]


def of_one_language(record: Record, languages: dict[str, float]) -> list[str]:
    """A record's captions in the language of its canonical caption, that one first."""
    first = canonical_caption(record.captions, languages)
    return next(texts for texts in record.captions.values() if texts and texts[0] == first)


def _style(record: Record) -> str | None:
    style = record.metadata.get("style")
    return style if isinstance(style, str) else None
