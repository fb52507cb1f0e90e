"""Multi-head self-attention under a pattern, computed in blocks over a whole sequence or slot by slot with caches."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from ppvilg.transformer.cache import KeyValueCache, LatentCache, Source, Step
from ppvilg.transformer.layers import LayerNorm, Linear, NormedProjections
from ppvilg.transformer.pattern import HIDDEN, Blocks, Pattern


@dataclass(frozen=True)
class Part:
    """The source or the target part of the sequence as one layer kind computes it: a pattern's blocks on the device."""

    groups: int
    rows: int
    """B · L."""
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
    batch: int
    source: Part
    target: Part


def view(pattern: Pattern, text_valid: paddle.Tensor, heads: int) -> View:
    """What a layer needs to see its pattern's slots and no padding; `text_valid` bool [B, m] is True for real tokens."""
    batch, m = text_valid.shape
    text, image = _blocks_of(pattern)
    # A padded slot sees itself, so that its (unused) row has a softmax.
    text_seen = (_shown(text, batch) & text_valid.unsqueeze([1, 2])) | paddle.to_tensor(np.eye(m, dtype=bool))
    if pattern.to_image:
        groups, size = image.queries.shape
        source_seen = text_valid.unsqueeze([1, 2]).expand([batch, groups, size, m])
        target = _part(image, batch, _bias([source_seen, _shown(image, batch)], heads))
        return View(pattern, batch, _part(text, batch, _bias([text_seen], heads)), target)
    source_seen = paddle.ones([batch, 1, m, pattern.image_length], dtype="bool")
    source = _part(image, batch, None if image.mask.all() else _bias([_shown(image, batch)], heads))
    return View(pattern, batch, source, _part(text, batch, _bias([source_seen, text_seen], heads)))


@lru_cache(maxsize=64)  # a run has few patterns and needs them at every step
def _blocks_of(pattern: Pattern) -> tuple[Blocks, Blocks]:
    return pattern.text_blocks(), pattern.image_blocks()


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
        batch * order.size,
        None if standing else rows(order),
        None if standing else rows(np.argsort(order)),
        None if np.array_equal(blocks.queries, blocks.keys) else rows(blocks.keys.ravel()),
        bias,
    )


