"""Multi-head self-attention under a pattern, computed in blocks over a whole sequence or slot by slot with caches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from ppvilg.parallel.topology import ALONE, Axis
from ppvilg.transformer.cache import Cache, Source, Step
from ppvilg.transformer.layers import LayerNorm, Linear, dims, normed_projections
from ppvilg.transformer.pattern import HIDDEN, Blocks, Pattern


@dataclass(frozen=True)
class Part:
    """The source or the target part of the sequence as one layer kind computes it: a pattern's blocks on the device."""

    groups: int
    order: paddle.Tensor | None
    """Int64 [B · L]: the rows of a batch [B · L, hidden], group after group; None where they stand so already."""
    inverse: paddle.Tensor | None
    """Int64 [B · L]: the order back."""
    near: paddle.Tensor | None
    """Int64 [B · heads · groups · keys]: which of the grouped keys [B · heads · L, width] each group reads; None where they are
    its own."""
    bias: paddle.Tensor | None
    """Float [B, heads, groups, size, keys], added to the scores; None where every key is seen. The keys of the target part
    are first all those of the source, then the group's. Laid out in full, since paddle's broadcasting addition is several
    times slower."""


@dataclass(frozen=True)
class View:
    """Both parts of the sequence for one layer kind in one direction."""

    pattern: Pattern
    batch: int
    source: Part
    target: Part


def view(pattern: Pattern, text_valid: paddle.Tensor, heads: int, dtype: paddle.dtype = paddle.float32) -> View:
    """What a layer of a dtype needs to see its pattern's slots and no padding; `text_valid` bool [B, m] is True for real
    tokens."""
    batch, m = text_valid.shape
    text, image = _blocks_of(pattern)
    source = source_part(pattern, text_valid, heads, dtype)
    if pattern.to_image:
        groups, size = image.queries.shape
        source_seen = text_valid.unsqueeze([1, 2]).expand([batch, groups, size, m])
        target = _part(image, batch, heads, _bias([source_seen, _shown(image, batch)], heads, dtype))
        return View(pattern, batch, source, target)
    source_seen = paddle.ones([batch, 1, m, pattern.image_length], dtype="bool")
    text_seen = _text_seen(text, text_valid)
    return View(pattern, batch, source, _part(text, batch, heads, _bias([source_seen, text_seen], heads, dtype)))


def source_part(pattern: Pattern, text_valid: paddle.Tensor, heads: int, dtype: paddle.dtype = paddle.float32) -> Part:
    """The source of `view` alone."""
    text, image = _blocks_of(pattern)
    batch = text_valid.shape[0]
    if pattern.to_image:
        return _part(text, batch, heads, _bias([_text_seen(text, text_valid)], heads, dtype))
    return _part(image, batch, heads, None if image.mask.all() else _bias([_shown(image, batch)], heads, dtype))


def _text_seen(text: Blocks, text_valid: paddle.Tensor) -> paddle.Tensor:
    # A padded slot sees itself, so that its (unused) row has a softmax.
    batch, m = text_valid.shape
    return (_shown(text, batch) & text_valid.unsqueeze([1, 2])) | paddle.to_tensor(np.eye(m, dtype=bool))


@lru_cache(maxsize=64)  # a run has few patterns and needs them at every step
def _blocks_of(pattern: Pattern) -> tuple[Blocks, Blocks]:
    return pattern.text_blocks(), pattern.image_blocks()


def _shown(blocks: Blocks, batch: int) -> paddle.Tensor:
    """Bool [B, groups, size, keys]."""
    return paddle.to_tensor(blocks.mask).unsqueeze(0).expand([batch, -1, -1, -1])


def _bias(seen: list[paddle.Tensor], heads: int, dtype: paddle.dtype) -> paddle.Tensor:
    """Parts bool [B, groups, size, keys] -> float [B, heads, groups, size, all keys]."""
    bias = paddle.where(paddle.concat(seen, axis=-1), paddle.zeros([]), paddle.full([], HIDDEN)).astype(dtype)
    return bias.unsqueeze(1).expand([-1, heads, -1, -1, -1]).contiguous()


