"""LPIPS: the perceptual distance between two images."""

from pathlib import Path

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.checkpoint import check_weights, load_arrays

# VGG16's 3×3 convolutions: (number in torchvision's `features`, channels in, channels out), in groups with a 2×2
# max-pooling between; the features after each group's last ReLU are compared.
GROUPS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
# ImageNet's mean and standard deviation, for images in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def weight_shapes() -> dict[str, list[int]]:
    """Names and shapes of the weights: `features.N.weight` and `.bias` (torchvision's names), and `linI.weight`."""
    shapes = {}
    for i, group in enumerate(GROUPS):
        for number, inputs, outputs in group:
            shapes[f"features.{number}.weight"] = [outputs, inputs, 3, 3]
            shapes[f"features.{number}.bias"] = [outputs]
        shapes[f"lin{i}.weight"] = [1, group[-1][2], 1, 1]
    return shapes


class LPIPS(nn.Layer):
    """Learned perceptual image patch similarity over VGG16 (Zhang et al. 2018, equation 1; "lin", version 0.1).

    The weights come from a file made by `tools/convert.py lpips`. They are constant: they get no gradient and
    stay out of the state_dict, hence out of checkpoints. Raises `ValueError` if the file can't be read or lacks one.
    """

    def __init__(self, path: str):
        super().__init__()
        weights = load_arrays(Path(path))
        check_weights(weights, weight_shapes(), path)
        for name, array in weights.items():
            self.register_buffer(name.replace(".", "_"), paddle.to_tensor(array), persistable=False)
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, paddle.to_tensor(values).reshape([1, 3, 1, 1]), persistable=False)

    def forward(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        """Two batches of images float32 [B, 3, H, W] in [-1, 1], H and W at least 16 -> distances float32 [B]."""
        total = 0.0
        for i, (a, b) in enumerate(zip(self._features(x), self._features(y), strict=True)):
            weight = getattr(self, f"lin{i}_weight")
            total = total + F.conv2d((unit(a) - unit(b)) ** 2, weight).mean([1, 2, 3])
        return total

    def _features(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """The five feature maps, [B, C_i, H/2^i, W/2^i]."""
        x = (images - self.shift) / self.scale
        features = []
        for i, group in enumerate(GROUPS):
            if i:
                x = F.max_pool2d(x, 2)
            for number, _, _ in group:
                weight, bias = (getattr(self, f"features_{number}_{kind}") for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            features.append(x)
        return features


def unit(features: paddle.Tensor) -> paddle.Tensor:
    """Features float32 [B, C, H, W] divided by their length over the channels."""
    # The smallest addend keeps the gradient of the root finite where all channels are 0.
    return features / (paddle.sqrt((features**2).sum(1, keepdim=True) + 1e-20) + 1e-10)
