"""The Fréchet distance against scipy's matrix root and closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ppvilg.evaluation.frechet import frechet_distance, has_singular_covariance


def features(samples, dimensions, seed, scale=1.0, shift=0.0):
    """Correlated features, none negative, float32 as a network gives them."""
    mix = np.random.default_rng(0).normal(size=[dimensions, dimensions]) * np.exp(-4 * np.arange(dimensions) / dimensions)
    noise = np.random.default_rng(seed).normal(size=[samples, dimensions])
    return np.maximum(scale * noise @ mix + shift, 0).astype("float32")


def reference(a, b):
    a, b = a.astype("float64"), b.astype("float64")
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariance_a @ covariance_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)


@pytest.mark.parametrize(("n", "m"), [(300, 200), (64, 64), (40, 30)])
def test_against_scipy(n, m):
    a, b = features(n, 64, seed=1), features(m, 64, seed=2, scale=1.3, shift=0.1)
    np.testing.assert_allclose(frechet_distance(a, b), reference(a, b), rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-7)


def test_gaussians_of_one_dimension():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, [50, 1]), rng.normal(-3, 0.5, [80, 1])
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_a_shift_and_a_stretch():
    a = features(200, 16, seed=1).astype("float64")
    np.testing.assert_allclose(frechet_distance(a, a + 0.5), 16 * 0.25, rtol=1e-9)
    centred = a - a.mean(0)
    np.testing.assert_allclose(frechet_distance(centred, 3 * centred), 4 * centred.var(0, ddof=1).sum(), rtol=1e-9)


@pytest.mark.parametrize("samples", [20, 300])
def test_equal_sets_are_at_0(samples):
    a = features(samples, 64, seed=1)
    spread = a.var(0, ddof=1).sum()
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-5 * spread
    constant = np.ones([5, 3], "float32")
    assert frechet_distance(constant, constant) == 0


def test_few_samples_are_told_and_bias_the_distance():
    small, large = ([features(n, 64, seed) for seed in (1, 2)] for n in (64, 640))
    assert has_singular_covariance(small[0])
    assert not has_singular_covariance(features(65, 64, seed=1))
    assert np.linalg.matrix_rank(np.cov(small[0].astype("float64"), rowvar=False)) == 63
    assert frechet_distance(*small) > 5 * frechet_distance(*large)


def test_what_is_refused():
    a = features(10, 4, seed=1)
    with pytest.raises(ValueError, match="2 or more samples, but there are 1"):
        frechet_distance(a, a[:1])
    with pytest.raises(ValueError, match="different lengths, 4 and 3"):
        frechet_distance(a, a[:, :3])
    with pytest.raises(ValueError, match=r"shape \[10\]"):
        frechet_distance(a[:, 0], a)
    for value in (np.nan, np.inf):
        broken = a.copy()
        broken[3, 2] = value
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(broken, a)
