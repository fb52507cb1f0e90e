"""PSNR and SSIM against numpy and scipy."""

import numpy as np
import paddle
from scipy.ndimage import gaussian_filter

from ppvilg.vqgan.metrics import psnr, ssim

rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, [3, 3, 20, 31]).astype("float32")
Y = np.clip(X + 0.3 * rng.normal(size=X.shape), -1.2, 1.2).astype("float32")


def unit(x):
    return (np.clip(x, -1, 1) + 1) / 2


def test_psnr():
    errors = ((unit(X) - unit(Y)) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(
        psnr(paddle.to_tensor(X), paddle.to_tensor(Y)).item(), (10 * np.log10(1 / errors)).mean(), rtol=1e-5
    )
    assert psnr(paddle.to_tensor(X), paddle.to_tensor(X)).item() == 100


def ssim_reference(x, y):
    """Wang et al. over one channel; windows that leave the image are left out."""
    blur = lambda z: gaussian_filter(z, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]  # noqa: E731
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 1e-4, 9e-4
    return (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim():
    x, y = unit(X.astype("float64")), unit(Y.astype("float64"))
    expected = np.mean([ssim_reference(x[i, c], y[i, c]) for i in range(3) for c in range(3)])
    np.testing.assert_allclose(ssim(paddle.to_tensor(X), paddle.to_tensor(Y)).item(), expected, rtol=1e-4)
    np.testing.assert_allclose(ssim(paddle.to_tensor(X), paddle.to_tensor(X)).item(), 1, rtol=1e-5)
