"""How close a reconstruction is: PSNR and SSIM."""

import numpy as np
import paddle

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def to_unit(images: paddle.Tensor) -> paddle.Tensor:
    """Images in [-1, 1] (values outside are clipped) -> [0, 1]."""
    return (paddle.clip(images, -1, 1) + 1) / 2


@paddle.no_grad()
def psnr(images: paddle.Tensor, reconstruction: paddle.Tensor) -> paddle.Tensor:
    """Mean over the batch of each image's 10·log10(1 / MSE) in dB, at most 100.

    Both float32 [B, C, H, W] in [-1, 1]; measured on [0, 1]. Returns float32 [].
    """
    error = ((to_unit(images) - to_unit(reconstruction)) ** 2).flatten(1).mean(1)
    return (-10 * paddle.log10(paddle.clip(error, min=1e-10))).mean()


@paddle.no_grad()
def ssim(images: paddle.Tensor, reconstruction: paddle.Tensor) -> paddle.Tensor:
    """Structural similarity (Wang et al. 2004, equation 13): Gaussian window 11×11 with sigma 1.5, K1 0.01, K2 0.03.

    Mean over images, channels and the pixels whose window lies inside the image. Both float32 [B, C, H, W] in
    [-1, 1], H and W at least 11; measured on [0, 1]. Returns float32 [].
    """
    x, y = to_unit(images), to_unit(reconstruction)
    rows, columns = _gaussian_band(x.shape[2]), _gaussian_band(x.shape[3])

    def blur(z: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(paddle.matmul(rows, z), columns, transpose_y=True)

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (similarity / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean()


def _gaussian_band(side: int) -> paddle.Tensor:
    """float32 [side - 10, side]: multiplied from the left it blurs columns of `side` pixels, without padding."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    band = np.zeros([side - _WINDOW + 1, side], "float32")
    for row in range(len(band)):
        band[row, row : row + _WINDOW] = window / window.sum()
    return paddle.to_tensor(band)
