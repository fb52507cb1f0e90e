"""Convolutions equal to paddle's `nn` layers (same results, same state_dict keys), but faster on a CPU."""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.ops import add_channel_bias


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
        return add_channel_bias(y, self.bias)


class UpsampleConv2D(Conv2D):
    """Nearest-neighbour doubling, then a 3×3 convolution that keeps the size.

    A pixel repeated 2×2 meets only 2×2 different weights per output pixel, so both steps together are one transposed
    convolution with stride 2 and a 4×4 kernel of summed weights: less than half the multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [B, in_channels, H, W] -> [B, out_channels, 2H, 2W]."""
        # Row i lists which of the 3 weights along one axis meet at row i of the 4×4 kernel.
        sums = paddle.to_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], self.weight.dtype)
        kernel = paddle.matmul(paddle.matmul(sums, self.weight), sums, transpose_y=True)
        y = F.conv2d_transpose(x, kernel.transpose([1, 0, 2, 3]), None, stride=2, padding=1)
        return add_channel_bias(y, self.bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6 over 32 groups, or over the most groups below 32 that divide both 32 and `channels`."""
    return nn.GroupNorm(num_groups=math.gcd(channels, 32), num_channels=channels, epsilon=1e-6)
