"""What the transformer is trained on: noise, cached tokens, validation measures."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppvilg.config import load_config
from ppvilg.data.prepared import TokenTable
from ppvilg.data.splits import load_images
from ppvilg.model.batch import Batch
from ppvilg.model.mask import Direction
from ppvilg.pictures import to_model
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from ppvilg.train.fleet import distribute
from ppvilg.train.image_tokens import image_tokens
from ppvilg.train.optimizer import build_optimizer, build_schedule
from ppvilg.train.vilg import ViLGTask, drop_prompts, with_noise
from ppvilg.vqgan.model import VQGAN


def build(path: Path, *overrides: str) -> ViLGTask:
    task = build_task(load_config(path, list(overrides)), ParallelContext())
    task.prepare()
    return task


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
    task = build(tiny_configs / "vilg.yml", "train.token_noise=0.9")
    batch, again = task.batch(range(5, 7)), task.batch(range(5, 7))
    np.testing.assert_array_equal(batch.image_input, again.image_input)
    assert (batch.image != batch.image_input).any()
    clean = build(tiny_configs / "vilg.yml").batch(range(5, 7))
    np.testing.assert_array_equal(batch.image, clean.image)
    np.testing.assert_array_equal(clean.image, clean.image_input)


def test_dropped_texts_are_empty_and_only_prompts():
    text = np.tile([2, 7, 8, 9, 3], (4000, 1))
    batch = Batch.plain(text, np.ones(text.shape, bool), np.zeros((4000, 4), int))
    empty = np.array([[2, 3, 0, 0, 0]]), np.array([[True, True, False, False, False]])
    made = drop_prompts(batch, 0.2, empty, [np.random.default_rng(i) for i in range(4000)])
    dropped = made.prompt_mask.sum(1) == 2
    assert dropped.mean() == pytest.approx(0.2, abs=0.03)
    assert (made.prompt[dropped][:, :2] == [2, 3]).all()
    np.testing.assert_array_equal(made.prompt[~dropped], text[~dropped])
    assert made.prompt_mask[~dropped].all()
    assert (made.text == text).all(), "the texts themselves stay"
    assert (batch.prompt == text).all()


def test_texts_stay_targets_where_prompts_are_dropped(tiny_configs, tiny_runs):
    batch = build(tiny_configs / "vilg.yml", "train.text_drop=1.0").batch(range(2))
    assert (batch.prompt_mask.sum(1) == 2).all()
    assert (batch.text_mask.sum(1) > 2).all()


def test_pixel_loss_reaches_the_transformer_and_starts_from_the_tokenizer(tiny_configs, tiny_runs):
    task = build(tiny_configs / "vilg_e2e.yml", "train.reconstruction_weight=2.0")
    model, reconstructor = task.model, task.model.reconstructor
    for ours, theirs in (
        (reconstructor.decoder, task.vqgan.decoder),
        (reconstructor.post_quant_conv, task.vqgan.post_quant_conv),
    ):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            np.testing.assert_array_equal(mine.numpy(), other.numpy())
    losses = task.loss(model, task.batch(range(2)), 0)
    (losses["l1"] + losses["l2"]).backward(retain_graph=True)
    for parameter in (
        model.blocks[0].attention.query.weight,
        model.embedding.image.weight,
        reconstructor.map_in.bias,
    ):
        assert np.abs(parameter.grad.numpy()).max() > 0
    assert model.head.image.weight.grad is None, "the image is not drawn from ids"
    # What is logged as the loss is what is minimised: both directions per image token, and the weighted pixel losses.
    batch, weights = task.batch(range(2)), task.config.vqgan.loss
    text = losses["img2txt"] * batch.text_mask[:, 1:].sum() / batch.image.size
    pixels = 2 * (weights.l1 * losses["l1"] + weights.l2 * losses["l2"])
    assert losses["loss"].item() == pytest.approx((losses["txt2img"] + text + pixels).item(), rel=1e-5)


def test_a_state_stands_for_the_token_that_it_has_read(tiny_configs, tiny_runs):
    """The last token of the image changes what is drawn at its place, though no slot predicts from it."""
    task = build(tiny_configs / "vilg_e2e.yml")
    task.model.eval()
    batch = task.batch(range(2)).to_tensors()
    changed = batch.image.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 16
    states, other = (
        task.model.hidden_states(batch.prompt, batch.prompt_mask, image, Direction.TEXT_TO_IMAGE)[1]
        for image in (batch.image, changed)
    )
    difference = (states - other).abs().max(-1).numpy()
    assert (difference[:, -1] > 1e-4).all()
    assert difference[:, :-1].max() < 1e-6


@dataclass(frozen=True)
class Group:
    """Of two processes."""

    rank: int
    nranks: int = 2


def everything(table: TokenTable) -> np.ndarray:
    return table[range(len(table))]


def test_tokens_are_kept_by_tokenizer_and_data(tiny_configs, tiny_runs, tmp_path):
    task = build(tiny_configs / "vilg.yml")
    source, size = task.validation, task.config.data.image_size
    first = everything(image_tokens(source, task.vqgan, "one", size, tmp_path, ParallelContext()))
    images = to_model(load_images(source, list(range(len(source))), size))
    np.testing.assert_array_equal(first, task.vqgan.encode(paddle.to_tensor(images)).flatten(1).numpy())
    with paddle.no_grad():
        for parameter in task.vqgan.parameters():
            parameter.set_value(paddle.zeros(parameter.shape))
    np.testing.assert_array_equal(everything(image_tokens(source, task.vqgan, "one", size, tmp_path, ParallelContext())), first)
    changed = everything(image_tokens(source, task.vqgan, "two", size, tmp_path, ParallelContext()))
    assert (changed != first).any(), "another tokenizer's checksum means other tokens"
    assert len(list(tmp_path.iterdir())) == 2


def test_making_tokens_goes_on_where_it_was(tiny_configs, tiny_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("ppvilg.train.image_tokens._ROWS", 5)
    task = build(tiny_configs / "vilg.yml")
    size, encode, calls = task.config.data.image_size, VQGAN.encode, []

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(VQGAN, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image_tokens(task.training, task.vqgan, "one", size, tmp_path, ParallelContext())
    made = image_tokens(task.training, task.vqgan, "one", size, tmp_path, ParallelContext())
    assert sum(calls) == len(task.training) + calls[2], "no image twice but those of the file that was begun"
    np.testing.assert_array_equal(everything(made), everything(task.tokens))


def test_processes_make_the_tokens_together(tiny_configs, tiny_runs, tmp_path, monkeypatch):
    """Two of them, here threads: each encodes some, and all open the same."""
    monkeypatch.setattr("ppvilg.train.image_tokens._ROWS", 5)
    together = threading.Barrier(2)
    monkeypatch.setattr(ParallelContext, "barrier", lambda self: together.wait(60))
    task = build_task(load_config(tiny_configs / "vilg.yml"), ParallelContext())
    size, encode, encoded = task.config.data.image_size, VQGAN.encode, Counter()

    def counted(self, images):
        encoded[threading.get_ident()] += len(images)
        with paddle.no_grad():
            return encode(self, images)

    monkeypatch.setattr(VQGAN, "encode", counted)
    with ThreadPoolExecutor(2) as threads:
        contexts = [ParallelContext(world_size=2, rank=rank, dp_group=Group(rank)) for rank in range(2)]
        made = list(threads.map(lambda one: image_tokens(task.training, task.vqgan, "one", size, tmp_path, one), contexts))
    assert len(encoded) == 2
    assert sum(encoded.values()) == len(task.training)
    monkeypatch.undo()
    for table in made:
        np.testing.assert_array_equal(everything(table), everything(build(tiny_configs / "vilg.yml").tokens))


def test_tokens_of_a_read_only_tokenizer_are_kept_in_the_run(tiny_configs, tiny_runs, tmp_path, monkeypatch):
    kept = build(tiny_configs / "vilg.yml").tokens
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    task = build(tiny_configs / "vilg.yml", f"train.output={tmp_path}")
    np.testing.assert_array_equal(everything(task.tokens), everything(kept))
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def validate(task: ViLGTask) -> dict[str, float]:
    optimizer = build_optimizer(task.model, task.config.train, build_schedule(task.config.train))
    return task.validate(distribute(task.model, optimizer, task.config.parallel, ParallelContext()), 0)


def test_unigram_baseline_against_counting(tiny_configs, tiny_runs):
    task = build(tiny_configs / "vilg.yml")
    metrics = validate(task)
    seen = np.bincount(everything(task.tokens).ravel(), minlength=16) + 1.0
    targets = everything(task.validation_tokens).ravel()
    assert metrics["txt2img_unigram"] == pytest.approx(-np.log(seen / seen.sum())[targets].mean())
    assert metrics["txt2img_unigram_accuracy"] == pytest.approx((targets == seen.argmax()).mean())


def test_validation_does_not_depend_on_the_batch_size(tiny_configs, tiny_runs):
    results = []
    for size in (2, 3):
        overrides = [f"train.batch_size={size}", "train.gradient_accumulation_steps=1"]
        metrics = validate(build(tiny_configs / "vilg.yml", *overrides))
        results.append([metrics[name] for name in ("txt2img", "img2txt", "txt2img_accuracy", "img2txt_accuracy")])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny_configs, tiny_runs):
    for override, said in (
        ("vqgan.codebook.size=32", r"16 codes on a grid of 4x4.*32 on 4x4"),
        ("train.tokenizer=null", "not set"),
        ("train.tokenizer=missing/run", "there is no folder missing/run"),
    ):
        with pytest.raises(ValueError, match=said):
            build(tiny_configs / "vilg.yml", override)


def test_the_text_table_starts_from_ernie_s_embeddings(tiny_configs, tiny_runs, tiny_data, tmp_path):
    from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ernie = ErnieModel(ErnieConfig(vocab_size=32, **sizes))
    ernie.save_pretrained(str(tmp_path))
    ErnieTokenizer(str(tiny_data / "vocab.txt")).save_pretrained(str(tmp_path))
    task = build(tiny_configs / "vilg.yml", f"text.embeddings={tmp_path}", f"text.vocabulary={tmp_path}")
    ids = paddle.to_tensor([ErnieTokenizer.from_pretrained(str(tmp_path))("红色方块三")["input_ids"]])
    expected = ernie.embeddings.word_embeddings(ids).numpy()
    ours = paddle.to_tensor([task.text_tokenizer.encode("红色方块三")])
    np.testing.assert_array_equal(task.model.embedding.text(ours).numpy(), expected)
    drawn = build(tiny_configs / "vilg.yml").model.embedding.text.weight.numpy()
    np.testing.assert_array_equal(task.model.embedding.text.weight.numpy()[32:], drawn[32:])
