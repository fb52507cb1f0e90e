"""Every command of the README and of the documents runs, with fewer steps; links and pictures exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEWER = ["steps=2", "warmup_steps=1", "batch_size=2", "validation_samples=2", "preview_samples=2"]


def commands(document: str) -> list[list[str]]:
    """The words of each `python tools/...` command in the document's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0].endswith("python")]


@pytest.mark.parametrize("document", ["README.md", "docs/your-own-data.md"])
def test_commands_run(document, tiny_data, tmp_path):
    for name in ("configs", "tools", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_pictures").mkdir()
    for path in tiny_data.iterdir():
        if path.name != "vocab.txt":
            (tmp_path / "my_pictures" / path.name).write_bytes(path.read_bytes())
    found = commands(document)
    # The README shows how to use a model before it shows how to train one.
    found.sort(key=lambda words: words[0] == "tools/infer.py")
    assert {words[0] for words in found} >= {"tools/train.py", "tools/infer.py"}
    for words in found:
        if words[0] == "tools/train.py":
            words = [*words, *(word for value in FEWER for word in ("-o", f"train.{value}"))]
        if words[0] == "tools/train.py" and "data.path=my_pictures" in words:
            words += ["-o", "data.validation_fraction=0.25"]  # of 24 pictures
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr[-2000:])


def test_commands_for_several_processes_run(tmp_path):
    for name in ("configs", "tools", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    fewer = [word for value in FEWER for word in ("-o", f"train.{value}")]
    tokenizer = ["tools/train.py", "-c", "configs/vqgan_emoji.yml"]
    found = commands("docs/scaling.md")
    assert [words[0] for words in found] == ["-m", "tools/merge_checkpoint.py", "tools/plan.py"]
    for words in [tokenizer, *found]:
        words = [*words, *fewer] if "tools/train.py" in words else words
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr[-2000:])
    assert (tmp_path / "runs" / "vilg_emoji_merged" / "model.safetensors").is_file()


def test_python_example_runs(tiny_runs):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL).group(1)
    # The tiny model knows other words.
    example = example.replace("runs/vilg_emoji", str(tiny_runs / "vilg"))
    example = example.replace("Noto风格的红苹果", "红色方块").replace("立体风格的玫瑰", "蓝色方块")
    names = {}
    exec(example, names)
    assert len(names["pictures"]) == 4
    assert isinstance(names["caption"], str)


@pytest.mark.parametrize("document", ["README.md", "README_zh.md", *sorted(map(str, Path("docs").glob("*.md")))])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_configs_of_the_documents_exist():
    for document in ("README.md", "README_zh.md", "docs/how-it-works.md", "docs/your-own-data.md"):
        for name in re.findall(r"configs/\w+\.yml", (ROOT / document).read_text("utf-8")):
            assert (ROOT / name).is_file(), name
