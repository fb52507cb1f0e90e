"""Each part of sampling against its definition."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.generate.sampling import Noise, Sampling, keep_top_k, keep_top_p, sample

ROWS = st.lists(st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6, unique=True), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(0, 8))
def test_top_k(rows, k):
    logits = np.array(rows, dtype=np.float32)
    kept = np.isfinite(keep_top_k(paddle.to_tensor(logits), k).numpy())
    for row, mask in zip(logits, kept, strict=True):
        expected = set(np.argsort(-row)[: k or 6].tolist())
        assert set(np.flatnonzero(mask).tolist()) == expected


@settings(deadline=None, max_examples=50)
@given(ROWS, st.floats(0.05, 0.95))
def test_top_p_keeps_the_smallest_sufficient_set(rows, p):
    logits = np.array(rows, dtype=np.float32)
    kept = np.isfinite(keep_top_p(paddle.to_tensor(logits), p).numpy())
    for row, mask in zip(logits.astype(np.float64), kept, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        chosen = probabilities[mask]
        assert chosen.sum() >= p - 1e-5, "the kept tokens add up to p"
        assert chosen.sum() - chosen.min() < p + 1e-5, "without the least likely they do not"
        assert mask.sum() == 6 or probabilities[~mask].max() <= chosen.min()


def test_temperature_zero_is_greedy_and_draws_nothing():
    logits = paddle.to_tensor([[0.0, 3.0, 1.0]])
    noise = Noise([0])
    assert sample(logits, Sampling(0), noise).tolist() == [1]
    np.testing.assert_array_equal(noise.draw(3), Noise([0]).draw(3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = np.array([0.0, 1.0, 2.0, -1.0], dtype=np.float32)
    count = 20_000
    batch = paddle.to_tensor(np.tile(logits, (count, 1)))
    drawn = sample(batch, Sampling(temperature), Noise(list(range(count)))).numpy()
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / count, expected, atol=4 * np.sqrt(0.25 / count))


def test_a_sample_does_not_depend_on_its_batch():
    logits = paddle.randn([3, 50])
    together = sample(logits, Sampling(top_k=20, top_p=0.9), Noise([5, 6, 7])).tolist()
    alone = [sample(logits[i : i + 1], Sampling(top_k=20, top_p=0.9), Noise([5 + i])).item() for i in range(3)]
    assert together == alone


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"guidance": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        Sampling(**options)
