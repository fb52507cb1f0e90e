"""Runs with a text encoder: what is trained and how fast, and that a trained model needs no PaddleNLP folder."""

import base64
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ppvilg import ViLGPipeline
from ppvilg.checkpoint import CheckpointReader, checkpoints, weights_reader
from ppvilg.config import load_config
from ppvilg.data.images import load_image
from ppvilg.ernie import ernie_weights
from ppvilg.export.write import write_export
from ppvilg.text import ErnieText
from ppvilg.train import train
from tests.model.test_text_encoder import SIZES, ernie_folder
from tests.server.conftest import serving
from tests.train.test_init_from import counts, started, weights

PREFIX = "embedding.text_encoder."
PROMPTS = ["红色方块", "蓝色方块一", "绿"]


@pytest.fixture(scope="module")
def ernie(tiny_data, tmp_path_factory) -> Path:
    """PaddleNLP's folder of an encoder with random weights and the vocabulary of `tiny_data`."""
    folder = tmp_path_factory.mktemp("models") / "ernie"
    folder.mkdir()
    vocabulary = (tiny_data / "vocab.txt").read_text("utf-8").split()
    ernie_folder(folder, replace(SIZES, vocab_size=len(vocabulary)), vocabulary)
    return folder


@pytest.fixture(scope="module")
def config_file(tiny_configs, tiny_runs, ernie) -> Path:
    """vilg with the encoder; without a warm-up, so that the first rate is the whole one."""
    path = tiny_configs / "vilg_ernie.yml"
    settings = {"warmup_steps": 0, "weight_decay": 0.0, "validate_every": 6, "preview_every": 6, "save_every": 1}
    tree = {"base": "vilg.yml", "text": {"encoder": {"model": str(ernie)}}, "train": settings | {"keep_checkpoints": 9}}
    path.write_text(yaml.safe_dump(tree), "utf-8")
    return path


@pytest.fixture(scope="module")
def frozen(config_file, ernie, tmp_path_factory) -> Path:
    """A run of six steps; the folder that its encoder came from is gone."""
    run = tmp_path_factory.mktemp("frozen") / "run"
    moved = tmp_path_factory.mktemp("moved") / "ernie"
    assert train(load_config(config_file, [f"train.output={run}"]))
    shutil.move(ernie, moved)
    yield run
    shutil.move(moved, ernie)


def test_trained_weights_move_at_their_own_rate(config_file, ernie, tmp_path):
    run = tmp_path / "run"
    overrides = [f"train.output={run}", "train.steps=1", "text.encoder.train=true", "text.encoder.learning_rate_scale=0.2"]
    assert train(load_config(config_file, overrides))
    model = CheckpointReader(checkpoints(run)[-1], "model").all()
    start = ernie_weights(str(ernie), ErnieText(str(ernie)))
    # AdamW's first step is as long as the rate wherever the gradient is not tiny.
    moved = {name: np.abs(model[PREFIX + name] - array).max() for name, array in start.items()}
    without_gradient = {name for name in moved if "k_proj.bias" in name}  # the softmax does not feel it
    for name in moved.keys() - without_gradient:
        assert moved[name] == pytest.approx(0.2 * 0.003, rel=0.02), name
    optimizer = CheckpointReader(checkpoints(run)[-1], "optimizer-model").shapes
    assert {f"{PREFIX}{name}/moment1_0" for name in moved} < optimizer.keys()


def test_frozen_weights_stay_and_are_not_optimized(frozen):
    newest = checkpoints(frozen)[-1]
    first, last = (CheckpointReader(step, "model").all() for step in (checkpoints(frozen)[0], newest))
    average = CheckpointReader(newest, "average").all()
    encoder = {name for name in last if name.startswith(PREFIX)} - {f"{PREFIX}projection.weight"}
    assert len(encoder) == 38
    for name in encoder:
        np.testing.assert_array_equal(last[name], first[name])
        np.testing.assert_array_equal(average[name], first[name])
    assert (last[f"{PREFIX}projection.weight"] != first[f"{PREFIX}projection.weight"]).any()
    optimized = {name.partition("/")[0] for name in CheckpointReader(newest, "optimizer-model").shapes}
    assert optimized == last.keys() - encoder


def test_a_run_a_saved_model_an_export_and_a_server_draw_the_same(frozen, tmp_path):
    pipe = ViLGPipeline.from_pretrained(frozen)
    pipe.save_pretrained(tmp_path / "saved")
    saved = ViLGPipeline.from_pretrained(tmp_path / "saved")
    assert saved.config == pipe.config
    write_export(tmp_path / "export", pipe.model, pipe.vqgan, pipe.text_tokenizer, pipe.config, {})
    exported = ViLGPipeline.from_pretrained(tmp_path / "export")
    options = {"seed": 3, "guidance_scale": 2.0}
    images = [other(PROMPTS, 2, output_type="np", **options).images for other in (pipe, saved, exported)]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    requests = [{"prompt": prompt, "n": 2, "seed": 3, "guidance": 2.0} for prompt in PROMPTS]
    for served in (pipe, exported):
        with serving(served, capacity=10) as running, ThreadPoolExecutor(len(requests)) as threads:
            answers = list(threads.map(lambda request: running.client.post("/v1/images", json=request).json(), requests))
        drawn = [load_image(base64.b64decode(data["b64_json"]), 16) for answer in answers for data in answer["data"]]
        np.testing.assert_array_equal(drawn, images[0])
    assert pipe.caption(images[0]) == exported.caption(images[0])


def test_a_run_goes_on_without_the_folder_that_its_encoder_came_from(frozen, config_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(frozen, run)
    shutil.rmtree(checkpoints(run)[-1])
    assert train(load_config(config_file, [f"train.output={run}"]), resume=True)
    np.testing.assert_equal(*(CheckpointReader(checkpoints(path)[-1], "model").all() for path in (run, frozen)))
    configs = [(path / "config.yml").read_text("utf-8").replace(str(path), "") for path in (run, frozen)]
    assert configs[0] == configs[1]
    further = [f"train.output={tmp_path / 'further'}", f"train.init_from={frozen}", "train.steps=1"]
    assert train(load_config(config_file, further))


def test_it_is_taken_from_a_run_that_has_one_else_new(frozen, config_file, tiny_data, tiny_runs, tmp_path):
    known = (tiny_data / "vocab.txt").read_text("utf-8").split()
    tokens = [*known[:5], "新", *reversed(known[5:])]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    sizes = replace(SIZES, vocab_size=len(tokens))
    overrides = [f"text.encoder={{model: null, sizes: {vars(sizes)}}}", f"text.vocabulary={tmp_path / 'vocab.txt'}"]
    task, report = started(config_file, frozen, *overrides)
    words = f"{PREFIX}embeddings.word_embeddings.weight"
    own, source = weights(task)[words], weights_reader(frozen).read(words)
    np.testing.assert_array_equal(own[:5], source[:5])
    np.testing.assert_array_equal(own[6:], source[:4:-1])
    assert counts(report)["text encoder"] == (38, 0, 0, 0), report
    _, report = started(config_file, tiny_runs / "vilg", *overrides)
    assert counts(report)["text encoder"] == (0, 0, 39, 0)
