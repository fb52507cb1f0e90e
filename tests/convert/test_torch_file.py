"""Reading torch's files: what of them is run (nothing), and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ppvilg.convert.torch_file import read_torch

torch = pytest.importorskip("torch")


class ModelCheckpoint:
    """Stands for Lightning's own classes in a checkpoint; reading it must not build one."""

    def __init__(self, *_):
        raise AssertionError("the checkpoint's code was run")


class AttributeDict(dict):
    pass


def test_lightning_objects_in_a_checkpoint_are_passed_over(tmp_path):
    extra = {"callbacks": {ModelCheckpoint: {"best": 1.0}}, "path": Path("x")}
    torch.save({"epoch": 3, "state_dict": {"w": torch.zeros(1)}, **extra}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(read_torch(tmp_path / "last.ckpt")) == ["w"]


def test_objects_without_a_stand_in_are_named(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": AttributeDict(a=1)}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt can't be read .* from .*AttributeDict; if you trust it, save its"):
        read_torch(tmp_path / "x.ckpt")


class Attack:
    def __reduce__(self):
        return exec, ("raise AssertionError('the checkpoint's code was run')",)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Attack()}, tmp_path / "x.ckpt")
    assert list(read_torch(tmp_path / "x.ckpt")) == ["w"]


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        read_torch(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ckpt is not a torch checkpoint, or is damaged"):
        read_torch(tmp_path / "text.ckpt")


def test_checkpoints_of_old_torch(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_torch(tmp_path / "x.pth")["w"], [1, 1])


def test_without_torch_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-convert\.txt"):
        read_torch(tmp_path / "x.ckpt")
