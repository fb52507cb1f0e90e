"""Which style a picture is in, by a linear classifier of its colours that is fitted to training pictures.

Of 64 x 64 emoji in five styles colours tell more than the features of a network that was trained to know what is shown.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ppvilg.config import EvalExperiment
from ppvilg.data.sources import Source
from ppvilg.data.splits import open_split

_BINS = 6  # of each colour channel
_REGULARISATION = 0.1  # inverse strength of the l2 penalty


def colour_histograms(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] -> float32 [N, 216]: square roots of the shares of pixels in each cell of the RGB cube."""
    cells = images.reshape(len(images), -1, 3).astype(np.int64) * _BINS // 256
    cells = (cells[..., 0] * _BINS + cells[..., 1]) * _BINS + cells[..., 2]
    counts = np.stack([np.bincount(cell, minlength=_BINS**3) for cell in cells])
    return np.sqrt(counts / cells.shape[1]).astype("float32")


def fit_style_classifier(histograms: np.ndarray, styles: Sequence[str]) -> Pipeline:
    """Multinomial logistic regression over standardised histograms float [N, D] of pictures in `styles`, a name for each.

    Raises `ValueError` for fewer than two different styles.
    """
    if len(set(styles)) < 2:
        raise ValueError("style_keep: a classifier of styles needs training pictures of at least two: name more, or set null")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=1000))
    return classifier.fit(histograms.astype("float64"), list(styles))


def predicted_share(classifier: Pipeline, histograms: np.ndarray, styles: Sequence[str]) -> float:
    """The part, in [0, 1], of images with histograms float [N, D] that the classifier puts into their own of `styles`."""
    return float((classifier.predict(histograms.astype("float64")) == np.asarray(styles)).mean())


def style_pictures(config: EvalExperiment, without: set[str]) -> tuple[Source, list[int]] | None:
    """The images of the training split that `config.style_keep` chooses, those with a style and a key that is not in `without`;
    None where the config asks for no classifier."""
    if config.style_keep is None or config.training_split is None:
        return None
    source = open_split(config.data, config.training_split, config.data.seed, config.style_keep)
    chosen = [i for i, record in enumerate(source.records) if isinstance(record.metadata.get("style"), str)]
    return source, [i for i in chosen if source.records[i].key not in without]
