"""The classifier of styles: what it is fitted to, and what it finds."""

import numpy as np
import pytest

from ppvilg.config import EvalDataConfig, EvalExperiment
from ppvilg.evaluation.style import fit_style_classifier, predicted_share, style_pictures


def clouds(seed: int, distance: float) -> tuple[np.ndarray, list[str]]:
    """40 features float32 [40, 8] of each of three styles, whose means lie on axes."""
    styles = [name for name in "abc" for _ in range(40)]
    means = distance * np.eye(8)[[ord(name) - ord("a") for name in styles]]
    return (np.random.default_rng(seed).standard_normal([120, 8]) + means).astype("float32"), styles


def test_styles_are_told_apart_where_features_do():
    classifier = fit_style_classifier(*clouds(0, 6.0))
    features, styles = clouds(1, 6.0)
    assert predicted_share(classifier, features, styles) > 0.97
    assert predicted_share(classifier, features, styles[40:] + styles[:40]) < 0.02
    blind = fit_style_classifier(*clouds(0, 0.0))
    assert predicted_share(blind, *clouds(1, 0.0)) == pytest.approx(1 / 3, abs=0.15)


def test_what_cannot_be_fitted_is_refused():
    features, styles = clouds(0, 1.0)
    with pytest.raises(ValueError, match="at least two"):
        fit_style_classifier(features, ["a"] * 120)
    with pytest.raises(ValueError, match="120 images, but styles of 119"):
        fit_style_classifier(features, styles[1:])


def test_pictures_of_all_styles_but_those_that_are_evaluated():
    config = EvalExperiment(model="none", data=EvalDataConfig(), keep={"style": ["noto-v1"]}, style_pictures=5)
    source, chosen = style_pictures(config, set())
    styles = [source.records[i].metadata["style"] for i in chosen]
    assert sorted(styles) == sorted([name for name in set(styles) for _ in range(5)])
    assert len(set(styles)) == 7
    first = source.records[chosen[0]].key
    assert first not in {source.records[i].key for i in style_pictures(config, {first})[1]}
    assert style_pictures(EvalExperiment(model="none", data=EvalDataConfig()), set()) is None
