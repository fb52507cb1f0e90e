"""An exported folder does what its run does, and says so when it cannot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ppvilg import checkpoint
from ppvilg.config import load_config
from ppvilg.errors import UserError
from ppvilg.generate.sampling import Sampling
from ppvilg.matching import Matching, MatchingModel
from ppvilg.pipeline import Pipeline
from ppvilg.text import load_text_tokenizer
from tests.helpers import run_tool


def run_export(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "deploy/export.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def matching(tiny_configs) -> Path:
    """A matching model that has learned nothing."""
    tree = {
        "base": ["base.yml", "text.yml"],
        "task": "dual_encoder",
        "dual_encoder": {"hidden": 32, "heads": 2, "image_layers": 2, "text_layers": 1},
    }
    tree["dual_encoder"] |= {"patch_size": 4, "embedding": 16}
    (tiny_configs / "dual_encoder_untrained.yml").write_text(yaml.safe_dump(tree), "utf-8")
    config = load_config(tiny_configs / "dual_encoder_untrained.yml")
    folder = tiny_configs / "dual_encoder_untrained"
    (folder / "text").mkdir(parents=True)
    load_text_tokenizer(config.text).save(folder / "text")
    shutil.copy(tiny_configs / "dual_encoder_untrained.yml", folder / "config.yml")
    for name in ("base.yml", "text.yml"):
        shutil.copy(tiny_configs / name, folder / name)
    arrays = {name: tensor.numpy() for name, tensor in Matching(config).state_dict().items()}
    checkpoint.save_arrays(arrays, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def exported(tiny_configs, tiny_runs, matching) -> Path:
    folder = tiny_configs / "exported" / "vilg"
    folder.parent.mkdir()
    done = run_export("-c", tiny_configs / "vilg.yml", "--dual-encoder", matching, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(tiny_runs, exported) -> tuple[Pipeline, Pipeline]:
    return Pipeline.load(tiny_runs / "vilg"), Pipeline.load(exported)


def test_pictures_are_the_runs(both):
    prompts = ["红色方块", "蓝色方块一", "绿色"]
    for sampling in (Sampling(0), Sampling(0.9, top_k=5), Sampling(guidance=2.0)):
        expected, made = (model.generate(prompts, 3, 7, sampling) for model in both)
        np.testing.assert_array_equal(made, expected)
    expected, made = (list(model.generate_partial(prompts[:1], 2, every=8)) for model in both)
    np.testing.assert_array_equal(made, expected)


def test_completions_and_captions_are_the_runs(both):
    pictures = list(np.random.default_rng(0).integers(0, 256, [3, 16, 16, 3], dtype=np.uint8))
    np.testing.assert_array_equal(both[1].tokens(pictures), both[0].tokens(pictures))
    expected, made = (model.complete(pictures[0], 1, "红色方块", 2) for model in both)
    np.testing.assert_array_equal(made, expected)
    for options in ({}, {"samples": 2, "sampling": Sampling()}, {"beams": 3}):
        expected, made = (model.caption(pictures, **options) for model in both)
        assert made == expected


def test_the_best_are_the_runs(both, matching, exported):
    scorers = MatchingModel.load(matching), MatchingModel.load(exported)
    texts = ["红色方块", "蓝色", "一"]
    np.testing.assert_allclose(scorers[1].embed_texts(texts), scorers[0].embed_texts(texts), atol=1e-5)
    expected, made = (model.generate_best(["红色方块"], scorer, 5, 2) for model, scorer in zip(both, scorers, strict=True))
    np.testing.assert_array_equal(made, expected)


def test_the_reconstructor_is_exported_and_no_matching_model_is_missed(tiny_runs, tmp_path):
    done = run_export("--checkpoint", tiny_runs / "vilg_e2e", "--out", tmp_path / "e2e")
    assert done.returncode == 0, done.stderr
    expected, made = (
        Pipeline.load(folder).generate(["红色方块"], 2, decoder="hidden")
        for folder in (tiny_runs / "vilg_e2e", tmp_path / "e2e")
    )
    assert np.abs(np.int64(made) - np.int64(expected)).max() <= 1
    with pytest.raises(UserError, match="without a matching model"):
        MatchingModel.load(tmp_path / "e2e")


def test_the_manifest_names_every_file_and_what_it_was_made_from(exported, tiny_runs):
    manifest = json.loads((exported / "manifest.json").read_text("utf-8"))
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == files - {"manifest.json"}
    weights = checkpoint.weights_file(tiny_runs / "vilg")
    assert manifest["made_from"]["model"]["sha256"] == checkpoint.checksum(weights)
    assert manifest["made_from"].keys() == {"model", "matching"}


def test_infer_reads_an_export(exported, tiny_runs, tmp_path):
    for name, folder in (("run", tiny_runs / "vilg"), ("export", exported)):
        done = run_tool(
            *("infer", "--mode", "t2i", "--model", folder, "--text", "红色方块", "--best-of", 3, "--dual-encoder", exported),
            *("--output", tmp_path / name),
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "0000.png").read_bytes() == (tmp_path / "export" / "0000.png").read_bytes()


def damaged(exported: Path, folder: Path) -> Path:
    shutil.copytree(exported, folder)
    return folder


def test_what_is_damaged_is_said(exported, tmp_path):
    folder = damaged(exported, tmp_path / "missing")
    (folder / "programs" / "decode.json").unlink()
    with pytest.raises(UserError, match=r"lacks programs/decode\.json"):
        Pipeline.load(folder)
    folder = damaged(exported, tmp_path / "changed")
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged"):
        Pipeline.load(folder)
    folder = damaged(exported, tmp_path / "version")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Pipeline.load(folder)
    folder = damaged(exported, tmp_path / "unreadable")
    (folder / "manifest.json").write_text("{")
    done = run_tool("infer", "--mode", "t2i", "--model", folder, "--text", "红", "--output", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "manifest.json is damaged" in done.stderr


def test_mistakes_are_one_line(exported, tiny_runs, tmp_path):
    for arguments, message in (
        (["--out", tmp_path / "a"], "there is no model"),
        (["--checkpoint", tiny_runs / "vilg", "--out", exported], "exists already"),
        (["--checkpoint", tiny_runs / "vqgan", "--out", tmp_path / "a"], "task `vqgan`"),
        (["--checkpoint", tmp_path / "none", "--out", tmp_path / "a"], "there is no folder"),
        (["--checkpoint", exported, "--out", tmp_path / "a"], "is an export already"),
        (
            ["--checkpoint", tiny_runs / "vilg", "--dual-encoder", tiny_runs / "vilg", "--out", tmp_path / "a"],
            "task `dual_encoder`",
        ),
    ):
        done = run_export(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_predictor_needs_no_training_code(exported):
    program = f"""
import sys
from ppvilg.pipeline import Pipeline
model = Pipeline.load({str(exported)!r})
model.caption(model.generate(["红色方块"])[0])
print([name for name in sys.modules if name.startswith(("ppvilg.training", "paddlenlp", "ppvilg.export.write"))])
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
