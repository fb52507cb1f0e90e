"""The parameterised layers of the transformer, written so that their gradients are matrix products."""

import math

import paddle
from paddle import nn
from paddle.nn import functional as F


class Linear(nn.Layer):
    """y = x W + b; W float [in, out], b float [out] or none."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.02, bias: bool = True):
        super().__init__()
        self.weight = self.create_parameter([inputs, outputs], default_initializer=nn.initializer.Normal(std=std))
        self.bias = self.create_parameter([outputs], is_bias=True) if bias else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[..., in] -> [..., out].

        For training the bias is added as `ones @ b`, because its gradient is then a matrix product too: the row sum that paddle
        runs for a broadcast bias takes longer on a CPU than the layer's own products.
        """
        if self.bias is None or not paddle.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape([-1, x.shape[-1]])
        ones = paddle.ones([rows.shape[0], 1], dtype=rows.dtype)
        y = paddle.addmm(paddle.matmul(ones, self.bias.unsqueeze(0)), rows, self.weight)
        return y.reshape([*x.shape[:-1], self.bias.shape[0]])


class FeedForward(nn.Layer):
    """Linear, GELU (tanh form), Linear; hidden width `multiplier` times the model's."""

    def __init__(self, hidden: int, multiplier: int, out_std: float):
        super().__init__()
        self.up = Linear(hidden, multiplier * hidden)
        self.down = Linear(multiplier * hidden, hidden, std=out_std)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down(F.gelu(self.up(x), approximate=True))


def residual_std(layers: int) -> float:
    """Initial deviation of the projections that write into the residual stream (GPT-2): 0.02 / sqrt(2 L)."""
    return 0.02 / math.sqrt(2 * layers)
