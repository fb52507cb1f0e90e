"""The text encoder: PaddleNLP's ERNIE itself, in the place of the source text's embeddings, and nowhere else."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppvilg.config import ErnieSizes, TextConfig, TextEncoderConfig, ViLGExperiment
from ppvilg.ernie import encoder_weights, ernie_sizes, ernie_weights, with_encoder_sizes
from ppvilg.model.mask import Direction
from ppvilg.model.text_encoder import TextEncoder
from ppvilg.text import ErnieText
from tests.model.test_vilg import CONFIG, N, build, loss, pairs, start, step

SIZES = ErnieSizes(23, 12, 2, 3, 24, max_position_embeddings=16, type_vocab_size=4, use_task_id=True)
ENCODED = replace(CONFIG, text_encoder=TextEncoderConfig(sizes=SIZES))
TRAINED = replace(CONFIG, text_encoder=TextEncoderConfig(sizes=SIZES, train=True, learning_rate_scale=0.25))
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *"一二三四五六七八九十红黄蓝绿白黑大小"]


def ernie_folder(folder: Path, sizes: ErnieSizes = SIZES, vocabulary: list[str] = VOCABULARY):
    """PaddleNLP's model with random weights, saved with its vocabulary."""
    from paddlenlp.transformers import ErnieConfig, ErnieModel

    model = ErnieModel(ErnieConfig(**vars(sizes)))
    for parameter in model.parameters():
        parameter.set_value(parameter + paddle.randn(parameter.shape) * 0.3)
    model.eval()
    model.save_pretrained(str(folder))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return model


@pytest.fixture(scope="module")
def ernie(tmp_path_factory):
    """(folder, PaddleNLP's model)."""
    paddle.seed(0)
    folder = tmp_path_factory.mktemp("ernie")
    return folder, ernie_folder(folder)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_states_are_those_of_paddlenlps_model(ernie, dtype):
    folder, reference = ernie
    encoder = TextEncoder(TextEncoderConfig(str(folder), sizes=ernie_sizes(str(folder))), 16, dropout=0.0)
    for name, array in ernie_weights(str(folder), ErnieText(str(folder))).items():
        encoder.state_dict()[name].set_value(array)
    ids = paddle.randint(1, 23, [3, 9])
    mask = paddle.to_tensor(np.arange(9) < np.array([[9], [5], [2]]))
    encoder.to(dtype=dtype)
    expected = reference(ids, attention_mask=mask.astype("int64"))[0].numpy()
    np.testing.assert_allclose(encoder.states(ids, mask).numpy(), expected, atol=1e-5)
    assert encoder(ids, mask).shape == [3, 9, 16]


