"""The parameterised layers: plain ones, or Fleet's where a tensor parallel group of several processes is given.

Tensor parallelism only decides which class a layer is (Megatron-LM): a column-parallel layer holds some of the output features,
the row-parallel one after it the same input features, so that a pair of them needs one all_reduce.
"""

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg import ops


class Linear(nn.Linear):
    """y = x W + b; W float [in, out], b float [out] or none. With a low-rank update (LoRA) y = x (W + ΔW) + b."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias_attr=None if bias else False)
        self.lora: nn.Layer | None = None
        """What is trained in place of W: a layer of ΔW, with `forward` for x ΔW and `delta` for ΔW [in, out]."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[..., in] -> [..., out]."""
        y = ops.linear(x, self.weight, self.bias)
        return y if self.lora is None else y + self.lora(x)


class LayerNorm(nn.Layer):
    """Layer normalisation over the last dimension."""

    def __init__(self, width: int, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))
        self.bias = self.create_parameter([width], is_bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[..., width] -> [..., width]."""
        return ops.layer_norm(x, self.weight, self.bias, self.epsilon)


def column_linear(inputs: int, outputs: int, bias: bool = True, mp_group=None, shared: bool = False) -> nn.Layer:
    """[..., in] -> [..., out], or the process's share of the output features; `shared`: of an input whose sequences are shared
    out where the group is `sequence_parallel`."""
    if mp_group is None or mp_group.nranks == 1:
        return Linear(inputs, outputs, bias)
    from paddle.distributed.fleet.meta_parallel import ColumnParallelLinear
    from paddle.distributed.fleet.utils.sequence_parallel_utils import ColumnSequenceParallelLinear

    layer = ColumnSequenceParallelLinear if shared and sequence_parallel(mp_group) else ColumnParallelLinear
    return layer(inputs, outputs, has_bias=bias, gather_output=False, mp_group=mp_group)


def row_linear(inputs: int, outputs: int, mp_group=None) -> nn.Layer:
    """[..., in], or the process's share of the input features, -> [..., out], of which the sequences are shared out where the
    group is `sequence_parallel`; with a bias."""
    if mp_group is None or mp_group.nranks == 1:
        return Linear(inputs, outputs)
    from paddle.distributed.fleet.meta_parallel import RowParallelLinear
    from paddle.distributed.fleet.utils.sequence_parallel_utils import RowSequenceParallelLinear

    layer = RowSequenceParallelLinear if sequence_parallel(mp_group) else RowParallelLinear
    return layer(inputs, outputs, has_bias=True, input_is_parallel=True, mp_group=mp_group)


def matrix(layer: nn.Layer) -> paddle.Tensor:
    """The matrix [in, out] that a linear layer multiplies with, a low-rank update included."""
    lora = getattr(layer, "lora", None)  # Fleet's layers have none
    return layer.weight.detach() if lora is None else layer.weight.detach() + lora.delta().detach()


def sequence_parallel(mp_group) -> bool:
    """Whether tensor parallel processes share out the sequences [S, L, hidden] between their matrices: each has S / nranks."""
    return getattr(mp_group, "sequence_parallel", False)


def scatter_sequences(x: paddle.Tensor, mp_group) -> paddle.Tensor:
    """The process's share of sequences [S, ...], where they are shared out."""
    if not sequence_parallel(mp_group):
        return x
    from paddle.distributed.fleet.utils.sequence_parallel_utils import ScatterOp

    return ScatterOp.apply(x)


def gather_sequences(x: paddle.Tensor, mp_group) -> paddle.Tensor:
    """All sequences [S, ...], where they were shared out."""
    if not sequence_parallel(mp_group):
        return x
    from paddle.distributed.fleet.utils.sequence_parallel_utils import GatherOp

    return GatherOp.apply(x)


def embedding(count: int, width: int, mp_group=None) -> nn.Layer:
    """Int64 [...] -> [..., width]; tensor parallel processes hold some of the rows each."""
    if mp_group is None or mp_group.nranks == 1:
        return nn.Embedding(count, width)
    from paddle.distributed.fleet.meta_parallel import VocabParallelEmbedding

    return VocabParallelEmbedding(count, width, mp_group=mp_group)


def tied_logits(x: paddle.Tensor, table: paddle.Tensor, mp_group=None) -> paddle.Tensor:
    """Logits [..., V] of states [..., hidden] against an embedding table [V, hidden], or the process's share of both."""
    if mp_group is not None and mp_group.nranks > 1:
        from paddle.distributed.fleet.layers.mpu import mp_ops

        x = mp_ops._c_identity(x, group=mp_group)  # its gradient is the sum over the processes
    return paddle.matmul(x, table, transpose_y=True)


class MLP(nn.Layer):
    """Linear, GELU (tanh form), linear; `multiplier` times as wide inside."""

    def __init__(self, hidden: int, multiplier: int, mp_group=None):
        super().__init__()
        self.up = column_linear(hidden, multiplier * hidden, mp_group=mp_group, shared=True)
        self.down = row_linear(multiplier * hidden, hidden, mp_group)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down(ops.gelu(self.up(x)))


def dropout(x: paddle.Tensor, p: float, training: bool) -> paddle.Tensor:
    """x with a share p of its values set to zero in training, the rest scaled up."""
    return F.dropout(x, p, training=training) if p else x


def sizes(x: paddle.Tensor) -> list:
    """The sizes of x: numbers, and tensors for those that a program being exported leaves open."""
    if paddle.in_dynamic_mode():
        return x.shape
    found = paddle.shape(x)
    return [found[i] if size < 0 else size for i, size in enumerate(x.shape)]
