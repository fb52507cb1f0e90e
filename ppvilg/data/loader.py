"""The stream of samples: which ones, in which order, with which caption, is a function of the seed and the position in it.

Nothing is carried from step to step, so a resumed run sees exactly what it would have seen, with any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ppvilg.data.questions import Question
from ppvilg.data.records import Record, metadata_text

T = TypeVar("T")


class SampleStream:
    """The endless stream of a source's samples, epoch after epoch without a gap.

    `sample_weights` are those of `data.sample_weights`. A sample of weight 1 is in every epoch once; of the samples of weight w
    an epoch has a share w, and before one of them comes again, all others have come. Raises `ValueError` for weights of what no
    sample has.
    """

    def __init__(self, records: Sequence[Record], sample_weights: dict[str, dict[str, float]], seed: int):
        self.seed = seed
        weights = np.ones(len(records))
        for name, shares in sample_weights.items():
            _check_occurs(records, name, set(shares))
            weights *= [shares.get(metadata_text(record.metadata.get(name)), 1.0) for record in records]
        groups = {weight: np.flatnonzero(weights == weight) for weight in np.unique(weights).tolist()}
        self._counts = [max(1, round(len(group) * weight)) for weight, group in groups.items()]
        shuffle = np.random.default_rng(seed).permutation
        self._groups = [group if weight == 1 else shuffle(group) for weight, group in groups.items()]

    def __len__(self) -> int:
        """Samples of an epoch."""
        return sum(self._counts)

    def places(self, positions: range) -> list[tuple[int, int]]:
        """(epoch, sample index) for each of some positions in the stream."""
        length = len(self)
        orders = {epoch: self._epoch(epoch) for epoch in {position // length for position in positions}}
        return [(position // length, int(orders[position // length][position % length])) for position in positions]

    def _epoch(self, epoch: int) -> np.ndarray:
        # Each epoch takes the part of a group, shuffled once, that follows the part of the epoch before.
        parts = [np.roll(group, -epoch * count)[:count] for group, count in zip(self._groups, self._counts, strict=True)]
        return np.random.default_rng([self.seed, epoch]).permutation(np.concatenate(parts))


def _check_occurs(records: Sequence[Record], name: str, values: set[str]) -> None:
    present = {metadata_text(record.metadata[name]) for record in records if name in record.metadata}
    if not present:
        known = ", ".join(sorted({field for record in records for field in record.metadata}))
        raise ValueError(f"data.sample_weights: no training sample has {name!r}; there is {known or 'nothing'}")
    if unknown := values - present:
        some = ", ".join(sorted(present)[:20])
        raise ValueError(f"data.sample_weights.{name}: {', '.join(sorted(unknown))} never occurs; values are {some}")


def own_positions(first: int, size: int, data_rank: int, data_world_size: int) -> range:
    """The positions that one of several processes reads of a micro-batch of `size` samples that begins at position `first`:
    whatever the layout, the processes together read the same ones."""
    own = size // data_world_size
    start = first + data_rank * own
    return range(start, start + own)


def draw_caption(captions: dict[str, list[str]], languages: dict[str, float], seed: int, epoch: int, index: int) -> str:
    """One of a sample's captions: a language by weight, then one of its captions alike.

    Languages that have no weight are left out, unless `languages` is empty or none of the sample's has one.
    """
    return _draw(captions, languages, np.random.default_rng([seed, epoch, index]))


def draw_question(
    questions: Sequence[Question], languages: dict[str, float], seed: int, epoch: int, index: int
) -> tuple[str, str]:
    """One of a sample's questions that have answers, drawn as `draw_caption` draws, and one of its answers alike."""
    generator = np.random.default_rng([seed, epoch, index])
    question = _draw(_by_language(questions), languages, generator)
    return question.text, question.answers[generator.integers(len(question.answers))]


def _draw(by_language: dict[str, list[T]], languages: dict[str, float], generator: np.random.Generator) -> T:
    known = sorted(language for language, texts in by_language.items() if texts)
    weights = np.array([languages.get(language, 0.0) for language in known])
    if not weights.sum():
        weights = np.ones(len(known))
    texts = by_language[known[generator.choice(len(known), p=weights / weights.sum())]]
    return texts[generator.integers(len(texts))]


def _by_language(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions that have answers."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        if question.answers:
            found.setdefault(question.language, []).append(question)
    return found


def canonical_caption(captions: dict[str, list[str]], languages: dict[str, float], turn: int = 0) -> str:
    """The first caption of a language; `turn` walks through the languages, the heaviest first."""
    known = [language for language, texts in captions.items() if texts]
    known.sort(key=lambda language: -languages.get(language, 0.0))
    return captions[known[turn % len(known)]][0]


def canonical_question(questions: Sequence[Question], turn: int) -> tuple[str, str]:
    """A question and its most frequent answer; `turn` walks through those that have answers."""
    answered = [question for question in questions if question.answers]
    question = answered[turn % len(answered)]
    return question.text, question.canonical_answer


def prefetch(make: Callable[[int], T], steps: range, workers: int) -> Iterator[T]:
    """`make(step)` for each step in order, made by `workers` threads up to two steps each ahead (0: when asked)."""
    if not workers:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting, todo = [], iter(steps)
        for step in todo:
            waiting.append(pool.submit(make, step))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
