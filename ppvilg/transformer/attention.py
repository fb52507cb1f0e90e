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
    """The source or the target part of the sequence as one layer kind computes it."""

    blocks: Blocks
    bias: paddle.Tensor | None
    """Float32 [B, heads, groups, size, keys], added to the scores; None where every key is seen. The keys of the target part are
    first all those of the source, then the group's. Laid out in full, since paddle's broadcasting addition is several times
    slower."""


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
    text_seen = (_mask(text, batch) & text_valid.unsqueeze([1, 2])) | paddle.to_tensor(np.eye(m, dtype=bool))
    if pattern.to_image:
        source_seen = text_valid.reshape([batch, 1, 1, m]).expand([batch, image.groups, image.size, m])
        target = Part(image, _bias([source_seen, _mask(image, batch)], heads))
        return View(pattern, Part(text, _bias([text_seen], heads)), target)
    source_seen = paddle.ones([batch, 1, m, pattern.image_length], dtype="bool")
    source = Part(image, None if image.mask is None else _bias([_mask(image, batch)], heads))
    return View(pattern, source, Part(text, _bias([source_seen, text_seen], heads)))


def _mask(blocks: Blocks, batch: int) -> paddle.Tensor:
    """Bool [B, groups, size, keys]."""
    keys = blocks.size * (blocks.above + 1 + blocks.below)
    mask = np.ones((blocks.groups, blocks.size, keys), dtype=bool) if blocks.mask is None else blocks.mask
    return paddle.to_tensor(mask).unsqueeze(0).expand([batch, -1, -1, -1])


