"""An exported folder does what the model folder does, and says so when it cannot."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import inference

from ppvilg import ViLGPipeline, checkpoint
from ppvilg.dual_encoder import DualEncoderScorer
from ppvilg.export.program_file import ProgramFile, load_weights
from ppvilg.generate.engine import generate_images
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Sampling
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
    content = bytearray((folder / "programs/transformer.pdiparams").read_bytes())
    content[-1] ^= 1
    (folder / "programs/transformer.pdiparams").write_bytes(content)
    with pytest.raises(ValueError, match=r"transformer\.pdiparams is damaged"):
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


def test_weights_of_steps_in_both_directions_are_stored_once(exported):
    programs = json.loads((exported / "manifest.json").read_text("utf-8"))["programs"]
    shared = {name for name, program in programs.items() if program["weights"] == "transformer.pdiparams"}
    steps = {f"{d}_{step}" for d in ("text_to_image", "image_to_text") for step in ("prefill", "decode_step")}
    assert shared == steps | {"text_to_image"}
    tensors = ProgramFile(exported / "programs" / "text_to_image_prefill.json").weights
    loaded = load_weights(exported / "programs" / "transformer.pdiparams", tensors)
    size = sum(tensor.element_size() * tensor.size for tensor in loaded.values())
    assert size < (exported / "programs" / "transformer.pdiparams").stat().st_size < 1.1 * size + 50_000


def plain_python(program: str, folder: Path) -> list:
    """What a program without this project prints last, as JSON."""
    program = f"import sys; sys.modules['ppvilg'] = None\n{program}"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_readme_of_an_export_runs_without_this_project(exported, both):
    one_run, steps = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text("utf-8"), re.DOTALL)
    pipe = both[0]
    text = [pipe.text_tokenizer.begin, pipe.text_tokenizer.size // 2, pipe.text_tokenizer.end]
    assert f"ids = np.array([{text}])" in one_run
    *_, expected = generate_images(pipe.model, [text], pipe.text_tokenizer, [0], Sampling(0))
    greedy = (
        one_run
        + """
print(image.dtype == np.uint8 and image.shape)
predictor.get_input_handle("temperature").copy_from_cpu(np.float32([0]))
predictor.run()
names = predictor.get_output_names()
tokens, images = (predictor.get_output_handle(name).copy_to_cpu().tolist() for name in ("tokens", "images"))
import json
print(json.dumps([tokens, images]))
"""
    )
    tokens, images = plain_python(greedy, exported)
    np.testing.assert_array_equal(tokens, expected.tokens)
    assert np.abs(np.array(images) - decode_images(pipe.model, pipe.vqgan, expected)).max() <= 1
    found = plain_python(steps + "print(json.dumps([np.stack(tokens, 1).tolist(), pixels.tolist()]))", exported)
    np.testing.assert_array_equal(found[0], expected.tokens)
    pixels = pipe.vqgan.decode(paddle.to_tensor(expected.tokens.reshape([1, 4, 4])))
    np.testing.assert_allclose(found[1], pixels.numpy(), atol=1e-4)


def test_the_manifest_describes_inputs_and_outputs(exported):
    programs = json.loads((exported / "manifest.json").read_text("utf-8"))["programs"]
    for name, program in programs.items():
        config = inference.Config(f"{exported}/programs/{name}.json", f"{exported}/programs/{program['weights']}")
        config.disable_glog_info()
        predictor = inference.create_predictor(config)
        assert sorted(predictor.get_input_names()) == sorted(program["inputs"])
        assert predictor.get_output_names() == list(program["outputs"])
    assert programs["decode"]["inputs"] == {"ids": {"dtype": "int64", "shape": [-1, 4, 4]}}
    assert programs["text_to_image"]["outputs"]["images"] == {"dtype": "uint8", "shape": [-1, 16, 16, 3]}
