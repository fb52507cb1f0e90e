"""How well a transformer predicts images from texts and texts from images: bits per image token and per character."""

import math

import numpy as np
import paddle

from ppvilg.errors import UserError
from ppvilg.pipeline import Picture, Pipeline
from ppvilg.text import pad_batch
from ppvilg.transformer.model import Pairs


@paddle.no_grad()
def likelihood(pipeline: Pipeline, images: list[Picture], captions: list[str], batch: int = 32) -> dict[str, float]:
    """Means over N pairs: `bits_per_image_token`, -log2 p of an image's tokens given its caption divided by their number, and
    `bits_per_character`, -log2 p of all captions' tokens, the end token included, given their images, divided by the number
    of characters of the captions (so that models with different vocabularies can be compared).

    Raises `UserError` for no pairs, lists of different lengths, empty and overlong captions, and bytes that are no image.
    """
    if not images or len(images) != len(captions):
        raise UserError(f"got {len(images)} images and {len(captions)} captions: give each image its caption")
    texts, tokens = pipeline.encode_prompts(captions), pipeline.tokens(images)
    image_nats = text_nats = 0.0
    for first in range(0, len(texts), batch):
        text, valid = pad_batch(texts[first : first + batch], pipeline.text.pad)
        pairs = Pairs.plain(text, valid, tokens[first : first + batch])
        measures = pipeline.model.loss(pairs.tensors())
        image_nats += measures["txt2img"].item() * pairs.image.size
        text_nats += measures["img2txt"].item() * int(valid[:, 1:].sum())
    return {
        "bits_per_image_token": image_nats / math.log(2) / np.prod(tokens.shape).item(),
        "bits_per_character": text_nats / math.log(2) / sum(map(len, captions)),
    }
