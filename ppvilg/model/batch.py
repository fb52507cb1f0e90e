"""A batch of pairs of text and image, as the model reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import paddle

from ppvilg.model.config import ViLGConfig
from ppvilg.text import pad_batch

Array = np.ndarray | paddle.Tensor


@dataclass(frozen=True)
class Batch:
    """B pairs; numpy arrays as they are loaded, tensors as they are computed with."""

    text: Array
    """Int64 [B, m], begin and end tokens included."""
    text_mask: Array
    """Bool [B, m], False for padding."""
    image: Array
    """Int64 [B, n], in raster order."""
    prompt: Array
    """Int64 [B, m]: the text that the image is generated from; `text`, or the empty one."""
    prompt_mask: Array
    """Bool [B, m]."""
    image_input: Array
    """Int64 [B, n]: the image tokens that the model reads; `image`, or noisy ones."""
    question: Array | None = None
    """Int64 [B, q], begin and end tokens included, for a model with slots for a question; the text is then its answer."""
    question_mask: Array | None = None
    """Bool [B, q]."""
    pixel_values: Array | None = None
    """Float32 [B, 3, H, W] in [-1, 1], for a model with a reconstructor."""

    @classmethod
    def of(cls, texts: list[list[int]], image: np.ndarray, pad: int, config: ViLGConfig, multiple: int = 1) -> "Batch":
        """Texts (token ids) and images int64 [B, n] that are read as they are; `pad` and `multiple` as of `pad_prompts`."""
        prompt, prompt_mask = pad_prompts(texts, pad, config, multiple)
        text, text_mask = pad_batch(texts, pad, prompt.shape[1])
        return cls(text, text_mask, image, prompt, prompt_mask, image)

    @classmethod
    def plain(cls, text: Array, text_mask: Array, image: Array) -> "Batch":
        """Pairs that are read as they are."""
        return cls(text, text_mask, image, text, text_mask, image)

    def to_tensors(self) -> "Batch":
        """The same as tensors."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if array is None else paddle.to_tensor(array) for array in arrays))


def pad_prompts(prompts: list[list[int]], pad: int, config: ViLGConfig, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Texts that images are drawn from, as a model of a config reads them: ids int64 [B, m] and mask bool [B, m].

    Hidden padding: `pad` up to the longest text's length rounded up to `multiple`, False in the mask. Else each text has
    `max_text_length` slots, of which all are seen.
    """
    if config.text_padding == "hidden":
        return pad_batch(prompts, pad, multiple)
    ids, real = pad_batch(prompts, pad, config.max_text_length)
    if config.text_padding == "positional":
        own = config.text_vocab_size - config.max_text_length + np.arange(config.max_text_length)
        ids = np.where(real, ids, own)
    return ids, np.ones_like(real)


def image_prompts(
    images: np.ndarray, questions: Sequence[list[int] | None], slots: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """What `prefill` reads to write texts for images int64 [P, n]: ids int64 [P, q+n] and mask bool [P, q+n], in the first q =
    `slots` slots the tokens of each image's question, None for no question."""
    ids, mask = np.full((len(images), slots), pad), np.zeros((len(images), slots), bool)
    for i, question in enumerate(questions):
        if question is not None:
            ids[i, : len(question)], mask[i, : len(question)] = question, True
    return np.concatenate([ids, images], axis=1), np.concatenate([mask, np.ones(images.shape, bool)], axis=1)
