"""Bits against probabilities that are added up slot by slot."""

import math

import cv2
import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg.errors import UserError
from ppvilg.evaluation.likelihood import likelihood
from ppvilg.pipeline import Pipeline
from ppvilg.transformer.model import last_real
from ppvilg.transformer.pattern import Direction

CAPTIONS = ["红色方块一", "蓝色方块", "绿色方块三"]


@pytest.fixture(scope="module")
def pipeline(tiny_runs):
    return Pipeline.load(tiny_runs / "vilg")


@pytest.fixture(scope="module")
def images(tiny_data):
    return [cv2.imread(str(path))[..., ::-1].copy() for path in sorted(tiny_data.glob("*.png"))[:3]]


def bits(logits: np.ndarray, targets: list[int]) -> float:
    probabilities = F.softmax(paddle.to_tensor(logits)).numpy()
    return -sum(math.log2(row[target]) for row, target in zip(probabilities, targets, strict=True))


def test_bits_of_each_pair_alone_add_up(pipeline, images):
    """Each pair by itself, unpadded, its probabilities read off slot by slot."""
    model, image_bits, text_bits = pipeline.model, 0.0, 0.0
    with paddle.no_grad():
        for image, caption in zip(images, CAPTIONS, strict=True):
            ids, tokens = pipeline.text.encode(caption), pipeline.tokens([image])
            text, valid = paddle.to_tensor([ids]), paddle.ones([1, len(ids)], "bool")
            prompt, image = model.hidden({Direction.TEXT_TO_IMAGE: (text, valid)}, paddle.to_tensor(tokens))
            deciding = paddle.concat([last_real(prompt, valid).unsqueeze(1), image[:, :-1]], 1)
            image_bits += bits(model.image_logits(deciding)[0].numpy(), tokens[0].tolist())
            states, _ = model.hidden({Direction.IMAGE_TO_TEXT: (text, valid)}, paddle.to_tensor(tokens))
            text_bits += bits(model.text_logits(states[0, :-1]).numpy(), ids[1:])
    measured = likelihood(pipeline, images, CAPTIONS, batch=2)
    assert measured["bits_per_image_token"] == pytest.approx(image_bits / (3 * 16), rel=1e-4)
    assert measured["bits_per_character"] == pytest.approx(text_bits / 14, rel=1e-4)


def test_bad_input(pipeline, images):
    with pytest.raises(UserError, match="3 images and 2 captions"):
        likelihood(pipeline, images, CAPTIONS[:2])
    with pytest.raises(UserError, match="0 images"):
        likelihood(pipeline, [], [])
    with pytest.raises(UserError, match="empty"):
        likelihood(pipeline, images, ["红", " ", "绿"])
