"""Filters one after the other over some pairs, and the count of what they drop."""

from collections.abc import Sequence
from dataclasses import replace

from ppvilg.data.filters.funnel import Example, Funnel, Step, choose_examples
from ppvilg.data.filters.pairs import Filter, Pair, ReadyFilter, Verdict
from ppvilg.data.images import UnusableImageError, decode_squares, encode_jpeg
from ppvilg.data.records import read_place

_THUMBNAIL = 96
"""Pixels of a side of an example's image."""


def setup_filters(filters: Sequence[Filter]) -> list[ReadyFilter]:
    """Load what the filters of a config need; a worker does it once. Raises `ValueError` where something is missing."""
    return [one.setup() for one in filters]


def apply_filters(filters: Sequence[ReadyFilter], pairs: Sequence[Pair], image_size: int) -> tuple[list[Pair], Funnel]:
    """The pairs that pass all filters, in their order and decoded, and how many each step dropped.

    Images are decoded once, before the first filter that needs them or after the last one; those that can't be are dropped in
    a step of their own, "decode". A pair that loses its last caption is dropped, unless it has questions.

    image_size: side of the square that training sees; each pair that is kept has it in `squares`.
    """
    sides = sorted({image_size, *(ready.side for ready in filters if ready.side)})
    kept, steps, decoded = list(pairs), [], False
    for ready in filters:
        if ready.needs_image and not decoded:
            kept, step = decode_pairs(kept, sides)
            steps.append(step)
            decoded = True
        kept, step = _sift(ready.name, kept, ready.check(kept))
        steps.append(step)
    if not decoded:
        kept, step = decode_pairs(kept, sides)
        steps.append(step)
    return kept, Funnel(steps)


def decode_pairs(pairs: Sequence[Pair], sides: Sequence[int]) -> tuple[list[Pair], Step]:
    """The pairs whose images can be read and decoded, with `size` and `squares` of these sides, and why the others can't."""
    decoded, verdicts = [], []
    for pair in pairs:
        try:
            squares, size = decode_squares(read_place(pair.record.place), sides)
            pair, verdict = replace(pair, size=size, squares=squares), Verdict()
        except UnusableImageError as error:
            verdict = Verdict(error.reason)
        except OSError:
            verdict = Verdict("the file cannot be read")
        decoded.append(pair)
        verdicts.append(verdict)
    return _sift("decode", decoded, verdicts)


def _sift(name: str, pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> tuple[list[Pair], Step]:
    """Take out what the verdicts drop, count it, and keep examples."""
    kept: list[Pair] = []
    step = Step(name, len(pairs))
    lost: dict[str, dict[Example, Pair]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        captions = list(pair.captions())
        step.captions += len(captions)
        reasons = [verdict.pair] * len(captions) if verdict.pair else list(verdict.captions or [None] * len(captions))
        dropped = [(reason, text) for reason, (_, text) in zip(reasons, captions, strict=True) if reason]
        step.dropped_captions.update(reason for reason, _ in dropped)
        pair_reason = verdict.pair
        if dropped and len(dropped) == len(captions) and not pair.record.questions:
            pair_reason = dropped[-1][0]
        if pair_reason:
            step.dropped_pairs[pair_reason] += 1
        else:
            kept.append(_without(pair, reasons) if dropped else pair)
        for reason in {reason for reason, _ in dropped} | ({pair_reason} - {None}):
            example = Example(pair.record.key, tuple(text for why, text in dropped if why == reason))
            lost.setdefault(reason, {})[example] = pair
    for reason, some in sorted(lost.items()):
        step.examples[reason] = [replace(example, thumbnail=_thumbnail(some[example])) for example in choose_examples(some)]
    return kept, step


def _without(pair: Pair, reasons: Sequence[str | None]) -> Pair:
    """The pair with the captions that have no reason to be dropped."""
    captions: dict[str, list[str]] = {}
    for reason, (language, text) in zip(reasons, pair.captions(), strict=True):
        if not reason:
            captions.setdefault(language, []).append(text)
    return replace(pair, record=replace(pair.record, captions=captions))


def _thumbnail(pair: Pair) -> bytes | None:
    """As JPEG, if the image can be shown."""
    try:
        squares, _ = decode_squares(read_place(pair.record.place), [_THUMBNAIL])
    except (UnusableImageError, OSError):
        return None
    return encode_jpeg(squares[_THUMBNAIL])
