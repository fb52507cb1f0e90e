"""The Inception score: how sure a classifier is of each image, and how many classes it sees."""

import numpy as np


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation, over equal parts of a set, of exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016, 4).

    `probabilities` are float [N, C], the softmax of the Inception network's logits without bias
    (`scipy.special.softmax(logits, axis=1)`); p(y) is a part's mean. The parts follow each other in the set's order, so
    that images sorted by class must be shuffled first, and each has N // splits or one more. A score is between 1 and C,
    and needs far more images than classes in a part: the usual set is 50,000 in 10 parts. The standard deviation is that
    of the parts (divided by `splits`), not of the mean. Computed in float64.

    Raises `ValueError` if the array is not two-dimensional, its rows are no probabilities, or there are fewer images than
    parts.
    """
    if probabilities.ndim != 2:
        raise ValueError(f"the probabilities have the shape {list(probabilities.shape)}: expected [images, classes]")
    p = probabilities.astype("float64")
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-3)):
        raise ValueError("the probabilities are negative or do not add up to 1 for each image: take the logits' softmax")
    if not 1 <= splits <= len(p):
        raise ValueError(f"{len(p)} images can't be divided into {splits} parts: use more images or fewer parts")
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        # Where a probability is 0 it adds nothing, whatever its logarithm.
        ratio = np.divide(part, part.mean(0), out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
