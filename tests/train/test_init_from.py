"""Starting from the weights of another run or model."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ppvilg.checkpoint import checkpoints, load_arrays, weights_reader
from ppvilg.config import load_config
from ppvilg.folder import merge
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from ppvilg.train.init_from import init_from
from ppvilg.train.shards import named_tensors
from ppvilg.train.task import Task
from ppvilg.train.trainer import Trainer
from tests.helpers import losses, run_tool


def started(path: Path, folder: Path, *overrides: str) -> tuple[Task, str]:
    """A task that starts from a folder, and the report."""
    config = load_config(path, [f"train.init_from={folder}", *overrides])
    task = build_task(config, ParallelContext())
    return task, init_from(task, ParallelContext())


def counts(report: str) -> dict[str, tuple[int, ...]]:
    """How many tensors of each part were taken, fitted, are new, were left out."""
    lines = [re.match(r"  (.*?)" + r" +(\d+|-)" * 4, line).groups() for line in report.splitlines()[2:]]
    return {part.strip(): tuple(int(number.replace("-", "0")) for number in numbers) for part, *numbers in lines}


def weights(task: Task) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in named_tensors(task.modules["model"]).items()}


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("name", ["vqgan", "vilg", "vilg_e2e"])
def test_a_run_gives_its_averaged_weights_and_the_average_starts_from_them(tiny_configs, tiny_runs, name):
    task, report = started(tiny_configs / f"{name}.yml", tiny_runs / name, "train.seed=5")
    average = load_arrays(checkpoints(tiny_runs / name)[-1] / "average.safetensors")
    assert_equal(weights(task), average)
    trainer = Trainer(task.config, task)
    for key, value in trainer.ema.values.items():
        np.testing.assert_array_equal(value.numpy(), average[key], err_msg=key)
    assert trainer.step == 0
    assert not any(trainer.models["model"].state.optimizer_shards())
    assert all(found[1:] == (0, 0, 0) for found in counts(report).values())
    assert sum(found[0] for found in counts(report).values()) == len(average)


def test_a_merged_run_and_a_model_folder_give_the_same(tiny_configs, tiny_runs, tmp_path):
    merge(tiny_runs / "vilg", tmp_path / "merged")
    task, _ = started(tiny_configs / "vilg.yml", tmp_path / "merged", "train.tokenizer=null")
    assert_equal(weights(task), weights_reader(tiny_runs / "vilg").all())
    assert task.image_tokenizer == tmp_path / "merged" / "tokenizer"


def test_the_tool_starts_a_run_and_resumes_it_without_the_source(tiny_configs, tiny_runs, tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(tiny_runs / "vilg", source)
    arguments = ["-c", tiny_configs / "vilg.yml", "-o", f"train.init_from={source}", "-o", f"train.output={run}"]
    done = run_tool("train", *arguments, "-o", "train.steps=3", "-o", "train.save_every=1", "-o", "train.keep_checkpoints=9")
    assert done.returncode == 0, done.stderr
    assert f"tensors from {source}" in done.stderr
    first, scratch = losses(run)[0], losses(tiny_runs / "vilg")
    assert first["loss"] < scratch[0]["loss"]
    assert first["learning_rate"] == scratch[0]["learning_rate"]
    shutil.rmtree(source)
    resumed = run_tool("train", *arguments, "-o", "train.steps=4", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "tensors from" not in resumed.stderr
    again = run_tool("train", *arguments, "-o", f"train.output={tmp_path / 'other'}")
    assert again.returncode == 2
    assert f"train.init_from: there is no folder {source}" in again.stderr
