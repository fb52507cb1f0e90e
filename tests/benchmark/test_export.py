"""The engines that are compared generate the same images."""

import pytest

from ppvilg.benchmark.export import compare_export, start_line, step_bytes
from ppvilg.config import ViLGExperiment, load_config
from ppvilg.model.config import vilg_config
from ppvilg.model.vilg import ViLG

TINY = ["transformer.layers=2", "transformer.hidden=16", "transformer.heads=2", "text.vocabulary_size=23", "text.max_length=9"]


@pytest.fixture
def config() -> ViLGExperiment:
    return load_config("configs/vilg_emoji.yml", [*TINY, "data.image_size=32", "vqgan.codebook.size=11"], ViLGExperiment)


def test_dygraph_and_the_export_are_timed_and_equal(config):
    timings, lines = compare_export(config, 2, [], 1)
    assert [timing.name for timing in timings] == ["dygraph", "native"]
    assert lines[0].startswith("dygraph: a step takes")
    assert lines[-1] == "greedy tokens that are equal: dygraph 100.00%, native 100.00%"


def test_onnx_runtime_gives_the_same_tokens(config):
    pytest.importorskip("onnxruntime")
    _, lines = compare_export(config, 3, ["onnx"], 1)
    assert lines[-1].endswith("onnx 100.00%")


def test_a_step_of_one_sequence_beside_the_memory_s_speed(config):
    _, lines = compare_export(config, 1, [], 1)
    assert lines[-2].startswith("greedy tokens")
    assert lines[-1].startswith("a step reads 0 MB of weights")
    model = ViLG(vilg_config(config))
    names = [name for name in model.state_dict() if name.startswith("blocks.") and "weight" in name and "norm" not in name]
    layers = sum(4.0 * model.state_dict()[name].size for name in names)
    assert step_bytes(config) == pytest.approx(layers + 4 * 16 * 11, rel=0.05)


def test_a_start_is_timed(tiny_runs):
    assert "first image" in start_line(str(tiny_runs / "vilg"), "红色方块")
