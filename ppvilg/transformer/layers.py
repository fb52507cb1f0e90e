"""The parameterised layers of the transformer over rows [N, width], with gradients that are matrix products.

Sums over rows or columns, and spreading a vector over them, are products with ones: paddle's own kernels for these run on one
core and cost more than the layers' real products. Without gradients the layers are paddle's functions and nothing else.
"""

import math
from functools import lru_cache

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from ppvilg.parallel.collectives import shared, summed
from ppvilg.parallel.topology import ALONE, Axis


@lru_cache(maxsize=64)  # making one anew takes as long as a product with it
def _ones(rows: int, columns: int, dtype: paddle.dtype) -> paddle.Tensor:
    return paddle.ones([rows, columns], dtype)


def row_sums(x: paddle.Tensor) -> paddle.Tensor:
    """[N, K] -> [N, 1]."""
    return paddle.matmul(x, _ones(x.shape[1], 1, x.dtype))


def column_sums(x: paddle.Tensor) -> paddle.Tensor:
    """[N, K] -> [K]."""
    return paddle.matmul(_ones(1, x.shape[0], x.dtype), x).squeeze(0)


def spread_column(x: paddle.Tensor, count: int) -> paddle.Tensor:
    """[N, 1] -> [N, count]."""
    return paddle.matmul(x, _ones(1, count, x.dtype))


def spread_row(x: paddle.Tensor, count: int) -> paddle.Tensor:
    """[K] -> [count, K]."""
    return paddle.matmul(_ones(count, 1, x.dtype), x.unsqueeze(0))


def dims(x: paddle.Tensor) -> list:
    """The sizes of x: numbers, and tensors for what a program that is being exported leaves open."""
    if paddle.in_dynamic_mode():
        return x.shape
    sizes = paddle.shape(x)
    return [sizes[i] if size < 0 else size for i, size in enumerate(x.shape)]


def at_least_float32(x: paddle.Tensor) -> paddle.Tensor:
    """x, in float32 if it has fewer bits."""
    return x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x


class Part(nn.initializer.Initializer):
    """Draws a tensor parallel process's part of a parameter just as it is drawn in the whole one."""

    def __init__(self, std: float, shape: list[int], dim: int, axis: Axis):
        super().__init__()
        self._draw = nn.initializer.Normal(std=std)
        self._shape, self._dim, self._axis = shape, dim, axis

    def forward(self, param: paddle.Tensor, block=None) -> None:
        """Fill the parameter."""
        with paddle.no_grad():
            whole = paddle.empty(self._shape, param.dtype)
            self._draw(whole)
            index = [slice(None)] * len(self._shape)
            index[self._dim] = self._axis.cut(self._shape[self._dim])
            paddle.assign(whole[tuple(index)], param)


