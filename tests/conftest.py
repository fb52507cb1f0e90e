"""What tests share. ppvilg comes first everywhere, since importing it sets paddle's flags."""

import ppvilg  # noqa: F401  isort: skip

import json
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import paddle
import pytest
import yaml

from tests.helpers import run_tool
from tests.models import random_pipeline, random_scorer

# A busy machine is no fault: how long an example takes is not what is tested.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _seeded():
    paddle.seed(0)
    np.random.seed(0)


COLOURS = {"红": (255, 0, 0), "绿": (0, 160, 0), "蓝": (0, 0, 255), "黄": (255, 220, 0)}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder of 24 pictures 16x16 (a square of a colour at a place) with captions.jsonl, and a vocabulary."""
    folder = tmp_path_factory.mktemp("tiny_data")
    lines, characters = [], set()
    for i in range(24):
        name, colour = list(COLOURS.items())[i % 4]
        picture = np.full((16, 16, 3), 255, np.uint8)
        top, left = (i // 4) % 3 * 4, (i // 12) * 6
        picture[top : top + 8, left : left + 8] = colour[::-1]
        cv2.imwrite(str(folder / f"{i:02d}.png"), picture)
        caption = f"{name}色方块{'一二三四五六'[i // 4]}"
        characters.update(caption)
        lines.append(json.dumps({"file": f"{i:02d}.png", "caption": caption, "language": "zh"}, ensure_ascii=False))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *sorted(characters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_configs(tiny_data, tmp_path_factory) -> Path:
    """A folder with vqgan.yml, vilg.yml and vilg_e2e.yml for `tiny_data`, whose runs go to its runs/, and their bases: base.yml
    (data, training), tokens.yml (image tokenizer) and text.yml."""
    folder = tmp_path_factory.mktemp("tiny_configs")
    base = {
        "data": {"path": str(tiny_data), "image_size": 16, "validation_fraction": 0.25},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "learning_rate": 0.003,
            "warmup_steps": 2,
            "log_every": 1,
            "validate_every": 2,
            "save_every": 2,
        },
    }
    tokens = {
        "vqgan": {
            "channels": 8,
            "channel_multipliers": [1, 2],
            "res_blocks": 1,
            "attention_resolutions": [8],
            "latent_channels": 8,
            "patch_size": 2,
            "codebook": {"size": 16, "dim": 4, "normalize": True, "revive_after": 2},
        },
        "train": {"preview_every": 6, "preview_samples": 2},
    }
    text = {"text": {"vocabulary": str(tiny_data / "vocab.txt"), "vocabulary_size": 40, "max_length": 12}}
    runs = folder / "runs"
    vqgan = {"base": ["base.yml", "tokens.yml"], "task": "vqgan", "train": {"output": str(runs / "vqgan")}}
    vqgan["vqgan"] = {"loss": {"adversarial": 0.5, "adversarial_start": 3, "discriminator_layers": 1}}
    vilg = {"base": ["base.yml", "tokens.yml", "text.yml"], "task": "vilg"}
    vilg["transformer"] = {"layers": 2, "hidden": 16, "heads": 2, "dropout": 0.1}
    vilg["train"] = {"output": str(runs / "vilg"), "tokenizer": str(runs / "vqgan"), "gradient_accumulation_steps": 2}
    vilg["train"]["text_drop"] = 0.5
    e2e = {"base": "vilg.yml", "transformer": {"reconstructor": True}, "train": {"output": str(runs / "vilg_e2e")}}
    trees = {"base": base, "tokens": tokens, "text": text, "vqgan": vqgan, "vilg": vilg, "vilg_e2e": e2e}
    for name, tree in trees.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_runs(tiny_configs) -> Path:
    """The runs folder of `tiny_configs`, all trained by the tool."""
    for name in ("vqgan", "vilg", "vilg_e2e"):
        done = run_tool("train", "-c", tiny_configs / f"{name}.yml")
        assert done.returncode == 0, done.stderr
    return tiny_configs / "runs"


@pytest.fixture(scope="session")
def tiny_model(tiny_data, tmp_path_factory) -> Path:
    """A model folder with random weights for images 16x16 and the vocabulary of `tiny_data`."""
    paddle.seed(1)
    folder = tmp_path_factory.mktemp("tiny_model") / "vilg"
    random_pipeline(tiny_data / "vocab.txt").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_e2e(tiny_data, tmp_path_factory) -> Path:
    """As `tiny_model`, with a reconstructor."""
    paddle.seed(2)
    folder = tmp_path_factory.mktemp("tiny_model_e2e") / "vilg"
    random_pipeline(tiny_data / "vocab.txt", reconstructor=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dual_encoder(tiny_data, tmp_path_factory) -> Path:
    """The folder of a dual encoder with random weights for the same images and vocabulary."""
    paddle.seed(3)
    folder = tmp_path_factory.mktemp("tiny_dual_encoder") / "dual_encoder"
    random_scorer(tiny_data / "vocab.txt").save_pretrained(folder)
    return folder
