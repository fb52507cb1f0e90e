"""Batches by step: every sample once in an epoch, the same whatever was run before, captions by weight."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppvilg.data.loader import canonical_caption, draw_caption, own_positions, prefetch, sample_indices

CAPTIONS = {"zh": ["红苹果", "苹果"], "en": ["red apple"], "fr": []}


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_visits_every_sample_once(samples, batch, seed):
    steps = -(-3 * samples // batch)
    places = [p for step in range(steps) for p in sample_indices(samples, seed, range(step * batch, (step + 1) * batch))]
    for epoch in range(3):
        assert sorted(index for e, index in places[: 3 * samples] if e == epoch) == list(range(samples))


def test_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        return [index for _, index in sample_indices(50, seed, range(epoch * 50, epoch * 50 + 50))]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


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
