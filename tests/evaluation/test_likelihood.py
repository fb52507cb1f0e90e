"""Bits against probabilities that are added up slot by slot."""

import math

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg import ViLGPipeline
from ppvilg.evaluation.likelihood import likelihood
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import last_real_token

CAPTIONS = ["红色方块一", "蓝色方块", "绿色方块三"]


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return ViLGPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def images(tiny_data):
    return sorted(tiny_data.glob("*.png"))[:3]


def bits(logits: np.ndarray, targets: list[int]) -> float:
    probabilities = F.softmax(paddle.to_tensor(logits)).numpy()
    return -sum(math.log2(row[target]) for row, target in zip(probabilities, targets, strict=True))


def test_bits_of_each_pair_alone_add_up(pipe, images):
    """Each pair by itself, unpadded, its probabilities read off slot by slot."""
    model, image_bits, text_bits = pipe.model, 0.0, 0.0
    with paddle.no_grad():
        for image, caption in zip(images, CAPTIONS, strict=True):
            ids, tokens = pipe.text_tokenizer.encode(caption), pipe.encode_images(image)
            text, mask = paddle.to_tensor([ids]), paddle.ones([1, len(ids)], "bool")
            pair = (text, mask, paddle.to_tensor(tokens))
            prompt, states = model.hidden_states(*pair, Direction.TEXT_TO_IMAGE)
            deciding = paddle.concat([last_real_token(prompt, mask).unsqueeze(1), states[:, :-1]], 1)
            image_bits += bits(model.image_logits(deciding)[0].numpy(), tokens[0].tolist())
            states, _ = model.hidden_states(*pair, Direction.IMAGE_TO_TEXT)
            text_bits += bits(model.text_logits(states[0, :-1]).numpy(), ids[1:])
    measured = likelihood(pipe, images, CAPTIONS, batch_size=2)
    assert measured["bits_per_image_token"] == pytest.approx(image_bits / (3 * 16), rel=1e-4)
    assert measured["bits_per_character"] == pytest.approx(text_bits / 14, rel=1e-4)


def test_bad_input(pipe, images):
    with pytest.raises(ValueError, match="3 images and 2 captions"):
        likelihood(pipe, images, CAPTIONS[:2])
    with pytest.raises(ValueError, match="0 images"):
        likelihood(pipe, [], [])
    with pytest.raises(ValueError, match="empty"):
        likelihood(pipe, images, ["红", " ", "绿"])
