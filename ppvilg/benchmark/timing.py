"""Timing of several things against each other."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from paddle.base import core


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, what each of them made, and the memory it needed."""

    name: str
    seconds: list[float]
    made: int
    unit: str
    memory: float | None
    """Most bytes that a repetition had allocated at once, above what stood before; None where paddle does not know."""


def allocated() -> int:
    """Bytes that paddle's allocator has given out on the CPU."""
    return core.host_memory_stat_current_value("Allocated", 0)


def peak_of(run: Callable[[], object]) -> int:
    """Most bytes allocated at once while something runs, above what stood before."""
    before = allocated()
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    run()
    return core.host_memory_stat_peak_value("Allocated", 0) - before


_REST = 0.3  # seconds before each run beside a foreign library: paddle's idle threads keep a core busy for that long


def interleaved(
    runs: dict[str, Callable[[], object]], repetitions: int, made: int, unit: str, foreign: str | None = None
) -> list[Timing]:
    """Each of `runs` once in every round, so that what else the machine does falls on all alike; one round more to warm up.

    `foreign` is the run that uses another library than paddle, whose memory paddle's allocator does not see.
    """
    memory = {name: peak_of(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            if foreign in runs:
                time.sleep(_REST)
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return [Timing(name, seconds[name], made, unit, None if name == foreign else memory[name]) for name in runs]


def table(timings: list[Timing]) -> str:
    """A row for each: median and quartiles, rate, memory, and speed relative to the first (median of each round's ratio)."""
    lines = [f"{'':22} {'median':>9} {'quartiles':>19} {'rate':>20} {'memory':>10}  speed"]
    for timing in timings:
        low, median, high = quartiles(timing.seconds)
        speed = statistics.median(a / b for a, b in zip(timings[0].seconds, timing.seconds, strict=True))
        memory = "-" if timing.memory is None else f"{timing.memory / 2**20:.0f} MB"
        rate = f"{timing.made / median:.2f} {timing.unit}/s"
        spread = f"{low:.4f} to {high:.4f}"
        lines.append(f"{timing.name:22} {median:7.4f} s {spread:>19} {rate:>20} {memory:>10}  {speed:.2f}")
    return "\n".join(lines)


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of a single value three times that."""
    return tuple(statistics.quantiles(seconds, n=4)) if len(seconds) > 1 else (seconds[0],) * 3
