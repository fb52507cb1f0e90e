"""The classifier of styles: what it sees, what it is fitted to, and what it finds."""

import numpy as np
import pytest

from ppvilg.config import EvalDataConfig, EvalExperiment
from ppvilg.evaluation.style import colour_histograms, fit_style_classifier, predicted_share, style_pictures


def clouds(seed: int, distance: float) -> tuple[np.ndarray, list[str]]:
    """40 points float32 [40, 8] of each of three styles, whose means lie on axes."""
    styles = [name for name in "abc" for _ in range(40)]
    means = distance * np.eye(8)[[ord(name) - ord("a") for name in styles]]
    return (np.random.default_rng(seed).standard_normal([120, 8]) + means).astype("float32"), styles


def test_histograms_against_numpys():
    images = np.random.default_rng(0).integers(0, 256, [3, 9, 7, 3], np.uint8)
    for image, found in zip(images, colour_histograms(images), strict=True):
        counts, _ = np.histogramdd(image.reshape(-1, 3), bins=(6, 6, 6), range=[(0, 256)] * 3)
        np.testing.assert_allclose(found, np.sqrt(counts.ravel() / 63), rtol=1e-6)


def test_styles_are_told_apart_where_colours_do():
    classifier = fit_style_classifier(*clouds(0, 6.0))
    points, styles = clouds(1, 6.0)
    assert predicted_share(classifier, points, styles) > 0.97
    assert predicted_share(classifier, points, styles[40:] + styles[:40]) < 0.02
    assert predicted_share(fit_style_classifier(*clouds(0, 0.0)), *clouds(1, 0.0)) == pytest.approx(1 / 3, abs=0.15)
    with pytest.raises(ValueError, match="at least two"):
        fit_style_classifier(points, ["a"] * 120)


def test_no_evaluated_picture_is_fitted_to():
    chosen = {"style": ["noto", "noto-v1"], "subgroup": ["heart"]}
    config = EvalExperiment(model="none", data=EvalDataConfig(), keep={"style": ["noto-v1"]}, style_keep=chosen)
    source, indices = style_pictures(config, set())
    assert {source.records[i].metadata["style"] for i in indices} == {"noto", "noto-v1"}
    first = source.records[indices[0]].key
    assert style_pictures(config, {first})[1] == indices[1:]
    assert style_pictures(EvalExperiment(model="none", data=EvalDataConfig()), set()) is None
