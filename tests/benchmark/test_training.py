"""What a forward pass keeps, and the training steps that are compared."""

from dataclasses import replace

import pytest

from ppvilg.benchmark.runner import run_alone
from ppvilg.benchmark.training import compare_training, forward_bytes
from ppvilg.config import ViLGExperiment, VQGANExperiment, load_config

TINY = ["transformer.layers=2", "transformer.hidden=16", "transformer.heads=2", "text.vocabulary_size=23", "train.batch_size=8"]


@pytest.fixture
def config() -> ViLGExperiment:
    return load_config("configs/vilg_emoji.yml", TINY, ViLGExperiment)


def test_a_forward_pass_keeps_what_is_counted(config, monkeypatch):
    """The MLP by hand, as the difference between two widths of it."""
    of = replace(config, transformer=replace(config.transformer, hidden=64))
    wide = replace(of, transformer=replace(of.transformer, ffn_multiplier=8))
    rows = 2 * of.micro_batch * (of.text.max_length + of.image_tokens)
    kept = run_alone(forward_bytes, of)
    assert kept > 0
    of_mlp = 2 * rows * 4 * 64 * 4  # GELU's input and output of two layers, float32
    assert run_alone(forward_bytes, wide) - kept == pytest.approx(2 * of_mlp, rel=0.02)
    monkeypatch.setenv("PPVILG_CPU_KERNELS", "0")
    assert run_alone(forward_bytes, of) > kept, "paddle's functions keep the attention's probabilities"


def test_torch_dense_and_no_kernels_are_compared(config):
    pytest.importorskip("torch")
    timings = compare_training(config, ["torch", "dense", "no-kernels"], 1)
    assert [timing.name for timing in timings] == ["torch", "dense", "no-kernels", "ours"]
    assert [timing.repetitions[0].allocated is None for timing in timings] == [True, False, False, False]


def test_an_image_tokenizers_step(tiny_data):
    small = [
        "train.batch_size=2",
        "vqgan.channels=32",
        "data.image_size=16",
        f"data.path={tiny_data}",
        "data.keep={}",
        "data.validation_fraction=0.25",
    ]
    config = load_config("configs/vqgan_emoji.yml", small, VQGANExperiment)
    assert [timing.name for timing in compare_training(config, [], 1)] == ["ours"]
    with pytest.raises(ValueError, match="compares transformers"):
        compare_training(config, ["dense"], 1)
