"""Batches by step: every sample once in an epoch, the same whatever was run before, captions by weight."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppvilg.data.loader import SampleStream, canonical_caption, draw_caption, own_positions, prefetch
from ppvilg.data.records import Record
from ppvilg.data.table import RecordTable


def records(metadata):
    return RecordTable.of(Record(str(i), {}, found, b"") for i, found in enumerate(metadata))


CAPTIONS = {"zh": ["红苹果", "苹果"], "en": ["red apple"], "fr": []}


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_visits_every_sample_once(samples, batch, seed):
    steps = -(-3 * samples // batch)
    stream = SampleStream(records([{}] * samples), {}, seed)
    places = [p for step in range(steps) for p in stream.places(range(step * batch, (step + 1) * batch))]
    for epoch in range(3):
        assert sorted(index for e, index in places[: 3 * samples] if e == epoch) == list(range(samples))


def test_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        return [index for _, index in SampleStream(records([{}] * 50), {}, seed).places(range(epoch * 50, epoch * 50 + 50))]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


@given(st.integers(0, 9), st.integers(1, 30), st.floats(0.05, 0.95), st.integers(0, 5))
def test_samples_of_a_smaller_weight_take_turns(plain, rare, weight, seed):
    stream = SampleStream(records([{"tone": None}] * plain + [{"tone": 3}] * rare), {"tone": {"3": weight}}, seed)
    seen = []
    for epoch in range(2 * rare):
        places = stream.places(range(epoch * len(stream), (epoch + 1) * len(stream)))
        indices = [index for e, index in places]
        assert {e for e, _ in places} == {epoch}
        assert len(set(indices)) == len(indices)
        assert set(range(plain)) <= set(indices)
        seen += [index for index in indices if index >= plain]
    assert len(seen) == 2 * rare * max(1, round(weight * rare))
    assert max(Counter(seen).values()) - min(Counter(seen).values()) <= 1
    assert len(set(seen)) == rare


def test_weights_of_several_fields_multiply():
    stream = SampleStream(records([{"a": 1, "b": 1}] * 100), {"a": {"1": 0.5}, "b": {"1": 0.5}}, 0)
    assert len(stream) == 25


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"tonne": {"3": 0.2}}, ["data.sample_weights", "tonne", "tone"]),
        ({"tone": {"9": 0.2}}, ["sample_weights.tone", "9", "3"]),
    ],
)
def test_weights_of_what_no_sample_has_are_refused(weights, words):
    with pytest.raises(ValueError, match=r"data\.sample_weights") as error:
        SampleStream(records([{"tone": 3}]), weights, 0)
    assert all(word in str(error.value) for word in words)


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 100))
def test_processes_read_the_same_positions_together_in_any_layout(data_world_size, own, micro_batches, first):
    size = own * data_world_size
    read = []
    for i in range(micro_batches):
        for data_rank in range(data_world_size):
            read += own_positions(first + i * size, size, data_rank, data_world_size)
    assert read == list(range(first, first + size * micro_batches))


def test_captions_are_drawn_by_the_languages_weights():
    drawn = Counter(draw_caption(CAPTIONS, {"zh": 3.0, "en": 1.0}, 0, epoch, 0) for epoch in range(2000))
    assert drawn["red apple"] / 2000 == pytest.approx(0.25, abs=0.04)
    assert drawn["红苹果"] / 2000 == pytest.approx(0.375, abs=0.04)
    assert draw_caption(CAPTIONS, {"en": 1.0}, 0, 0, 0) == "red apple"
    without_weights = Counter(draw_caption(CAPTIONS, {"de": 1.0}, 0, epoch, 0) for epoch in range(2000))
    assert without_weights["red apple"] / 2000 == pytest.approx(0.5, abs=0.05)


def test_canonical_captions_take_turns_by_language():
    weights = {"en": 0.2, "zh": 0.8}
    assert [canonical_caption(CAPTIONS, weights, turn) for turn in range(3)] == ["红苹果", "red apple", "红苹果"]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_made_ahead_come_in_order(workers):
    assert list(prefetch(lambda step: step * step, range(2, 12), workers)) == [step * step for step in range(2, 12)]


def test_an_error_in_a_worker_is_raised():
    def fail(step: int) -> int:
        raise ValueError(str(step))

    with pytest.raises(ValueError, match="0"):
        list(prefetch(fail, range(3), 2))
