"""What a forward pass keeps, and the training steps that are compared."""

from dataclasses import replace

import pytest

from ppvilg.benchmark.runner import run_alone
from ppvilg.benchmark.training import compare_training, dense, forward_bytes
from ppvilg.config import ViLGExperiment, VQGANExperiment, load_config

TINY = ["transformer.layers=2", "transformer.hidden=16", "transformer.heads=2", "text.vocabulary_size=23", "train.batch_size=8"]


@pytest.fixture
def config() -> ViLGExperiment:
    return load_config("configs/vilg_emoji.yml", TINY, ViLGExperiment)


def test_a_forward_pass_keeps_what_is_counted(config):
    """Without kernels for it: an MLP alone, counted by hand, is the difference between two widths of it."""
    of = replace(config, transformer=replace(config.transformer, hidden=64))
    wide = replace(of, transformer=replace(of.transformer, ffn_multiplier=8))
    rows = 2 * of.micro_batch * (of.text.max_length + of.image_tokens)
    narrow_bytes, wide_bytes = run_alone(forward_bytes, of), run_alone(forward_bytes, wide)
    assert narrow_bytes > 0
    per_value = (wide_bytes - narrow_bytes) / (2 * rows * 4 * 64)
    assert 4 <= per_value <= 8, "the GELU's input, and its output as well where the linear layer behind it keeps that"
    assert run_alone(forward_bytes, dense(of)) > narrow_bytes


def test_torch_dense_and_no_kernels_are_compared(config):
    pytest.importorskip("torch")
    timings = compare_training(config, ["torch", "dense", "no-kernels"], 1)
    assert [timing.name for timing in timings] == ["torch", "dense", "no-kernels", "ours"]
    assert [timing.repetitions[0].allocated is None for timing in timings] == [True, False, False, False]


def test_an_image_tokenizers_step():
    config = load_config("configs/vqgan_emoji.yml", ["train.batch_size=2", "vqgan.channels=32"], VQGANExperiment)
    assert [timing.name for timing in compare_training(config, [], 1)] == ["ours"]
    with pytest.raises(ValueError, match="compares transformers"):
        compare_training(config, ["dense"], 1)
