"""Every command of docs/weights.md runs, on small random weights in files of the published names."""

import json
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from ppvilg.config import CodebookConfig, VQGANConfig, load_config
from ppvilg.convert import llamagen, rudalle
from ppvilg.evaluation.inception import weight_shapes as inception_shapes
from ppvilg.folder import ImageTokenizerConfig, PipelineConfig, read_config
from ppvilg.vqgan.lpips import weight_shapes as lpips_shapes
from tests.convert import test_llamagen, test_rudalle
from tests.convert.test_artist import VOCABULARY, paddlenlp, paddlenlp_tokenizer, random_artist  # noqa: F401
from tests.convert.test_rudalle import original_model  # noqa: F401
from tests.convert.test_taming import SMALL, write_original
from tests.test_docs import FEWER, ROOT, commands

torch = pytest.importorskip("torch")
CODES = 96
FOLDERS = {"configs/finetune_artist.yml": "models/artist", "configs/finetune_rudalle_zh.yml": "models/rudalle"}


@pytest.fixture
def workspace(tmp_path, tiny_data, paddlenlp, original_model, monkeypatch) -> Path:  # noqa: F811
    """What the page says is needed."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("my_pictures", "data/own"):
        shutil.copytree(tiny_data, tmp_path / name)
        (tmp_path / name / "vocab.txt").unlink()
    write_original(tmp_path, False, SMALL, dim=24, size=CODES)  # last.ckpt, model.yaml
    write_artist(tmp_path / "pai-painter-base-zh", paddlenlp)
    (tmp_path / "gumbel").mkdir()
    write_original(tmp_path / "gumbel", True, SMALL | {"resolution": 64}, 24, test_rudalle.CODES)
    (tmp_path / "gumbel" / "last.ckpt").rename(tmp_path / "vqgan.gumbelf8-sber.model.ckpt")
    torch.save(test_rudalle.build(original_model).state_dict(), tmp_path / "pytorch_model_v3.bin")
    shutil.copyfile(test_rudalle.BPE, tmp_path / "bpe.model")
    codebook = CodebookConfig(test_rudalle.CODES, 24, learning="gumbel")
    network = VQGANConfig(SMALL["ch"], SMALL["ch_mult"], 2, SMALL["attn_resolutions"], 24, codebook=codebook)
    monkeypatch.setattr(rudalle, "IMAGE_TOKENIZER", ImageTokenizerConfig(network, 64))
    monkeypatch.setattr(rudalle, "HEADS", {test_rudalle.TINY[:2]: test_rudalle.TINY.heads})
    test_llamagen.write(tmp_path / "vq_ds16_c2i.pt", [1, 2], 32, 32, size=CODES)
    monkeypatch.setattr(llamagen, "_IMAGE_SIZE", 16)
    write_my_config(tmp_path / "my_config.yml", tiny_data)
    vgg = {name: torch.zeros(shape) for name, shape in lpips_shapes().items()}
    torch.save({name: array for name, array in vgg.items() if name.startswith("f")}, tmp_path / "vgg16-397923af.pth")
    torch.save({name: array for name, array in vgg.items() if name.startswith("l")}, tmp_path / "vgg.pth")
    network = {name: torch.zeros(shape) for name, shape in inception_shapes().items()}
    torch.save(network, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_artist(folder: Path, paddlenlp) -> None:  # noqa: F811
    tokenizer = paddlenlp_tokenizer(VOCABULARY, CODES)
    original = random_artist(paddlenlp, CODES + len(tokenizer), 12 + 8 * 8, 2, 32, 4, 0.2)
    original.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def write_my_config(path: Path, data: Path) -> None:
    """A transformer over LlamaGen's tokens."""
    tree = {
        "task": "vilg",
        "data": {"path": "my_pictures", "image_size": 16},
        "vqgan": asdict(VQGANConfig(32, [1, 2], 2, [8], 32, codebook=CodebookConfig(CODES, 8, normalize=True))),
        "text": {"vocabulary": str(data / "vocab.txt"), "vocabulary_size": 40, "max_length": 12},
        "transformer": {"layers": 1, "hidden": 16, "heads": 2},
    }
    path.write_text(json.dumps(tree), "utf-8")  # JSON is YAML


def smaller(words: list[str]) -> list[str]:
    """The same command for what the small files hold, and with fewer steps."""
    values = []
    if "-c" in words and (folder := FOLDERS.get(words[words.index("-c") + 1])):
        model, vqgan = read_config(folder, PipelineConfig).transformer, read_config(f"{folder}/tokenizer", ImageTokenizerConfig)
        values += [f"transformer.{key}={getattr(model, key)}" for key in ("layers", "hidden", "heads")]
        values += [f"vqgan={json.dumps(asdict(vqgan.vqgan))}", f"data.image_size={vqgan.image_size}"]
        values += [f"text.vocabulary_size={max(model.text_vocab_size, 200)}", f"text.max_length={model.max_text_length}"]
    if words[0] == "tools/train.py":
        values += ["data.validation_fraction=0.25", *(f"train.{value}" for value in [*FEWER, "preview_samples=2"])]
    return [*words, *(word for value in values for word in ("-o", value))]


def test_commands_run(workspace, monkeypatch, capfd):
    for words in commands("docs/weights.md"):
        words = smaller(words)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        assert ended.value.code == 0, (words, capfd.readouterr().err[-2000:])
    expected = ["artist", "inception.safetensors", "llamagen_f16", "lpips.safetensors", "rudalle", "vqgan_f16"]
    assert sorted(path.name for path in (workspace / "models").iterdir()) == expected
    for run in ("artist", "rudalle_zh", "rudalle_zh_all"):
        assert not read_config(f"runs/{run}", PipelineConfig).writes_texts
    assert "the next image" in capfd.readouterr().out


def test_the_configs_are_of_the_published_models():
    """Theirs are the sizes that the page names."""
    from ppvilg.plan.shapes import parameter_counts

    artist, large = "configs/finetune_artist.yml", ["transformer.layers=24", "transformer.hidden=1024", "transformer.heads=16"]
    malevich = load_config("configs/finetune_rudalle_zh.yml", ["text.vocabulary_size=16512"])
    configs = {"143M": load_config(artist), "379M": load_config(artist, large), "1.3B": malevich}
    page = (ROOT / "docs" / "weights.md").read_text("utf-8")
    for millions, config in configs.items():
        count = sum(parameter_counts(config).values())
        assert millions == (f"{count / 1e9:.1f}B" if count > 1e9 else f"{count / 1e6:.0f}M")
        assert millions in page
