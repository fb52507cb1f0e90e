"""Tiny transformer runs without dropout, in any layout."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from ppvilg.checkpoint import CheckpointReader, checkpoints
from tests.helpers import losses, metrics
from tests.parallel import launch

STEPS = 5
# AdamW without moments and with an epsilon that drowns the second: plain gradient descent at a rate of 0.5.
SGD = {"learning_rate": 500.0, "epsilon": 1000.0, "beta1": 0.0, "weight_decay": 0.0}
ADAMW = {"learning_rate": 0.003, "epsilon": 1e-4, "weight_decay": 0.1}


@pytest.fixture(scope="session")
def layout_config(tiny_configs, tiny_runs) -> Path:
    """vilg without dropout, five steps of eight pairs in two micro-batches, clipped, every parameter in use."""
    train = {
        "steps": STEPS,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 1,
        "clip_norm": 0.5,
        "token_noise": 0.3,
    }
    train |= {"validate_every": STEPS, "preview_every": 1000, "save_every": 1000, "log_every": 1}
    tree = {"base": "vilg.yml", "transformer": {"layers": 4, "dropout": 0.0}, "train": train}
    path = tiny_configs / "layout.yml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    return path


def overrides(settings: dict) -> list[str]:
    """-o key=value for each."""
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


@pytest.fixture(scope="session")
def train_layout(layout_config, tmp_path_factory):
    """A function that trains a layout, e.g. {"dp_degree": 2}, with further settings: the run's folder."""

    def train(layout: dict, settings: dict, output: Path | None = None, resume: bool = False) -> Path:
        folder = output or tmp_path_factory.mktemp("_".join(f"{k}{v}" for k, v in layout.items()) or "alone")
        sizes = [layout.get(axis, 1) for axis in ("dp_degree", "sharding_degree", "mp_degree", "pp_degree")]
        processes = int(np.prod(sizes))
        given = {f"parallel.{key}": value for key, value in layout.items()} | settings | {"train.output": folder / "run"}
        arguments = ["-c", layout_config, *overrides(given), *(["--resume"] if resume else [])]
        logs = folder / "logs"
        done = launch.train(processes, logs, *arguments)
        assert done.returncode == 0, done.stderr + launch.output(logs)
        return folder / "run"

    return train


@pytest.fixture(scope="session")
def alone(train_layout):
    """A function that gives the run of one process with some settings, trained once."""
    runs: dict[str, Path] = {}

    def run(settings: dict) -> Path:
        if str(settings) not in runs:
            runs[str(settings)] = train_layout({}, settings)
        return runs[str(settings)]

    return run


def settings_of(optimizer: dict) -> dict:
    """Overrides of a training section."""
    return {f"train.{key}": f"{value:.10f}" if isinstance(value, float) else value for key, value in optimizer.items()}


def differences(run: Path, other: Path) -> tuple[float, float]:
    """The largest between two runs' losses, of training and validation, and between the parameters they end with."""
    ours, theirs = losses(run), losses(other)
    assert len(ours) == len(theirs) == STEPS
    pairs = [*zip(ours, theirs, strict=True), (metrics(run, "validation")[-1], metrics(other, "validation")[-1])]
    of_losses = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    a, b = (CheckpointReader(checkpoints(path)[-1], "model").all() for path in (run, other))
    assert a.keys() == b.keys()
    return of_losses, max(float(np.abs(a[name] - b[name]).max()) for name in a)
