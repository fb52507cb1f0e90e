"""The model's functions: plain paddle for any device and dtype, and C++ kernels with equal results for a CPU.

Which of the two runs is decided at each call (`extension.has_kernels`); nothing outside of this package knows of it.
"""

from ppvilg.ops.attention import sparse_attention
from ppvilg.ops.functions import add_channel_bias, at_least_float32, cross_entropy, gelu, layer_norm, linear
from ppvilg.ops.optimizer import AdamW, ClipGradByGlobalNorm, lerp_, squared_sum
from ppvilg.ops.tensors import from_numpy

__all__ = [
    "AdamW",
    "ClipGradByGlobalNorm",
    "add_channel_bias",
    "at_least_float32",
    "cross_entropy",
    "from_numpy",
    "gelu",
    "layer_norm",
    "lerp_",
    "linear",
    "sparse_attention",
    "squared_sum",
]
