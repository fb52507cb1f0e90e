"""The benchmarks of data run, and their outputs are what they say."""

from ppvilg.benchmark.data import data_lines
from ppvilg.benchmark.data_scale import format_lines, scale_line, synthetic
from ppvilg.data.sources import open_source


def test_a_row_for_each_step(tiny_data, tiny_runs, tiny_dual_encoder):
    rows = data_lines(str(tiny_data), "all", 16, str(tiny_runs / "vqgan"), str(tiny_dual_encoder), 8)
    assert [row[:14].strip() for row in rows[-2:]] == ["image tokens", "similarity"]
    assert all(float(row[44:54]) > 0 for row in rows[1:])


def test_synthetic_rows_are_prepared_data(tmp_path):
    assert synthetic(tmp_path, 5000) == (tmp_path / "train-00000.arrow").stat().st_size
    source = open_source(tmp_path, "train")
    assert len(source) == 5000
    assert source.records[4999].captions == {"zh": ["第000004999张图片上的东西"]}
    assert source.tokens[[4999]].shape == (1, 64)


def test_scale_and_formats_are_measured(tmp_path):
    assert scale_line(5000, str(tmp_path)).split()[0] == "5,000"
    assert not list(tmp_path.iterdir())
    assert len(format_lines(5000)) >= 3
