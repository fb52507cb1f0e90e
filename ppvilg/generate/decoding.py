"""Writing the target part one token at a time, each step reading the cached keys and values of the slots before it."""

from collections.abc import Iterator

import paddle

from ppvilg.generate.sampling import Noise, Sampling, sample
from ppvilg.text import TextTokenizer
from ppvilg.transformer.model import ViLG
from ppvilg.transformer.pattern import Direction


@paddle.no_grad()
def write_images(
    model: ViLG, text: paddle.Tensor, text_valid: paddle.Tensor, seeds: list[int], sampling: Sampling
) -> Iterator[paddle.Tensor]:
    """Image tokens for texts int64 [B, m] (`text_valid` bool [B, m]); yields int64 [B, k] for k = 1 .. n."""
    direction = Direction.TEXT_TO_IMAGE
    batch, m = text.shape
    n = model.rows * model.columns
    bias, caches = model.bias([direction], text_valid), model.caches(batch, m)
    model.hidden_cached(model.embed_text(direction, text), caches, slice(0, m), bias)

    noise = Noise(seeds)
    token = paddle.full([batch, 1], model.begin_image, dtype="int64")
    written = []
    for k in range(n):
        hidden = model.hidden_cached(model.embed_image(direction, token, k), caches, slice(m + k, m + k + 1), bias)
        token = sample(model.image_logits(hidden[:, 0]), sampling, noise).unsqueeze(1)
        written.append(token)
        yield paddle.concat(written, axis=1)


@paddle.no_grad()
def write_texts(
    model: ViLG, image: paddle.Tensor, tokenizer: TextTokenizer, max_length: int, seeds: list[int], sampling: Sampling
) -> list[list[int]]:
    """Captions of pictures int64 [B, n]: for each its token ids, without the begin and end tokens."""
    direction = Direction.IMAGE_TO_TEXT
    batch = image.shape[0]
    text_valid = paddle.ones([batch, max_length], dtype="bool")
    bias, caches = model.bias([direction], text_valid), model.caches(batch, max_length)
    image_slots = slice(max_length, max_length + model.rows * model.columns)
    model.hidden_cached(model.embed_image(direction, image), caches, image_slots, bias)

    noise = Noise(seeds)
    token = paddle.full([batch, 1], tokenizer.begin, dtype="int64")
    texts: list[list[int]] = [[] for _ in range(batch)]
    ended = [False] * batch
    for k in range(max_length - 1):
        hidden = model.hidden_cached(model.embed_text(direction, token, k), caches, slice(k, k + 1), bias)
        # The text table may have more rows than the tokenizer has tokens.
        logits = model.text_logits(hidden[:, 0])[:, : tokenizer.size]
        token = sample(logits, sampling, noise).unsqueeze(1)
        for i, drawn in enumerate(token.flatten().tolist()):
            ended[i] = ended[i] or drawn == tokenizer.end
            if not ended[i]:
                texts[i].append(drawn)
        if all(ended):
            break
    return texts
