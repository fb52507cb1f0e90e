"""From generated tokens to images, with either decoder."""

from typing import Literal, Protocol

import numpy as np
import paddle

from ppvilg.generate.engine import GenerativeModel, ImageTokens
from ppvilg.ops import from_numpy
from ppvilg.pictures import from_model

ImageDecoder = Literal["codebook", "hidden"]


class ImageTokenizer(Protocol):
    """What decoding needs of a `VQGAN`, or of an exported one."""

    def decode(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Int64 [B, rows, columns] -> pixels float32 [B, 3, H, W], about [-1, 1] but not clipped."""


@paddle.no_grad()
def decode_images(
    model: GenerativeModel, vqgan: ImageTokenizer, output: ImageTokens, decoder: ImageDecoder = "codebook"
) -> list[np.ndarray]:
    """Images uint8 [H, W, 3] of the tokens generated so far; missing ones are code 0, or a hidden state of zeros.

    `codebook` gives the tokens to the image tokenizer's decoder; `hidden` gives the hidden states that have read them to the
    model's reconstructor (paper 3.1.3).
    """
    config = model.config
    batch, length = output.tokens.shape
    missing = config.image_length - length
    if decoder == "hidden":
        states = paddle.stack(output.states, axis=1)
        states = paddle.concat([states, paddle.zeros([batch, missing, config.hidden], states.dtype)], axis=1)
        return list(from_model(model.reconstructor(states).astype("float32").numpy()))
    tokens = np.pad(output.tokens, ((0, 0), (0, missing))).reshape(batch, config.rows, config.columns)
    return list(from_model(vqgan.decode(from_numpy(tokens)).numpy()))
