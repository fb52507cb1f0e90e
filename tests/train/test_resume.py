"""A run that is killed or interrupted goes on to bit-equal losses and weights."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ppvilg.train.logs import Logs
from tests.helpers import losses, run_tool


@pytest.mark.parametrize("task", ["vqgan", "vilg"])
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_resumed_run_equals_an_uninterrupted_one(tiny_configs, tiny_runs, tmp_path, task, way):
    arguments = ["-c", tiny_configs / f"{task}.yml", "-o", f"train.output={tmp_path}", "-o", "train.validate_every=1"]
    command = [sys.executable, "tools/train.py", *map(str, arguments), "-o", "train.save_every=3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "step 4 validation" in line:
            process.send_signal(way)
            break
    process.stderr.read()
    code = process.wait()
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    if way is signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert saved == ["step-00000003"]
    else:
        assert code == 130
        assert saved[-1] in ("step-00000004", "step-00000005"), "Ctrl-C saves the step it came in"

    refused = run_tool("train", *arguments)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = run_tool("train", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr

    assert losses(tmp_path) == losses(tiny_runs / task)
    for name in ("model", "average", "optimizer-model"):
        ours = load_file(tmp_path / "checkpoints" / "step-00000006" / f"{name}.safetensors")
        theirs = load_file(tiny_runs / task / "checkpoints" / "step-00000006" / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{name}: {key}")


def test_metrics_outlive_a_kill_while_later_steps_are_forgotten(tmp_path, monkeypatch):
    metrics = tmp_path / "metrics.jsonl"
    lines = "".join(f'{{"step": {step}, "group": "train", "loss": 1.0}}\n' for step in range(1, 5))
    metrics.write_text(lines, "utf-8")

    def killed(path: Path, content: bytes):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            Logs(tmp_path, 3, 6)
    assert metrics.read_text("utf-8") == lines
    with Logs(tmp_path, 3, 6):
        assert [line["step"] for line in losses(tmp_path)] == [1, 2, 3]
