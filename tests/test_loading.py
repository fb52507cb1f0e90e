"""Loading weights: in memory once, in the precision that is asked for, refused where the device cannot compute with it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import paddle
import pytest

from ppvilg.checkpoint import file_dtype, load_arrays, save_arrays
from ppvilg.folder import read_model, write_config
from ppvilg.model.vilg import ViLG
from ppvilg.pipeline import ViLGPipeline
from tests.models import VILG_CONFIG

PRINT_PEAK = """
import sys
import ppvilg
import paddle
from ppvilg.folder import PipelineConfig, read_config, read_model
from ppvilg.model.vilg import ViLG

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

folder = sys.argv[1]
before = status("VmRSS:")
model = read_model(lambda: ViLG(read_config(folder, PipelineConfig).transformer), folder)
print(status("VmHWM:") - before, sum(p.size for p in model.parameters()) * 4)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_in_memory_once(dtype, tmp_path, tiny_model):
    config = replace(ViLGPipeline.from_pretrained(tiny_model).config, styles={})
    config = replace(config, transformer=replace(VILG_CONFIG, layers=8, hidden=1024, heads=16, text_vocab_size=1000))
    with paddle.LazyGuard():
        shapes = {name: tensor.shape for name, tensor in ViLG(config.transformer).state_dict().items()}
    save_arrays({name: np.zeros(shape, dtype) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    write_config(config, tmp_path)
    done = subprocess.run([sys.executable, "-c", PRINT_PEAK, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, weights = map(int, done.stdout.split()[-2:])
    assert weights > 250e6
    assert peak < 1.25 * weights, (peak, weights)


@pytest.fixture
def as_float16(tiny_model, tmp_path):
    """The tiny model's folder with its weights in float16."""
    folder = tmp_path / "model"
    pipeline = ViLGPipeline.from_pretrained(tiny_model)
    pipeline.save_pretrained(folder)
    arrays = load_arrays(folder / "model.safetensors")
    save_arrays({name: array.astype("float16") for name, array in arrays.items()}, folder / "model.safetensors")
    return folder


def test_a_cpu_computes_with_float32(as_float16, tiny_model):
    original, pipeline = ViLGPipeline.from_pretrained(tiny_model), ViLGPipeline.from_pretrained(as_float16)
    assert file_dtype(as_float16 / "model.safetensors") == "float16"
    expected = original.model.state_dict()
    for name, tensor in pipeline.model.state_dict().items():
        assert tensor.dtype == paddle.float32
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy().astype("float16").astype("float32"))
    assert len(pipeline("红色方块").images) == 1
    assert paddle.get_default_dtype() == "float32"
    for precision in ("fp16", "bf16"):
        with pytest.raises(ValueError, match=f"precision is {precision}, but on a CPU Paddle computes with float32 only"):
            ViLGPipeline.from_pretrained(as_float16, precision=precision)
    with pytest.raises(ValueError, match="precision is 'fp8': expected auto, fp32, bf16, fp16"):
        ViLGPipeline.from_pretrained(as_float16, precision="fp8")


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", "float16"), ("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_a_gpu_keeps_the_precision(precision, expected, as_float16, monkeypatch):
    """Only the loading can be seen here: on a CPU, which keeps such weights but does not compute with them."""
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    config = ViLGPipeline.from_pretrained(as_float16, precision="fp32").config
    model = read_model(lambda: ViLG(config.transformer), as_float16, precision)
    stored = load_arrays(as_float16 / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == getattr(paddle, expected)
        np.testing.assert_allclose(tensor.astype("float32").numpy(), stored[name].astype("float32"), rtol=2**-8)
    assert paddle.get_default_dtype() == "float32"
