"""The Fréchet distance between two sets of features."""

import numpy as np

from ppvilg.evaluation.features import check_features


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance between the Gaussians fitted to two sets (Heusel et al. 2017, the definition of FID).

    |m_a - m_b|² + Tr(C_a + C_b - 2 (C_a C_b)^½), with the means m and covariances C (divided by N - 1) of float [N, D]
    and float [M, D]; computed in float64. At least 0, which means equal means and covariances.

    Finite sets bias it upward, the smaller the more, so only values of equal N, equal M and the same features can be
    compared; see `has_singular_covariance` for sets that are small for D. Raises `ValueError` if the sets are not
    two-dimensional, differ in D, have fewer than 2 samples, or hold a value that is not finite.
    """
    check_features(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs 2 or more samples, but there are {min(len(a), len(b))}: use more images")
    a, b = a.astype("float64"), b.astype("float64")
    mean_a, mean_b = a.mean(0), b.mean(0)
    covariance_a, covariance_b = _covariance(a - mean_a), _covariance(b - mean_b)
    root_a = _root(covariance_a)
    # C_a C_b has the eigenvalues of C_a^½ C_b C_a^½, which is symmetric: they are found reliably even where many are 0.
    eigenvalues = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_of_root
    return max(0.0, float(distance))  # rounding can bring equal sets below 0


def has_singular_covariance(features: np.ndarray) -> bool:
    """Whether a set float [N, D] has too few samples (N at most D) for a covariance of full rank.

    `frechet_distance` is still defined then, but says little by itself: the set seems to have no spread at all in the
    D - N + 1 or more directions it misses, so that even two sets from one distribution are far apart. Callers should
    warn that the distance is biased upward and can only be compared with distances of the same N.
    """
    samples, dimensions = features.shape
    return samples <= dimensions


def _covariance(centred: np.ndarray) -> np.ndarray:
    return centred.T @ centred / (len(centred) - 1)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a symmetric positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
