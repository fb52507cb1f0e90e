"""Convolution and upsampling equal to paddle's `nn` layers (same results, same state_dict keys), faster on a CPU."""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn


class Conv2D(nn.Layer):
    """`nn.Conv2D` with torch's default initialisation: weight and bias uniform in ±1/sqrt(fan_in).

    `padding` is what `F.conv2d` takes: pixels on all sides, or [top, bottom, left, right].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int | list[int] = 0,
    ):
        super().__init__()
        self.stride, self.padding = stride, padding
        bound = 1 / math.sqrt(in_channels * kernel * kernel)
        uniform = nn.initializer.Uniform(-bound, bound)
        self.weight = self.create_parameter([out_channels, in_channels, kernel, kernel], default_initializer=uniform)
        self.bias = self.create_parameter([out_channels], is_bias=True, default_initializer=uniform)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [B, in_channels, H, W] -> [B, out_channels, H', W']."""
        y = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return y + _spread(self.bias, y.shape)


def _spread(bias: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
    """Bias [C] repeated to [B, C, H, W].

    By matrix products, because the gradient of a broadcast sum is a row sum, which paddle's CPU kernel does slowly.
    """
    batch, channels, height, width = shape
    plane = paddle.matmul(bias.reshape([channels, 1]), paddle.ones([1, height * width], bias.dtype))
    return paddle.matmul(paddle.ones([batch, 1], bias.dtype), plane.reshape([1, -1])).reshape(shape)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6 over 32 groups, or over the most groups below 32 that divide `channels`."""
    return nn.GroupNorm(num_groups=math.gcd(channels, 32), num_channels=channels, epsilon=1e-6)


def upsample(x: paddle.Tensor) -> paddle.Tensor:
    """Nearest-neighbour doubling: [B, C, H, W] -> [B, C, 2H, 2W].

    By expanding, because the gradient of `F.interpolate` is several times slower on a CPU.
    """
    batch, channels, height, width = x.shape
    x = x.reshape([batch, channels, height, 1, width, 1]).expand([batch, channels, height, 2, width, 2])
    return x.reshape([batch, channels, 2 * height, 2 * width])
