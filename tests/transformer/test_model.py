"""The transformer against numpy, against itself with other padding, and its cached decode against the full forward."""

from dataclasses import replace

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg.config import CodebookConfig, Config, DataConfig, TextConfig, TransformerConfig, VQGANConfig
from ppvilg.transformer.layers import Linear
from ppvilg.transformer.model import ViLG
from ppvilg.transformer.pattern import Direction, Pattern

M = 7
CONFIG = Config(
    task="vilg",
    data=DataConfig(image_size=12),
    vqgan=VQGANConfig(channel_multipliers=[1, 1, 1], attention_resolutions=[], codebook=CodebookConfig(size=11, dim=4)),
    text=TextConfig(vocabulary_size=23, max_length=9),
    transformer=TransformerConfig(layers=2, hidden=16, heads=2),
)


def build(config: Config = CONFIG) -> ViLG:
    model = ViLG(config)
    for parameter in model.parameters():  # biases and norms too, so that a forgotten one shows
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    model.eval()
    return model


def pairs(batch: int = 3, m: int = M):
    text = paddle.randint(1, 23, [batch, m])
    lengths = paddle.to_tensor([m, m - 2, 3][:batch])
    valid = paddle.arange(m).unsqueeze(0) < lengths.unsqueeze(1)
    return text, valid, paddle.randint(0, 11, [batch, 9])


def numpy_forward(model: ViLG, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Last hidden states of one sequence [m+n, hidden], written out plainly; mask bool [m+n, m+n]."""
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    for i in range(len(model.blocks)):
        queries, keys, values = np.split(linear(norm(x, f"blocks.{i}.attention_norm"), f"blocks.{i}.attention.qkv"), 3, -1)
        heads = []
        for part in np.split(np.arange(16), 2):
            scores = np.where(mask, queries[:, part] @ keys[:, part].T / np.sqrt(8), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ values[:, part])
        x = x + linear(np.concatenate(heads, -1), f"blocks.{i}.attention.out")
        hidden = gelu(linear(norm(x, f"blocks.{i}.ffn_norm"), f"blocks.{i}.ffn.up"))
        x = x + linear(hidden, f"blocks.{i}.ffn.down")
    return norm(x, "norm")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_loss_against_numpy():
    """Each sequence by itself, without its padding, through a model written in numpy."""
    model = build()
    text, valid, image = pairs()
    measured = model.loss(text, valid, image)
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    slots = np.arange(9)
    position = w["row_position.weight"][slots // 3] + w["column_position.weight"][slots % 3]
    image_losses, text_losses = [], []
    for ids, length, codes in zip(text.numpy(), valid.numpy().sum(1), image.numpy(), strict=True):
        ids = ids[:length]
        words = w["text_embedding.weight"][ids] + w["text_position.weight"][:length]
        for direction in Direction:
            to_image = direction is Direction.TEXT_TO_IMAGE
            inputs = np.concatenate([[11], codes[:-1]]) if to_image else codes
            segments = (0, 3) if to_image else (1, 2)
            picture = w["image_embedding.weight"][inputs] + position + w["segment.weight"][segments[1]]
            x = np.concatenate([words + w["segment.weight"][segments[0]], picture])
            hidden = numpy_forward(model, x, Pattern(length, 3, 3, direction).mask())
            if to_image:
                log_p = log_softmax(hidden[length:] @ w["image_head"])
                image_losses.append(-log_p[np.arange(9), codes])
            else:
                log_p = log_softmax(hidden[: length - 1] @ w["text_head"])
                text_losses.append(-log_p[np.arange(length - 1), ids[1:]])
    image_losses, text_losses = np.concatenate(image_losses), np.concatenate(text_losses)
    np.testing.assert_allclose(measured["txt2img"].item(), image_losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["img2txt"].item(), text_losses.mean(), rtol=1e-5)
    expected = (image_losses.sum() + text_losses.sum()) / (3 * 9)
    np.testing.assert_allclose(measured["loss"].item(), expected, rtol=1e-5)


def test_accuracies_count_likeliest_targets():
    model = build()
    text, valid, image = pairs()
    bias = model.bias([Direction.TEXT_TO_IMAGE], valid)
    hidden = model.hidden(model.embed(Direction.TEXT_TO_IMAGE, text, image), bias)
    likeliest = model.image_logits(hidden[:, M:]).argmax(-1)
    expected = (likeliest == image).astype("float32").mean().item()
    assert model.loss(text, valid, image)["txt2img_accuracy"].item() == pytest.approx(expected)


@pytest.mark.parametrize("extra", [1, 2])
def test_padding_changes_nothing(extra):
    """Neither how much padding there is nor what stands in it changes losses or gradients."""
    model = build()
    text, valid, image = pairs()
    more_text = paddle.concat([paddle.where(valid, text, paddle.full_like(text, 5)), paddle.full([3, extra], 9, "int64")], 1)
    more_valid = paddle.concat([valid, paddle.zeros([3, extra], "bool")], 1)
    results = []
    for batch in ((text, valid, image), (more_text, more_valid, image)):
        losses = model.loss(*batch)
        losses["loss"].backward()
        results.append(([v.item() for v in losses.values()], model.blocks[0].attention.qkv.weight.grad.numpy()))
        model.clear_gradients()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.parametrize("direction", Direction)
def test_cached_slots_equal_the_full_forward(direction):
    model = build()
    text, valid, image = pairs()
    bias = model.bias([direction], valid)
    full = model.hidden(model.embed(direction, text, image), bias)
    pattern = Pattern(M, 3, 3, direction)
    inputs = model.embed(direction, text, image)
    caches = model.caches(3, M)
    model.hidden_cached(inputs[:, pattern.source], caches, pattern.source, bias)
    for slot in range(pattern.target.start, pattern.target.stop):
        now = slice(slot, slot + 1)
        step = model.hidden_cached(inputs[:, now], caches, now, bias)
        reached = valid.numpy()[:, slot] if slot < M else slice(None)  # padded text slots are never decoded
        np.testing.assert_allclose(step[:, 0].numpy()[reached], full[:, slot].numpy()[reached], atol=1e-5)


def test_tied_embeddings_are_the_head():
    model = build(replace(CONFIG, transformer=replace(CONFIG.transformer, tie_embeddings=True)))
    hidden = paddle.randn([2, 16])
    np.testing.assert_allclose(
        model.image_logits(hidden).numpy(), hidden.numpy() @ model.image_embedding.weight.numpy()[:11].T, rtol=1e-5
    )
    np.testing.assert_allclose(
        model.text_logits(hidden).numpy(), hidden.numpy() @ model.text_embedding.weight.numpy().T, rtol=1e-5
    )
    model.loss(*pairs())["loss"].backward()
    assert model.image_embedding.weight.grad is not None


def test_text_table_of_another_width_is_projected():
    model = build(replace(CONFIG, text=replace(CONFIG.text, embedding_width=6)))
    assert model.text_embedding.weight.shape == [23, 6]
    assert np.isfinite(model.loss(*pairs())["loss"].item())


def test_linear_equals_paddles_with_gradients():
    ours, x = Linear(5, 4), paddle.randn([2, 3, 5])
    ours.bias.set_value(paddle.randn([4]))
    results = []
    for layer in (ours, lambda x: F.linear(x, ours.weight, ours.bias)):
        x.stop_gradient = False
        (layer(x) ** 2).sum().backward()
        results.append([layer(x).numpy(), x.grad.numpy(), ours.weight.grad.numpy(), ours.bias.grad.numpy()])
        ours.clear_gradients()
        x.clear_gradient()
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