@pytest.mark.parametrize("config", [ENCODED, TRAINED], ids=["frozen", "trained"])
def test_padding_changes_nothing(config):
    """Neither how much padding there is nor what stands in it changes losses or gradients."""
    model, batch = build(config), pairs()
    changed = paddle.where(batch.prompt_mask, batch.prompt, paddle.full_like(batch.prompt, 5))
    prompt = paddle.concat([changed, paddle.full([3, 2], 9, "int64")], 1)
    hidden = paddle.zeros([3, 2], "bool")
    text, text_mask = paddle.concat([batch.text, batch.text[:, :2]], 1), paddle.concat([batch.text_mask, hidden], 1)
    longer = replace(batch, text=text, text_mask=text_mask, prompt=prompt)
    longer = replace(longer, prompt_mask=paddle.concat([batch.prompt_mask, hidden], 1))
    results = []
    for read in (batch, longer):
        losses = loss(model, read)
        losses["loss"].backward()
        results.append(([v.item() for v in losses.values()], model.embedding.text_encoder.projection.weight.grad.numpy()))
        model.clear_gradients()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_the_sequence_has_projected_states_positions_and_segment():
    model, batch = build(ENCODED), pairs()
    embedding = model.embedding
    found = embedding.embed_text(batch.prompt, Direction.TEXT_TO_IMAGE, mask=batch.prompt_mask).numpy()
    states = embedding.text_encoder.states(batch.prompt, batch.prompt_mask).numpy()
    expected = states @ embedding.text_encoder.projection.weight.numpy()
    expected = expected + embedding.text_position.weight.numpy()[:7] + embedding.segment.weight.numpy()[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_that_are_written_do_not_use_it():
    model, batch = build(ENCODED), pairs()

    def states(direction):
        return model.hidden_states(batch.text, batch.text_mask, batch.image, direction)[1].numpy()

    before = {direction: states(direction) for direction in Direction}
    for parameter in model.embedding.text_encoder.parameters():
        parameter.set_value(parameter * 1.5)
    assert np.abs(states(Direction.TEXT_TO_IMAGE) - before[Direction.TEXT_TO_IMAGE]).max() > 1e-3
    np.testing.assert_array_equal(states(Direction.IMAGE_TO_TEXT), before[Direction.IMAGE_TO_TEXT])


@pytest.mark.parametrize("direction", Direction)
def test_decoding_equals_the_full_forward_at_every_step(direction):
    model, batch = build(ENCODED), pairs()
    to_image = direction is Direction.TEXT_TO_IMAGE
    source, mask = (batch.prompt, batch.prompt_mask) if to_image else (batch.image, paddle.ones([3, N], "bool"))
    text, text_mask = (batch.prompt, batch.prompt_mask) if to_image else (batch.text, paddle.ones([3, 7], "bool"))
    targets = batch.image if to_image else batch.text
    texts, images = (states.numpy() for states in model.hidden_states(text, text_mask, batch.image, direction))
    read, state = start(model, direction, source, mask, 1)
    real = mask.numpy()
    np.testing.assert_allclose(read.numpy()[real], (texts if to_image else images)[real], atol=1e-5)
    for k in range(targets.shape[1]):
        found = step(model, state, targets[:, k], np.full(3, k))
        np.testing.assert_allclose(found.numpy(), (images if to_image else texts)[:, k], atol=1e-5)


def test_frozen_it_has_no_gradient_and_no_dropout():
    model, batch = build(replace(ENCODED, dropout=0.5)), pairs()
    model.train()
    encoder = model.embedding.text_encoder
    np.testing.assert_array_equal(*(encoder(batch.prompt, batch.prompt_mask).numpy() for _ in range(2)))
    loss(model, batch)["loss"].backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == {"projection.weight"}


def test_trained_it_has_gradients_dropout_and_a_rate_of_its_own():
    model, batch = build(replace(TRAINED, dropout=0.5)), pairs()
    model.train()
    encoder = model.embedding.text_encoder
    assert (encoder(batch.prompt, batch.prompt_mask) != encoder(batch.prompt, batch.prompt_mask)).any()
    loss(model, batch)["loss"].backward()
    assert all(p.grad is not None for p in encoder.parameters())
    rates = {name: p.optimize_attr["learning_rate"] for name, p in encoder.named_parameters()}
    assert rates.pop("projection.weight") == 1.0
    assert set(rates.values()) == {0.25}


def named(folder: Path, **text) -> ViLGExperiment:
    return ViLGExperiment(text=TextConfig(encoder=TextEncoderConfig(str(folder)), **text))


def test_an_experiment_gets_the_sizes_of_the_encoder_that_it_names(ernie):
    config = with_encoder_sizes(named(ernie[0], max_length=16))
    assert config.text.encoder == TextEncoderConfig(str(ernie[0]), sizes=SIZES)
    assert with_encoder_sizes(config) is config
    with pytest.raises(ValueError, match=r"max_position_embeddings: 16 does not fit: expected at least text.max_length = 17"):
        with_encoder_sizes(named(ernie[0], max_length=17))


def test_models_that_are_none(ernie, tmp_path):
    with pytest.raises(ValueError, match=r"text\.encoder\.model: no ERNIE model could be loaded from .*missing"):
        with_encoder_sizes(named(tmp_path / "missing"))
    config = (ernie[0] / "config.json").read_text().replace('"ernie"', '"bert"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"is a model of type 'bert': give an ERNIE model"):
        with_encoder_sizes(named(tmp_path))
    (tmp_path / "config.json").write_text(config.replace('"bert"', '"ernie"').replace('"gelu"', '"swish"'))
    with pytest.raises(ValueError, match=r"hidden_act: 'swish' is not supported"):
        with_encoder_sizes(named(tmp_path))


def test_the_vocabulary_has_to_be_the_texts(ernie, tmp_path):
    folder = ernie[0]
    own, weights = ErnieText(str(folder)), ernie_weights(str(folder), ErnieText(str(folder)))
    config = with_encoder_sizes(named(folder, max_length=16))
    assert encoder_weights(config, own).keys() == weights.keys()
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:-2], "小", "大"]) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"encoder\.model: .* token 21 is '大', that of text\.vocabulary '小': set text\."):
        encoder_weights(config, ErnieText(str(tmp_path)))
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "新"]) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"vocab_size is 23, but text\.vocabulary has 24: give at least that many"):
        encoder_weights(config, ErnieText(str(tmp_path)))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"encoder\.model: there is no vocab\.txt in .* go without, -o text\.encoder=null"):
        ernie_weights(str(tmp_path), own)


def test_only_models_with_one_load_paddlenlp():
    code = "import sys, ppvilg.pipeline, ppvilg.train.vilg, ppvilg.train.fleet; sys.exit('paddlenlp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
