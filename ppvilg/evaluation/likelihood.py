"""How well a transformer predicts images from texts and texts from images: bits per image token and per character."""

import math
from collections.abc import Sequence

import paddle

from ppvilg.model.batch import Batch
from ppvilg.model.loss import vilg_loss
from ppvilg.pipeline import ImageInput, ViLGPipeline


@paddle.no_grad()
def likelihood(
    pipe: ViLGPipeline, images: Sequence[ImageInput], captions: Sequence[str], batch_size: int = 32
) -> dict[str, float]:
    """Means over N pairs: `bits_per_image_token`, -log2 p of an image's tokens given its caption divided by their number, and
    `bits_per_character`, -log2 p of all captions' tokens, the end token included, given their images, divided by the number
    of characters of the captions (so that models with different vocabularies can be compared).

    Raises `ValueError` for no pairs, lists of different lengths, empty and overlong captions, and what is no image.
    """
    if not len(images) or len(images) != len(captions):
        raise ValueError(f"got {len(images)} images and {len(captions)} captions: give each image its caption")
    texts, tokens = pipe.encode_prompts(captions), pipe.encode_images(images)
    image_nats = text_nats = 0.0
    for first in range(0, len(texts), batch_size):
        chosen = slice(first, first + batch_size)
        batch = Batch.of(texts[chosen], tokens[chosen], pipe.text_tokenizer.pad, pipe.config.transformer)
        tensors = batch.to_tensors()
        losses = vilg_loss(pipe.model(tensors), tensors)
        image_nats += losses["txt2img"].item() * batch.image.size
        text_nats += losses["img2txt"].item() * int(batch.text_mask[:, 1:].sum())
    return {
        "bits_per_image_token": image_nats / math.log(2) / tokens.size,
        "bits_per_character": text_nats / math.log(2) / sum(map(len, captions)),
    }
