"""What the transformer is trained on: noise, cached tokens, validation measures."""

import numpy as np
import paddle
import pytest

from ppvilg.config import load_config
from ppvilg.errors import UserError
from ppvilg.training import build_task
from ppvilg.training.tokens import picture_tokens
from ppvilg.training.vilg import pairs_loss, with_noise, without_some_texts
from ppvilg.transformer.model import Pairs
from ppvilg.transformer.pattern import Direction


def test_noise_replaces_a_share_of_each_row():
    tokens = np.full((2000, 50), 7)
    noisy = with_noise(tokens, 0.5, 1000, [np.random.default_rng(i) for i in range(2000)])
    shares = (noisy != 7).mean(1)
    assert shares.max() < 0.75
    assert shares.mean() == pytest.approx(0.25, abs=0.01)
    assert np.histogram(shares, 5, (0, 0.5))[0].min() > 250, "the shares spread evenly"
    assert noisy.min() >= 0
    assert noisy.max() < 1000


def test_targets_stay_clean_and_noise_repeats(tiny_configs, tiny_runs):
    task = build_task(load_config(tiny_configs / "vilg.yml", ["train.token_noise=0.9"]))
    batch, again = task.batch(3, 1), task.batch(3, 1)
    np.testing.assert_array_equal(batch.image_read, again.image_read)
    assert (batch.image != batch.image_read).any()
    clean = build_task(load_config(tiny_configs / "vilg.yml")).batch(3, 1)
    np.testing.assert_array_equal(batch.image, clean.image)
    np.testing.assert_array_equal(clean.image, clean.image_read)


def test_dropped_texts_are_empty_and_only_prompts():
    text = np.tile([2, 7, 8, 9, 3], (4000, 1))
    pairs = Pairs.plain(text, np.ones(text.shape, bool), np.zeros((4000, 4), int))
    prompt, valid = without_some_texts(pairs, 0.2, [2, 3], [np.random.default_rng(i) for i in range(4000)])
    dropped = valid.sum(1) == 2
    assert dropped.mean() == pytest.approx(0.2, abs=0.03)
    assert (prompt[dropped][:, :2] == [2, 3]).all()
    np.testing.assert_array_equal(prompt[~dropped], text[~dropped])
    assert valid[~dropped].all()
    assert (pairs.prompt == text).all(), "the texts themselves stay"


def test_texts_stay_targets_where_prompts_are_dropped(tiny_configs, tiny_runs):
    batch = build_task(load_config(tiny_configs / "vilg.yml", ["train.text_drop=1.0"])).batch(0, 0)
    assert (batch.prompt_valid.sum(1) == 2).all()
    assert (batch.valid.sum(1) > 2).all()


def test_pictures_loss_reaches_the_transformer_and_starts_from_the_tokenizer(tiny_configs, tiny_runs):
    task = build_task(load_config(tiny_configs / "vilg_e2e.yml"))
    reconstructor = task.model.reconstructor
    for ours, theirs in (
        (reconstructor.decoder, task.vqgan.decoder),
        (reconstructor.post_quant_conv, task.vqgan.post_quant_conv),
    ):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            np.testing.assert_array_equal(mine.numpy(), other.numpy())
    batch = task.batch(0, 0)
    measures = task.model.loss(batch.tensors())
    (measures["l1"] + measures["l2"]).backward()
    for parameter in (
        task.model.blocks[0].attention.query.weight,
        task.model.image_embedding.weight,
        reconstructor.map_in.bias,
    ):
        assert np.abs(parameter.grad.numpy()).max() > 0
    assert task.model.image_head.grad is None, "the picture is not drawn from ids"
    weights = task.config.vqgan.loss
    expected = measures["loss"] + weights.l1 * measures["l1"] + weights.l2 * measures["l2"]
    assert pairs_loss(measures, task.config).item() == pytest.approx(expected.item())


def test_a_state_stands_for_the_token_that_it_has_read(tiny_configs, tiny_runs):
    """The last token of the picture changes what is drawn at its place, though no slot predicts from it."""
    task = build_task(load_config(tiny_configs / "vilg_e2e.yml"))
    task.model.eval()
    pairs = task.batch(0, 0).tensors()
    changed = pairs.image.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 16
    prompt = {Direction.TEXT_TO_IMAGE: (pairs.prompt, pairs.prompt_valid)}
    states, other = (task.model.hidden(prompt, image)[1] for image in (pairs.image, changed))
    difference = (states - other).abs().max(-1).numpy()
    assert (difference[:, -1] > 1e-4).all()
    assert difference[:, :-1].max() < 1e-6


def test_tokens_are_cached_by_tokenizer_and_data(tiny_configs, tiny_runs, tmp_path):
    task = build_task(load_config(tiny_configs / "vilg.yml"))
    source, size = task.validation, task.config.data.image_size
    first = picture_tokens(source, task.vqgan, "one", size, tmp_path)
    assert first.shape == (len(source), task.config.image_tokens)
    with paddle.no_grad():
        for parameter in task.vqgan.parameters():
            parameter.set_value(paddle.zeros(parameter.shape))
    np.testing.assert_array_equal(picture_tokens(source, task.vqgan, "one", size, tmp_path), first)
    changed = picture_tokens(source, task.vqgan, "two", size, tmp_path)
    assert (changed != first).any(), "another tokenizer's checksum means other tokens"
    assert len(list(tmp_path.iterdir())) == 2


def test_unigram_baseline_against_counting(tiny_configs, tiny_runs):
    task = build_task(load_config(tiny_configs / "vilg.yml"))
    measures = task.validate(0)
    seen = np.bincount(task.tokens.ravel(), minlength=16) + 1.0
    targets = task.validation_tokens.ravel()
    assert measures["txt2img_unigram"] == pytest.approx(-np.log(seen / seen.sum())[targets].mean())
    assert measures["txt2img_unigram_accuracy"] == pytest.approx((targets == seen.argmax()).mean())


def test_validation_does_not_depend_on_the_batch_size(tiny_configs, tiny_runs):
    results = []
    for size in (2, 3):
        task = build_task(
            load_config(tiny_configs / "vilg.yml", [f"train.batch_size={size}", "train.gradient_accumulation_steps=1"])
        )
        task.model.eval()
        measures = task.validate(0)
        results.append([measures[name] for name in ("txt2img", "img2txt", "txt2img_accuracy", "img2txt_accuracy")])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny_configs, tiny_runs):
    with pytest.raises(UserError, match=r"16 codes on a grid of 4x4.*32 on 4x4"):
        build_task(load_config(tiny_configs / "vilg.yml", ["vqgan.codebook.size=32"]))
    with pytest.raises(UserError, match="not set"):
        build_task(load_config(tiny_configs / "vilg.yml", ["train.tokenizer=null"]))
    with pytest.raises(UserError, match="there is no missing/run"):
        build_task(load_config(tiny_configs / "vilg.yml", ["train.tokenizer=missing/run"]))