def parameter(layer: nn.Layer, shape: list[int], std: float, dim: int = 0, axis: Axis = ALONE) -> paddle.Tensor:
    """A normally distributed parameter, or the process's part of it, cut along `dim`, which then notes it as `split_dim`."""
    if axis.size == 1:
        return layer.create_parameter(shape, default_initializer=nn.initializer.Normal(std=std))
    own = [size // axis.size if i == dim else size for i, size in enumerate(shape)]
    made = layer.create_parameter(own, default_initializer=Part(std, shape, dim, axis))
    made.split_dim = dim
    return made


class _Affine(PyLayer):
    """x W + b."""

    @staticmethod
    def forward(ctx, x, weight, bias, columns, rows):
        ctx.columns = columns
        ctx.input_is_trained = not x.stop_gradient
        ctx.save_for_backward(x, weight)
        return _affine(x, weight, bias, rows)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensor()
        of_x = None
        if ctx.input_is_trained:
            of_x = ctx.columns.sum_(paddle.matmul(gradient, weight, transpose_y=True))
        return of_x, paddle.matmul(x, gradient, transpose_x=True), column_sums(gradient)


def _affine(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, rows: Axis = ALONE) -> paddle.Tensor:
    """`rows` is the axis over which the rows of W, and the columns of x, are cut."""
    return rows.sum_(paddle.matmul(x, weight)).add_(spread_row(bias, x.shape[0]))


class Linear(nn.Layer):
    """y = x W + b; W float [in, out], b float [out] or none.

    Tensor parallel processes hold the part of W that is cut along `columns`, and give that part of y, or along `rows`, and
    take that part of x. The two follow one another, so that only the second has something to add up (Megatron-LM).
    """

    def __init__(
        self, inputs: int, outputs: int, std: float = 0.02, bias: bool = True, columns: Axis = ALONE, rows: Axis = ALONE
    ):
        super().__init__()
        self.columns, self.rows = columns, rows
        dim, axis = (1, columns) if columns.size > 1 else (0, rows)
        self.weight = parameter(self, [inputs, outputs], std, dim, axis)
        self.bias = self.create_parameter([outputs // columns.size], is_bias=True) if bias else None
        if bias and columns.size > 1:
            self.bias.split_dim = 0

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, in] -> [N, out]."""
        if not paddle.is_grad_enabled() and self.rows.size == 1:
            return F.linear(x, self.weight, self.bias)
        if self.bias is None:
            return summed(paddle.matmul(shared(x, self.columns), self.weight), self.rows)
        return _Affine.apply(x, self.weight, self.bias, self.columns, self.rows)


class Table(nn.Layer):
    """Vectors by number, `weight` float [rows, width]; tensor parallel processes hold some of the rows each."""

    def __init__(self, rows: int, width: int, axis: Axis = ALONE):
        super().__init__()
        self.axis = axis
        self.own = axis.cut(rows)
        self.weight = parameter(self, [rows, width], 0.02, 0, axis)

    def start_from(self, vectors: np.ndarray) -> None:
        """Set the first rows to vectors [k, width]."""
        own = vectors[self.own]
        table = self.weight.numpy().copy()
        table[: len(own)] = own
        self.weight.set_value(table)

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Int64 [N] -> [N, width]."""
        if self.axis.size == 1:
            return F.embedding(ids, self.weight)
        here = (ids >= self.own.start) & (ids < self.own.stop)
        vectors = F.embedding(paddle.where(here, ids - self.own.start, paddle.zeros_like(ids)), self.weight)
        return summed(vectors * here.unsqueeze(-1).astype(vectors.dtype), self.axis)


class LayerNorm(nn.Layer):
    """Normalises each row to mean 0 and deviation 1, then scales and shifts its columns."""

    def __init__(self, width: int, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))
        self.bias = self.create_parameter([width], is_bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, width] -> [N, width]."""
        if not paddle.is_grad_enabled():
            return _norm(x, self.weight, self.bias, self.epsilon)
        return _Norm.apply(x, self.weight, self.bias, self.epsilon)


class _Norm(PyLayer):
    """Layer normalisation."""

    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        ctx.epsilon = epsilon
        ctx.save_for_backward(x, weight)
        return _norm(x, weight, bias, epsilon)

    @staticmethod
    def backward(ctx, gradient):
        return _norm_backward(*ctx.saved_tensor(), ctx.epsilon, gradient)


def _norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    return F.layer_norm(x, x.shape[1:], weight, bias, epsilon)


def _norm_backward(
    x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, gradient: paddle.Tensor
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Gradients of `_norm`'s input, weight and bias; the statistics are worked out again."""
    dtype, (rows, width) = x.dtype, x.shape
    x, weight, gradient = at_least_float32(x), at_least_float32(weight), at_least_float32(gradient)
    centred = x - spread_column(row_sums(x) / width, width)
    rate = paddle.rsqrt(row_sums(centred * centred) / width + epsilon)  # 1 / standard deviation
    rates = spread_column(rate, width)
    normed = centred.multiply_(rates)
    scaled = gradient * normed
    of_weight, of_bias = column_sums(scaled), column_sums(gradient)
    # (g w - mean(g w) - x̂ mean(g w x̂)) / deviation; the means by products with w itself.
    column = weight.unsqueeze(1) / width
    along = spread_column(paddle.matmul(scaled, column), width).multiply_(normed)
    mean = spread_column(paddle.matmul(gradient, column), width)
    of_x = (gradient * spread_row(weight, rows)).subtract_(along.add_(mean)).multiply_(rates)
    if of_x.dtype != dtype:
        return of_x.astype(dtype), of_weight.astype(dtype), of_bias.astype(dtype)
    return of_x, of_weight, of_bias


class NormedProjections(PyLayer):
    """Queries, keys and values of the normalised rows; keeps the rows, not the normalised ones."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, epsilon, query, query_bias, key, value, columns):
        """[N, hidden] -> three times [N, out], where the matrices are cut along `columns` a part each."""
        ctx.epsilon, ctx.columns = epsilon, columns
        ctx.save_for_backward(x, norm_weight, norm_bias, query, key, value)
        normed = _norm(x, norm_weight, norm_bias, epsilon)
        return _affine(normed, query, query_bias), paddle.matmul(normed, key), paddle.matmul(normed, value)

    @staticmethod
    def backward(ctx, *gradients):
        """In the order of the inputs."""
        x, norm_weight, norm_bias, *weights = ctx.saved_tensor()
        normed = _norm(x, norm_weight, norm_bias, ctx.epsilon)
        of_weights = [paddle.matmul(normed, gradient, transpose_x=True) for gradient in gradients]
        first, second, third = (
            paddle.matmul(gradient, weight, transpose_y=True) for gradient, weight in zip(gradients, weights, strict=True)
        )
        of_normed = ctx.columns.sum_(first.add_(second).add_(third))
        of_norm = _norm_backward(x, norm_weight, ctx.epsilon, of_normed)
        return *of_norm, of_weights[0], column_sums(gradients[0]), *of_weights[1:]


def normed_projections(
    x: paddle.Tensor, norm: LayerNorm, query: Linear, key: Linear, value: Linear
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Queries, keys and values of the normalised rows [N, hidden]; keys and values have no bias."""
    if not paddle.is_grad_enabled():
        normed = norm(x)
        return query(normed), key(normed), value(normed)
    weights = query.weight, query.bias, key.weight, value.weight
    return NormedProjections.apply(x, norm.weight, norm.bias, norm.epsilon, *weights, query.columns)


class FeedForward(nn.Layer):
    """LayerNorm, linear, GELU (tanh form), linear; hidden width `multiplier` times the model's, shared by tensor parallel
    processes."""

    def __init__(self, hidden: int, multiplier: int, out_std: float, mp: Axis = ALONE):
        super().__init__()
        self.mp = mp
        self.norm = LayerNorm(hidden)
        self.up = Linear(hidden, multiplier * hidden, columns=mp)
        self.down = Linear(multiplier * hidden, hidden, std=out_std, rows=mp)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, hidden] -> [N, hidden]."""
        if not paddle.is_grad_enabled():
            return self.down(F.gelu(self.up(self.norm(x)), approximate=True))
        norm, up, down = self.norm, self.up, self.down
        weights = up.weight, up.bias, down.weight, down.bias
        return _FeedForward.apply(x, norm.weight, norm.bias, norm.epsilon, *weights, self.mp)


class _FeedForward(PyLayer):
    """gelu(norm(x) U + b) D + c; keeps the input and what goes into the GELU, and works the rest out again."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, epsilon, up, up_bias, down, down_bias, mp):
        before = _affine(_norm(x, norm_weight, norm_bias, epsilon), up, up_bias)
        ctx.epsilon, ctx.mp = epsilon, mp
        ctx.save_for_backward(x, norm_weight, norm_bias, up, before, down)
        return _affine(F.gelu(before, approximate=True), down, down_bias, mp)

    @staticmethod
    def backward(ctx, gradient):
        x, norm_weight, norm_bias, up, before, down = ctx.saved_tensor()
        # What autograd itself calls for the gradient of a GELU.
        of_before = paddle._C_ops.gelu_grad(before, paddle.matmul(gradient, down, transpose_y=True), True)
        of_down = paddle.matmul(F.gelu(before, approximate=True), gradient, transpose_x=True)
        of_up = paddle.matmul(_norm(x, norm_weight, norm_bias, ctx.epsilon), of_before, transpose_x=True)
        of_normed = ctx.mp.sum_(paddle.matmul(of_before, up, transpose_y=True))
        of_norm = _norm_backward(x, norm_weight, ctx.epsilon, of_normed)
        return *of_norm, of_up, column_sums(of_before), of_down, column_sums(gradient)


