"""A rank that is killed at any moment ends the job, costs no complete checkpoint, and the resumed run goes on as if nothing
had happened."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppvilg.checkpoint import CheckpointReader, checkpoint_state, checkpoints
from tests.helpers import losses
from tests.parallel import launch
from tests.parallel.conftest import ADAMW, overrides, settings_of

STEPS = 30
SETTINGS = settings_of(ADAMW) | {"train.steps": STEPS, "train.save_every": 1, "train.validate_every": STEPS}
FILES = ("model", "average", "optimizer-model")
LAYOUTS = [{"dp_degree": 2}, {"mp_degree": 2}, {"pp_degree": 2}, {"sharding_degree": 2, "sharding_stage": 2}]
# For each kill what is waited for, and within how many seconds after it the kill then comes.
MOMENTS = [("a save", 0.0), ("a save", 0.02), ("a step", 0.2), ("a save", 0.005), ("the start", 8.0)]


class Job:
    """A launched job of two processes, and the pids of its ranks as they appear."""

    def __init__(self, logs: Path, *arguments):
        self._logs = logs
        self._logs.mkdir(parents=True, exist_ok=True)
        with (logs / "launcher.log").open("w") as log:
            self._launcher = subprocess.Popen(
                launch.command("train", 2, logs, *arguments), stdout=log, stderr=subprocess.STDOUT, env=launch.environment()
            )
        self.ranks: dict[int, int] = {}

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error) -> None:
        """Nothing outlives a test, even one that fails."""
        self._launcher.terminate()  # it stops its children
        try:
            self._launcher.wait(60)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
        for pid in self.ranks.values():
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)

    def await_ranks(self) -> None:
        """Until the pids of both are known."""

        def both() -> bool:
            self.ranks |= _ranks_of(self._launcher.pid)
            return len(self.ranks) == 2

        self.until(both, 60)

    def until(self, true: Callable[[], object], seconds: float, pause: float = 0.01) -> None:
        """Look again and again; the job must still run."""
        deadline = time.monotonic() + seconds
        while not true():
            assert self._launcher.poll() is None, f"the job ended early: {self.said()}"
            assert time.monotonic() < deadline, f"waited too long: {self.said()}"
            time.sleep(pause)

    def kill(self, rank: int) -> None:
        os.kill(self.ranks[rank], signal.SIGKILL)

    def end(self, seconds: float) -> int:
        """The exit code, when the launcher and all its processes are gone."""
        deadline = time.monotonic() + seconds
        try:
            code = self._launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job goes on after {seconds} s, with ranks {self._living()}: {self.said()}")
        while self._living():
            assert time.monotonic() < deadline, f"the launcher left ranks {self._living()}: {self.said()}"
            time.sleep(0.01)
        return code

    def said(self) -> str:
        """What all its processes wrote."""
        return (self._logs / "launcher.log").read_text("utf-8", "replace") + launch.output(self._logs)

    def _living(self) -> list[int]:
        return [rank for rank, pid in self.ranks.items() if _alive(pid)]


def _status(pid: int) -> tuple[str, int]:
    """State and parent of a process; of one that is gone, X and 0."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


def _alive(pid: int) -> bool:
    return _status(pid)[0] not in "ZX"


def _ranks_of(launcher: int) -> dict[int, int]:
    """The pids of the launcher's children by rank, from when they run the test's script."""
    found = {}
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        if _status(pid)[1] != launcher:
            continue
        try:
            script = b"tests/parallel/train.py" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:3]
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((line for line in environment if line.startswith(b"PADDLE_TRAINER_ID=")), None)
        if script and rank:
            found[int(rank.partition(b"=")[2])] = pid
    return found


def newest(run: Path) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    found = checkpoints(run)
    return checkpoint_state(found[-1])["step"] if found else 0


def saving(run: Path) -> list[str]:
    """The checkpoints that are being written, or were when it ended."""
    folder = run / "checkpoints"
    return [name for name in os.listdir(folder) if name.endswith(".tmp")] if folder.is_dir() else []


def assert_same(folder: Path, other: Path) -> None:
    for name in FILES:
        ours, theirs = CheckpointReader(folder, name).all(), CheckpointReader(other, name).all()
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{folder} {name}: {key}")


def await_moment(job: Job, run: Path, start: int, moment: str, within: float, draw: random.Random) -> None:
    """One of the moments at which a rank is killed: a random one after the event, but within so many steps that are saved that
    the run is not over."""
    job.await_ranks()
    steps = draw.randint(1, 3)
    later = draw.uniform(0, within)
    if moment != "the start":
        job.until(lambda: newest(run) >= start + steps, 120)
    if moment == "a save":
        job.until(lambda: saving(run), 60, pause=0)
    began = time.monotonic()
    while time.monotonic() < began + later and newest(run) < start + steps + 2:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "_".join(f"{key}{value}" for key, value in layout.items()))
def test_ranks_are_killed_again_and_again(layout, layout_config, train_layout, tmp_path):
    whole = train_layout(layout, SETTINGS | {"train.keep_checkpoints": STEPS})
    parallel = {f"parallel.{key}": value for key, value in layout.items()}
    run = tmp_path / "run"
    arguments = ["-c", layout_config, *overrides(parallel | SETTINGS | {"train.keep_checkpoints": 2, "train.output": run})]
    draw = random.Random(str(layout))
    said = []
    for number, (moment, within) in enumerate(draw.sample(MOMENTS, len(MOMENTS))):
        start = newest(run)
        rank = draw.randrange(2)
        with Job(tmp_path / f"logs{number}", *arguments, *(["--resume"] if start else [])) as job:
            await_moment(job, run, start, moment, within, draw)
            before = newest(run)
            job.kill(rank)
            killed = time.monotonic()
            code = job.end(60)
            seconds = time.monotonic() - killed
        after = newest(run)
        said.append(f"rank {rank} killed in {moment}: {start} -> {before} -> {after}, left {saving(run)}, {seconds:.1f} s")
        print(said[-1])
        assert code, job.said()
        assert before <= after < STEPS
        for folder in checkpoints(run):
            assert_same(folder, whole / "checkpoints" / folder.name)

    resumed = train_layout(layout, SETTINGS | {"train.keep_checkpoints": 2}, tmp_path, resume=True)
    assert losses(resumed) == losses(whole), "\n".join(said)
    assert len(losses(resumed)) == STEPS
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (STEPS - 1, STEPS)], "no leftovers"
    assert_same(checkpoints(run)[-1], whole / "checkpoints" / f"step-{STEPS:08d}")