def _bias(seen: list[paddle.Tensor], heads: int) -> paddle.Tensor:
    """Parts bool [B, groups, size, keys] -> float32 [B, heads, groups, size, all keys]."""
    bias = paddle.where(paddle.concat(seen, axis=-1), paddle.zeros([]), paddle.full([], HIDDEN))
    return bias.unsqueeze(1).expand([-1, heads, -1, -1, -1]).contiguous()


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

    The backward is written out: it keeps the softmax and nothing else of what lies between, and spares adding up the zero-padded
    gradients that slices would leave behind.
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
    blocks = part.blocks
    scale = (queries.shape[-1] // heads) ** -0.5
    far = [None if t is None else _split_heads(t, heads) for t in (far_keys, far_values)]
    near = [_neighbours(_grouped(t, heads, blocks), blocks) for t in (keys, values)]
    return _Operands(_grouped(queries, heads, blocks) * scale, *near, *far)


def _attend(part: Part, operands: _Operands) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The context [B, L, hidden] of a part, and its weights [B, heads, groups, size, s + keys]."""
    queries, keys, values, far_keys, far_values = operands
    scores = _products(queries, far_keys, keys)
    weights = F.softmax(scores if part.bias is None else scores + part.bias)
    far = 0 if far_keys is None else far_keys.shape[2]
    context = paddle.matmul(weights[..., far:], values)
    if far:
        context = context + paddle.matmul(_merged(weights[..., :far]), far_values).reshape(context.shape)
    return _ungrouped(context, part.blocks), weights


def _attend_backward(part: Part, operands: _Operands, weights: paddle.Tensor, gradient: paddle.Tensor) -> tuple:
    """From the gradient [B, L, hidden] of `_attend`'s context those of queries, keys, values [B, L, hidden] and, for a target,
    of its source's keys and values [B, s, hidden]."""
    queries, keys, values, far_keys, far_values = operands
    blocks, heads = part.blocks, queries.shape[1]
    gradient = _grouped(gradient, heads, blocks)
    of_weights = _products(gradient, far_values, values)
    mean = paddle.matmul(weights * of_weights, paddle.ones([weights.shape[-1], 1]))  # a row sum, as a matrix product
    of_scores = weights * (of_weights - mean)

    far = 0 if far_keys is None else far_keys.shape[2]
    near_scores, near_weights = of_scores[..., far:], weights[..., far:]
    of_queries = paddle.matmul(near_scores, keys)
    of_keys = _neighbours_backward(paddle.matmul(near_scores, queries, transpose_x=True), blocks)
    of_values = _neighbours_backward(paddle.matmul(near_weights, gradient, transpose_x=True), blocks)
    of_far = []
    if far:
        far_scores, far_weights = _merged(of_scores[..., :far]), _merged(weights[..., :far])
        of_queries = of_queries + paddle.matmul(far_scores, far_keys).reshape(of_queries.shape)
        for x, y in ((far_scores, queries), (far_weights, gradient)):
            of_far.append(_join_heads(paddle.matmul(x, _merged(y), transpose_x=True)))
    of_queries = of_queries * queries.shape[-1] ** -0.5
    return *(_ungrouped(t, blocks) for t in (of_queries, of_keys, of_values)), *of_far


def _products(x: paddle.Tensor, far: paddle.Tensor | None, near: paddle.Tensor) -> paddle.Tensor:
    """Inner products of x [B, heads, groups, size, width] with `far` [B, heads, s, width], then with its group of `near`."""
    products = paddle.matmul(x, near, transpose_y=True)
    if far is None:
        return products
    others = paddle.matmul(_merged(x), far, transpose_y=True)
    return paddle.concat([others.reshape([*x.shape[:4], far.shape[2]]), products], axis=-1)


def _merged(x: paddle.Tensor) -> paddle.Tensor:
    """[B, heads, groups, size, k] -> [B, heads, groups · size, k]."""
    return x.flatten(2, 3)


def _grouped(x: paddle.Tensor, heads: int, blocks: Blocks) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, groups, size, width]."""
    batch, _, hidden = x.shape
    if blocks.transposed:
        return x.reshape([batch, blocks.size, blocks.groups, heads, hidden // heads]).transpose([0, 3, 2, 1, 4])
    return x.reshape([batch, blocks.groups, blocks.size, heads, hidden // heads]).transpose([0, 3, 1, 2, 4])


def _ungrouped(x: paddle.Tensor, blocks: Blocks) -> paddle.Tensor:
    """The inverse of `_grouped`."""
    batch, heads, groups, size, width = x.shape
    order = [0, 3, 2, 1, 4] if blocks.transposed else [0, 2, 3, 1, 4]
    return x.transpose(order).reshape([batch, groups * size, heads * width])


def _split_heads(x: paddle.Tensor, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, L, width]."""
    batch, length, hidden = x.shape
    return x.reshape([batch, length, heads, hidden // heads]).transpose([0, 2, 1, 3])


def _join_heads(x: paddle.Tensor) -> paddle.Tensor:
    """The inverse of `_split_heads`."""
    return x.transpose([0, 2, 1, 3]).flatten(2)


def _neighbours(x: paddle.Tensor, blocks: Blocks) -> paddle.Tensor:
    """[B, heads, groups, size, width] -> [B, heads, groups, (above + 1 + below) · size, width]; zeros beyond the edges."""
    reach = blocks.above + blocks.below
    if not reach:
        return x
    padded = paddle.concat([*_edge(x, blocks.above), x, *_edge(x, blocks.below)], axis=2)
    return paddle.concat([padded[:, :, i : i + blocks.groups] for i in range(reach + 1)], axis=3)


def _neighbours_backward(gradient: paddle.Tensor, blocks: Blocks) -> paddle.Tensor:
    """The gradient of `_neighbours`' input from that of its output: each group's, added up over the groups that read it."""
    if not blocks.above + blocks.below:
        return gradient
    total = None
    for i in range(blocks.above + 1 + blocks.below):
        part = gradient[:, :, :, i * blocks.size : (i + 1) * blocks.size]
        shift = i - blocks.above  # group g read group g + shift
        if shift < 0:
            part = paddle.concat([part[:, :, -shift:], *_edge(part, -shift)], axis=2)
        elif shift > 0:
            part = paddle.concat([*_edge(part, shift), part[:, :, :-shift]], axis=2)
        total = part if total is None else total + part
    return total


def _edge(x: paddle.Tensor, groups: int) -> list[paddle.Tensor]:
    """That many groups of zeros beside x [B, heads, groups, size, width], if any."""
    batch, heads, _, size, width = x.shape
    return [paddle.zeros([batch, heads, groups, size, width], x.dtype)] if groups else []
