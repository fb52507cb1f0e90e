"""One direction alone, or both by their weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppvilg.config import load_config
from ppvilg.model.loss import LossWeights
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from ppvilg.train.shards import named_parameters
from ppvilg.train.vilg import ViLGTask
from tests.helpers import metrics, run_tool

DIRECTIONS = {"txt2img": "img2txt", "img2txt": "txt2img"}
"""Each with the other."""


def build(path: Path, *overrides: str) -> ViLGTask:
    task = build_task(load_config(path, ["transformer.dropout=0.0", *overrides]), ParallelContext())
    task.prepare()
    return task


def gradients(task: ViLGTask) -> dict[str, np.ndarray | None]:
    task.loss(task.model, task.batch(range(3)), 0)["loss"].backward()
    found = {name: parameter.grad for name, parameter in named_parameters(task.model).items()}
    return {name: None if gradient is None else gradient.numpy() for name, gradient in found.items()}


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize(("direction", "other"), DIRECTIONS.items())
def test_one_direction_has_the_gradients_of_both_with_the_other_s_loss_zeroed(
    tiny_configs, tiny_runs, direction, other, tied, monkeypatch
):
    overrides = ["train.token_noise=0.5", "train.text_drop=0.3", f"transformer.tie_embeddings={tied}"]
    both = build(tiny_configs / "vilg.yml", *overrides)
    both.weights = replace(LossWeights(), **{other: 0.0})
    expected = gradients(both)
    alone = build(tiny_configs / "vilg.yml", *overrides, f"train.{other}_weight=0.0")
    shapes = []
    block = alone.model.blocks[0]
    monkeypatch.setattr(block, "forward", lambda x, *rest, own=block.forward: shapes.append(x.shape[0]) or own(x, *rest))
    found = gradients(alone)
    assert shapes == [3], "the other direction has no sequences"
    unused = {"txt2img": "head.text.", "img2txt": "head.image."}[direction]
    for name, gradient in expected.items():
        if name.startswith(unused):
            assert found[name] is None
            assert np.abs(gradient).max() == 0
        else:
            np.testing.assert_allclose(found[name], gradient, atol=1e-7, err_msg=name)


def test_weights_multiply_the_losses(tiny_configs, tiny_runs):
    task = build(tiny_configs / "vilg.yml", "train.txt2img_weight=0.5", "train.img2txt_weight=3.0")
    batch = task.batch(range(3))
    losses = task.loss(task.model, batch, 0)
    text = losses["img2txt"] * batch.text_mask[:, 1:].sum() / batch.image.size
    assert losses["loss"].item() == pytest.approx((0.5 * losses["txt2img"] + 3 * text).item(), rel=1e-5)


@pytest.mark.parametrize(("direction", "other"), DIRECTIONS.items())
def test_a_run_of_one_direction_says_nothing_of_the_other(tiny_configs, tiny_runs, tmp_path, direction, other):
    arguments = ["-c", tiny_configs / "vilg.yml", "-o", f"train.{other}_weight=0", "-o", f"train.output={tmp_path}"]
    done = run_tool("train", *arguments, "-o", "train.steps=3")
    assert done.returncode == 0, done.stderr
    (line, *_) = metrics(tmp_path, "validation")
    assert {direction, f"{direction}_accuracy", f"{direction}_unigram"} < line.keys()
    assert other not in json.dumps((metrics(tmp_path, "train"), line))
    kind = {"txt2img": "_images", "img2txt": "_captions"}[direction]
    assert {kind} == {f"_{path.stem.partition('_')[2]}" for path in (tmp_path / "preview").iterdir()}
    resumed = run_tool("train", *arguments, "-o", "train.steps=4", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    both = run_tool("train", *arguments, "-o", "train.steps=5", "-o", f"train.{other}_weight=1", "--resume")
    assert both.returncode == 0, both.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.txt2img_weight=0", "train.img2txt_weight=0"], r"train\.img2txt_weight.*nothing to train"),
        (["train.txt2img_weight=-1"], "train.txt2img_weight.*greater than or equal to 0"),
        (["train.txt2img_weight=0", "transformer.reconstructor=true"], "expected false with train.txt2img_weight: 0"),
    ],
)
def test_what_is_refused(tiny_configs, overrides, said):
    with pytest.raises(ValueError, match=said):
        load_config(tiny_configs / "vilg.yml", overrides)