class SelfAttention(nn.Layer):
    """LayerNorm and multi-head attention of width `hidden`.

    Keys and values have no bias: one of the keys adds the same to all of a query's scores and drops out of the softmax, one of
    the values adds a constant to the context, which the output's bias already does.
    """

    def __init__(self, hidden: int, heads: int, out_std: float):
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(hidden)
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden, bias=False)
        self.value = Linear(hidden, hidden, bias=False)
        self.out = Linear(hidden, hidden, std=out_std)

    def forward(self, x: paddle.Tensor, views: list[View]) -> paddle.Tensor:
        """Rows [V·B·m + V·B·n, hidden], the texts of V views and then their images, -> the same shape."""
        return self.out(BlockAttention.apply(*self._projected(x), views, self.heads))

    def source(self, x: paddle.Tensor, view: View) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """The source part alone, rows [P·s, hidden] -> the same shape, and its keys and values [P, heads, s, width]."""
        own = [t.reshape([view.batch, -1, t.shape[1]]) for t in self._projected(x)]
        context, _ = _attend(view.source, _operands(view.source, self.heads, *own))
        return self.out(context), *(_split_heads(t, self.heads) for t in own[1:])

    def step(self, x: paddle.Tensor, source: Source, cache: KeyValueCache | LatentCache, step: Step) -> paddle.Tensor:
        """The next target slot of each sequence: [B, hidden] -> [B, hidden]."""
        x = self.norm(x)
        queries = self.query(x).reshape([x.shape[0], self.heads, -1])
        queries = queries * queries.shape[-1] ** -0.5
        cache.write(x, step)
        near = cache.read(step)
        weights = F.softmax(paddle.concat([source.scores(queries), cache.scores(queries, near)], axis=-1) + step.bias)
        context = source.context(weights[:, :, : source.length]) + cache.context(weights[:, :, source.length :], near)
        return self.out(context.flatten(1))

    def _projected(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        norm, query = self.norm, self.query
        weights = query.weight, query.bias, self.key.weight, self.value.weight
        return NormedProjections.apply(x, norm.weight, norm.bias, norm.epsilon, *weights)


class BlockAttention(PyLayer):
    """softmax(q kᵀ / sqrt(width)) v of every query over the keys that its pattern shows.

    The backward is written out: it keeps the softmax and nothing else of what lies between, and spares adding up the
    zero-padded gradients that slices would leave behind.
    """

    @staticmethod
    def forward(
        ctx, queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, views: list[View], heads: int
    ) -> paddle.Tensor:
        """Rows [V·B·m + V·B·n, hidden] each, the texts of V views and then their images, -> the same shape."""
        texts, images, kept = [], [], []
        for view, ((sq, tq), (sk, tk), (sv, tv)) in zip(views, _parts(views, queries, keys, values), strict=True):
            source, source_weights = _attend(view.source, _operands(view.source, heads, sq, sk, sv))
            target, target_weights = _attend(view.target, _operands(view.target, heads, tq, tk, tv, sk, sv))
            _collect(view, source, target, texts, images)
            kept += [source_weights, target_weights]
        ctx.views, ctx.heads = views, heads
        ctx.save_for_backward(queries, keys, values, *kept)
        return paddle.concat(texts + images)

    @staticmethod
    def backward(ctx, gradient: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Gradients of queries, keys and values."""
        queries, keys, values, *kept = ctx.saved_tensor()
        views, heads = ctx.views, ctx.heads
        texts, images = ([], [], []), ([], [], [])
        for i, parts in enumerate(_parts(views, queries, keys, values, gradient)):
            view, ((sq, tq), (sk, tk), (sv, tv), (sg, tg)) = views[i], parts
            source, _ = _attend_backward(view.source, _operands(view.source, heads, sq, sk, sv), kept[2 * i], sg)
            operands = _operands(view.target, heads, tq, tk, tv, sk, sv)
            target, (far_keys, far_values) = _attend_backward(view.target, operands, kept[2 * i + 1], tg)
            source[1].add_(far_keys)
            source[2].add_(far_values)
            for part in zip(source, target, texts, images, strict=True):
                _collect(view, *part)
        return tuple(paddle.concat(text + image) for text, image in zip(texts, images, strict=True))


def _parts(views: list[View], *rows: paddle.Tensor) -> list[list[tuple[paddle.Tensor, paddle.Tensor]]]:
    """For each view and each of the rows [V·B·m + V·B·n, hidden] the source [B, s, hidden] and the target [B, t, hidden]."""
    batch, m, n = views[0].batch, views[0].pattern.text_length, views[0].pattern.image_length
    images = len(views) * batch * m  # the first image's row

    def part(x: paddle.Tensor, first: int, length: int) -> paddle.Tensor:
        # Without `_slice`, which shares memory, each part would be a copy.
        return x._slice(first, first + batch * length).reshape([batch, length, x.shape[1]])

    found = []
    for i, view in enumerate(views):
        pairs = [(part(x, i * batch * m, m), part(x, images + i * batch * n, n)) for x in rows]
        found.append(pairs if view.pattern.to_image else [(image, text) for text, image in pairs])
    return found


def _collect(view: View, source: paddle.Tensor, target: paddle.Tensor, texts: list, images: list) -> None:
    text, image = (source, target) if view.pattern.to_image else (target, source)
    texts.append(text)
    images.append(image)


class _Operands(NamedTuple):
    queries: paddle.Tensor
    """[B, heads, groups, size, width], scaled."""
    keys: paddle.Tensor
    values: paddle.Tensor
    """[B, heads, groups, keys of a group, width]."""
    far_keys: paddle.Tensor | None
    far_values: paddle.Tensor | None
    """[B, heads, s, width], of the source, which all groups share. A single group has these among its own keys, first."""


def _operands(part: Part, heads: int, queries, keys, values, far_keys=None, far_values=None) -> _Operands:
    """From queries, keys, values [B, L, hidden] of a part and, for a target, keys and values [B, s, hidden] of its source."""
    queries = _queries(queries, part, heads) * (queries.shape[-1] // heads) ** -0.5
    if far_keys is None:
        return _Operands(queries, _near(keys, part, heads), _near(values, part, heads), None, None)
    if part.groups == 1:
        pairs = ((far_keys, keys), (far_values, values))
        return _Operands(queries, *(_split_groups(paddle.concat(pair, axis=1), 1, heads) for pair in pairs), None, None)
    far = (_split_heads(t, heads) for t in (far_keys, far_values))
    return _Operands(queries, _near(keys, part, heads), _near(values, part, heads), *far)


def _attend(part: Part, operands: _Operands) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The context of a part, rows [B · L, hidden], and its weights [B, heads, groups, size, s + keys]."""
    queries, keys, values, far_keys, far_values = operands
    scores = _products(queries, far_keys, keys)
    weights = F.softmax_(scores if part.bias is None else scores.add_(part.bias))
    return _queries_backward(_mixed(weights, far_values, values), part), weights


def _attend_backward(
    part: Part, operands: _Operands, weights: paddle.Tensor, gradient: paddle.Tensor
) -> tuple[list[paddle.Tensor], list[paddle.Tensor]]:
    """From the gradient [B, L, hidden] of `_attend`'s context those of queries, keys and values, rows [B · L, hidden], and, for
    a target, of its source's keys and values, rows [B · s, hidden]."""
    queries, keys, values, far_keys, far_values = operands
    gradient = _queries(gradient, part, queries.shape[1])
    of_values, of_far_values = _gathered(part, weights, gradient, far_values)
    # What autograd itself calls for the gradient of a softmax.
    of_scores = paddle._C_ops.softmax_grad(weights, _products(gradient, far_values, values), -1)
    of_keys, of_far_keys = _gathered(part, of_scores, queries, far_keys)
    of_queries = _mixed(of_scores, far_keys, keys).scale_(queries.shape[-1] ** -0.5)
    return [_queries_backward(of_queries, part), of_keys, of_values], [of_far_keys, of_far_values]


def _products(x: paddle.Tensor, far: paddle.Tensor | None, near: paddle.Tensor) -> paddle.Tensor:
    """Inner products of x [B, heads, groups, size, width] with `far` [B, heads, s, width], then with its group of `near`."""
    products = paddle.matmul(x, near, transpose_y=True)
    if far is None:
        return products
    others = paddle.matmul(x.flatten(2, 3), far, transpose_y=True)
    return paddle.concat([others.reshape([*x.shape[:4], far.shape[2]]), products], axis=-1)


def _mixed(weights: paddle.Tensor, far: paddle.Tensor | None, near: paddle.Tensor) -> paddle.Tensor:
    """Sums [B, heads, groups, size, width] of `far` [B, heads, s, width] and each group's `near`, with weights
    [B, heads, groups, size, s + keys]."""
    if far is None:
        return paddle.matmul(weights, near)
    sums = paddle.matmul(weights[..., far.shape[2] :], near)
    return sums.add_(paddle.matmul(weights[..., : far.shape[2]].flatten(2, 3), far).reshape(sums.shape))


def _gathered(
    part: Part, weights: paddle.Tensor, x: paddle.Tensor, far: paddle.Tensor | None
) -> tuple[paddle.Tensor, paddle.Tensor | None]:
    """What x [B, heads, groups, size, width] adds to each key with weights [B, heads, groups, size, s + keys]: the gradient of
    `_mixed`'s, or of `_products`', near and far keys, rows [B · L, hidden] and, for a target, rows [B · s, hidden]."""
    if far is not None:
        count = far.shape[2]
        of_far = paddle.matmul(weights[..., :count].flatten(2, 3), x.flatten(2, 3), transpose_x=True)
        of_near = paddle.matmul(weights[..., count:], x, transpose_x=True)
        return _near_backward(of_near, part), _join_groups(of_far.unsqueeze(2))
    of_near = paddle.matmul(weights, x, transpose_x=True)
    shared = of_near.shape[3] - x.shape[3]  # the source's, where a single group has them among its own
    if part.groups == 1 and shared:
        return _near_backward(of_near[:, :, :, shared:], part), _join_groups(of_near[:, :, :, :shared])
    return _near_backward(of_near, part), None


def _queries(x: paddle.Tensor, part: Part, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, groups, size, width]."""
    batch, length, hidden = x.shape
    if part.order is not None:
        x = paddle.gather(x.reshape([batch * length, hidden]), part.order)
    return _split_groups(x.reshape([batch, length, hidden]), part.groups, heads)


def _queries_backward(x: paddle.Tensor, part: Part) -> paddle.Tensor:
    """[B, heads, groups, size, width] -> rows [B · L, hidden]: the inverse of `_queries` and, since that only moves, its
    gradient."""
    rows = _join_groups(x)
    return rows if part.inverse is None else paddle.gather(rows, part.inverse)


def _near(x: paddle.Tensor, part: Part, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> what each group reads, [B, heads, groups, keys, width]."""
    if part.keys is None:
        return _queries(x, part, heads)
    batch, length, hidden = x.shape
    rows = paddle.gather(x.reshape([batch * length, hidden]), part.keys)
    return _split_groups(rows.reshape([batch, -1, hidden]), part.groups, heads)


def _near_backward(gradient: paddle.Tensor, part: Part) -> paddle.Tensor:
    """The gradient of `_near`'s input, rows [B · L, hidden], from that of its output: each key's, added up over the groups that
    read it."""
    if part.keys is None:
        return _queries_backward(gradient, part)
    rows = _join_groups(gradient)
    total = paddle.zeros([part.rows, rows.shape[1]], gradient.dtype)
    return paddle.index_add_(total, part.keys, 0, rows)


def _split_groups(x: paddle.Tensor, groups: int, heads: int) -> paddle.Tensor:
    """[B, groups · k, hidden] -> [B, heads, groups, k, width]."""
    batch, length, hidden = x.shape
    return x.reshape([batch, groups, length // groups, heads, hidden // heads]).transpose([0, 3, 1, 2, 4])


def _join_groups(x: paddle.Tensor) -> paddle.Tensor:
    """[B, heads, groups, k, width] -> rows [B · groups · k, hidden]."""
    batch, heads, groups, size, width = x.shape
    return x.transpose([0, 2, 3, 1, 4]).reshape([batch * groups * size, heads * width])


def _split_heads(x: paddle.Tensor, heads: int) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, L, width]."""
    batch, length, hidden = x.shape
    return x.reshape([batch, length, heads, hidden // heads]).transpose([0, 2, 1, 3])
