"""The shuffle without a table: a bijection for every length, the same in any pieces, and it looks random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppvilg.data.order import Permutation


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_every_number_comes_once(length, seed, epoch):
    order = Permutation(length, seed, epoch)(np.arange(length))
    np.testing.assert_array_equal(np.sort(order), np.arange(length))


@given(st.integers(1, 2**48), st.data())
def test_a_position_goes_where_it_goes_among_others(length, data):
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=9)))
    together = Permutation(length, 3)(positions)
    assert together.tolist() == [int(Permutation(length, 3)(np.array([p]))[0]) for p in positions]
    assert ((together >= 0) & (together < length)).all()
    assert len(set(together.tolist())) == len(set(positions.tolist()))


@pytest.mark.parametrize("length", [1000, 4096, 100_000_000])
def test_it_looks_random(length):
    """Uniform, and neighbours go to unrelated places: means within five standard deviations."""
    positions = np.arange(1000) if length < 10_000 else np.arange(100_000)
    share = np.concatenate([Permutation(length, seed)(positions) / length for seed in range(20)])
    count = len(share)
    assert abs(share.mean() - 0.5) < 5 * np.sqrt(1 / 12 / count)
    counts = np.bincount((share * 16).astype(int), minlength=16)
    assert ((counts - count / 16) ** 2 / (count / 16)).sum() < 60  # chi squared with 15 degrees of freedom
    pairs = share.reshape(20, -1)
    for shift in (1, 2, 7):
        correlation = np.mean([np.corrcoef(row[:-shift], row[shift:])[0, 1] for row in pairs])
        assert abs(correlation) < 5 / np.sqrt(count)


def test_seeds_give_unrelated_orders():
    orders = [Permutation(5000, seed, epoch)(np.arange(5000)) for seed in range(3) for epoch in range(3)]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert (order == other).sum() < 12
