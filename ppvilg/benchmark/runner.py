"""Competitors against each other, each in a process of its own.

Rounds are interleaved: in each round every competitor runs once, so that what else the machine does falls on all alike. While
one runs, the others are stopped by a signal: OpenMP's threads spin for a while after their work, and would hold it back.
"""

import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from ppvilg.runtime import environment, threads


@dataclass(frozen=True)
class Competitor:
    """What runs in a new process: `build(*arguments)` makes a function there, which is then called once for each repetition."""

    name: str
    build: Callable[..., Callable[[], object]]
    """A function of a module, which is all that the process imports."""
    arguments: tuple = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set for this process."""


@dataclass(frozen=True)
class Repetition:
    """What a process says of one repetition."""

    seconds: float
    cores: float
    """How many cores were busy on average: seconds of CPU time per second."""
    allocated: int | None
    """Most bytes that paddle's allocator had given out at once, above what stood before; None without paddle."""
    resident: int
    """Most bytes of physical memory that the process has had since its start, libraries included."""
    result: object
    """What the function returned."""


@dataclass(frozen=True)
class Timing:
    """A competitor's repetitions, and how many units each of them makes."""

    name: str
    repetitions: list[Repetition]
    made: int
    unit: str

    @property
    def seconds(self) -> list[float]:
        """Of each repetition."""
        return [repetition.seconds for repetition in self.repetitions]


def compare(competitors: list[Competitor], repetitions: int, made: int, unit: str) -> list[Timing]:
    """Run every competitor once to warm up, then once in each round.

    Raises `ValueError` that one of them raises while it builds, and where a process ends too early.
    """
    with ExitStack() as processes:
        started = [processes.enter_context(_process(competitor)) for competitor in competitors]
        rounds = [[run() for run in started] for _ in range(repetitions)]
    columns = zip(competitors, zip(*rounds, strict=True), strict=True)
    return [Timing(competitor.name, list(found), made, unit) for competitor, found in columns]


def run_alone(build: Callable[..., Callable[[], object]], *arguments) -> object:
    """What `build(*arguments)()` returns in a process of its own, called a second time."""
    [timing] = compare([Competitor(build.__name__, build, arguments)], 1, 1, "")
    return timing.repetitions[0].result


@contextmanager
def _process(competitor: Competitor) -> Iterator[Callable[[], Repetition]]:
    """A process that has built and warmed up, as a function that makes it run once more."""
    context = multiprocessing.get_context("spawn")
    connection, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, competitor.build, competitor.arguments))
    before = dict(os.environ)
    _set_environment(environment() | dict(competitor.environment))
    process.start()
    _set_environment(before)
    other_end.close()

    def run() -> Repetition:
        os.kill(process.pid, signal.SIGCONT)
        connection.send(None)
        try:
            answer = connection.recv()
        except (EOFError, ConnectionError):
            raise ValueError(f"the process of {competitor.name} ended: see its message above") from None
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    try:
        run()
        yield run
    finally:
        process.kill()
        process.join()


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _serve(connection: Connection, build: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    """A competitor's process: answer each message with a repetition until the other end closes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what converters print is no part of the table
    try:
        run = build(*arguments)
    except ValueError as error:
        connection.send(error)
        return
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        allocated = Allocated() if "paddle" in sys.modules else None
        cpu, began = time.process_time(), time.perf_counter()
        result = run()
        seconds = time.perf_counter() - began
        cores = (time.process_time() - cpu) / seconds
        connection.send(Repetition(seconds, cores, allocated and allocated.peak(), peak_resident(), result))


class Allocated:
    """What paddle's allocator has given out on the CPU since this object was made."""

    def __init__(self):
        from paddle.base import core

        self._core = core
        self._before = core.host_memory_stat_current_value("Allocated", 0)
        core.host_memory_stat_reset_peak_value("Allocated", 0)

    def now(self) -> int:
        """Bytes that are given out now, above those at the beginning."""
        return self._core.host_memory_stat_current_value("Allocated", 0) - self._before

    def peak(self) -> int:
        """Most bytes that were given out at once, above those at the beginning."""
        return self._core.host_memory_stat_peak_value("Allocated", 0) - self._before


def peak_resident() -> int:
    """Most bytes of physical memory that this process has had."""
    # Not getrusage, whose peak begins with that of the process that started this one.
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM")) * 1024


def table(timings: list[Timing]) -> str:
    """A row for each: seconds (median and quartiles), rate, busy cores, memory, and the speed relative to the first: median and
    quartiles of each round's ratio."""
    rounds = len(timings[0].seconds)
    header = f"{'':22} {'median':>9} {'quartiles':>19} {'rate':>20} {'cores':>5} {'allocated':>10} {'peak RSS':>9}  "
    lines = [f"{threads()} threads in each process, {len(os.sched_getaffinity(0))} cores, {rounds} rounds"]
    lines.append(f"{header}speed (quartiles)")
    for timing in timings:
        low, median, high = quartiles(timing.seconds)
        slow, speed, fast = quartiles([a / b for a, b in zip(timings[0].seconds, timing.seconds, strict=True)])
        allocated = [repetition.allocated for repetition in timing.repetitions]
        memory = "-" if None in allocated else f"{max(allocated) / 2**20:.1f} MB"
        rate = f"{timing.made / median:.2f} {timing.unit}/s"
        cores = statistics.mean(repetition.cores for repetition in timing.repetitions)
        resident = f"{timing.repetitions[-1].resident / 2**20:.0f} MB"
        lines.append(
            f"{timing.name:22} {median:7.4f} s {f'{low:.4f} to {high:.4f}':>19} {rate:>20} {cores:5.1f} {memory:>10} "
            f"{resident:>9}  {speed:.2f} ({slow:.2f} to {fast:.2f})"
        )
    return "\n".join(lines)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of a single value three times that."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else (values[0],) * 3
