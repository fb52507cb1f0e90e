"""A run's folder: what is refused before a byte of it changes, and what an interruption leaves."""

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from ppvilg import ViLGPipeline, checkpoint
from ppvilg.config import load_config
from ppvilg.train import build_task, train
from ppvilg.train.context import ParallelContext
from ppvilg.train.trainer import Trainer
from tests.helpers import contents, losses


@pytest.fixture
def place(tiny_runs, tiny_data, tmp_path) -> Path:
    """A folder with a run and copies of all that it was trained with, and with others of equal shape: vocabulary, tokenizer."""
    shutil.copytree(tiny_runs / "vilg", tmp_path / "run")
    shutil.copytree(tiny_data, tmp_path / "data")
    for name in ("vqgan", "other_vqgan"):
        shutil.copytree(tiny_runs / "vqgan", tmp_path / name)
    shutil.rmtree(tmp_path / "other_vqgan" / "checkpoints" / "step-00000006")
    lines = (tiny_data / "vocab.txt").read_text("utf-8").splitlines()
    (tmp_path / "other.txt").write_text("\n".join([*lines[:5], *reversed(lines[5:])]) + "\n", "utf-8")
    return tmp_path


def resumed(tiny_configs: Path, place: Path, *overrides: str):
    given = [f"data.path={place}/data", f"train.tokenizer={place}/vqgan", f"text.vocabulary={place}/data/vocab.txt"]
    return load_config(tiny_configs / "vilg.yml", [f"train.output={place}/run", "train.steps=8", *given, *overrides])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("transformer.hidden=32", "transformer.hidden: 16, but the config says 32"),
        ("transformer.attention.plan=[dense]", "transformer.attention.plan"),
        ("text.max_length=13", "text.max_length"),
        ("text.vocabulary={}/other.txt", r"text.vocabulary: .*text.vocabulary={}/run/text"),
        ("train.tokenizer={}/other_vqgan", r"train.tokenizer: .*train.tokenizer={}/run/tokenizer"),
        ("data.path=no/such/folder", "no/such/folder"),
        ("data.validation_fraction=0.5", "^data.validation_fraction: the training data"),
        ("data.keep={{file: [x]}}", "data.keep"),
        ("train.seed=1", "^train.seed: the training data"),
    ],
)
def test_resuming_with_something_else_is_refused_and_leaves_every_byte(tiny_configs, place, override, said):
    before = contents(place)
    with pytest.raises(ValueError, match=said.format(place)):
        train(resumed(tiny_configs, place, override.format(place)), resume=True)
    assert contents(place) == before


@pytest.mark.parametrize("changed", ["a caption", "a picture", "a picture less"])
def test_other_data_in_the_same_folder_are_refused(tiny_configs, place, changed):
    captions, picture = place / "data" / "captions.jsonl", place / "data" / "00.png"
    if changed == "a caption":
        captions.write_text(captions.read_text("utf-8").replace("红色方块一", "红色方块二"), "utf-8")
    elif changed == "a picture":
        picture.write_bytes(picture.read_bytes() + b"\0")
    else:
        picture.unlink()
    before = contents(place)
    with pytest.raises(ValueError, match=r"^data.path: the (training|validation) data in .*/data are not those"):
        train(resumed(tiny_configs, place), resume=True)
    assert contents(place) == before


def test_a_run_outlives_what_it_was_made_from(tiny_configs, tiny_runs, place):
    """Vocabulary and tokenizer are gone, the data are copied: newer files, in another folder and another order."""
    tokenizer, vocabulary = tiny_runs / "no_more", place / "no_more.txt"
    config = place / "run" / "config.yml"
    text = config.read_text("utf-8").replace(str(tiny_runs / "vqgan"), str(tokenizer))
    config.write_text(text.replace(load_config(config).text.vocabulary, str(vocabulary)), "utf-8")
    captions = place / "data" / "captions.jsonl"
    captions.write_text("".join(reversed(captions.read_text("utf-8").splitlines(keepends=True))), "utf-8")
    for file in (place / "data").iterdir():
        os.utime(file)
    assert train(resumed(tiny_configs, place, f"train.tokenizer={tokenizer}", f"text.vocabulary={vocabulary}"), resume=True)
    assert [line["step"] for line in losses(place / "run")] == list(range(1, 9))
    ViLGPipeline.from_pretrained(place / "run")
    with pytest.raises(ValueError, match="no_less"):
        train(resumed(tiny_configs, place, f"train.tokenizer={place}/no_less"), resume=True)


def test_a_runs_own_copy_that_was_damaged_is_refused(tiny_configs, place):
    vocabulary = place / "run" / "text" / "vocab.txt"
    vocabulary.write_text((place / "other.txt").read_text("utf-8"), "utf-8")
    with pytest.raises(ValueError, match=r"text\.vocabulary"):
        train(resumed(tiny_configs, place, f"text.vocabulary={vocabulary}"), resume=True)


def trainer_of(tiny_configs, place: Path) -> Trainer:
    config = resumed(tiny_configs, place)
    trainer = Trainer(config, build_task(config, ParallelContext()))
    trainer.resume()
    return trainer


def test_ctrl_c_in_the_middle_of_saving_leaves_every_byte(tiny_configs, place, monkeypatch):
    trainer = trainer_of(tiny_configs, place)
    before = contents(place)
    trainer.step = 7
    written, save = [], checkpoint.save_file

    def interrupted(arrays, path, *more):
        written.append(path)
        save(arrays, path, *more)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert len(written) == 2
    assert contents(place) == before


def test_a_termination_signal_in_the_middle_of_saving_lets_it_end(tiny_configs, place, monkeypatch):
    config = resumed(tiny_configs, place, "train.steps=9", "train.save_every=1")
    save = checkpoint.save_file

    def signalled(*arguments):
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save_file", signalled)
    assert not train(config, resume=True), "it ends after the step that follows"
    saved = [path.name for path in (place / "run" / "checkpoints").iterdir()]
    assert sorted(saved) == ["step-00000007", "step-00000008"]
    assert checkpoint.checkpoint_state(checkpoint.checkpoints(place / "run")[-1])["step"] == 8


def test_files_are_for_whom_the_umask_says(tiny_runs, tiny_model):
    for folder in (tiny_runs, tiny_model):
        for path in folder.rglob("*"):
            expected = 0o777 if path.is_dir() else 0o666
            assert stat.S_IMODE(path.stat().st_mode) == expected & ~umask(), path


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("output", "said"),
    [("{}/other.txt", "other.txt is a file"), ("{}/other.txt/run", "other.txt is a file"), ("{}/model", "holds a model")],
)
def test_a_run_does_not_go_where_it_cannot(tiny_configs, tiny_model, place, output, said):
    shutil.copytree(tiny_model, place / "model")
    before = contents(place)
    for resume in (False, True):
        with pytest.raises(ValueError, match=said):
            train(resumed(tiny_configs, place, f"train.output={output.format(place)}", "data.path=no/such"), resume)
    with pytest.raises(ValueError, match="--resume"):  # before the data are read
        train(resumed(tiny_configs, place, "data.path=no/such"))
    assert contents(place) == before


def test_inputs_are_known_by_name(tiny_runs):
    inputs = json.loads((tiny_runs / "vilg" / "inputs.json").read_text("utf-8"))
    assert set(inputs) == {"data.train", "data.validation", "text.vocabulary", "train.tokenizer"}
