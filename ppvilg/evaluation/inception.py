"""The Inception network of the FID and of the Inception score."""

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.checkpoint import Arrays, load_arrays
from ppvilg.evaluation.feature_network import BatchNorm, Classifier, FeatureNetwork, convolution, shapes


class InceptionV3(FeatureNetwork):
    """InceptionV3 (Szegedy et al. 2015) as TensorFlow published it on 2015-12-05.

    This is the network that FID (Heusel et al. 2017) and the Inception score (Salimans et al. 2016) are defined by, after the
    port of pytorch-fid. From torchvision's InceptionV3 it differs in the weights, in 1008 classes, in average pools that do
    not count the padding, and in a max pool instead of the average pool in the last block.

    Features are at least 0; the FID takes more than 2048 images to be of use, see `frechet.has_singular_covariance`. The
    logits are without bias, as the Inception score takes them, for ImageNet's classes in TensorFlow's order. The weights have
    the names of torchvision's Inception3; the classifier's bias is not among them.
    """

    size, features, classes = 299, 2048, 1008

    def __init__(self, weights: Arrays, source: str = "InceptionV3"):
        super().__init__(_Network(), weights, source)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Scaled to 299 × 299 in [-1, 1] as pytorch-fid does, bilinearly without align_corners; like there, shrinking does
        not smooth. (TensorFlow's own code and torch-fidelity take the samples at other places, so their values differ.)"""
        pixels = paddle.to_tensor(image.transpose(2, 0, 1)[None].astype("float32") / 255)
        scaled = F.interpolate(pixels, [self.size, self.size], mode="bilinear", align_corners=False)
        return (2 * scaled[0] - 1).numpy()


def load_inception(path: str | Path) -> InceptionV3:
    """The network with the weights of a file that `tools/convert.py inception` made.

    Raises `ValueError` if the file can't be read or does not hold the weights.
    """
    return InceptionV3(load_arrays(Path(path)), str(path))


def weight_shapes() -> dict[str, list[int]]:
    """Names and shapes of the weights, those of torchvision's Inception3."""
    return shapes(_Network())


class _Convolution(nn.Layer):
    """Convolution, batch norm, ReLU. The output has the size of the input, divided by the stride, if `same`."""

    def __init__(self, inputs: int, outputs: int, height: int, width: int, stride: int = 1, same: bool = True):
        super().__init__()
        padding = (height // 2, width // 2) if same else 0
        self.conv = convolution(inputs, outputs, (height, width), stride=stride, padding=padding)
        self.bn = BatchNorm(outputs)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: paddle.Tensor) -> paddle.Tensor:
    """3 × 3, each pixel the mean of its neighbours inside the image (`exclusive`), as TensorFlow pools."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, exclusive=True)


class _Block(nn.Layer):
    """Branches of convolutions, (channels out, height, width) each, and a pool side by side; their channels are joined.

    Convolutions have torchvision's names: that of the branch, with numbers if it has several. `pooled` is the number of
    channels of the convolution after the average pool; None: no such convolution, a max pool, and all branches end with
    stride 2.
    """

    def __init__(self, inputs: int, branches: dict[str, list[tuple[int, int, int]]], pooled: int | None = None):
        super().__init__()
        self._branches = []
        for name, sizes in branches.items():
            branch, channels = [], inputs
            for i, size in enumerate(sizes, 1):
                halves = pooled is None and i == len(sizes)
                layer = _Convolution(channels, *size, stride=2 if halves else 1, same=not halves)
                branch.append(self.add_sublayer(name if len(sizes) == 1 else f"{name}_{i}", layer))
                channels = size[0]
            self._branches.append(branch)
        self.branch_pool = None if pooled is None else _Convolution(inputs, pooled, 1, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        outputs = []
        for branch in self._branches:
            y = x
            for layer in branch:
                y = layer(y)
            outputs.append(y)
        outputs.append(F.max_pool2d(x, 3, 2) if self.branch_pool is None else self.branch_pool(_average(x)))
        return paddle.concat(outputs, 1)


def _a(inputs: int, pooled: int) -> _Block:
    double = [(64, 1, 1), (96, 3, 3), (96, 3, 3)]
    return _Block(inputs, {"branch1x1": [(64, 1, 1)], "branch5x5": [(48, 1, 1), (64, 5, 5)], "branch3x3dbl": double}, pooled)


def _b() -> _Block:
    return _Block(288, {"branch3x3": [(384, 3, 3)], "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)]})


def _c(inner: int) -> _Block:
    single = [(inner, 1, 1), (inner, 1, 7), (192, 7, 1)]
    double = [(inner, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7)]
    return _Block(768, {"branch1x1": [(192, 1, 1)], "branch7x7": single, "branch7x7dbl": double}, 192)


def _d() -> _Block:
    long = [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)]
    return _Block(768, {"branch3x3": [(192, 1, 1), (320, 3, 3)], "branch7x7x3": long})


class _E(nn.Layer):
    """Two branches fork at their ends. `maximum`: a max pool in the place of the average pool, which only the last block of
    these weights has."""

    def __init__(self, inputs: int, maximum: bool):
        super().__init__()
        self._maximum = maximum
        self.branch1x1 = _Convolution(inputs, 320, 1, 1)
        self.branch3x3_1 = _Convolution(inputs, 384, 1, 1)
        self.branch3x3_2a = _Convolution(384, 384, 1, 3)
        self.branch3x3_2b = _Convolution(384, 384, 3, 1)
        self.branch3x3dbl_1 = _Convolution(inputs, 448, 1, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, 3)
        self.branch3x3dbl_3a = _Convolution(384, 384, 1, 3)
        self.branch3x3dbl_3b = _Convolution(384, 384, 3, 1)
        self.branch_pool = _Convolution(inputs, 192, 1, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _average(x)
        return paddle.concat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class _Network(nn.Layer):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 3, 2, same=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, 3, same=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        self.Mixed_7a = _d()
        self.Mixed_7b, self.Mixed_7c = _E(1280, maximum=False), _E(2048, maximum=True)
        self.fc = Classifier(InceptionV3.features, InceptionV3.classes, bias=False)

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = F.adaptive_avg_pool2d(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))), 1).flatten(1)
        return features, self.fc(features)
