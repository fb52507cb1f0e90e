"""Attention of every query over the keys that a mask shows, computed in the mask's blocks.

On a CPU it is one C++ kernel (cpu/attention.h). Elsewhere it is paddle's functions: one product for the scores with the prefix,
one for those with the blocks' own keys, and a softmax over both. On a GPU, layers of the dense kind are
`F.scaled_dot_product_attention`, for which paddle chooses a fused kernel. (Tested on a CPU only.)
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg.model.mask import AttentionMask, Blocks, PromptMask
from ppvilg.ops.extension import has_kernels, run

_HIDDEN = -1e4  # added to the scores of hidden keys; within float16's range
_TILE = 64  # most queries that the C++ kernel takes at once


def sparse_attention(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: paddle.Tensor,
    masks: Sequence[AttentionMask] | None,
    key_mask: paddle.Tensor,
    causal: bool = False,
) -> paddle.Tensor:
    """softmax(q kᵀ / sqrt(width)) v -> [B, L, heads, width].

    q, k, v float [B, L, heads, width], key_mask bool [B, L]. The batch is divided evenly among the masks, in their order.
    Query i of sequence b sees key j where both its mask and key_mask[b, j] are true, without masks where key_mask[b, j] is and,
    if `causal`, j <= i; a query that sees no key gets zeros. Without masks a program that is being traced may leave L open.
    Raises `ValueError` where the masks do not fit the tensors.
    """
    if masks is None:
        if has_kernels(q, k, v):
            return run("attention", q, k, v, key_mask, *_table((PromptMask(q.shape[1], causal),)))
        return _attend_part(q, k, v, key_mask, None, causal=causal)
    masks = tuple(masks)
    if q.shape[0] % len(masks):
        raise ValueError(f"{q.shape[0]} sequences cannot be divided evenly among {len(masks)} attention masks")
    if any(mask.length != q.shape[1] for mask in masks):
        raise ValueError(f"the sequences have {q.shape[1]} slots, the attention masks {[mask.length for mask in masks]}")
    if has_kernels(q, k, v):
        return run("attention", q, k, v, key_mask, *_table(masks))
    dense = paddle.in_dynamic_mode() and q.place.is_gpu_place() and all(mask.kind == "dense" for mask in masks)
    attend = dense_attention if dense else block_attention
    parts = zip(*(x.chunk(len(masks)) for x in (q, k, v, key_mask)), strict=True)
    return paddle.concat([attend(*part, mask) for part, mask in zip(parts, masks, strict=True)])


def dense_attention(
    q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, key_mask: paddle.Tensor, mask: AttentionMask
) -> paddle.Tensor:
    """`sparse_attention` under one mask, with all pairs of slots."""
    visible = paddle.to_tensor(mask.mask()) & key_mask.unsqueeze([1, 2])  # [B, 1, L, L]
    bias = ((~visible).astype(q.dtype) * _HIDDEN).expand([-1, q.shape[2], -1, -1])
    some = visible.any(axis=-1).transpose([0, 2, 1]).unsqueeze(-1)  # [B, L, 1, 1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias) * some.astype(q.dtype)


def block_attention(
    q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, key_mask: paddle.Tensor, mask: AttentionMask
) -> paddle.Tensor:
    """`sparse_attention` under one mask, block by block."""
    parts, contexts = [blocks for blocks in mask.blocks() if blocks.queries.size], []  # an image alone has no text
    for blocks in sorted(parts, key=lambda blocks: blocks.queries.min()):
        own, seen = (slice(slots.min(), slots.max() + 1) for slots in (blocks.queries, blocks.keys))
        prefix = blocks.prefix if blocks.prefix is not None and blocks.prefix.start < blocks.prefix.stop else None
        given = [] if prefix is None else [x[:, prefix] for x in (k, v, key_mask)]
        contexts.append(_attend_part(q[:, own], *(x[:, seen] for x in (k, v, key_mask)), blocks, *given))
    return contexts[0] if len(contexts) == 1 else paddle.concat(contexts, axis=1)


def _attend_part(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: paddle.Tensor,
    key_mask: paddle.Tensor,
    blocks: Blocks | None,
    prefix_k: paddle.Tensor | None = None,
    prefix_v: paddle.Tensor | None = None,
    prefix_key_mask: paddle.Tensor | None = None,
    causal: bool = False,
) -> paddle.Tensor:
    """One part of the sequence: queries [B, s, heads, width] -> the same shape, over its groups' keys [B, t, heads, width] and
    those of the prefix that all of its queries see. Without blocks every query sees every key, or if `causal` those up to
    itself."""
    groups, size = (1, -1) if blocks is None else blocks.queries.shape

    def grouped(x: paddle.Tensor, slots: np.ndarray) -> paddle.Tensor:
        """[B, s, ...], the slots from the first of `slots` on -> [B, groups, slots of a group, ...]."""
        if groups == 1:  # all slots as they stand
            return x.unsqueeze(1)
        x = paddle.gather(x, paddle.to_tensor(slots.ravel() - slots.min()), axis=1)
        return x.reshape([-1, *slots.shape, *x.shape[2:]])

    queries, keys = (None, None) if blocks is None else (blocks.queries, blocks.keys)
    q = grouped(q * q.shape[-1] ** -0.5, queries).transpose([0, 3, 1, 2, 4])  # [B, heads, groups, size, width]
    k, v = (grouped(x, keys).transpose([0, 3, 1, 2, 4]) for x in (k, v))
    scores = paddle.matmul(q, k, transpose_y=True)
    visible = grouped(key_mask, keys).unsqueeze(2)  # [B, groups, size or 1, keys]
    if causal:
        slots = paddle.arange(paddle.shape(key_mask)[1])
        visible = visible & (slots <= slots.unsqueeze(1))
    if blocks is not None and not blocks.mask.all():
        visible = visible & paddle.to_tensor(blocks.mask).unsqueeze(0)
    if prefix_k is not None:
        prefix_k, prefix_v = (x.transpose([0, 2, 1, 3]) for x in (prefix_k, prefix_v))
        prefix_scores = paddle.matmul(q.flatten(2, 3), prefix_k, transpose_y=True)
        prefix_scores = prefix_scores.reshape([-1, *q.shape[1:4], prefix_k.shape[2]])
        scores = paddle.concat([prefix_scores, scores], axis=-1)
        real = prefix_key_mask.unsqueeze([1, 2])
        visible = paddle.concat([x.expand([-1, groups, size, -1]) for x in (real, visible)], axis=-1)
    weights = F.softmax(scores + ((~visible).astype(scores.dtype) * _HIDDEN).unsqueeze(1))
    if prefix_k is None:
        context = paddle.matmul(weights, v)
    else:
        count = prefix_k.shape[2]
        context = paddle.matmul(weights[..., count:], v)
        context = context + paddle.matmul(weights[..., :count].flatten(2, 3), prefix_v).reshape(context.shape)
    context = context * visible.any(axis=-1, keepdim=True).unsqueeze(1).astype(context.dtype)
    context = context.transpose([0, 2, 3, 1, 4])
    if groups == 1:
        return context.squeeze(1)
    return paddle.gather(context.flatten(1, 2), paddle.to_tensor(np.argsort(blocks.queries.ravel())), axis=1)


@lru_cache(maxsize=64)  # a model has few kinds of layers and needs them at every step
def _table(masks: tuple[AttentionMask | PromptMask, ...]) -> tuple[paddle.Tensor, ...]:
    """What the C++ kernel reads of the masks: tiles int64 [tiles, 5] (`struct Tile`), ranges int64 [masks + 1] (the tiles of
    each mask), slots int64 (of the tiles' queries and keys), mask uint8 (which query of a tile sees which of its keys)."""
    tiles, ranges, slots, visible = [], [0], [], [np.zeros(0, bool)]
    slot_count = visible_count = 0
    for mask in masks:
        for queries, keys, seen in _tiles(mask):
            hides = not seen.all()
            first_key = slot_count + len(queries)
            tiles.append([slot_count, len(queries), first_key, len(keys), visible_count if hides else -1])
            slots += [queries, keys]
            slot_count = first_key + len(keys)
            if hides:
                visible.append(seen.ravel())
                visible_count += seen.size
        ranges.append(len(tiles))
    arrays = np.array(tiles), np.array(ranges), np.concatenate(slots), np.concatenate(visible).astype(np.uint8)
    return tuple(paddle.to_tensor(array, place=paddle.CPUPlace()) for array in arrays)


def _tiles(mask: AttentionMask | PromptMask) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The mask as tiles: the slots of some queries int [size], those that any of them sees int [keys], in rising order, and
    which sees which, bool [size, keys]."""
    tiles = []
    for blocks in mask.blocks():
        prefix = np.arange(mask.length)[blocks.prefix] if blocks.prefix else np.zeros(0, int)
        for queries, keys, local in zip(blocks.queries, blocks.keys, blocks.mask, strict=True):
            slots = np.concatenate([prefix, keys])
            visible = np.concatenate([np.ones((len(queries), len(prefix)), bool), local], axis=1)
            order = np.argsort(slots, kind="stable")
            for start in range(0, len(queries), _TILE):
                some = slice(start, start + _TILE)
                seen = order[visible[some][:, order].any(axis=0)]
                tiles.append((queries[some], slots[seen], visible[some][:, seen]))
    return tiles
