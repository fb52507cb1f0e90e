"""What runs an export: ONNX Runtime against Paddle Inference, and the options that choose engine, device and precision."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppvilg import ViLGPipeline
from ppvilg.export import onnx_convert
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import ONNX, ONNX_INT8, Programs, native
from ppvilg.export.write import save_transformer
from ppvilg.generate.beam_search import beam_search
from ppvilg.generate.engine import GenerationRequest, generate_images, generate_texts
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.kv_cache import DecodeState
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from tests.export.test_folder import run_export
from tests.export.test_programs import OPTIONS
from tests.generate.test_engine import PROMPTS, SAMPLINGS, TEXT, build, finish, image_engine, images
from tests.helpers import run_tool
from tests.model.test_vilg import CONFIG, with_plan


@pytest.fixture(scope="module", params=["paper", "dense", "tied", "elsewhere"])
def models(request, tmp_path_factory) -> tuple[ViLG, ExportedViLG]:
    """A model, and its export on ONNX Runtime."""
    paddle.seed(0)
    model = build(OPTIONS[request.param] if request.param in OPTIONS else with_plan(request.param))
    folder = tmp_path_factory.mktemp("programs")
    save_transformer(model, folder)
    onnx_convert.convert_steps(folder, folder)
    return model, ExportedViLG(model.config, Programs(folder, converted=folder / ONNX))


def test_onnx_runtime_writes_the_same_images_and_texts(models):
    for sampling in SAMPLINGS:
        expected, found = (list(generate_images(model, PROMPTS, TEXT, [1, 2, 1, 2], sampling))[-1] for model in models)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    read, longest = images(3), CONFIG.max_text_length
    expected, found = (generate_texts(model, read, TEXT, longest, [0] * 3, Sampling(0)) for model in models)
    assert found == expected
    expected, found = (beam_search(model, read, TEXT, longest, 3, 1.0) for model in models)
    assert found == expected


def test_states_and_logits_are_equal_to_rounding(models):
    """Likeliest tokens hardly show that an operator was converted into another, as GELU's two forms are."""
    config, direction = models[0].config, Direction.TEXT_TO_IMAGE
    ids, mask = pad_prompts(PROMPTS, TEXT.pad, config)
    found = []
    for model in models:
        _, prefixes = model.prefill(direction, paddle.to_tensor(ids), paddle.to_tensor(mask))
        state = DecodeState.empty(config, direction, ids.shape[1], prefixes, mask)
        steps = []
        for i in range(6):
            last = model.decode_step(direction, state.inputs(np.array([i, i + 3]), np.full(2, i)))
            steps += [last.numpy(), model.image_logits(last).numpy()]
        found.append(steps)
    for expected, one in zip(*found, strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-6, atol=4e-6)


def test_sequences_join_and_leave_a_batch_of_onnx_runtime(models):
    """Caches are moved between steps: they are where Paddle's tensors are."""
    engine = image_engine(models[1])
    requests = [GenerationRequest(PROMPTS[i % 2], [i] * (1 + i % 2), SAMPLINGS[i % 4]) for i in range(5)]
    for request in requests:
        engine.join([request])
        engine.step()
        engine.step()
    engine.leave(requests[2:3])
    finish(engine)
    for request in [*requests[:2], *requests[3:]]:
        *_, alone = generate_images(models[0], [request.prompt], TEXT, request.seeds, request.sampling)
        np.testing.assert_array_equal(request.tokens, alone.tokens)


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "vilg"
    done = run_export("--checkpoint", tiny_model, "--onnx", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_fastest_exact_engine_is_in_the_manifest(exported):
    manifest = json.loads((exported / "manifest.json").read_text("utf-8"))
    assert manifest["seconds_per_token"].keys() == {"paddle", "onnxruntime"}
    assert manifest["engine"] == min(manifest["seconds_per_token"], key=manifest["seconds_per_token"].get)
    assert {f"{ONNX}/image_logits.onnx", f"{ONNX_INT8}/text_to_image_decode_step.data"} <= manifest["files"].keys()


def test_engine_and_precision_are_chosen_by_option(exported, tiny_model, tmp_path):
    expected = ViLGPipeline.from_pretrained(tiny_model)("红色方块", 2, output_type="np").images
    for engine in ("auto", "paddle", "onnxruntime"):
        found = ViLGPipeline.from_pretrained(exported, engine=engine)("红色方块", 2, output_type="np").images
        np.testing.assert_array_equal(found, expected)
    rounded = ViLGPipeline.from_pretrained(exported, precision="int8")
    assert rounded.model._programs._converted == exported / ONNX_INT8
    assert len(rounded("红色方块", 2).images) == 2
    chosen = ("--engine", "onnxruntime", "--precision", "fp32", "--threads", 1, "--device", "cpu")
    for name, options in (("default", ()), ("chosen", chosen)):
        done = run_tool("infer", "--mode", "t2i", "--model", exported, "--text", "红", "--output", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "default" / "0000.png").read_bytes() == (tmp_path / "chosen" / "0000.png").read_bytes()


def test_what_cannot_be_had_is_refused(exported, tiny_model, tmp_path):
    for folder, options, message in (
        (tiny_model, {"engine": "onnxruntime"}, "is no export"),
        (tiny_model, {"precision": "int8"}, "is no export"),
        (exported, {"engine": "paddle", "precision": "int8"}, "use the engine onnxruntime"),
        (exported, {"precision": "bf16"}, "is an export of fp32"),
    ):
        with pytest.raises(ValueError, match=message):
            ViLGPipeline.from_pretrained(folder, **options)
    for options, message in (
        (["--device", "tpu"], "expected cpu, gpu or gpu:N"),
        (["--device", "gpu:0"], "no support for GPUs"),
        (["--threads", "0"], "threads is 0"),
        (["--engine", "onnxruntime"], "with --onnx"),
    ):
        done = run_export("--checkpoint", tiny_model, "--out", tmp_path / "a", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    plain = tmp_path / "plain"
    assert run_export("--checkpoint", tiny_model, "--out", plain).returncode == 0
    with pytest.raises(ValueError, match="for Paddle Inference only"):
        ViLGPipeline.from_pretrained(plain, engine="onnxruntime")


def test_onnx_runtime_that_is_not_installed_is_said_when_it_is_loaded(exported, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install -r requirements-onnx\.txt, or choose the engine paddle"):
        ViLGPipeline.from_pretrained(exported, engine="onnxruntime")
    ViLGPipeline.from_pretrained(exported, engine="paddle")


def test_threads_are_those_that_were_asked_for():
    program = """
from ppvilg import runtime
runtime.set_threads(3)
import os
import paddle
print(runtime.threads(), os.environ["MKL_NUM_THREADS"], runtime.environment()["OMP_NUM_THREADS"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "3", "3"], done.stderr


class Recorded:
    """A config that remembers what it is asked for, since paddle for CPUs ignores what is for GPUs."""

    def __init__(self):
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_a_program_goes_where_paddle_computes(monkeypatch):
    found = {}
    for device in ("cpu", "gpu:0", "gpu:3"):
        monkeypatch.setattr(paddle, "get_device", lambda device=device: device)
        native(recorded := Recorded())
        found[device] = recorded.calls
    assert found["cpu"] == [("disable_mkldnn",)]
    assert found["gpu:0"] == [("enable_use_gpu", 256, 0), ("disable_mkldnn",)]
    assert found["gpu:3"] == [("enable_use_gpu", 256, 3), ("disable_mkldnn",)]
