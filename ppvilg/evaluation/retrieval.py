"""Whether features find the right image or the right style."""

from collections.abc import Mapping, Sequence

import numpy as np

from ppvilg.evaluation.features import check_features


def recall_at(
    similarity: np.ndarray, correct: Sequence[int | Sequence[int]], ranks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """For each rank k "R@k", the part of the queries, in [0, 1], with a right item among their k most similar.

    `similarity` is float [N, M], of N texts with M images (transposed, it searches texts by images), the greater the
    more similar; `correct` has for each text the index of its image, or the indices where several are right. Ties count
    against the model: a right item stands behind every wrong one that is as similar. Raises `ValueError` if the matrix is
    not two-dimensional or holds NaN, there are no texts, or a text has no right image or one outside the matrix.
    """
    if similarity.ndim != 2 or not similarity.size:
        raise ValueError(f"the similarities have the shape {list(similarity.shape)}: expected [texts, images]")
    if np.isnan(similarity).any():
        raise ValueError("the similarities hold values that are not numbers: check the features")
    texts, images = similarity.shape
    if len(correct) != texts:
        raise ValueError(f"there are similarities for {texts} texts, but right images for {len(correct)}")
    places = np.empty(texts, "int64")  # how many wrong images come before the first right one
    for i, (row, indices) in enumerate(zip(similarity, correct, strict=True)):
        right = np.zeros(images, bool)
        chosen = np.atleast_1d(np.asarray(indices, "int64"))
        if not chosen.size or chosen.min() < 0 or chosen.max() >= images:
            raise ValueError(f"text {i} has the right images {chosen.tolist()}: expected numbers from 0 to {images - 1}")
        right[chosen] = True
        places[i] = (row[~right] >= row[right].max()).sum()
    return {f"R@{rank}": float((places < rank).mean()) for rank in ranks}


def pooled_recall(
    queries: np.ndarray, items: np.ndarray, labels: Sequence[str], pool: int, seed: int, ranks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """`recall_at` where each query has to find its own item among `pool` - 1 others drawn at random (R-precision, Xu et al.
    2018), so that sets of different sizes can be compared.

    `queries` float [N, E], of images, stand in the order of their `items` float [N, E], of texts, with a label each: items
    with the query's own label are not drawn against it. Where there are fewer others than that, all are taken. Raises
    `ValueError` if the arrays do not fit each other or hold NaN.
    """
    if queries.shape != items.shape or len(items) != len(labels):
        raise ValueError(f"features of the shapes {list(queries.shape)} and {list(items.shape)} with {len(labels)} labels")
    names = np.asarray(labels)
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for i, query in enumerate(queries):
        others = np.flatnonzero(names != names[i])
        drawn = generator.choice(others, min(pool - 1, len(others)), replace=False)
        for rank, value in recall_at((items[[i, *drawn]] @ query)[None], [0], ranks).items():
            found.setdefault(rank, []).append(value)
    return {rank: float(np.mean(values)) for rank, values in found.items()}


def nearest_style(features: np.ndarray, style_features: Mapping[str, np.ndarray]) -> list[str]:
    """For each sample of `features` float [N, D] the style whose centroid, the mean of its float [S, D], is nearest.

    Distances are Euclidean, in float64; of styles that are equally near the first is taken. Raises `ValueError` if a set of
    features is empty, not two-dimensional, of another length, or holds a value that is not finite.
    """
    names = list(style_features)
    return [names[i] for i in _style_distances(features, style_features).argmin(1)]


def style_accuracy(features: np.ndarray, styles: Sequence[str], style_features: Mapping[str, np.ndarray]) -> float:
    """The part of the samples, in [0, 1], whose own style is the `nearest_style`.

    `features` float [N, D] are those of images that were asked for in `styles`, a name for each. Ties count against the
    model: a style that is only as near as another is wrong. Raises `ValueError` as `nearest_style` does, and if the numbers
    of samples and styles differ or a style has no features.
    """
    names = list(style_features)
    if len(styles) != len(features):
        raise ValueError(f"there are features of {len(features)} images, but styles of {len(styles)}")
    unknown = sorted(set(styles) - set(names))
    if unknown:
        raise ValueError(f"there are no features of the style {unknown[0]}: give images of it")
    distances = _style_distances(features, style_features)
    own = np.array([names.index(style) for style in styles])
    nearer = distances <= distances[np.arange(len(own)), own][:, None]
    return float((nearer.sum(1) == 1).mean())  # none but itself


def _style_distances(features: np.ndarray, style_features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Squared distances float64 [N, styles] to the centroids."""
    if not style_features:
        raise ValueError("there are no styles to compare with: give features of images of each")
    check_features(features, *style_features.values())
    for found in (features, *style_features.values()):
        if not len(found):
            raise ValueError(f"features have the shape {list(found.shape)}: expected [samples, features]")
    centroids = [found.astype("float64").mean(0) for found in style_features.values()]
    return np.stack([((features - centroid) ** 2).sum(1) for centroid in centroids], axis=1)