def token_losses(logits: paddle.Tensor, targets: paddle.Tensor, mp: Axis = ALONE) -> paddle.Tensor:
    """-log p of each target, float [B, L] for logits [B, L, V] or the process's part of their V."""
    logits = at_least_float32(logits)
    if mp.size == 1:
        return F.cross_entropy(logits, targets.unsqueeze(-1), reduction="none").squeeze(-1)
    largest = mp.max_(logits.detach().max(-1, keepdim=True))
    total = summed(paddle.exp(logits - largest).sum(-1), mp)
    return paddle.log(total) + largest.squeeze(-1) - _target_logits(logits, targets, mp)


def token_hits(logits: paddle.Tensor, targets: paddle.Tensor, mp: Axis = ALONE) -> paddle.Tensor:
    """1 where no token is likelier than the target, float [B, L] for logits as in `token_losses`."""
    return (_target_logits(logits, targets, mp) >= mp.max_(logits.max(-1))).astype(logits.dtype)


def _target_logits(logits: paddle.Tensor, targets: paddle.Tensor, mp: Axis) -> paddle.Tensor:
    count = logits.shape[-1]
    own = targets - mp.rank * count
    here = (own >= 0) & (own < count)
    found = paddle.take_along_axis(logits, paddle.where(here, own, paddle.zeros_like(own)).unsqueeze(-1), -1).squeeze(-1)
    return summed(found * here.astype(found.dtype), mp)


def residual_std(layers: int) -> float:
    """Initial deviation of the projections that write into the residual stream (GPT-2): 0.02 / sqrt(2 L)."""
    return 0.02 / math.sqrt(2 * layers)
