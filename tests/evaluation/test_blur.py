"""The blur against scipy's Gaussian filter and Pillow's, whose radius is what ours means."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from ppvilg.evaluation.blur import blurred

PICTURE = np.random.default_rng(0).integers(0, 256, [80, 90, 3], "uint8")


@pytest.mark.parametrize("radius", [0.5, 1, 2, 4, 8])
def test_against_scipy_and_pillow(radius):
    (found,) = blurred([PICTURE], radius)
    assert (found.shape, found.dtype) == (PICTURE.shape, np.uint8)
    expected = gaussian_filter(PICTURE.astype("float64"), (radius, radius, 0), mode="nearest", truncate=4.0)
    assert np.abs(found - expected).max() < 0.6
    # Pillow makes the filter of three boxes, and ends images in another way.
    pillow = np.asarray(Image.fromarray(PICTURE).filter(ImageFilter.GaussianBlur(radius)), "float64")
    inside = slice(16, -16)
    assert np.abs(found - pillow)[inside, inside].mean() < 0.1 * expected[inside, inside].std()


def test_radius_0_changes_nothing():
    sizes = [PICTURE, PICTURE[:8, :8]]
    for found, image in zip(blurred(iter(sizes), 0), sizes, strict=True):
        np.testing.assert_array_equal(found, image)


def test_what_is_refused():
    for radius in (-1, float("nan")):
        with pytest.raises(ValueError, match="radius of a blur"):
            blurred([PICTURE], radius)
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        list(blurred([PICTURE / 255], 1))
