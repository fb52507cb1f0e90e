"""A batch of pairs of text and image, as the model reads it."""

from dataclasses import dataclass, fields

import numpy as np
import paddle

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
    def plain(cls, text: Array, text_mask: Array, image: Array) -> "Batch":
        """Pairs that are read as they are."""
        return cls(text, text_mask, image, text, text_mask, image)

    def to_tensors(self) -> "Batch":
        """The same as tensors."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if array is None else paddle.to_tensor(array) for array in arrays))
