"""The Inception score against the paper's formula with scipy's divergence, and at its ends."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from ppvilg.evaluation.inception_score import inception_score


@pytest.mark.parametrize(("samples", "splits"), [(200, 1), (200, 10), (103, 10)])
def test_against_scipy(samples, splits):
    p = softmax(np.random.default_rng(0).normal(0, 3, [samples, 30]), axis=1).astype("float32")
    parts = [p[i * samples // splits : (i + 1) * samples // splits].astype("float64") for i in range(splits)]
    assert sum(map(len, parts)) == samples
    scores = [np.exp(np.mean([entropy(row, part.mean(0)) for row in part])) for part in parts]
    np.testing.assert_allclose(inception_score(p, splits), (np.mean(scores), np.std(scores)), rtol=1e-5, atol=1e-6)


def test_its_ends():
    sure = np.tile(np.eye(7), [20, 1])
    np.testing.assert_allclose(inception_score(sure), (7, 0), atol=1e-9)
    np.testing.assert_allclose(inception_score(np.full([50, 7], 1 / 7)), (1, 0), atol=1e-9)
    np.testing.assert_allclose(inception_score(np.eye(7)[np.zeros(50, "int64")]), (1, 0), atol=1e-9)


def test_what_is_refused():
    p = np.full([20, 4], 0.25)
    with pytest.raises(ValueError, match=r"shape \[4\]"):
        inception_score(p[0])
    for wrong in (p * 2, p * [1, 1, 3, -1], p * np.nan):
        with pytest.raises(ValueError, match="softmax"):
            inception_score(wrong)
    for splits in (0, 21):
        with pytest.raises(ValueError, match=f"20 images can't be divided into {splits}"):
            inception_score(p, splits)
