"""Starting from the weights of another run or model."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
import sentencepiece
import yaml
from paddle.nn import functional as F

from ppvilg.checkpoint import ShardedTensor, checkpoints, load_arrays, save_arrays, save_shards, weights_reader
from ppvilg.config import load_config
from ppvilg.export.write import write_export
from ppvilg.folder import merge
from ppvilg.model.vilg import ViLG
from ppvilg.pipeline import ViLGPipeline
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from ppvilg.train.init_from import init_from, with_image_tokenizer
from ppvilg.train.shards import named_tensors
from ppvilg.train.task import Task
from ppvilg.train.trainer import Trainer
from tests.helpers import losses, run_tool
from tests.models import random_pipeline


def started(path: Path, folder: Path, *overrides: str) -> tuple[Task, str]:
    """A task that starts from a folder, and the report."""
    config = with_image_tokenizer(load_config(path, [f"train.init_from={folder}", *overrides]))
    task = build_task(config, ParallelContext())
    return task, init_from(task, ParallelContext())


def counts(report: str) -> dict[str, tuple[int, ...]]:
    """How many tensors of each part were taken, fitted, are new, were left out."""
    lines = [re.match(r"  (.*?)" + r" +(\d+|-)" * 4, line).groups() for line in report.splitlines()[2:]]
    return {part.strip(): tuple(int(number.replace("-", "0")) for number in numbers) for part, *numbers in lines}


def weights(task: Task) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in named_tensors(task.modules["model"]).items()}


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("name", ["vqgan", "vilg", "vilg_e2e"])
def test_a_run_gives_its_averaged_weights_and_the_average_starts_from_them(tiny_configs, tiny_runs, name):
    task, report = started(tiny_configs / f"{name}.yml", tiny_runs / name, "train.seed=5")
    average = load_arrays(checkpoints(tiny_runs / name)[-1] / "average.safetensors")
    assert_equal(weights(task), average)
    trainer = Trainer(task.config, task)
    for key, value in trainer.ema.values.items():
        np.testing.assert_array_equal(value.numpy(), average[key], err_msg=key)
    assert trainer.step == 0
    assert not any(trainer.models["model"].state.optimizer_shards())
    assert all(found[1:] == (0, 0, 0) for found in counts(report).values())
    assert sum(found[0] for found in counts(report).values()) == len(average)


def test_a_merged_run_and_a_model_folder_give_the_same(tiny_configs, tiny_runs, tmp_path):
    merge(tiny_runs / "vilg", tmp_path / "merged")
    task, _ = started(tiny_configs / "vilg.yml", tmp_path / "merged", "train.tokenizer=null")
    assert_equal(weights(task), weights_reader(tiny_runs / "vilg").all())
    assert task.image_tokenizer == tmp_path / "merged" / "tokenizer"


def test_a_run_of_several_processes_needs_no_merging(tiny_configs, tiny_runs, tmp_path):
    shutil.copytree(tiny_runs / "vilg", tmp_path / "run")
    newest = checkpoints(tmp_path / "run")[-1]
    average = load_arrays(newest / "average.safetensors")
    (newest / "average.safetensors").unlink()
    for rank in range(2):
        parts = {name: ShardedTensor.split(np.split(a, 2)[rank], 0, rank, 2) for name, a in average.items()}
        save_shards(parts, newest, "average", rank, 2)
    task, _ = started(tiny_configs / "vilg.yml", tmp_path / "run")
    assert_equal(weights(task), average)


def test_the_tool_starts_a_run_and_resumes_it_without_the_source(tiny_configs, tiny_runs, tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(tiny_runs / "vilg", source)
    arguments = ["-c", tiny_configs / "vilg.yml", "-o", f"train.init_from={source}", "-o", f"train.output={run}"]
    done = run_tool("train", *arguments, "-o", "train.steps=3", "-o", "train.save_every=1", "-o", "train.keep_checkpoints=9")
    assert done.returncode == 0, done.stderr
    assert f"tensors from {source}" in done.stderr
    first, scratch = losses(run)[0], losses(tiny_runs / "vilg")
    assert first["loss"] < scratch[0]["loss"]
    assert first["learning_rate"] == scratch[0]["learning_rate"]
    shutil.rmtree(source)
    resumed = run_tool("train", *arguments, "-o", "train.steps=4", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "tensors from" not in resumed.stderr
    again = run_tool("train", *arguments, "-o", f"train.output={tmp_path / 'other'}")
    assert again.returncode == 2
    assert f"train.init_from: there is no folder {source}" in again.stderr


def test_an_export_is_refused(tiny_configs, tiny_runs, tmp_path):
    pipe = ViLGPipeline.from_pretrained(tiny_runs / "vilg")
    write_export(tmp_path / "export", pipe.model, pipe.vqgan, pipe.text_tokenizer, pipe.config, {})
    with pytest.raises(ValueError, match="is an export, whose weights are final"):
        started(tiny_configs / "vilg.yml", tmp_path / "export")


@pytest.fixture(scope="module")
def fuller_vocabulary(tiny_data, tmp_path_factory) -> Path:
    """The words of `tiny_data` in another order, without two of them and with three new ones."""
    words = (tiny_data / "vocab.txt").read_text("utf-8").split()
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "新", "[UNK]", *reversed(words[7:]), "[CLS]", "词", "[SEP]", "汇"]) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("name", ["vilg", "dual_encoder"])
def test_tokens_are_found_by_their_names(
    tiny_configs, tiny_runs, tiny_dual_encoder, tiny_data, fuller_vocabulary, tmp_path, name
):
    source, overrides, tables = tiny_runs / "vilg", [], {"embedding.text.weight": 0, "head.text.weight": 1}
    path = tiny_configs / "vilg.yml"
    if name == "dual_encoder":
        source, path, tables = tiny_dual_encoder, dual_encoder_config(tiny_configs, tmp_path), {"text_embedding.weight": 0}
    overrides = [f"text.vocabulary={fuller_vocabulary}", "text.vocabulary_size=48"]
    task, report = started(path, source, *overrides)
    drawn = weights(build_task(task.config, ParallelContext()))
    old_words = (tiny_data / "vocab.txt").read_text("utf-8").split()
    new_words = fuller_vocabulary.read_text("utf-8").split()
    old = weights_reader(source).all()
    for table, axis in tables.items():
        before, after, new = (np.moveaxis(arrays[table], axis, 0) for arrays in (old, weights(task), drawn))
        known = 0
        for i in range(48):
            word = new_words[i] if i < len(new_words) else None
            if word in old_words:
                np.testing.assert_array_equal(after[i], before[old_words.index(word)], err_msg=word)
                known += 1
            else:
                np.testing.assert_array_equal(after[i], new[i])
        assert f"{known} of {len(new_words)} tokens are known there" in report
    assert counts(report)["text tokens"] == (0, len(tables), 0, 0)


def dual_encoder_config(tiny_configs: Path, folder: Path) -> Path:
    """For the model of `tiny_dual_encoder`."""
    sizes = {"hidden": 16, "heads": 2, "image_layers": 1, "text_layers": 1, "patch_size": 4, "embedding": 8}
    tree = {"base": [str(tiny_configs / name) for name in ("base.yml", "text.yml")], "task": "dual_encoder"}
    (folder / "dual_encoder.yml").write_text(yaml.safe_dump(tree | {"dual_encoder": sizes}), "utf-8")
    return folder / "dual_encoder.yml"


def test_a_sentencepiece_model_takes_its_begin_and_end_from_ernie_s(tiny_configs, tiny_runs, tiny_data, tmp_path):
    captions = [json.loads(line)["caption"] for line in (tiny_data / "captions.jsonl").read_text("utf-8").splitlines()]
    (tmp_path / "text.txt").write_text("\n".join(captions * 5), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "text"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = ["text.tokenizer=sentencepiece", f"text.vocabulary={tmp_path / 'text.model'}", "text.vocabulary_size=60"]
    task, _ = started(tiny_configs / "vilg.yml", tiny_runs / "vilg", *model)
    old = weights_reader(tiny_runs / "vilg").read("embedding.text.weight")
    new, words = weights(task)["embedding.text.weight"], (tiny_data / "vocab.txt").read_text("utf-8").split()
    tokenizer = task.text_tokenizer
    for i, word in ((tokenizer.begin, "[CLS]"), (tokenizer.end, "[SEP]"), (tokenizer.tokens.index("红"), "红")):
        np.testing.assert_array_equal(new[i], old[words.index(word)])


@pytest.mark.parametrize("name", ["vilg", "dual_encoder"])
def test_positions_are_interpolated_or_kept(tiny_configs, tiny_runs, tiny_dual_encoder, tmp_path, name):
    source, path = tiny_runs / "vilg", tiny_configs / "vilg.yml"
    if name == "dual_encoder":
        source, path = tiny_dual_encoder, dual_encoder_config(tiny_configs, tmp_path)
    task, report = started(path, source, "data.image_size=24", "text.max_length=20")
    old, new, drawn = weights_reader(source).all(), weights(task), weights(build_task(task.config, ParallelContext()))
    text = "embedding.text_position.weight" if name == "vilg" else "text_position.weight"
    np.testing.assert_array_equal(new[text][:12], old[text])
    np.testing.assert_array_equal(new[text][12:], drawn[text][12:])
    assert "12 of 20 are known there" in report
    assert "4x4 interpolated to 6x6" in report

    def resized(grid: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
        return (
            F.interpolate(paddle.to_tensor(grid.transpose(2, 0, 1)[None]), sides, mode="bilinear")[0].numpy().transpose(1, 2, 0)
        )

    if name == "dual_encoder":
        grid = resized(old["patch_position.weight"].reshape(4, 4, -1), (6, 6))
        np.testing.assert_allclose(new["patch_position.weight"], grid.reshape(36, -1), atol=1e-6)
        return
    for table in ("embedding.row_position.weight", "embedding.column_position.weight"):
        np.testing.assert_allclose(new[table], resized(old[table][:, None], (6, 1))[:, 0], atol=1e-6)


def test_flat_positions_and_padding_tokens_keep_their_places(tiny_configs, tiny_runs, tiny_data, tmp_path):
    pipe = random_pipeline(tiny_data / "vocab.txt")
    options = {"image_positions": "flat", "text_padding": "positional", "head_bias": True}
    pipe.config = replace(pipe.config, transformer=replace(pipe.config.transformer, **options))
    pipe.model = ViLG(pipe.config.transformer)
    pipe.save_pretrained(tmp_path / "source")
    overrides = ["transformer.image_positions=flat", "text.padding=positional", "transformer.head_bias=true"]
    larger = ["data.image_size=24", "text.max_length=15"]
    task, report = started(tiny_configs / "vilg.yml", tmp_path / "source", "train.tokenizer=null", *overrides, *larger)
    old, new = weights_reader(tmp_path / "source").all(), weights(task)
    grid = resized(old["embedding.image_position.weight"].reshape(4, 4, -1), (6, 6)).reshape(36, -1)
    np.testing.assert_allclose(new["embedding.image_position.weight"], grid, atol=1e-6)
    words = len((tiny_data / "vocab.txt").read_text("utf-8").split())
    for name, axis in (("embedding.text.weight", 0), ("head.text.weight", 1), ("head.text.bias", 0)):
        before, after = np.moveaxis(old[name], axis, 0), np.moveaxis(new[name], axis, 0)
        np.testing.assert_array_equal(after[:words], before[:words])
        np.testing.assert_array_equal(after[25:37], before[28:40], err_msg="40 - 12 and 40 - 15 are the first paddings")
    assert counts(report)["text tokens"] == (0, 3, 0, 0)


def resized(grid: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """[h, w, hidden] -> [h', w', hidden]."""
    return F.interpolate(paddle.to_tensor(grid.transpose(2, 0, 1)[None]), sides, mode="bilinear")[0].numpy().transpose(1, 2, 0)


def test_layers_are_taken_by_their_number(tiny_configs, tiny_runs):
    more = ["transformer.layers=3", "transformer.attention.plan=[dense]", "transformer.reconstructor=true"]
    task, report = started(tiny_configs / "vilg.yml", tiny_runs / "vilg", *more)
    old, new = weights_reader(tiny_runs / "vilg").all(), weights(task)
    assert all((new[name] == old[name]).all() for name in old)
    drawn = weights(build_task(task.config, ParallelContext()))
    assert all((new[name] == drawn[name]).all() for name in new.keys() - old.keys())
    of_layer = len([name for name in old if name.startswith("blocks.0.")])
    assert counts(report)["blocks"] == (2 * of_layer, 0, of_layer, 0)
    assert counts(report)["reconstructor"][0] == 0
    _, report = started(tiny_configs / "vilg.yml", tiny_runs / "vilg_e2e", "transformer.layers=1")
    assert counts(report)["blocks"] == (of_layer, 0, 0, of_layer)
    assert counts(report)["reconstructor"][3] > 0


def test_another_image_tokenizer_makes_the_image_tokens_new(tiny_configs, tiny_runs, tmp_path):
    other = tmp_path / "other"
    merge(tiny_runs / "vqgan", other)
    arrays = load_arrays(other / "model.safetensors")

    def report_of(changed: str) -> str:
        save_arrays(arrays | {changed: arrays[changed] + 0.1}, other / "model.safetensors")
        task, report = started(tiny_configs / "vilg.yml", tiny_runs / "vilg", f"train.tokenizer={other}")
        old, drawn = weights_reader(tiny_runs / "vilg").all(), weights(build_task(task.config, ParallelContext()))
        expected = old if "the same image tokenizer" in report else drawn
        for name in ("embedding.image.weight", "head.image.weight"):
            np.testing.assert_array_equal(weights(task)[name], expected[name])
        return report

    assert counts(report_of("decoder.conv_out.bias"))["image tokens"] == (2, 0, 0, 0), "pictures differ, tokens do not"
    report = report_of("encoder.conv_in.bias")
    assert counts(report)["image tokens"] == (0, 0, 2, 0)
    assert f"train.tokenizer {other} is not that of {tiny_runs / 'vilg'}, which null takes" in report


def test_another_codebook_of_an_image_tokenizer_is_new(tiny_configs, tiny_runs):
    task, report = started(tiny_configs / "vqgan.yml", tiny_runs / "vqgan", "vqgan.codebook.size=24")
    old, new = weights_reader(tiny_runs / "vqgan").all(), weights(task)
    assert all((new[name] == old[name]).all() for name in old if not name.startswith("quantize."))
    assert new["quantize.embedding.weight"].shape == (24, 4)
    assert "16 codes there, 24 here" in report


@pytest.mark.parametrize(
    ("config", "source", "override", "said"),
    [
        ("vilg", "vilg", "transformer.hidden=32", r"transformer\.hidden: 16, but the config says 32"),
        ("vilg", "vilg", "transformer.heads=4", r"transformer\.heads: 2, but the config says 4"),
        ("vilg", "vilg", "transformer.tie_embeddings=true", r"transformer\.tie_embeddings: False, but the config says True"),
        ("vilg", "vqgan", "train.seed=1", "holds a model of type `vqgan`, but one of type `vilg`"),
        ("vqgan", "vilg", "train.seed=1", "holds a model of type `vilg`, but one of type `vqgan`"),
        ("vqgan", "vqgan", "vqgan.channels=16", r"vqgan\.channels: 8, but the config says 16"),
        ("vqgan", "vqgan", "vqgan.codebook.learning=ema", r"vqgan\.codebook\.learning: 'gradient', but the config says 'ema'"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_configs, tiny_runs, config, source, override, said):
    with pytest.raises(ValueError, match=said) as caught:
        started(tiny_configs / f"{config}.yml", tiny_runs / source, override)
    assert str(caught.value).startswith("train.init_from: ")
    assert "\n" not in str(caught.value)


def test_larger_pictures_are_trained_and_drawn_with_the_same_image_tokenizer(tiny_configs, tiny_runs, tmp_path):
    overrides = [
        "data.image_size=24",
        "train.tokenizer=null",
        f"train.output={tmp_path}",
        "train.steps=1",
        "train.warmup_steps=0",
    ]
    task, _ = started(tiny_configs / "vilg.yml", tiny_runs / "vilg", *overrides)
    shutil.copytree(task.image_tokenizer, tmp_path / "copy")  # which keeps the tokens
    task.image_tokenizer = tmp_path / "copy"
    assert Trainer(task.config, task).fit()
    image = ViLGPipeline.from_pretrained(tmp_path)("红色方块", output_type="np").images[0]
    assert image.shape == (24, 24, 3)
    with pytest.raises(ValueError, match="on a grid of 4x4, but the config asks for 16 on 6x6"):
        started(tiny_configs / "vilg_e2e.yml", tiny_runs / "vilg_e2e", *overrides)
