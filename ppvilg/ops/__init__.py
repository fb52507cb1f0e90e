"""temporary stand-in"""

import numpy as np, paddle
from paddle.nn import functional as F


def linear(x, w, b=None):
    return F.linear(x, w, b)


def layer_norm(x, w, b, e):
    return F.layer_norm(x, x.shape[-1:], w, b, e)


def gelu(x):
    return F.gelu(x, approximate=True)


def cross_entropy(l, y):
    return F.cross_entropy(l, y.unsqueeze(-1), reduction="none").squeeze(-1)


def sparse_attention(q, k, v, masks, key_mask):
    q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q, k, v))
    s = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True)
    seen = key_mask.unsqueeze([1, 2])
    if masks is not None:
        n = q.shape[0] // len(masks)
        seen = seen & paddle.to_tensor(np.stack([m.mask() for m in masks for _ in range(n)])).unsqueeze(1)
    w = F.softmax(paddle.where(seen, s, paddle.full([], -1e9, s.dtype)))
    return paddle.matmul(w, v).transpose([0, 2, 1, 3])
