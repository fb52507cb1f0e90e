"""Every command of the README and of the documents runs, with fewer steps; links and pictures exist."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
FEWER = ["steps=2", "warmup_steps=1", "batch_size=2", "validation_samples=2"]
NO_JAVA = os.environ | {"PATH": ""}
"""METEOR, which takes seconds to start, is left out where there is no Java."""
LESS = ["samples=3", "best_of=[1,2]", "blur=[0.0]"]


def commands(document: str) -> list[list[str]]:
    """The words of each `python tools/...` command in the document's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0].endswith("python")]


def run(words: list[str], folder: Path) -> None:
    """Run one command in a folder, with less to do; a server is asked whether it is well, and stopped."""
    if words[0] == "tools/train.py":
        previews = [] if "configs/dual_encoder_emoji.yml" in words else ["preview_samples=2"]
        words = [*words, *(word for value in [*FEWER, *previews] for word in ("-o", f"train.{value}"))]
    if words[0] == "tools/eval.py" and any(word.startswith("configs/eval_") for word in words):
        words = [*words, *(word for value in LESS for word in ("-o", value))]
    if words[0] == "tools/build_questions.py":
        words = [*words, "--limit", "8"]
    if words[:2] == ["tools/eval.py", "vqa"]:
        words = [*words, "--questions", "4"]
    if "configs/caption_emoji.yml" in words:
        words = [*words, "-o", "data.keep={subgroup: [sky-weather], style: [noto]}"]
    if words[0] == "deploy/serve.py":
        serve(words, folder)
        return
    if "ray.address=auto" in words:  # a Ray of its own instead of a cluster
        words = [*words, "-o", "ray.address=null"]
    own = os.environ if "engine=ray" in words else NO_JAVA  # Ray starts its workers through the shell
    done = subprocess.run([sys.executable, *words], cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr[-2000:])


def serve(words: list[str], folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, *words, "--port", str(port)], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as server:
        for line in server.stderr:
            if "startup complete" in line:
                break
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:  # it listens a moment later
            assert client.get(f"http://127.0.0.1:{port}/healthz").json() == {"status": "ok"}
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


@pytest.fixture(scope="module")
def workspace(tiny_data, tmp_path_factory) -> Path:
    """A copy of the project in which the README's commands have run, those that train first."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("configs", "tools", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()  # where a tool writes questions
    (folder / "data" / "emoji").symlink_to(ROOT / "data" / "emoji")
    (folder / "my_pictures").mkdir()
    for path in tiny_data.iterdir():
        if path.name != "vocab.txt":
            (folder / "my_pictures" / path.name).write_bytes(path.read_bytes())
    found = sorted(commands("README.md"), key=lambda words: words[0] != "tools/train.py")
    tools = {"tools/train.py", "tools/infer.py", "tools/eval.py", "deploy/export.py", "deploy/serve.py"}
    assert {words[0] for words in found} == tools
    for words in found:
        run(words, folder)
    return folder


def test_commands_of_the_readme_leave_what_it_says(workspace):
    assert (workspace / "output" / "grid.png").is_file()
    assert (workspace / "runs" / "vilg_emoji" / "eval" / "unseen_style" / "report.html").is_file()
    assert (workspace / "export" / "vilg_emoji" / "manifest.json").is_file()
    assert (ROOT / "README_zh.md").read_text("utf-8").count("\n.venv/bin/python") == len(commands("README.md"))


@pytest.mark.parametrize(
    "document", ["docs/your-own-data.md", "docs/fine-tuning.md", "docs/evaluation.md", "docs/deploy.md", "docs/data.md"]
)
def test_commands_of_documents_run(document, workspace):
    found = commands(document)
    assert found
    if document == "docs/evaluation.md":
        for name in ("predictions", "answers"):
            (workspace / f"{name}.jsonl").write_text('{"id": 1, "text": "红苹果"}\n')
        for name in ("references", "human_answers"):
            (workspace / f"{name}.jsonl").write_text('{"id": 1, "texts": ["青苹果"]}\n')
        for name in ("real_pictures", "drawn_pictures"):
            shutil.copytree(workspace / "my_pictures", workspace / name)
        other = workspace / "runs" / "vilg_emoji_e2e" / "eval" / "unseen_style"
        shutil.copytree(workspace / "runs" / "vilg_emoji" / "eval" / "unseen_style", other)
        shutil.rmtree(workspace / "runs" / "dual_encoder_emoji")
        shutil.rmtree(workspace / "runs" / "vilg_emoji" / "eval")
    if document == "docs/fine-tuning.md":
        shutil.rmtree(workspace / "runs" / "own_pictures")
        (workspace / "described_by_people.jsonl").write_text('{"image": "00.png", "texts": ["红色方块"]}\n')
    if document == "docs/deploy.md":
        shutil.rmtree(workspace / "export")
    for words in found:
        run(words, workspace)


def test_commands_for_several_processes_run(tmp_path):
    for name in ("configs", "tools", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    fewer = [word for value in [*FEWER, "preview_samples=2"] for word in ("-o", f"train.{value}")]
    tokenizer = ["tools/train.py", "-c", "configs/vqgan_emoji.yml"]
    found = commands("docs/scaling.md")
    assert [words[0] for words in found] == ["-m", "tools/merge_checkpoint.py", "tools/plan.py"]
    for words in [tokenizer, *found]:
        words = [*words, *fewer] if "tools/train.py" in words else words
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr[-2000:])
    assert (tmp_path / "runs" / "vilg_emoji_merged" / "model.safetensors").is_file()


def test_python_example_runs(tiny_runs, tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL).group(1)
    # The tiny model knows other words.
    example = example.replace("runs/vilg_emoji", str(tiny_runs / "vilg"))
    example = example.replace("Noto风格的红苹果", "红色方块").replace("立体风格的玫瑰", "蓝色方块")
    monkeypatch.chdir(tmp_path)  # it saves a model
    names = {}
    exec(example, names)
    assert len(names["images"]) == len(names["captions"]) == 4
    assert all(isinstance(caption, str) for caption in names["captions"][0])
    assert len(names["partial"]) == 1
    assert (tmp_path / "models" / "vilg_emoji" / "config.json").is_file()


@pytest.mark.parametrize("document", ["README.md", "README_zh.md", *sorted(map(str, Path("docs").glob("*.md")))])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_configs_of_the_documents_exist():
    for document in ("README.md", "README_zh.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        for name in re.findall(r"configs/\w+\.yml", (ROOT / document).read_text("utf-8")):
            assert (ROOT / name).is_file(), name
