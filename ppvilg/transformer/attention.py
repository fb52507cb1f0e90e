"""Multi-head self-attention under a pattern, computed in blocks over a whole sequence or slot by slot with caches."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from ppvilg.transformer.cache import KeyValueCache, LatentCache, Source, Step
from ppvilg.transformer.layers import Linear
from ppvilg.transformer.pattern import HIDDEN, Blocks, Pattern


@dataclass(frozen=True)
class Part:
    """The source or the target part of the sequence as one layer kind computes it: a pattern's blocks on the device."""

    groups: int
    order: paddle.Tensor | None
    """Int64 [B · L]: the rows of a batch [B · L, hidden], group after group; None where they stand so already."""
    inverse: paddle.Tensor | None
    """Int64 [B · L]: the order back."""
    keys: paddle.Tensor | None
    """Int64 [B · groups · keys]: the rows that each group reads; None where they are those of `order`."""
    bias: paddle.Tensor | None
    """Float32 [B, heads, groups, size, keys], added to the scores; None where every key is seen. The keys of the target part
    are first all those of the source, then the group's. Laid out in full, since paddle's broadcasting addition is several
    times slower."""


@dataclass(frozen=True)
class View:
    """Both parts of the sequence for one layer kind in one direction."""

    pattern: Pattern
    source: Part
    target: Part

    def split(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """[B, m+n, hidden] -> source [B, s, hidden] and target [B, t, hidden]."""
        text, image = x[:, : self.pattern.text_length], x[:, self.pattern.text_length :]
        return (text, image) if self.pattern.to_image else (image, text)

    def join(self, source: paddle.Tensor, target: paddle.Tensor) -> paddle.Tensor:
        """The inverse of `split`."""
        return paddle.concat([source, target] if self.pattern.to_image else [target, source], axis=1)


def view(pattern: Pattern, text_valid: paddle.Tensor, heads: int) -> View:
    """What a layer needs to see its pattern's slots and no padding; `text_valid` bool [B, m] is True for real tokens."""
    batch, m = text_valid.shape
    text, image = pattern.text_blocks(), pattern.image_blocks()
    # A padded slot sees itself, so that its (unused) row has a softmax.
    text_seen = (_shown(text, batch) & text_valid.unsqueeze([1, 2])) | paddle.to_tensor(np.eye(m, dtype=bool))
    if pattern.to_image:
        groups, size = image.queries.shape
        source_seen = text_valid.unsqueeze([1, 2]).expand([batch, groups, size, m])
        target = _part(image, batch, _bias([source_seen, _shown(image, batch)], heads))
        return View(pattern, _part(text, batch, _bias([text_seen], heads)), target)
    source_seen = paddle.ones([batch, 1, m, pattern.image_length], dtype="bool")
    source = _part(image, batch, None if image.mask.all() else _bias([_shown(image, batch)], heads))
    return View(pattern, source, _part(text, batch, _bias([source_seen, text_seen], heads)))


def _shown(blocks: Blocks, batch: int) -> paddle.Tensor:
    """Bool [B, groups, size, keys]."""
    return paddle.to_tensor(blocks.mask).unsqueeze(0).expand([batch, -1, -1, -1])


def _bias(seen: list[paddle.Tensor], heads: int) -> paddle.Tensor:
    """Parts bool [B, groups, size, keys] -> float32 [B, heads, groups, size, all keys]."""
    bias = paddle.where(paddle.concat(seen, axis=-1), paddle.zeros([]), paddle.full([], HIDDEN))
    return bias.unsqueeze(1).expand([-1, heads, -1, -1, -1]).contiguous()


def _part(blocks: Blocks, batch: int, bias: paddle.Tensor | None) -> Part:
    order = blocks.queries.ravel()
    firsts = np.arange(batch)[:, None] * order.size

    def rows(tokens: np.ndarray) -> paddle.Tensor:
        return paddle.to_tensor((firsts + tokens).ravel())

    standing = (order[:-1] < order[1:]).all()
    return Part(
        len(blocks.queries),
        None if standing else rows(order),
        None if standing else rows(np.argsort(order)),
        None if np.array_equal(blocks.queries, blocks.keys) else rows(blocks.keys.ravel()),
        bias,
    )


class SelfAttention(nn.Layer):
    """Multi-head attention of width `hidden`.

    Keys and values have no bias: one of the keys adds the same to all of a query's scores and drops out of the softmax, one of
    the values adds a constant to the context, which the output's bias already does.
    """

    def __init__(self, hidden: int, heads: int, out_std: float):
        super().__init__()
        self.heads = heads
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden, bias=False)
        self.value = Linear(hidden, hidden, bias=False)
        self.out = Linear(hidden, hidden, std=out_std)

    def forward(self, x: paddle.Tensor, views: list[View]) -> paddle.Tensor:
        """[V·B, m+n, hidden], the batch once for each of V views -> the same shape."""
        return self.out(BlockAttention.apply(self.query(x), self.key(x), self.value(x), views, self.heads))

    def source(self, x: paddle.Tensor, part: Part) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """The source part alone [P, s, hidden] -> [P, s, hidden], and its keys and values [P, heads, s, width]."""
        queries, keys, values = self.query(x), self.key(x), self.value(x)
        context, _ = _attend(part, _operands(part, self.heads, queries, keys, values))
        return self.out(context), _split_heads(keys, self.heads), _split_heads(values, self.heads)

    def step(self, x: paddle.Tensor, source: Source, cache: KeyValueCache | LatentCache, step: Step) -> paddle.Tensor:
        """The next target slot of each sequence: [B, hidden] -> [B, hidden]."""
        queries = self.query(x).reshape([x.shape[0], self.heads, -1])
        queries = queries * queries.shape[-1] ** -0.5
        cache.write(x, step)
        scores = paddle.concat([source.scores(queries), cache.scores(queries, step)], axis=-1) + step.bias
        weights = F.softmax(scores)
        context = source.context(weights[:, :, : source.length]) + cache.context(weights[:, :, source.length :], step)
        return self.out(context.flatten(1))


