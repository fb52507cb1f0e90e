"""The Inception network of the FID and of the Inception score."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.checkpoint import Arrays, check_weights, checksum, load_arrays, save_arrays
from ppvilg.evaluation.compiled import compiled
from ppvilg.pictures import check_picture

SIZE, FEATURES, CLASSES = 299, 2048, 1008
_BATCH = 32
_EPSILON = 1e-3
_CLASSIFIER = "fc.weight"
# How the SHA-256 of pt_inception-2015-12-05-6726825d.pth begins.
_SHA256 = "6726825d"


class InceptionV3:
    """InceptionV3 (Szegedy et al. 2015) as TensorFlow published it on 2015-12-05, for inference only.

    This is the network that FID (Heusel et al. 2017) and the Inception score (Salimans et al. 2016) are defined by, after the
    port of pytorch-fid. From torchvision's InceptionV3 it differs in the weights, in 1008 classes, in average pools that do
    not count the padding, and in a max pool instead of the average pool in the last block.

    `weights` are float32 arrays by the names of `weight_shapes`. Raises `UserError`, naming their `source`, if one is missing,
    unknown or of another shape.
    """

    def __init__(self, weights: Arrays, source: str = "InceptionV3"):
        check_weights(weights, weight_shapes(), source)
        network = _Network()
        named = {_paddle_name(name): paddle.to_tensor(array) for name, array in weights.items() if name != _CLASSIFIER}
        network.set_state_dict(named)
        self._network = compiled(network, [3, SIZE, SIZE])
        self._classifier = paddle.to_tensor(weights[_CLASSIFIER].T)

    @paddle.no_grad()
    def __call__(self, pictures: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """N pictures uint8 [H, W, 3] in RGB -> features float32 [N, 2048] and logits float32 [N, 1008].

        The pictures may be an array [N, H, W, 3] or come one by one, of different sizes; 32 are held at a time. Each is
        scaled to 299 × 299 in [-1, 1] as pytorch-fid does, bilinearly without align_corners; like there, shrinking does not
        smooth. (TensorFlow's own code and torch-fidelity take the samples at other places, so their values differ a little.)

        Features are the last block's, at least 0, averaged over the picture: the usual ones for the FID. It takes more than
        2048 pictures to be of use; see `frechet.has_singular_covariance`. The logits are without bias, as the Inception score
        takes them; their softmax are the probabilities of ImageNet's classes in TensorFlow's order. Raises `UserError` if a
        picture has another type or shape.
        """
        remaining = iter(pictures)
        features, logits = [np.zeros([0, FEATURES], "float32")], [np.zeros([0, CLASSES], "float32")]
        while batch := list(itertools.islice(remaining, _BATCH)):
            pooled = self._network(paddle.concat([_prepared(picture) for picture in batch]))
            features.append(pooled.numpy())
            logits.append(paddle.matmul(pooled, self._classifier).numpy())
        return np.concatenate(features), np.concatenate(logits)


def weight_shapes() -> dict[str, list[int]]:
    """Names (those of torchvision's Inception3) and shapes of the weights; the classifier's bias is not among them."""
    shapes = {_torch_name(name): list(tensor.shape) for name, tensor in _Network().state_dict().items()}
    return shapes | {_CLASSIFIER: [CLASSES, FEATURES]}


def load_inception(path: str | Path) -> InceptionV3:
    """The network with the weights of a file that `tools/convert_inception.py` made.

    Raises `UserError` if the file can't be read or does not hold the weights.
    """
    return InceptionV3(load_arrays(Path(path)), str(path))


def convert_inception(weights: str | Path, output: str | Path) -> bool:
    """Turn pytorch-fid's or torch-fidelity's file of torch weights into the safetensors file that `load_inception` reads.

    Returns whether it is the published file, by the SHA-256 that its name holds; with other weights distances can't be
    compared with published ones. Raises `UserError` if torch is missing or the file can't be read or lacks a weight.
    """
    from ppvilg.vqgan.convert import read_torch

    unused = ("fc.bias", ".num_batches_tracked")
    arrays = {name: array for name, array in read_torch(weights).items() if not name.endswith(unused)}
    check_weights(arrays, weight_shapes(), str(weights))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(arrays, output)
    return checksum(Path(weights)).startswith(_SHA256)


def _prepared(picture: np.ndarray) -> paddle.Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, 299, 299] in [-1, 1]."""
    check_picture(picture)
    pixels = paddle.to_tensor(np.ascontiguousarray(picture.transpose(2, 0, 1))[None].astype("float32") / 255)
    return 2 * F.interpolate(pixels, [SIZE, SIZE], mode="bilinear", align_corners=False) - 1


def _paddle_name(name: str) -> str:
    return name.replace(".running_mean", "._mean").replace(".running_var", "._variance")


def _torch_name(name: str) -> str:
    return name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


class _Convolution(nn.Layer):
    """Convolution, batch norm, ReLU. What it makes has the size of what it gets, divided by the stride, if `same`."""

    def __init__(self, inputs: int, outputs: int, height: int, width: int, stride: int = 1, same: bool = True):
        super().__init__()
        padding = (height // 2, width // 2) if same else 0
        # Constant, so that loading a network to measure with draws no random numbers.
        start = nn.initializer.Constant(0.0)
        self.conv = nn.Conv2D(inputs, outputs, (height, width), stride, padding, weight_attr=start, bias_attr=False)
        self.bn = nn.BatchNorm2D(outputs, epsilon=_EPSILON)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: paddle.Tensor) -> paddle.Tensor:
    """3 × 3, each pixel the mean of its neighbours inside the picture (`exclusive`), as TensorFlow pools."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, exclusive=True)


class _Block(nn.Layer):
    """Branches side by side, their channels joined. Convolutions have torchvision's names."""

    def chain(self, name: str, x: paddle.Tensor) -> paddle.Tensor:
        """The convolutions `name`_1, `name`_2 ... one after the other."""
        numbered = [layer for own, layer in self.named_children() if re.fullmatch(rf"{name}_\d+", own)]
        for layer in numbered:
            x = layer(x)
        return x


class _A(_Block):
    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = _Convolution(inputs, 64, 1, 1)
        self.branch5x5_1 = _Convolution(inputs, 48, 1, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, 5)
        self.branch3x3dbl_1 = _Convolution(inputs, 64, 1, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, 3)
        self.branch_pool = _Convolution(inputs, pooled, 1, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        branches = [self.branch1x1(x), self.chain("branch5x5", x), self.chain("branch3x3dbl", x)]
        return paddle.concat([*branches, self.branch_pool(_average(x))], 1)


class _B(_Block):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = _Convolution(inputs, 384, 3, 3, 2, same=False)
        self.branch3x3dbl_1 = _Convolution(inputs, 64, 1, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, 3, 2, same=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.concat([self.branch3x3(x), self.chain("branch3x3dbl", x), F.max_pool2d(x, 3, 2)], 1)


class _C(_Block):
    def __init__(self, inner: int):
        super().__init__()
        self.branch1x1 = _Convolution(768, 192, 1, 1)
        self.branch7x7_1 = _Convolution(768, inner, 1, 1)
        self.branch7x7_2 = _Convolution(inner, inner, 1, 7)
        self.branch7x7_3 = _Convolution(inner, 192, 7, 1)
        self.branch7x7dbl_1 = _Convolution(768, inner, 1, 1)
        self.branch7x7dbl_2 = _Convolution(inner, inner, 7, 1)
        self.branch7x7dbl_3 = _Convolution(inner, inner, 1, 7)
        self.branch7x7dbl_4 = _Convolution(inner, inner, 7, 1)
        self.branch7x7dbl_5 = _Convolution(inner, 192, 1, 7)
        self.branch_pool = _Convolution(768, 192, 1, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        branches = [self.branch1x1(x), self.chain("branch7x7", x), self.chain("branch7x7dbl", x)]
        return paddle.concat([*branches, self.branch_pool(_average(x))], 1)


class _D(_Block):
    def __init__(self):
        super().__init__()
        self.branch3x3_1 = _Convolution(768, 192, 1, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, 3, 2, same=False)
        self.branch7x7x3_1 = _Convolution(768, 192, 1, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, 1, 7)
        self.branch7x7x3_3 = _Convolution(192, 192, 7, 1)
        self.branch7x7x3_4 = _Convolution(192, 192, 3, 3, 2, same=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.concat([self.chain("branch3x3", x), self.chain("branch7x7x3", x), F.max_pool2d(x, 3, 2)], 1)


class _E(_Block):
    """`maximum`: a max pool in the place of the average pool, which only the last block of these weights has."""

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
        single, double = self.chain("branch3x3", x), self.chain("branch3x3dbl", x)
        forks = [
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
        ]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else _average(x)
        return paddle.concat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class _Network(nn.Layer):
    """float32 [B, 3, 299, 299] in [-1, 1] -> features float32 [B, 2048]."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 3, 2, same=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, 3, same=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _C(128), _C(160), _C(160), _C(192)
        self.Mixed_7a = _D()
        self.Mixed_7b, self.Mixed_7c = _E(1280, maximum=False), _E(2048, maximum=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return F.adaptive_avg_pool2d(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))), 1).flatten(1)
