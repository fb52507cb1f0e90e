"""What the networks that measure images share: layers with torch's names of weights, batches, and speed on a CPU."""

import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.checkpoint import Arrays, fill
from ppvilg.pictures import check_picture

# Constant, so that loading a network to measure with draws no random numbers.
_START = nn.initializer.Constant(0.0)


def convolution(inputs: int, outputs: int, kernel: tuple[int, int], **options) -> nn.Conv2D:
    """A convolution without bias; `options` are those of `nn.Conv2D`."""
    return nn.Conv2D(inputs, outputs, kernel, weight_attr=_START, bias_attr=False, **options)


class BatchNorm(nn.Layer):
    """Batch norm as it is after training."""

    def __init__(self, channels: int):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(self, name, self.create_parameter([channels], default_initializer=_START))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [B, channels, H, W] -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, epsilon=1e-3)


class Classifier(nn.Layer):
    """A linear layer whose weight lies as torch's: [classes, features]."""

    def __init__(self, features: int, classes: int, bias: bool):
        super().__init__()
        self.weight = self.create_parameter([classes, features], default_initializer=_START)
        self.bias = self.create_parameter([classes], default_initializer=_START) if bias else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [B, features] -> float32 [B, classes]."""
        return F.linear(x, self.weight.T, self.bias)


class FeatureNetwork(ABC):
    """An ImageNet classifier, for inference only.

    `network` turns float32 [B, 3, size, size] into features float32 [B, features] and logits float32 [B, classes]. `weights`
    are float32 arrays by the names of its state_dict; raises `ValueError`, naming their `source`, if one is missing, unknown
    or of another shape.
    """

    size: int
    features: int
    classes: int
    batch = 32
    """Images that are held at a time."""

    def __init__(self, network: nn.Layer, weights: Arrays, source: str):
        fill(network, weights, source)
        self._run = _compiled(network.eval(), [3, self.size, self.size])

    @abstractmethod
    def prepare(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> float32 [3, size, size] as the network reads it."""

    @paddle.no_grad()
    def __call__(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """N images uint8 [H, W, 3] in RGB -> features float32 [N, features] and logits float32 [N, classes].

        The images may be an array [N, H, W, 3] or come one by one, of different sizes. Features are those of the last
        convolution, averaged over the image; the logits' softmax are the probabilities of ImageNet's classes. Raises
        `ValueError` if an image has another type or shape.
        """
        remaining = iter(images)
        found = [(np.zeros([0, self.features], "float32"), np.zeros([0, self.classes], "float32"))]
        while batch := list(itertools.islice(remaining, self.batch)):
            for image in batch:
                check_picture(image)
            outputs = self._run(paddle.to_tensor(np.stack([self.prepare(image) for image in batch])))
            found.append(tuple(output.numpy() for output in outputs))
        features, logits = zip(*found, strict=True)
        return np.concatenate(features), np.concatenate(logits)


def shapes(network: nn.Layer) -> dict[str, list[int]]:
    """Names and shapes of a network's weights."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _compiled(network: nn.Layer, shape: list[int]) -> Callable[[paddle.Tensor], list[paddle.Tensor]]:
    """A network of one float32 input [B, *shape] that computes the same, to rounding, by Paddle Inference with oneDNN.

    Paddle's own convolutions are about seven times slower on a CPU. On a GPU it is the network itself.
    """
    if paddle.get_device() != "cpu":
        return network
    from paddle import inference

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network")
        paddle.jit.save(network, path, input_spec=[paddle.static.InputSpec([None, *shape], "float32")])
        config = inference.Config(f"{path}.json", f"{path}.pdiparams")
        config.disable_glog_info()
        config.enable_mkldnn()
        predictor = inference.create_predictor(config)
    return lambda x: predictor.run([x])