class BlockAttention(PyLayer):
    """softmax(q kᵀ / sqrt(width)) v of every query over the keys that its pattern shows.

    The backward is written out: it keeps the softmax and nothing else of what lies between, and spares adding up the
    zero-padded gradients that slices would leave behind.
    """

    @staticmethod
    def forward(
        ctx, queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, views: list[View], heads: int
    ) -> paddle.Tensor:
        """Each [V·B, m+n, hidden], the batch once for each of V views -> the same shape."""
        contexts, kept = [], []
        for view, *rows in zip(views, *(t.split(len(views)) for t in (queries, keys, values)), strict=True):
            (sq, tq), (sk, tk), (sv, tv) = (view.split(t) for t in rows)
            source, source_weights = _attend(view.source, _operands(view.source, heads, sq, sk, sv))
            target, target_weights = _attend(view.target, _operands(view.target, heads, tq, tk, tv, sk, sv))
            contexts.append(view.join(source, target))
            kept += [source_weights, target_weights]
        ctx.views, ctx.heads = views, heads
        ctx.save_for_backward(queries, keys, values, *kept)
        return paddle.concat(contexts)

    @staticmethod
    def backward(ctx, gradient: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Gradients of queries, keys and values."""
        inputs = ctx.saved_tensor()
        views, heads, kept = ctx.views, ctx.heads, inputs[3:]
        results: tuple[list, list, list] = ([], [], [])
        rows = zip(*(t.split(len(views)) for t in (*inputs[:3], gradient)), strict=True)
        for i, (view, tensors) in enumerate(zip(views, rows, strict=True)):
            (sq, tq), (sk, tk), (sv, tv), (sg, tg) = (view.split(t) for t in tensors)
            source = _attend_backward(view.source, _operands(view.source, heads, sq, sk, sv), kept[2 * i], sg)
            target = _attend_backward(view.target, _operands(view.target, heads, tq, tk, tv, sk, sv), kept[2 * i + 1], tg)
            results[0].append(view.join(source[0], target[0]))
            results[1].append(view.join(source[1] + target[3], target[1]))
            results[2].append(view.join(source[2] + target[4], target[2]))
        return tuple(paddle.concat(result) for result in results)


class _Operands(NamedTuple):
    queries: paddle.Tensor
    """[B, heads, groups, size, width], scaled."""
    keys: paddle.Tensor
    values: paddle.Tensor
    """[B, heads, groups, keys of a group, width]."""
    far_keys: paddle.Tensor | None
    far_values: paddle.Tensor | None
    """[B, heads, s, width], of the source."""


def _operands(part: Part, heads: int, queries, keys, values, far_keys=None, far_values=None) -> _Operands:
    """From queries, keys, values [B, L, hidden] of a part and, for a target, keys and values [B, s, hidden] of its source."""
    scale = (queries.shape[-1] // heads) ** -0.5
    far = [None if t is None else _split_heads(t, heads) for t in (far_keys, far_values)]
    return _Operands(_queries(queries, part, heads) * scale, *(_near(t, part, heads) for t in (keys, values)), *far)


def _attend(part: Part, operands: _Operands) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The context [B, L, hidden] of a part, and its weights [B, heads, groups, size, s + keys]."""
    queries, keys, values, far_keys, far_values = operands
    scores = _products(queries, far_keys, keys)
    weights = F.softmax(scores if part.bias is None else scores + part.bias)
    far = 0 if far_keys is None else far_keys.shape[2]
    context = paddle.matmul(weights[..., far:], values)
    if far:
        context = context + paddle.matmul(_merged(weights[..., :far]), far_values).reshape(context.shape)
    return _queries_backward(context, part), weights


def _attend_backward(part: Part, operands: _Operands, weights: paddle.Tensor, gradient: paddle.Tensor) -> tuple:
    """From the gradient [B, L, hidden] of `_attend`'s context those of queries, keys, values [B, L, hidden] and, for a target,
    of its source's keys and values [B, s, hidden]."""
    queries, keys, values, far_keys, far_values = operands
    gradient = _queries(gradient, part, queries.shape[1])
    of_weights = _products(gradient, far_values, values)
    # The softmax's gradient w (g - Σ w g), its row sums and their spreading as matrix products.
    count = weights.shape[-1]
    sums = paddle.matmul((weights * of_weights).reshape([-1, count]), paddle.ones([count, 1]))
    of_scores = weights * (of_weights - paddle.matmul(sums, paddle.ones([1, count])).reshape(weights.shape))

    far = 0 if far_keys is None else far_keys.shape[2]
    near_scores, near_weights = of_scores[..., far:], weights[..., far:]
    of_queries = paddle.matmul(near_scores, keys)
    of_keys = _near_backward(paddle.matmul(near_scores, queries, transpose_x=True), part)
    of_values = _near_backward(paddle.matmul(near_weights, gradient, transpose_x=True), part)
    of_far = []
    if far:
        far_scores, far_weights = _merged(of_scores[..., :far]), _merged(weights[..., :far])
        of_queries = of_queries + paddle.matmul(far_scores, far_keys).reshape(of_queries.shape)
        for x, y in ((far_scores, queries), (far_weights, gradient)):
            of_far.append(_join_heads(paddle.matmul(x, _merged(y), transpose_x=True)))
    of_queries = _queries_backward(of_queries * queries.shape[-1] ** -0.5, part)
    return of_queries, of_keys, of_values, *of_far


def _products(x: paddle.Tensor, far: paddle.Tensor | None, near: paddle.Tensor) -> paddle.Tensor:
    """Inner products of x [B, heads, groups, size, width] with `far` [B, heads, s, width], then with its group of `near`."""
    products = paddle.matmul(x, near, transpose_y=True)
    if far is None:
        return products
    others = paddle.matmul(_merged(x), far, transpose_y=True)
    return paddle.concat([others.reshape([*x.shape[:4], far.shape[2]]), products], axis=-1)


def _queries(x: paddle.Tensor, part: Part, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, groups, size, width]."""
    batch, length, hidden = x.shape
    if part.order is not None:
        x = paddle.gather(x.reshape([batch * length, hidden]), part.order)
    return _split_groups(x, batch, part.groups, heads)


def _queries_backward(x: paddle.Tensor, part: Part) -> paddle.Tensor:
    """[B, heads, groups, size, width] -> [B, L, hidden]: the inverse of `_queries` and, since that only moves, its gradient."""
    batch, heads, groups, size, width = x.shape
    x = x.transpose([0, 2, 3, 1, 4]).reshape([batch * groups * size, heads * width])
    if part.inverse is not None:
        x = paddle.gather(x, part.inverse)
    return x.reshape([batch, groups * size, heads * width])


def _near(x: paddle.Tensor, part: Part, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> what each group reads, [B, heads, groups, keys, width]."""
    if part.keys is None:
        return _queries(x, part, heads)
    batch, length, hidden = x.shape
    return _split_groups(paddle.gather(x.reshape([batch * length, hidden]), part.keys), batch, part.groups, heads)


def _near_backward(gradient: paddle.Tensor, part: Part) -> paddle.Tensor:
    """The gradient of `_near`'s input from that of its output: each key's, added up over the groups that read it."""
    if part.keys is None:
        return _queries_backward(gradient, part)
    batch, heads, groups, keys, width = gradient.shape
    rows = gradient.transpose([0, 2, 3, 1, 4]).reshape([batch * groups * keys, heads * width])
    length = part.bias.shape[2] * part.bias.shape[3]
    total = paddle.zeros([batch * length, heads * width], gradient.dtype)
    return paddle.index_add(total, part.keys, 0, rows).reshape([batch, length, heads * width])


def _split_groups(x: paddle.Tensor, batch: int, groups: int, heads: int) -> paddle.Tensor:
    """[B · groups · k, hidden] in any shape -> [B, heads, groups, k, width]."""
    return x.reshape([batch, groups, -1, heads, x.shape[-1] // heads]).transpose([0, 3, 1, 2, 4])


def _merged(x: paddle.Tensor) -> paddle.Tensor:
    """[B, heads, groups, size, k] -> [B, heads, groups · size, k]."""
    return x.flatten(2, 3)


def _split_heads(x: paddle.Tensor, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, L, width]."""
    batch, length, hidden = x.shape
    return x.reshape([batch, length, heads, hidden // heads]).transpose([0, 2, 1, 3])


def _join_heads(x: paddle.Tensor) -> paddle.Tensor:
    """The inverse of `_split_heads`."""
    return x.transpose([0, 2, 1, 3]).flatten(2)
