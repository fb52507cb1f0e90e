"""tools/infer.py as a user runs it."""

import json

import cv2
import numpy as np

from ppvilg import ViLGPipeline
from tests.helpers import run_tool


def infer(*arguments, stdin: str | None = None):
    done = run_tool("infer", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done


def read_png(path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_images_and_a_grid(tiny_model, tmp_path):
    infer(
        *("--mode", "t2i", "--model", tiny_model, "--text", "红色方块", "--text-file", "-", "--seed", 3),
        *("--samples", 2, "--output", tmp_path, "--json", tmp_path / "made.json", "--top-k", 5),
        stdin="蓝色方块\n\n",
    )
    names = [f"{i:04d}.png" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "grid.png", "made.json"]
    pipe = ViLGPipeline.from_pretrained(tiny_model)
    expected = pipe(["红色方块", "蓝色方块"], num_images_per_prompt=2, seed=3, top_k=5).images
    for name, image in zip(names, expected, strict=True):
        np.testing.assert_array_equal(read_png(tmp_path / name), np.asarray(image))
    entries = json.loads((tmp_path / "made.json").read_text("utf-8"))
    assert [entry["text"] for entry in entries] == ["红色方块"] * 2 + ["蓝色方块"] * 2
    assert [entry["image"] for entry in entries] == [str(tmp_path / name) for name in names]


def test_captions(tiny_model, tiny_data, tmp_path):
    images = [tiny_data / "00.png", tiny_data / "01.png"]
    done = infer(
        *("--mode", "i2t", "--model", tiny_model, "--image", images[0], "--image", images[1], "--samples", 2),
        *("--temperature", 1, "--json", tmp_path / "captions.json"),
    )
    assert len(done.stdout.splitlines()) == 4
    entries = json.loads((tmp_path / "captions.json").read_text("utf-8"))
    expected = ViLGPipeline.from_pretrained(tiny_model).caption(images, num_captions=2, temperature=1.0)
    assert [entry["captions"] for entry in entries] == expected
    done = infer("--mode", "i2t", "--model", tiny_model, "--image", images[0], "--beams", 3, "--length-penalty", 0.5)
    assert len(done.stdout.splitlines()) == 1


def test_completions_by_either_decoder(tiny_model_e2e, tiny_data, tmp_path):
    for decoder in ("codebook", "hidden"):
        infer(
            *("--mode", "complete", "--model", tiny_model_e2e, "--image", tiny_data / "00.png", "--text", "红色方块"),
            *("--keep-rows", 2, "--samples", 2, "--guidance", 2, "--decoder", decoder, "--output", tmp_path / decoder),
        )
        assert {path.name for path in (tmp_path / decoder).iterdir()} == {"0000.png", "0001.png", "grid.png"}


def test_the_best_of_several(tiny_model, tiny_dual_encoder, tmp_path):
    infer(
        *("--mode", "t2i", "--model", tiny_model, "--dual-encoder", tiny_dual_encoder, "--text", "红色方块"),
        *("--output", tmp_path, "--best-of", 8, "--samples", 2),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.png", "0001.png", "grid.png"]
    pipe = ViLGPipeline.from_pretrained(tiny_model, dual_encoder=tiny_dual_encoder)
    best = pipe("红色方块", num_images_per_prompt=2, num_candidates=8).images
    np.testing.assert_array_equal(read_png(tmp_path / "0000.png"), np.asarray(best[0]))


def test_arguments_are_checked_before_the_model_is_loaded(tiny_data, tmp_path):
    """A model that is not there is complained of last."""
    image = tiny_data / "00.png"
    for arguments in (
        ["--mode", "t2i", "--text", "红", "--temperature", "-1"],
        ["--mode", "t2i", "--text", " "],
        ["--mode", "t2i", "--text", "红", "--json", tmp_path / "no" / "x.json"],
        ["--mode", "complete", "--text", "红", "--image", "README.md", "--keep-rows", "1"],
        ["--mode", "complete", "--text", "红", "--image", image, "--keep-rows", "1", "--top-k", "-1"],
        ["--mode", "i2t", "--image", image, "--image", "README.md"],
        ["--mode", "i2t", "--image", image, "--beams", "2", "--temperature", "1"],
    ):
        done = run_tool("infer", *arguments, "--model", "no/such/model")
        assert done.returncode == 2
        assert "no/such/model" not in done.stderr
