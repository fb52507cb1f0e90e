"""tools/convert.py: every kind of weights by its name, and mistakes in one line."""

import inspect
import re

import pytest

from ppvilg.convert import KINDS
from tests.helpers import run_tool


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_what_its_function_reads(kind):
    done = run_tool("convert", kind, "--help")
    assert done.returncode == 0, done.stderr
    *sources, out = inspect.signature(KINDS[kind]).parameters
    assert f"{kind} [-h] --out OUT {' '.join(sources).upper()}" in " ".join(done.stdout.split())
    assert out == "out"


def test_every_kind_is_in_the_help():
    done = run_tool("convert", "--help")
    assert [line.split()[0] for line in done.stdout.splitlines() if re.match(r"    \w", line)] == list(KINDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["taming", "none.ckpt", "none.yaml", "--out", "OUT/new"], "error: cannot read none.yaml: No such file or directory"),
        (["taming", "none.ckpt", "none.yaml", "--out", "OUT"], "exists already: give a new name"),
        (["lpips", "vgg16.pth", "--out", "OUT/new"], "the following arguments are required: LPIPS"),
        (["dalle", "x.pt", "--out", "OUT/new"], "invalid choice: 'dalle' (choose from 'artist', "),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    done = run_tool("convert", *(word.replace("OUT", str(tmp_path)) for word in arguments))
    assert (done.returncode, message in done.stderr.splitlines()[-1]) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())
