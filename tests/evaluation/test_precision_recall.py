"""Precision and recall against scikit-learn's brute-force neighbours."""

import numpy as np
import pytest

from ppvilg.evaluation import precision_recall as module
from ppvilg.evaluation.precision_recall import precision_recall


def features(samples, seed, shift=0.0, scale=1.0):
    return (np.random.default_rng(seed).normal(0, scale, [samples, 6]) + shift).astype("float32")


def covered(samples, manifold, neighbours):
    from sklearn.neighbors import NearestNeighbors

    samples, manifold = samples.astype("float64"), manifold.astype("float64")
    found = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(manifold)
    radii = found.kneighbors(manifold)[0][:, -1]  # the first neighbour is the sample itself
    distances = np.linalg.norm(samples[:, None] - manifold, axis=2)
    return (distances <= radii).any(1).mean()


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("rows", [7, 1024])
def test_against_scikit_learn(neighbours, rows, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", rows)
    real, made = features(150, 1), features(90, 2, shift=0.8, scale=0.7)
    expected = covered(made, real, neighbours), covered(real, made, neighbours)
    assert 0 < min(expected) < max(expected) < 1
    assert precision_recall(real, made, neighbours) == expected


def test_far_from_0():
    real, made = features(150, 1).astype("float64"), features(90, 2, shift=0.8).astype("float64")
    assert precision_recall(real + 1e5, made + 1e5) == precision_recall(real, made)


def test_sets_that_miss_something():
    wide, narrow = features(300, 1), features(300, 2, scale=0.2)
    precision, recall = precision_recall(wide, narrow)
    assert precision > 0.95
    assert recall < 0.1
    assert precision_recall(narrow, wide) == (recall, precision)
    assert precision_recall(wide, wide) == (1, 1)
    assert precision_recall(wide, wide + 100) == (0, 0)


def test_balls_hold_their_surface():
    line = np.arange(4.0)[:, None]
    # Each real sample's third neighbour: 3, 2, 2, 3 away. The balls reach from -3 to 6.
    made = np.array([[-3.0], [6.0], [-3.1], [6.1]])
    assert precision_recall(line, made)[0] == 0.5
    # Three copies have their third neighbour elsewhere, four have all at 0.
    assert precision_recall(np.array([[0.0]] * 4), np.array([[0.0], [1.0], [1.0], [1.0]]))[0] == 0.25


def test_what_is_refused():
    a = features(10, 1)
    with pytest.raises(ValueError, match="3 samples have no 3 neighbours"):
        precision_recall(a, a[:3])
    with pytest.raises(ValueError, match="different lengths, 6 and 5"):
        precision_recall(a, a[:, :5])
    with pytest.raises(ValueError, match=r"shape \[10\]"):
        precision_recall(a[:, 0], a)
    with pytest.raises(ValueError, match="neighbours is 0"):
        precision_recall(a, a, 0)
    broken = a.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(a, broken)
