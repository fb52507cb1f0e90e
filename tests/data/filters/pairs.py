"""Pairs made by hand."""

import io
from functools import cache

import numpy as np
from PIL import Image

from ppvilg.data.filters import Funnel, Pair, apply_filters, setup_filters
from ppvilg.data.records import Record


@cache
def picture(width: int = 80, height: int = 70, seed: int = 0, kind: str = "PNG", **options) -> bytes:
    """An encoded image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


def pair(*captions: str, key: str = "a", image: bytes | None = None, language: str = "zh", **more: list[str]) -> Pair:
    """A pair with captions of a language, and of more."""
    return Pair(Record(key, ({language: list(captions)} if captions else {}) | more, {}, picture() if image is None else image))


def dropped(options, *captions: str, language: str = "zh") -> list[bool]:
    """Which captions a filter drops, each alone."""
    pairs = [pair(caption, key=str(i), language=language) for i, caption in enumerate(captions)]
    kept, _ = apply_filters(setup_filters([options]), pairs, 16)
    keys = {one.record.key for one in kept}
    return [str(i) not in keys for i in range(len(captions))]


def run(options: list, pairs: list[Pair]) -> tuple[list[str], Funnel]:
    """The keys that are kept, and the funnel."""
    kept, funnel = apply_filters(setup_filters(options), pairs, 16)
    return [one.record.key for one in kept], funnel
