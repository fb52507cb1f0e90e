"""What all measures ask of features."""

import numpy as np


def check_features(*sets: np.ndarray) -> None:
    """Raise `ValueError` unless all sets are [samples, features] of one length, with finite values."""
    length = sets[0].shape[-1]
    for features in sets:
        if features.ndim != 2:
            raise ValueError(f"the features have the shape {list(features.shape)}: expected [samples, features]")
        if features.shape[1] != length:
            raise ValueError(
                f"the features have different lengths, {length} and {features.shape[1]}: use one network for all sets"
            )
        if not np.isfinite(features).all():
            raise ValueError("the features hold values that are not finite: check the images' and the network's values")
