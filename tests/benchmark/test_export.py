"""The engines that are compared write the same pictures."""

import pytest

from ppvilg.benchmark.export import Engines, start_line
from tests.transformer.test_model import CONFIG


def test_dygraph_and_the_export_are_timed_and_equal(tmp_path):
    timings, lines = Engines.of(CONFIG, tmp_path, ["dygraph", "native"]).time(2, 1)
    assert [timing.name for timing in timings] == ["dygraph", "native"]
    assert lines[-1] == "greedy tokens that are equal: dygraph 100.00%, native 100.00%"


def test_onnx_runtime_gives_the_same_tokens(tmp_path):
    pytest.importorskip("onnxruntime")
    _, lines = Engines.of(CONFIG, tmp_path, ["dygraph", "onnx"]).time(3, 1)
    assert lines[-1].endswith("onnx 100.00%")


def test_a_start_is_timed(tiny_runs):
    assert "first picture" in start_line(str(tiny_runs / "vilg"), "红色方块")
