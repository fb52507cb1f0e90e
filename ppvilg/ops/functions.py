"""The model's functions. Each is paddle's own, except where the C++ kernels can be used, which give equal results."""

import paddle
from paddle.nn import functional as F

from ppvilg.ops.extension import has_kernels, run


def linear(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None) -> paddle.Tensor:
    """x W + b: x [..., in], weight [in, out], bias [out] or None -> [..., out]."""
    if bias is None or not has_kernels(x, weight, bias):
        return F.linear(x, weight, bias)
    # In place on the new product. The bias's gradient is one pass of column sums, the product's is the result's itself.
    return run("add_bias", paddle.matmul(x, weight), bias)


def add_channel_bias(x: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    """x [B, C, H, W], a new tensor that nothing else reads, plus bias [C]."""
    if has_kernels(x, bias):
        return run("add_channel_bias", x, bias)
    return x + bias.reshape([1, -1, 1, 1])


def layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float = 1e-5) -> paddle.Tensor:
    """Each row of x [..., D] normalised to mean 0 and variance 1, times weight [D], plus bias [D]; the same shape."""
    if has_kernels(x, weight, bias):
        return run("layer_norm", x, weight, bias, epsilon)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def gelu(x: paddle.Tensor) -> paddle.Tensor:
    """GELU in its tanh form, element by element."""
    return run("gelu", x) if has_kernels(x) else F.gelu(x, approximate=True)


def cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """-log p of each label: logits float [..., V], labels int64 [...] in 0..V-1 -> float [...], at least float32."""
    if has_kernels(logits):
        return run("cross_entropy", logits, labels)
    return F.cross_entropy(at_least_float32(logits), labels.unsqueeze(-1), reduction="none").squeeze(-1)


def at_least_float32(x: paddle.Tensor) -> paddle.Tensor:
    """Float16 and bfloat16 as float32, for sums over many values and for small differences."""
    return x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x
