"""Runs that train an adapter: what is frozen, what is written, and how it is read back."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from ppvilg import ViLGPipeline
from ppvilg.config import load_config
from ppvilg.data.images import load_image
from ppvilg.folder import merge
from ppvilg.lora import apply_adapter, load_adapter
from ppvilg.train import train
from ppvilg.train.trainer import Trainer
from tests.helpers import losses, run_tool
from tests.models import random_pipeline

RANK, TARGETS = 2, ["query", "value", "down", "head"]
PROMPT = "红色方块一"


@pytest.fixture(scope="module")
def config(tiny_configs, tiny_runs) -> Path:
    """Of a run that trains an adapter to the run `vilg`."""
    tree = {"base": "vilg.yml", "lora": {"rank": RANK, "alpha": 8, "targets": TARGETS}}
    tree["train"] = {"output": str(tiny_runs / "lora"), "init_from": str(tiny_runs / "vilg"), "tokenizer": None}
    tree["train"]["learning_rate"] = 0.03
    path = tiny_configs / "lora.yml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    return path


@pytest.fixture(scope="module")
def lora_run(config) -> Path:
    """That run, finished."""
    done = run_tool("train", "-c", config)
    assert done.returncode == 0, done.stderr
    return Path(load_config(config).train.output)


def weights(pipe: ViLGPipeline) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in pipe.model.state_dict().items()}


def assert_equal_weights(found: ViLGPipeline, expected: ViLGPipeline, atol: float = 0):
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=atol, rtol=0, err_msg=name)


def test_checkpoints_hold_the_adapter_alone(lora_run, tiny_runs):
    base = load_file(lora_run / "base" / "model.safetensors")
    start = load_file(tiny_runs / "vilg" / "checkpoints" / "step-00000006" / "average.safetensors")
    assert base.keys() == start.keys()
    assert all((base[name] == start[name]).all() for name in base), "frozen"
    found = load_file(lora_run / "checkpoints" / "step-00000006" / "average.safetensors")
    assert len(found) == 2 * (2 * 3 + 2)
    assert found["blocks.1.mlp.down.lora.a"].shape == (64, RANK)
    assert np.abs(found["blocks.1.mlp.down.lora.b"]).max() > 0
    moments = load_file(lora_run / "checkpoints" / "step-00000006" / "optimizer-model.safetensors")
    assert {name.rpartition("/")[0] for name in moments} == set(found)


def test_a_run_is_read_with_its_adapter_and_merges(lora_run, tiny_runs, tmp_path):
    pipe = ViLGPipeline.from_pretrained(lora_run)
    base = load_file(lora_run / "base" / "model.safetensors")
    found = load_file(lora_run / "checkpoints" / "step-00000006" / "average.safetensors")
    name = "head.image"
    expected = base[f"{name}.weight"] + 8 / RANK * found[f"{name}.lora.a"] @ found[f"{name}.lora.b"]
    np.testing.assert_allclose(weights(pipe)[f"{name}.weight"], expected, atol=1e-6)
    assert_equal_weights(
        ViLGPipeline.from_pretrained(lora_run, lora_scale=0.0), ViLGPipeline.from_pretrained(tiny_runs / "vilg")
    )
    pipe.save_pretrained(tmp_path / "saved")
    assert_equal_weights(ViLGPipeline.from_pretrained(tmp_path / "saved"), pipe)
    merge(lora_run, tmp_path / "merged")
    assert_equal_weights(ViLGPipeline.from_pretrained(tmp_path / "merged"), pipe, atol=1e-6)


def test_an_adapter_beside_its_model_writes_what_the_merged_one_writes(lora_run, tiny_runs):
    pipe, merged = ViLGPipeline.from_pretrained(tiny_runs / "vilg"), ViLGPipeline.from_pretrained(lora_run, lora_scale=0.5)
    before = [np.asarray(image) for image in pipe(PROMPT, 4).images]
    adapted = pipe.with_adapter(lora_run, 0.5)
    found, expected = ([np.asarray(image) for image in each(PROMPT, 4).images] for each in (adapted, merged))
    np.testing.assert_array_equal(found, expected)
    assert adapted.caption(expected[0], num_beams=2) == merged.caption(expected[0], num_beams=2)
    np.testing.assert_array_equal([np.asarray(image) for image in pipe(PROMPT, 4).images], before)
    assert not np.array_equal(before, expected)


def test_the_adapters_folder_belongs_to_its_base(lora_run, tiny_runs, tiny_data, tiny_model, tmp_path):
    for folder in (lora_run / "adapter", lora_run):
        pipe = ViLGPipeline.from_pretrained(tiny_runs / "vilg", lora=folder, lora_scale=0.5)
        assert_equal_weights(pipe, ViLGPipeline.from_pretrained(lora_run, lora_scale=0.5))
    assert json.loads((lora_run / "adapter" / "config.json").read_text())["model_type"] == "lora"
    with pytest.warns(UserWarning, match="other weights"):
        ViLGPipeline.from_pretrained(tiny_model, lora=lora_run)
    wider = random_pipeline(tiny_data / "vocab.txt", reconstructor=True)
    with pytest.raises(ValueError, match=r"another model, its head\.reconstructor\.\S+ is not there, this model's \["):
        apply_adapter(wider.model, lora_run)
    shutil.copytree(lora_run / "adapter", tmp_path / "damaged")
    arrays = load_adapter(lora_run)[1]
    save_file({name: array for name, array in arrays.items() if "head" not in name}, tmp_path / "damaged" / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks head\.image\.lora\.a and 3 more"):
        load_adapter(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        ("vilg", {"lora_scale": 0.5}, "has no adapter"),
        ("vilg", {"lora": "vilg"}, "type `vilg`, but one of type `lora`"),
        ("vilg", {"lora": "missing"}, "there is no folder"),
        ("vilg", {"lora": "lora", "lora_scale": float("nan")}, "lora_scale is nan"),
        ("lora", {"lora": "lora"}, "an adapter of its own"),
        ("lora/adapter", {}, "type `lora`, but one of type `vilg`"),
    ],
)
def test_what_does_not_go_together_is_refused(lora_run, tiny_runs, model, arguments, said):
    arguments = {name: tiny_runs / value if name == "lora" else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=said):
        ViLGPipeline.from_pretrained(tiny_runs / model, **arguments)


def test_tools_take_an_adapter(lora_run, tiny_runs, tmp_path):
    adapter = ["--lora", lora_run / "adapter", "--lora-scale", 0.5]
    command = [sys.executable, "deploy/export.py", "--checkpoint", tiny_runs / "vilg", *adapter, "--out", tmp_path / "export"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    origin = json.loads((tmp_path / "export" / "manifest.json").read_text())["made_from"]["lora"]
    assert origin["scale"] == 0.5
    expected = ViLGPipeline.from_pretrained(lora_run, lora_scale=0.5)(PROMPT, seed=3, output_type="np").images[0]
    exported = ViLGPipeline.from_pretrained(tmp_path / "export")
    np.testing.assert_array_equal(exported(PROMPT, seed=3, output_type="np").images[0], expected)
    drawn = tmp_path / "drawn"
    done = run_tool(
        "infer", "--mode", "t2i", "--model", tiny_runs / "vilg", *adapter, "--text", PROMPT, "--seed", 3, "--output", drawn
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(load_image(drawn / "0000.png", 16), expected)
    with pytest.raises(ValueError, match="export the model with --lora"):
        ViLGPipeline.from_pretrained(tmp_path / "export", lora=lora_run)


def test_a_resumed_run_is_bit_equal_and_needs_no_init_from(config, lora_run, tmp_path, tiny_runs, monkeypatch):
    start = tmp_path / "start"
    shutil.copytree(tiny_runs / "vilg", start)
    again = tmp_path / "again"
    settings = load_config(config, [f"train.output={again}", f"train.init_from={start}"])
    step = Trainer.train_step

    def interrupted(trainer, batches):
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert not train(settings)
    shutil.rmtree(start)
    assert train(settings, resume=True)
    assert losses(again) == losses(lora_run)
    for name in ("model", "average", "optimizer-model"):
        ours, theirs = (load_file(run / "checkpoints" / "step-00000006" / f"{name}.safetensors") for run in (again, lora_run))
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours)
    for name in ("config.json", "model.safetensors"):
        assert (again / "adapter" / name).read_bytes() == (lora_run / "adapter" / name).read_bytes()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.init_from=null", r"train\.init_from: None does not fit: expected the folder of the model that lora updates"),
        ("lora.rank=17", r"lora\.rank: 17 does not fit: expected at most transformer\.hidden = 16"),
        ("lora.layers=[0,2]", r"lora\.layers: \[0, 2\] does not fit: expected numbers below transformer\.layers = 2"),
        ("transformer.tie_embeddings=true", r"lora\.targets.*expected no head"),
        ("lora.targets=[queries]", r"lora\.targets\.0: 'queries' does not fit"),
        ("lora.rang=4", r"did you mean `rank`"),
    ],
)
def test_configs_that_cannot_be_are_refused(config, override, said):
    with pytest.raises(ValueError, match=said):
        load_config(config, [override])


def test_an_adapter_needs_a_whole_model_to_start_from(config, lora_run, tiny_runs, tmp_path):
    for overrides, said in (
        (["transformer.layers=3"], r"train\.init_from: .* has no blocks\.2\.\S+ for this model: lora trains no new weights"),
        ([f"train.init_from={lora_run}"], r"train\.init_from: .* holds an adapter and its base: merge them first"),
    ):
        with pytest.raises(ValueError, match=said):
            train(load_config(config, [f"train.output={tmp_path / 'run'}", *overrides]))
        assert not (tmp_path / "run").exists()


def test_one_direction_leaves_the_other_heads_update_at_nothing(config, tmp_path):
    run = tmp_path / "run"
    assert train(load_config(config, [f"train.output={run}", "train.img2txt_weight=0.0", "train.steps=3"]))
    arrays = load_adapter(run)[1]
    assert not arrays["head.text.lora.b"].any()
    assert arrays["head.image.lora.b"].any()


def test_another_adapter_does_not_go_on(config, lora_run):
    for override, said in (("lora.rank=3", r"lora\.rank: 2"), ("lora=null", r"lora")):
        with pytest.raises(ValueError, match=f"was trained with {said}"):
            train(load_config(config, [override, "train.steps=8"]), resume=True)
