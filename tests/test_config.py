"""Configs: what is accepted, what is refused and how it is said."""

import dataclasses
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

from ppvilg.config import Config, load_config, save_config
from ppvilg.errors import UserError
from ppvilg.transformer.model import ViLG

CONFIGS = sorted(Path("configs").glob("*.yml"))


def write(folder: Path, name: str, **tree) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return path


def test_defaults_and_round_trip(tmp_path):
    config = load_config(write(tmp_path, "a.yml", task="vilg"))
    assert config == Config(task="vilg")
    save_config(config, tmp_path / "saved.yml")
    assert load_config(tmp_path / "saved.yml") == config
    saved = yaml.safe_load((tmp_path / "saved.yml").read_text("utf-8"))
    assert saved.keys() == {field.name for field in dataclasses.fields(Config)}


def test_inheritance_and_overrides(tmp_path):
    write(tmp_path, "base.yml", task="vilg", train={"steps": 5000, "seed": 7}, data={"keep": {"style": ["a"]}})
    (tmp_path / "sub").mkdir()
    child = write(tmp_path, "sub/child.yml", base="../base.yml", train={"seed": 8}, data={"keep": {"concept": ["b"]}})
    config = load_config(child, ["train.learning_rate=0.5", "text.vocabulary=x.txt"])
    assert (config.train.steps, config.train.seed, config.train.learning_rate) == (5000, 8, 0.5)
    assert config.data.keep == {"concept": ["b"]}, "a mapping of the user's replaces its base's"
    assert config.text.vocabulary == "x.txt"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("transformer.layrs=3", ["transformer.layrs", "did you mean `layers`"]),
        ("trian.steps=3", ["trian", "did you mean `train`"]),
        ("train.steps=many", ["train.steps", "'many'", "integer"]),
        ("train.steps=true", ["train.steps", "True", "integer"]),
        ("train.learning_rate=1e-4", ["train.learning_rate", "'1e-4'", "1.0e-4"]),
        ("train.steps=0", ["train.steps", "0", "greater than 0"]),
        ("vqgan.codebook.learning=magic", ["vqgan.codebook.learning", "'magic'", "'ema'"]),
        ("transformer.heads=5", ["transformer.heads", "5", "divisor of transformer.hidden"]),
        ("data.image_size=100", ["data.image_size", "100", "multiple of f"]),
        ("train.accumulate=5", ["train.accumulate", "5", "divisor of train.batch_size"]),
        ("train.warmup_steps=200000", ["train.warmup_steps", "fewer than train.steps"]),
        ("vqgan.loss.perceptual=1.0", ["vqgan.loss.perceptual", "perceptual_weights"]),
        ("text.max_length=2", ["text.max_length", "at least 3"]),
        ("train.steps", ["section.key=value"]),
        ("train.steps=[", ["not valid YAML"]),
    ],
)
def test_refusals_name_key_value_and_expectation(tmp_path, override, parts):
    path = write(tmp_path, "a.yml", task="vilg", transformer={"hidden": 1024})
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    assert all(part in str(caught.value) for part in [*parts, "-o"]), str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals_name_the_file_that_set_the_key(tmp_path):
    write(tmp_path, "base.yml", task="vilg", train={"steps": "x"})
    child = write(tmp_path, "child.yml", base="base.yml", train={"seed": 1})
    with pytest.raises(UserError, match=r"base\.yml: train\.steps"):
        load_config(child)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "task: vilg\nbase: 3\n", "base: self.yml\n", "train: {steps: 5}\n"])
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "self.yml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"self\.yml"):
        load_config(path)
    with pytest.raises(UserError, match="missing"):
        load_config(tmp_path / "missing.yml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load(path):
    load_config(path)


# Layers x (12 h^2 + 13 h), the tables, the head and the last norm, counted by hand in docs/how-it-works.md.
@pytest.mark.parametrize(("name", "billions"), [("vilg_300m.yml", 0.3), ("vilg_10b.yml", 9.7)])
def test_parameter_counts_without_allocating(name, billions):
    config = load_config(f"configs/{name}")
    with paddle.LazyGuard():
        model = ViLG(config)
    counted = sum(int(np.prod(p.shape)) for p in model.parameters())
    h, layers = config.transformer.hidden, config.transformer.layers
    text, codes = config.text.vocabulary_size, config.vqgan.codebook.size
    tables = (2 * text + 2 * codes + 1 + config.text.max_length + sum(config.grid) + 4) * h
    assert counted == layers * (12 * h * h + 13 * h) + tables + 2 * h
    assert layers * 12 * h * h / 1e9 == pytest.approx(billions, rel=0.05)
