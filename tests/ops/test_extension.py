"""Building the C++ kernels, and doing without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppvilg.ops import extension

CALL = """
import warnings
import numpy as np
import ppvilg
import paddle
from ppvilg import ops
from ppvilg.model.mask import AttentionMask, Direction
from ppvilg.ops import extension
print(extension.available())
rng = np.random.default_rng(0)
x, w, b = (paddle.to_tensor(rng.standard_normal(s).astype("float32")) for s in ([2, 7, 6], [6, 6], [6]))
y = ops.gelu(ops.linear(ops.layer_norm(x, b, b, 1e-5), w, b))
heads = y.reshape([2, 7, 2, 3])
y = ops.sparse_attention(heads, heads, heads, [AttentionMask(3, 2, 2, Direction.TEXT_TO_IMAGE)], paddle.ones([2, 7], "bool"))
losses = ops.cross_entropy(y, paddle.zeros([2, 7, 2], "int64"))
print(" ".join(f"{v:.5f}" for v in [*y.numpy().ravel()[:9], losses.sum().item()]))
"""


def start(**variables: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", CALL], env=os.environ | variables, stdout=pipe, stderr=pipe, text=True)


def finished(process: subprocess.Popen) -> tuple[list[str], str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.splitlines(), err


def test_turned_off():
    (available, values), err = finished(start(PPVILG_CPU_KERNELS="0"))
    assert (available, err) == ("False", "")
    (available, others), _ = finished(start())
    assert others == values


def test_without_a_compiler(tmp_path):
    """One warning says why, and everything works."""
    variables = {"XDG_CACHE_HOME": str(tmp_path), "CXX": "no-such-compiler"}
    (available, _), err = finished(start(**variables))
    assert available == "False"
    assert "the C++ kernels for the CPU cannot be used (no-such-compiler is missing); paddle's slower functions" in err
    assert err.count("Warning") == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "ppvilg").write_text("a file")
    (available, _), err = finished(start(XDG_CACHE_HOME=str(tmp_path)))
    assert available == "False"
    assert err.count("Warning") == 1


def test_a_source_that_does_not_compile(tmp_path, monkeypatch):
    (tmp_path / "ops.cc").write_text("#error no\n")
    monkeypatch.setattr(extension, "_SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    extension.available.cache_clear()
    with pytest.warns(UserWarning, match="#error no"):
        assert not extension.available()
    extension.available.cache_clear()
    assert [p.name for p in (tmp_path / "cache" / "ppvilg").iterdir()] == ["lock"]


@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path):
    if not extension.available():
        pytest.skip("the C++ kernels cannot be built here")
    processes = [start(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    (first, first_err), (second, second_err) = map(finished, processes)
    assert first[0] == "True"
    assert first == second
    assert (first_err + second_err).count("Building") == 1
    (folder,) = (p for p in (tmp_path / "ppvilg").iterdir() if p.is_dir())
    assert not list(Path(folder).glob("lock"))
