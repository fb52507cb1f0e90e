"""Which style a picture is in, by a linear classifier of features that is fitted to training pictures."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ppvilg.config import EvalExperiment
from ppvilg.data.sources import Source
from ppvilg.data.splits import open_split
from ppvilg.evaluation.features import check_features

_REGULARISATION = 0.01  # inverse strength of the l2 penalty; there are more features than pictures


def fit_style_classifier(features: np.ndarray, styles: Sequence[str]) -> Pipeline:
    """Multinomial logistic regression over standardised features float [N, D] of pictures in `styles`, a name for each.

    Raises `ValueError` for features that are not finite, another number of styles, or fewer than two different ones.
    """
    check_features(features)
    if len(styles) != len(features):
        raise ValueError(f"there are features of {len(features)} images, but styles of {len(styles)}")
    if len(set(styles)) < 2:
        raise ValueError("a classifier of styles needs pictures of at least two: leave it out, style_pictures: 0")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=1000))
    return classifier.fit(features.astype("float64"), list(styles))


def predicted_share(classifier: Pipeline, features: np.ndarray, styles: Sequence[str]) -> float:
    """The part, in [0, 1], of images with features float [N, D] that the classifier puts into their own of `styles`."""
    return float((classifier.predict(features.astype("float64")) == np.asarray(styles)).mean())


def style_pictures(config: EvalExperiment, without: set[str]) -> tuple[Source, list[int]] | None:
    """`config.style_pictures` images of each style, whatever the concept, drawn from the training split; none whose key is in
    `without`. None where the config asks for none or has no training split, or no image there has a style."""
    if not config.style_pictures or config.training_split is None:
        return None
    source = open_split(config.data, config.training_split, config.data.seed, {})
    by_style: dict[str, list[int]] = {}
    for i in np.random.default_rng([config.seed, 3]).permutation(len(source)):
        record = source.records[i]
        style = record.metadata.get("style")
        if isinstance(style, str) and record.key not in without:
            by_style.setdefault(style, []).append(int(i))
    chosen = [i for style in sorted(by_style) for i in by_style[style][: config.style_pictures]]
    return (source, chosen) if chosen else None
