"""An exported folder does what the model folder does, and says so when it cannot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppvilg import ViLGPipeline, checkpoint
from ppvilg.dual_encoder import DualEncoderScorer
from tests.helpers import run_tool


def run_export(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "deploy/export.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def exported(tiny_model, tiny_dual_encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "vilg"
    done = run_export("--checkpoint", tiny_model, "--dual-encoder", tiny_dual_encoder, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(tiny_model, tiny_dual_encoder, exported) -> tuple[ViLGPipeline, ViLGPipeline]:
    """The model folder with its dual encoder, and the export with its own."""
    return ViLGPipeline.from_pretrained(tiny_model, tiny_dual_encoder), ViLGPipeline.from_pretrained(exported, exported)


def test_images_are_the_models(both):
    prompts = ["红色方块", "蓝色方块一", "绿色"]
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "top_k": 5}, {"guidance_scale": 2.0}):
        expected, made = (pipe(prompts, 3, seed=7, output_type="np", **options).images for pipe in both)
        np.testing.assert_array_equal(made, expected)
    expected, made = (list(pipe.stream(prompts[0], 8, num_images_per_prompt=2, output_type="np")) for pipe in both)
    assert [step for step, _ in made] == [step for step, _ in expected]
    np.testing.assert_array_equal([images for _, images in made], [images for _, images in expected])


def test_completions_and_captions_are_the_models(both):
    images = np.random.default_rng(0).integers(0, 256, [3, 16, 16, 3], dtype=np.uint8)
    np.testing.assert_array_equal(both[1].encode_images(images), both[0].encode_images(images))
    options = {"num_images_per_prompt": 2, "output_type": "np"}
    expected, made = (pipe.complete(images[0], 1, "红色方块", **options).images for pipe in both)
    np.testing.assert_array_equal(made, expected)
    for options in ({}, {"num_captions": 2, "temperature": 1.0}, {"num_beams": 3}):
        expected, made = (pipe.caption(images, **options) for pipe in both)
        assert made == expected


def test_the_best_are_the_models(both):
    texts = ["红色方块", "蓝色", "一"]
    np.testing.assert_allclose(*(pipe.dual_encoder.embed_texts(texts) for pipe in both), atol=1e-5)
    expected, made = (pipe("红色方块", 2, num_candidates=5, output_type="np").images for pipe in both)
    np.testing.assert_array_equal(made, expected)


def test_the_reconstructor_is_exported_and_no_dual_encoder_is_missed(tiny_model_e2e, tmp_path):
    done = run_export("--checkpoint", tiny_model_e2e, "--out", tmp_path / "e2e")
    assert done.returncode == 0, done.stderr
    expected, made = (
        ViLGPipeline.from_pretrained(folder)("红色方块", 2, decoder="hidden", output_type="np").images
        for folder in (tiny_model_e2e, tmp_path / "e2e")
    )
    assert np.abs(np.int64(made) - np.int64(expected)).max() <= 1
    with pytest.raises(ValueError, match="without a dual encoder"):
        DualEncoderScorer.from_pretrained(tmp_path / "e2e")


def test_the_manifest_names_every_file_and_what_it_was_made_from(exported, tiny_model, tiny_dual_encoder):
    manifest = json.loads((exported / "manifest.json").read_text("utf-8"))
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == files - {"manifest.json"}
    assert manifest["made_from"].keys() == {"model", "dual_encoder"}
    for name, folder in (("model", tiny_model), ("dual_encoder", tiny_dual_encoder)):
        assert manifest["made_from"][name]["sha256"] == checkpoint.checksum(checkpoint.weights_file(folder))


def test_infer_reads_an_export(exported, tiny_model, tiny_dual_encoder, tmp_path):
    for name, folder, scorer in (("model", tiny_model, tiny_dual_encoder), ("export", exported, exported)):
        done = run_tool(
            *("infer", "--mode", "t2i", "--model", folder, "--text", "红色方块", "--best-of", 3, "--dual-encoder", scorer),
            *("--output", tmp_path / name),
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "0000.png").read_bytes() == (tmp_path / "export" / "0000.png").read_bytes()


def damaged(exported: Path, folder: Path) -> Path:
    shutil.copytree(exported, folder)
    return folder


def test_what_is_damaged_is_said(exported, tmp_path):
    folder = damaged(exported, tmp_path / "missing")
    (folder / "programs" / "decode.json").unlink()
    with pytest.raises(ValueError, match=r"lacks programs/decode\.json"):
        ViLGPipeline.from_pretrained(folder)
    folder = damaged(exported, tmp_path / "changed")
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        ViLGPipeline.from_pretrained(folder)
    folder = damaged(exported, tmp_path / "version")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        ViLGPipeline.from_pretrained(folder)
    folder = damaged(exported, tmp_path / "unreadable")
    (folder / "manifest.json").write_text("{")
    done = run_tool("infer", "--mode", "t2i", "--model", folder, "--text", "红", "--output", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "manifest.json is damaged" in done.stderr


def test_mistakes_are_one_line(exported, tiny_model, tmp_path):
    for arguments, message in (
        (["--out", tmp_path / "a"], "there is no model"),
        (["--checkpoint", tiny_model, "--out", exported], "exists already"),
        (["--checkpoint", tiny_model / "tokenizer", "--out", tmp_path / "a"], "type `vqgan`"),
        (["--checkpoint", tmp_path / "none", "--out", tmp_path / "a"], "there is no folder"),
        (["--checkpoint", exported, "--out", tmp_path / "a"], "is an export already"),
        (
            ["--checkpoint", tiny_model, "--dual-encoder", tiny_model, "--out", tmp_path / "a"],
            "type `dual_encoder`",
        ),
    ):
        done = run_export(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_predictor_needs_no_training_code(exported):
    program = f"""
import sys
from ppvilg import ViLGPipeline
model = ViLGPipeline.from_pretrained({str(exported)!r})
model.caption(model("红色方块").images)
print([name for name in sys.modules if name.startswith(("ppvilg.train", "paddlenlp", "ppvilg.export.write"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_weights_are_stored_once(exported):
    arrays = checkpoint.load_arrays(exported / "weights.safetensors")
    sizes = sum(array.nbytes for array in arrays.values())
    total = sum(path.stat().st_size for path in exported.rglob("*") if path.is_file() and path.suffix != ".json")
    assert total < 1.1 * sizes + 50_000
    assert all(array.dtype == np.float32 for array in arrays.values())