def _part(blocks: Blocks, batch: int, heads: int, bias: paddle.Tensor | None) -> Part:
    order = blocks.queries.ravel()
    places = np.argsort(order)  # of each token in the groups

    def repeated(tokens: np.ndarray, times: int) -> paddle.Tensor:
        return paddle.to_tensor((np.arange(times)[:, None] * order.size + tokens.ravel()).ravel())

    standing = (order[:-1] < order[1:]).all()
    return Part(
        len(blocks.queries),
        None if standing else repeated(order, batch),
        None if standing else repeated(places, batch),
        None if np.array_equal(blocks.queries, blocks.keys) else repeated(places[blocks.keys], batch * heads),
        bias,
    )


class SelfAttention(nn.Layer):
    """LayerNorm and multi-head attention of width `hidden`; tensor parallel processes have some of the heads each.

    Keys and values have no bias: one of the keys adds the same to all of a query's scores and drops out of the softmax, one of
    the values adds a constant to the context, which the output's bias already does.
    """

    def __init__(self, hidden: int, heads: int, out_std: float, mp: Axis = ALONE):
        super().__init__()
        self.heads = heads // mp.size
        self.norm = LayerNorm(hidden)
        self.query = Linear(hidden, hidden, columns=mp)
        self.key = Linear(hidden, hidden, bias=False, columns=mp)
        self.value = Linear(hidden, hidden, bias=False, columns=mp)
        self.out = Linear(hidden, hidden, std=out_std, rows=mp)

    def forward(self, x: paddle.Tensor, views: list[View]) -> paddle.Tensor:
        """Rows [V·B·m + V·B·n, hidden], the texts of V views and then their images, -> the same shape."""
        return self.out(BlockAttention.apply(*self._projected(x), views, self.heads))

    def source(self, x: paddle.Tensor, part: Part, prompts: int) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """The source part alone, rows [P·s, hidden] of P prompts -> the same shape, and its keys and values
        [P, heads, s, width], in the order of the pattern's groups."""
        own = _grouped(part, self.heads, *(t.reshape([prompts, -1, t.shape[1]]) for t in self._projected(x)))
        context, _ = _attend(part, own)
        return self.out(context), own.keys.flatten(2, 3), own.values.flatten(2, 3)

    def lay_out_heads(self) -> None:
        """Have the matrices of keys and values ready as a `LatentCache` reads them: `key_by_head` [heads, width, hidden] and
        `value_by_head` [heads, hidden, width], which are no part of the state_dict."""
        hidden = self.key.weight.shape[0]
        by_head = [hidden, self.heads, -1]
        key = self.key.weight.detach().reshape(by_head).transpose([1, 2, 0])
        value = self.value.weight.detach().reshape(by_head).transpose([1, 0, 2])
        self.register_buffer("key_by_head", key, persistable=False)
        self.register_buffer("value_by_head", value, persistable=False)

    def step(self, x: paddle.Tensor, source: Source, cache: Cache, step: Step) -> paddle.Tensor:
        """The next target slot of each sequence: [B, hidden] -> [B, hidden]; with a `LatentCache` after `lay_out_heads`."""
        x = self.norm(x)
        queries = self.query(x)
        queries = queries.reshape([-1, self.heads, queries.shape[1] // self.heads])
        queries = queries * queries.shape[-1] ** -0.5
        near = cache.write(self, x, step)
        near_scores = cache.scores(self, queries, near)
        count = near_scores.shape[-1]
        weights = F.softmax(paddle.concat([source.scores(queries), near_scores], axis=-1) + step.bias)
        context = source.context(weights[:, :, :-count]) + cache.context(self, weights[:, :, -count:], near)
        return self.out(context.flatten(1))

    def _projected(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        return normed_projections(x, self.norm, self.query, self.key, self.value)


class BlockAttention(PyLayer):
    """softmax(q kᵀ / sqrt(width)) v of every query over the keys that its pattern shows.

    The backward is written out: it keeps what went into the products and the softmax, nothing else of what lies between, and
    spares adding up the zero-padded gradients that slices would leave behind.
    """

    @staticmethod
    def forward(
        ctx, queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, views: list[View], heads: int
    ) -> paddle.Tensor:
        """Rows [V·B·m + V·B·n, hidden] each, the texts of V views and then their images, -> the same shape."""
        texts, images, kept = [], [], []
        for view, parts in zip(views, _parts(views, queries, keys, values), strict=True):
            source, target = _grouped(view.source, heads, *parts[0]), _grouped(view.target, heads, *parts[1])
            from_source, source_weights = _attend(view.source, source)
            from_target, target_weights = _attend(view.target, target, source)
            _collect(view, from_source, from_target, texts, images)
            kept += [*source, source_weights, *target, target_weights]
        ctx.views = views
        ctx.save_for_backward(*kept)
        return paddle.concat(texts + images)

    @staticmethod
    def backward(ctx, gradient: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Gradients of queries, keys and values."""
        kept = iter(ctx.saved_tensor())
        texts, images = [[], [], []], [[], [], []]
        for view, ((of_source,), (of_target,)) in zip(ctx.views, _parts(ctx.views, gradient), strict=True):
            source, source_weights, target, target_weights = _take(kept), next(kept), _take(kept), next(kept)
            source_gradients, _, _ = _attend_backward(view.source, source, None, source_weights, of_source)
            target_gradients, of_far_keys, of_far_values = _attend_backward(
                view.target, target, source, target_weights, of_target
            )
            source_gradients.keys.add_(of_far_keys.reshape(source.keys.shape))
            source_gradients.values.add_(of_far_values.reshape(source.values.shape))
            for *both, text, image in zip(source_gradients, target_gradients, texts, images, strict=True):
                _collect(view, _rows(view.source, both[0]), _rows(view.target, both[1]), text, image)
        return tuple(paddle.concat(texts.pop(0) + images.pop(0)) for _ in range(3))  # parts are free once joined


def _parts(views: list[View], *rows: paddle.Tensor) -> list[tuple[list[paddle.Tensor], list[paddle.Tensor]]]:
    """For each view the source [B, s, hidden] and the target [B, t, hidden] of each of the rows [V·B·m + V·B·n, hidden]."""
    batch, m, n = views[0].batch, views[0].pattern.text_length, views[0].pattern.image_length
    images = len(views) * batch * m  # the first image's row

    def parts(first: int, length: int) -> list[paddle.Tensor]:
        # Without `_slice`, which shares memory, each part would be a copy.
        return [x._slice(first, first + batch * length).reshape([batch, length, x.shape[1]]) for x in rows]

    found = []
    for i, view in enumerate(views):
        text, image = parts(i * batch * m, m), parts(images + i * batch * n, n)
        found.append((text, image) if view.pattern.to_image else (image, text))
    return found


def _collect(view: View, source: paddle.Tensor, target: paddle.Tensor, texts: list, images: list) -> None:
    text, image = (source, target) if view.pattern.to_image else (target, source)
    texts.append(text)
    images.append(image)


class _Grouped(NamedTuple):
    """What attends, of one part, or its gradients; each [B, heads, groups, size, width]."""

    queries: paddle.Tensor
    """Scaled."""
    keys: paddle.Tensor
    values: paddle.Tensor


def _take(tensors: Iterator[paddle.Tensor]) -> _Grouped:
    return _Grouped(next(tensors), next(tensors), next(tensors))


def _grouped(part: Part, heads: int, queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor) -> _Grouped:
    """From queries, keys and values [B, L, hidden] of a part."""
    queries, keys, values = (_groups(part, heads, x) for x in (queries, keys, values))
    return _Grouped(queries.scale_(queries.shape[-1] ** -0.5), keys, values)


def _attend(part: Part, own: _Grouped, source: _Grouped | None = None) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The context of a part, rows [B · L, hidden], and its weights [B, heads, groups, size, s + keys]; a target part also reads
    its source."""
    scores = _products(own.queries, source and source.keys, _near(part, own.keys))
    weights = F.softmax_(scores if part.bias is None else scores.add_(part.bias))
    return _rows(part, _mixed(weights, source and source.values, _near(part, own.values))), weights


def _attend_backward(
    part: Part, own: _Grouped, source: _Grouped | None, weights: paddle.Tensor, gradient: paddle.Tensor
) -> tuple[_Grouped, paddle.Tensor | None, paddle.Tensor | None]:
    """From the gradient [B, L, hidden] of `_attend`'s context those of what attends and, for a target, those of its source's
    keys and values, [B, heads, s, width]."""
    far_keys, far_values = (source.keys, source.values) if source else (None, None)
    gradient = _groups(part, weights.shape[1], gradient)
    of_far_values, of_values = _gathered(part, weights, gradient, far_values)
    # What autograd itself calls for the gradient of a softmax.
    of_scores = paddle._C_ops.softmax_grad(weights, _products(gradient, far_values, _near(part, own.values)), -1)
    of_far_keys, of_keys = _gathered(part, of_scores, own.queries, far_keys)
    of_queries = _mixed(of_scores, far_keys, _near(part, own.keys)).scale_(own.queries.shape[-1] ** -0.5)
    return _Grouped(of_queries, of_keys, of_values), of_far_keys, of_far_values


def _products(x: paddle.Tensor, far: paddle.Tensor | None, near: paddle.Tensor) -> paddle.Tensor:
    """Inner products of x [B, heads, groups, size, width] with all of `far`, grouped, and then with its group of `near`
    [B, heads, groups, keys, width]."""
    products = paddle.matmul(x, near, transpose_y=True)
    if far is None:
        return products
    others = paddle.matmul(x.flatten(2, 3), far.flatten(2, 3), transpose_y=True)
    return paddle.concat([others.reshape([*x.shape[:4], -1]), products], axis=-1)


def _mixed(weights: paddle.Tensor, far: paddle.Tensor | None, near: paddle.Tensor) -> paddle.Tensor:
    """Sums [B, heads, groups, size, width] of all of `far`, grouped, and of each group's `near`, with weights
    [B, heads, groups, size, s + keys]."""
    if far is None:
        return paddle.matmul(weights, near)
    far = far.flatten(2, 3)
    sums = paddle.matmul(weights[..., far.shape[2] :], near)
    return sums.add_(paddle.matmul(weights[..., : far.shape[2]].flatten(2, 3), far).reshape(sums.shape))


def _gathered(
    part: Part, weights: paddle.Tensor, x: paddle.Tensor, far: paddle.Tensor | None
) -> tuple[paddle.Tensor | None, paddle.Tensor]:
    """What x [B, heads, groups, size, width] adds to each key with weights [B, heads, groups, size, s + keys], which is the
    gradient of `_mixed`'s, or of `_products`', keys: to the far ones [B, heads, s, width] and to the part's own, grouped."""
    if far is None:
        return None, _near_backward(part, paddle.matmul(weights, x, transpose_x=True), x.shape)
    count = far.shape[2] * far.shape[3]
    of_far = paddle.matmul(weights[..., :count].flatten(2, 3), x.flatten(2, 3), transpose_x=True)
    return of_far, _near_backward(part, paddle.matmul(weights[..., count:], x, transpose_x=True), x.shape)


def _groups(part: Part, heads: int, x: paddle.Tensor) -> paddle.Tensor:
    """[B, L, hidden] -> [B, heads, groups, size, width]."""
    batch, length, hidden = dims(x)
    if part.order is not None:
        x = paddle.gather(x.flatten(0, 1), part.order)
    shape = [batch, part.groups, length // part.groups, heads, hidden // heads]
    return x.reshape(shape).transpose([0, 3, 1, 2, 4])


def _rows(part: Part, x: paddle.Tensor) -> paddle.Tensor:
    """[B, heads, groups, size, width] -> rows [B · L, hidden]: the inverse of `_groups` and, since that only moves, its
    gradient."""
    heads, width = x.shape[1], x.shape[4]
    rows = x.transpose([0, 2, 3, 1, 4]).reshape([-1, heads * width])
    return rows if part.inverse is None else paddle.gather(rows, part.inverse)


def _near(part: Part, x: paddle.Tensor) -> paddle.Tensor:
    """Grouped keys or values -> those that each group reads, [B, heads, groups, keys, width]."""
    if part.near is None:
        return x
    batch, heads, groups, _, width = dims(x)
    return paddle.gather(x.reshape([-1, width]), part.near).reshape([batch, heads, groups, -1, width])


def _near_backward(part: Part, gradient: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
    """The gradient of `_near`'s input, of a given shape, from that of its output: each key's, added up over the groups that
    read it."""
    if part.near is None:
        return gradient
    total = paddle.zeros([math.prod(shape[:4]), shape[4]], gradient.dtype)
    return paddle.index_add_(total, part.near, 0, gradient.reshape([-1, shape[4]])).reshape(shape)
