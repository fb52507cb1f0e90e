"""From written image tokens to pictures, by either decoder."""

from typing import Literal

import numpy as np
import paddle

from ppvilg.generate.decoding import Written
from ppvilg.pictures import from_model
from ppvilg.transformer.model import ViLG
from ppvilg.vqgan.model import VQGAN

PictureDecoder = Literal["codebook", "hidden"]


@paddle.no_grad()
def paint(model: ViLG, vqgan: VQGAN, written: Written, decoder: PictureDecoder = "codebook") -> list[np.ndarray]:
    """Pictures uint8 [H, W, 3] of the tokens written so far; what is missing stands as code 0, or as a hidden state of zeros.

    `codebook` looks the tokens up and decodes them with the image tokenizer; `hidden` gives the hidden states that have read
    them to the model's reconstructor (paper 3.1.3).
    """
    count, n = len(written.tokens), model.rows * model.columns
    if decoder == "hidden":
        states = paddle.stack(written.states, axis=1)
        blank = paddle.zeros([count, n - states.shape[1], states.shape[2]])
        return list(from_model(model.reconstructor(paddle.concat([states, blank], axis=1)).numpy()))
    tokens = np.pad(written.tokens, ((0, 0), (0, n - written.tokens.shape[1])))
    return list(from_model(vqgan.decode(paddle.to_tensor(tokens.reshape([count, model.rows, model.columns]))).numpy()))
