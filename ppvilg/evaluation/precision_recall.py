"""Improved precision and recall: how many made images look real, and how much of what is real is made."""

import numpy as np

from ppvilg.evaluation.features import check_features

_ROWS = 1024


def precision_recall(real: np.ndarray, made: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """Precision and recall in [0, 1] of made images, from features of both sets (Kynkäänniemi et al. 2019, equations 1-3).

    A set's manifold is the union of balls around its samples, each as large as the distance to the sample's `neighbours`th
    nearest other sample (the paper's k = 3). Precision is the part of `made`, float [M, D], that lies in the manifold of
    `real`, float [N, D], recall the part of `real` in the manifold of `made`; a ball's surface belongs to it.

    Computed in float64 on Euclidean distances, 1024 rows of a distance matrix at a time. Only values of equal N, M,
    `neighbours` and features can be compared: the paper has 50,000 of each and features of VGG16. Raises `ValueError` if the
    sets are not two-dimensional, differ in D, have no more than `neighbours` samples, or hold a value that is not finite.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}: expected 1 or more")
    check_features(real, made)
    fewest = min(len(real), len(made))
    if fewest <= neighbours:
        raise ValueError(f"{fewest} samples have no {neighbours} neighbours each: use more images")
    real, made = real.astype("float64"), made.astype("float64")
    centre = real.mean(0)  # distances stay the same, and their squares lose fewer digits near 0
    real, made = real - centre, made - centre
    return _covered(made, real, neighbours), _covered(real, made, neighbours)


def _covered(samples: np.ndarray, manifold: np.ndarray, neighbours: int) -> float:
    """The part of the samples that lies in a ball around a sample of `manifold`."""
    radii = np.empty(len(manifold))
    for first in range(0, len(manifold), _ROWS):
        distances = _squared_distances(manifold[first : first + _ROWS], manifold)
        rows = np.arange(len(distances))
        distances[rows, first + rows] = -1  # itself, which comes first and is no neighbour
        radii[first : first + _ROWS] = np.partition(distances, neighbours, axis=1)[:, neighbours]
    inside = 0
    for first in range(0, len(samples), _ROWS):
        distances = _squared_distances(samples[first : first + _ROWS], manifold)
        inside += int((distances <= radii).any(1).sum())
    return inside / len(samples)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [N, D] and [M, D] -> [N, M]."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
