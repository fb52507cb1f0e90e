"""The stream of samples: which ones, in which order, with which caption, is a function of the seed and the position in it.

Nothing is carried from step to step, so a resumed run sees exactly what it would have seen, with any number of processes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation int64 [samples] in which an epoch visits the samples."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def sample_indices(samples: int, seed: int, positions: range) -> list[tuple[int, int]]:
    """(epoch, sample index) for each of some positions in the endless stream of samples.

    Epochs follow one another without a gap, and no sample of one is left out or seen twice.
    """
    orders = {epoch: epoch_order(samples, seed, epoch) for epoch in {position // samples for position in positions}}
    return [(position // samples, int(orders[position // samples][position % samples])) for position in positions]


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
    known = sorted(language for language, texts in captions.items() if texts)
    weights = np.array([languages.get(language, 0.0) for language in known])
    if not weights.sum():
        weights = np.ones(len(known))
    generator = np.random.default_rng([seed, epoch, index])
    texts = captions[known[generator.choice(len(known), p=weights / weights.sum())]]
    return texts[generator.integers(len(texts))]


def canonical_caption(captions: dict[str, list[str]], languages: dict[str, float], turn: int = 0) -> str:
    """The first caption of a language; `turn` walks through the languages, the heaviest first."""
    known = [language for language, texts in captions.items() if texts]
    known.sort(key=lambda language: -languages.get(language, 0.0))
    return captions[known[turn % len(known)]][0]


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
