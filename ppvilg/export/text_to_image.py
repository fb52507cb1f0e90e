"""All of text to image as one function: reading the text, the loop over the image's tokens, sampling, and the image's decoder.

It computes what `generate_images` and `decode_images` do, for sequences that begin and end together, and can be exported as one
program.
"""

import numpy as np
import paddle

from ppvilg.generate.sampling import guided, likelier
from ppvilg.model.kv_cache import DecodeInputs, SlotTables, empty_cache
from ppvilg.model.layers import sizes
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG, last_real_token
from ppvilg.ops import at_least_float32
from ppvilg.vqgan.model import VQGAN

_DIRECTION = Direction.TEXT_TO_IMAGE


def text_to_image(
    model: ViLG,
    vqgan: VQGAN,
    tables: dict[str, SlotTables],
    ids: paddle.Tensor,
    mask: paddle.Tensor,
    noise: paddle.Tensor,
    temperature: paddle.Tensor,
    top_k: paddle.Tensor,
    top_p: paddle.Tensor,
    guidance: paddle.Tensor,
) -> dict[str, paddle.Tensor]:
    """Draw B images of texts int64 [B, m], mask bool [B, m] True for real tokens; for guidance [2B, m], B empty texts after
    them.

    `noise` float32 [n, B, V] is Gumbel noise for each token; the options, each [1], are those of `Sampling`: float32, `top_k`
    int64. Returns `tokens` int64 [B, n] and `images` uint8 [B, H, W, 3].
    """
    config = model.config
    sequences, images = sizes(ids)[0], sizes(noise)[1]
    states, prefixes = model.prefill(_DIRECTION, ids, mask)
    heads, width, dtype = model.blocks[0].attention.heads, model.blocks[0].attention.width, states.dtype
    masks = {kind: config.mask(kind, _DIRECTION, 1) for kind in config.kinds}  # the target's part is the same for any text
    caches = [empty_cache(masks[kind], sequences, heads, width, config.hidden, dtype) for kind in config.kinds]

    def choose(token: paddle.Tensor, last: paddle.Tensor, tokens: paddle.Tensor) -> paddle.Tensor:
        """The tokens int64 [n, B] with one more, number `token` int64 [1], after last states [S, hidden]."""
        logits = at_least_float32(model.image_logits(last)).reshape([-1, images, config.image_vocab_size])
        kept = _filtered(guided(logits[0], logits[-1], guidance.astype(logits.dtype)), temperature, top_k, top_p)
        drawn = paddle.gather(noise, token).squeeze(0) * (temperature > 0).astype(noise.dtype)
        return paddle.scatter(tokens, token, (kept + drawn.astype(kept.dtype)).argmax(-1).unsqueeze(0))

    def more(token: paddle.Tensor, last: paddle.Tensor, tokens: paddle.Tensor) -> paddle.Tensor:
        return (token < config.image_length - 1).squeeze(0)

    def step(token: paddle.Tensor, last: paddle.Tensor, tokens: paddle.Tensor) -> list[paddle.Tensor]:
        tokens = choose(token, last, tokens)
        newest = paddle.gather(tokens, token).expand([sequences // images, images]).flatten()
        inputs = DecodeInputs(newest, token.expand([sequences]), mask, tables, prefixes, caches)
        return [token + 1, model.decode_step(_DIRECTION, inputs), tokens]

    start = [paddle.zeros([1], "int64"), last_real_token(states, mask), paddle.zeros([config.image_length, images], "int64")]
    tokens = choose(*paddle.static.nn.while_loop(more, step, start)).transpose([1, 0])
    pixels = vqgan.decode(tokens.reshape([images, config.rows, config.columns]))
    scaled = ((pixels + 1) * 127.5).clip(0, 255).round().astype("uint8")
    return {"tokens": tokens, "images": scaled.transpose([0, 2, 3, 1])}


def _filtered(logits: paddle.Tensor, temperature: paddle.Tensor, top_k: paddle.Tensor, top_p: paddle.Tensor) -> paddle.Tensor:
    """[B, V], divided by the temperature, -inf where `keep_top_k` and `keep_top_p` put it, whose limits are no tensors."""
    dtype, count = logits.dtype, logits.shape[-1]
    infinity = paddle.full([], np.inf, dtype)
    logits = logits / paddle.where(temperature > 0, temperature, paddle.ones_like(temperature)).astype(dtype)
    ordered = paddle.sort(logits, axis=-1, descending=True)
    limit = paddle.where(top_k > 0, top_k.clip(max=count), paddle.full_like(top_k, count)) - 1
    smallest = paddle.gather(ordered, limit, axis=1)
    ordered = paddle.where(ordered < smallest, -infinity, ordered)
    kept = paddle.logical_or(likelier(ordered) < top_p.astype(dtype), top_p >= 1)
    smallest = paddle.maximum(smallest, paddle.where(kept, ordered, infinity).min(-1, keepdim=True))
    return paddle.where(logits < smallest, -infinity, logits)
