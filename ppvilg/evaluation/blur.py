"""Blurred images, to compare without the finest detail."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from ppvilg.pictures import check_picture


def blurred(images: Iterable[np.ndarray], radius: float) -> Iterator[np.ndarray]:
    """Images uint8 [H, W, 3], one by one, through a Gaussian filter, as DALL-E and CogView blur both sets for FID-k.

    Both papers so compare without the fine detail that an image tokenizer loses. CogView's FID-k is the FID of real and made
    images that have all been through a Gaussian filter of radius k, which is 0 (unchanged), 1, 2, 4 or 8, for images of
    256 × 256. What a radius is they do not say. Here it is the Gaussian's standard deviation in pixels, as in Pillow's
    GaussianBlur; where the images have another size, scale k with it. The filter ends 4 deviations away, and the image
    is continued by its edge.

    Raises `ValueError` for a negative radius or, when it is reached, an image of another type or shape.
    """
    if not radius >= 0:
        raise ValueError(f"the radius of a blur is {radius}: expected 0 or more")
    return (_blurred(image, radius) for image in images)


def _blurred(image: np.ndarray, radius: float) -> np.ndarray:
    check_picture(image)
    if radius == 0:
        return image.copy()
    # On bytes OpenCV rounds the filter itself, by which pixels can be 2 off.
    smooth = cv2.GaussianBlur(image.astype("float32"), (0, 0), radius, borderType=cv2.BORDER_REPLICATE)
    return np.rint(smooth).astype("uint8")
