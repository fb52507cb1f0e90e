"""How tests run the tools and read what a run leaves."""

import json
import subprocess
import sys
from pathlib import Path


def run_tool(name: str, *arguments, stdin: str | None = None) -> subprocess.CompletedProcess:
    """Run tools/{name}.py as a user would."""
    command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)


def losses(run: Path) -> list[dict]:
    """The training lines of a run's metrics."""
    return metrics(run, "train")


def metrics(run: Path, group: str) -> list[dict]:
    """The lines of one group of a run's metrics."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line["group"] == group]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
