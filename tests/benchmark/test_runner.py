"""Competitors run in turns in processes of their own, and what the table says of them."""

import os
import threading
import time
from functools import partial

import numpy as np
import paddle
import pytest

from ppvilg.benchmark.runner import Competitor, Repetition, Timing, compare, run_alone, table
from ppvilg.runtime import threads


def timing(name: str, seconds: list[float], allocated: int | None) -> Timing:
    return Timing(name, [Repetition(s, 1.5, allocated, 300 * 2**20, None) for s in seconds], 8, "things")


def test_speed_is_the_median_of_each_rounds_ratio():
    text = table([timing("first", [1.0, 2.0, 4.0], 2**20), timing("second", [0.5, 0.5, 4.0], None)])
    header, _, first, second = text.splitlines()
    assert header == f"{threads()} threads in each process, {len(os.sched_getaffinity(0))} cores, 3 rounds"
    assert first.endswith("1.5     1.0 MB    300 MB  1.00 (1.00 to 1.00)")
    assert second.endswith("-    300 MB  2.00 (1.50 to 3.00)"), "2, 4 and 1 times as fast"
    assert "16.00 things/s" in second


def note(path):
    """A run that says in a file that it ran."""
    return lambda: path.open("a").write(f"{os.getpid()} {os.environ.get('KIND')}\n")


def test_competitors_run_in_turns_in_processes_of_their_own(tmp_path):
    path = tmp_path / "calls"
    competitors = [Competitor(name, note, (path,), {"KIND": name}) for name in "ab"]
    timings = compare(competitors, 3, 1, "calls")
    lines = path.read_text("utf-8").split("\n")[:-1]
    assert [line.split()[1] for line in lines] == ["a", "b"] * 4, "the first of each warms up"
    assert len({line.split()[0] for line in lines}) == 2
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert "KIND" not in os.environ


def spin(path):
    """A thread that counts on as long as it may, as OpenMP's do for a while; returns when it has gone on."""
    counted = [0]

    def count() -> None:
        while True:
            counted[0] += 1
            path.write_text(str(time.monotonic()), "utf-8")

    def run() -> None:
        before = counted[0]
        while counted[0] == before:
            time.sleep(0.001)

    threading.Thread(target=count, daemon=True).start()
    return run


def watch(path):
    """Whether the time in a file stands still while this runs."""

    def run() -> bool:
        before = path.read_text("utf-8")
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            if path.read_text("utf-8") != before:
                return False
        return True

    return run


def test_the_others_stand_still_while_one_runs(tmp_path):
    path = tmp_path / "clock"
    _, watching = compare([Competitor("spin", spin, (path,)), Competitor("watch", watch, (path,))], 2, 1, "")
    assert all(repetition.result for repetition in watching.repetitions)


def test_processes_have_the_users_threads_and_import_only_what_they_need():
    """Paddle's import has set OMP_NUM_THREADS to 1 in this process."""
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert run_alone(partial, os.getenv, "OMP_NUM_THREADS") in (None, str(threads()))
    assert run_alone(partial, eval, "'paddle' in __import__('sys').modules") is False


def grow():
    def run() -> None:
        kept = paddle.zeros([1000, 1000])
        for _ in range(3):
            kept = kept + 1

    return run


def fill():
    return lambda: np.ones([1000, 1000]).sum()


def test_memory():
    paddles, numpys = compare([Competitor("paddle", grow), Competitor("numpy", fill)], 1, 1, "")
    assert paddles.repetitions[0].allocated == pytest.approx(8e6, rel=0.1), "what is allocated at once"
    assert numpys.repetitions[0].allocated == 0
    assert numpys.repetitions[0].resident > 50e6, "libraries included"


def refuse():
    raise ValueError("a library is not installed")


def die():
    os._exit(3)


def test_what_cannot_run():
    with pytest.raises(ValueError, match="a library is not installed"):
        run_alone(refuse)
    with pytest.raises(ValueError, match="the process of die ended"):
        run_alone(die)
