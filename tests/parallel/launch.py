"""Starting several processes as a user does."""

import os
import subprocess
import sys
from pathlib import Path


def command(script: str, processes: int, logs: Path, *arguments) -> list[str]:
    """A script of tests/parallel with these arguments in some processes; a single one is started without the launcher."""
    if processes == 1:
        return [sys.executable, f"tests/parallel/{script}.py", *map(str, arguments)]
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(logs)]
    return [*launch, f"tests/parallel/{script}.py", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Without CUDA_VISIBLE_DEVICES, since the launcher fails on an empty one; one thread a process."""
    return {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}


def run(script: str, processes: int, logs: Path, *arguments, timeout: int = 240) -> subprocess.CompletedProcess:
    """Run it; what the processes wrote is in `logs`/workerlog.N, of which the first is printed."""
    started = command(script, processes, logs, *arguments)
    return subprocess.run(started, capture_output=True, text=True, timeout=timeout, env=environment(), check=False)


def train(processes: int, logs: Path, *arguments, timeout: int = 240) -> subprocess.CompletedProcess:
    """tools/train.py in some processes."""
    return run("train", processes, logs, *arguments, timeout=timeout)


def output(logs: Path) -> str:
    """What all processes wrote."""
    return "\n".join(f"{path.name}:\n{path.read_text('utf-8', 'replace')}" for path in sorted(logs.glob("workerlog.*")))
