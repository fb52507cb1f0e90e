"""The stream of samples: which ones, in which order, with which caption, is a function of the seed and the position in it.

Nothing is carried from step to step, so a resumed run sees exactly what it would have seen, with any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ppvilg.data.order import Permutation
from ppvilg.data.questions import Question
from ppvilg.data.records import metadata_text
from ppvilg.data.table import RecordTable

T = TypeVar("T")


class SampleStream:
    """The endless stream of a source's samples, epoch after epoch without a gap.

    `sample_weights` are those of `data.sample_weights`. A sample of weight 1 is in every epoch once; of the samples of weight w
    an epoch has a share w, and before one of them comes again, all others have come. Raises `ValueError` for weights of what no
    sample has.
    """

    def __init__(self, records: RecordTable, sample_weights: dict[str, dict[str, float]], seed: int):
        self.seed = seed
        self._groups: list[tuple[Permutation | None, np.ndarray | None, int, int]] = []
        # (how it was shuffled once, its samples, their number, how many of them an epoch has); no table for all samples at once
        if not sample_weights:
            self._groups.append((None, None, len(records), len(records)))
        else:
            weights = _weights(records, sample_weights)
            for weight in np.unique(weights).tolist():
                members = np.flatnonzero(weights == weight).astype(np.int32 if len(records) < 2**31 else np.int64)
                shuffled = None if weight == 1 else Permutation(len(members), seed)
                self._groups.append((shuffled, members, len(members), max(1, round(len(members) * weight))))
        self._ends = np.cumsum([count for *_, count in self._groups])

    def __len__(self) -> int:
        """Samples of an epoch."""
        return int(self._ends[-1])

    def places(self, positions: range) -> list[tuple[int, int]]:
        """(epoch, sample index) for each of some positions in the stream."""
        length, found = len(self), []
        for epoch in range(positions.start // length, -(-positions.stop // length)):
            inside = np.arange(max(positions.start, epoch * length), min(positions.stop, (epoch + 1) * length)) - epoch * length
            found += [(epoch, index) for index in self._samples(epoch, Permutation(length, self.seed, epoch)(inside)).tolist()]
        return found

    def _samples(self, epoch: int, slots: np.ndarray) -> np.ndarray:
        """The samples int64 [k] at slots int64 [k] of an epoch before it is shuffled: the groups one after the other."""
        samples = np.empty(len(slots), np.int64)
        of_group = np.searchsorted(self._ends, slots, side="right")
        for i, (shuffled, members, size, count) in enumerate(self._groups):
            inside = of_group == i
            # Each epoch takes the part of a group, shuffled once, that follows the part of the epoch before.
            turn = (slots[inside] - (self._ends[i] - count) + epoch * count) % size
            turn = turn if shuffled is None else shuffled(turn)
            samples[inside] = turn if members is None else members[turn]
        return samples


def _weights(records: RecordTable, sample_weights: dict[str, dict[str, float]]) -> np.ndarray:
    """The weight float32 of each sample."""
    weights = np.ones(len(records))
    for name, shares in sample_weights.items():
        values, codes = records.metadata_codes(name)
        if not any(value is not None for value in values):
            known = ", ".join(records.metadata_names())
            raise ValueError(f"data.sample_weights: no training sample has {name!r}; there is {known or 'nothing'}")
        if unknown := set(shares) - set(values):
            some = ", ".join(sorted(value for value in values if value is not None)[:20])
            raise ValueError(f"data.sample_weights.{name}: {', '.join(sorted(unknown))} never occurs; values are {some}")
        weights *= np.array([shares.get(metadata_text(value), 1.0) for value in values])[codes]
    return weights


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
