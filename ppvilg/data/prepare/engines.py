"""What gives the units to workers: a loop over processes of this machine, or Ray Data.

Either may see a worker die in the middle of a unit. Another one then does the unit again, and `unit` sees to it that what kills
workers is found and left out, so both come to an end.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ppvilg.data.prepare.config import PrepareExperiment, RayConfig
from ppvilg.data.prepare.unit import Part, Worker

_DEATHS_WITHOUT_PROGRESS = 200  # more than units in work allow together


def run_loop(config: PrepareExperiment, parts: Sequence[Part]) -> Iterator[Part]:
    """Parts as they are made by `config.workers` processes, each of which may die without harm to the others."""
    waiting, deaths = list(reversed(parts)), 0
    pools = [_pool(config) for _ in range(min(config.workers, len(parts)))]
    work: dict[Future, tuple[int, Part]] = {}
    try:
        for i, pool in enumerate(pools):
            part = waiting.pop()
            work[pool.submit(_make, part)] = i, part
        while work:
            done, _ = wait(work, return_when=FIRST_COMPLETED)
            for future in done:
                i, part = work.pop(future)
                try:
                    future.result()
                except BrokenProcessPool:
                    deaths += 1
                    if deaths > _DEATHS_WITHOUT_PROGRESS:
                        raise ValueError(f"{deaths} workers died one after the other, the last at {part.unit.id}") from None
                    pools[i].shutdown(wait=False)
                    pools[i] = _pool(config)
                    waiting.append(part)
                else:
                    deaths = 0
                    yield part
                if waiting:
                    part = waiting.pop()
                    work[pools[i].submit(_make, part)] = i, part
    finally:
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.kill()  # a part is whole or not there, so nothing is lost
            pool.shutdown(wait=True, cancel_futures=True)


_worker: Worker | None = None  # of a process of the loop


def _pool(config: PrepareExperiment) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (config,))


def _start(config: PrepareExperiment) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(config)


def _end_with_parent() -> None:
    """A process of a pool would wait for ever for a parent that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make(part: Part) -> None:
    _worker(part)


def run_ray(config: PrepareExperiment, parts: Sequence[Part]) -> Iterator[Part]:
    """Parts as Ray Data's actors make them, on this machine or a cluster whose machines share the folders."""
    import ray

    _start_ray(config.ray)
    rows = [{"number": i} for i in range(len(parts))]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_kwargs={"config": config, "parts": list(parts)},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(config.ray.workers, len(rows))),
        num_cpus=config.ray.cpus,
        num_gpus=config.ray.gpus or None,
    )
    for row in made.iter_rows():
        yield parts[row["number"]]


class _Actor:
    """A worker as Ray Data wants it."""

    def __init__(self, config: PrepareExperiment, parts: list[Part]):
        self._worker, self._parts = Worker(config), parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["number"].tolist():
            self._worker(self._parts[number])
        return batch


def _start_ray(config: RayConfig) -> None:
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(
            address=config.address or "local",
            num_cpus=None if config.address else config.workers * config.cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[3])}} if not config.address else None,
        )
    except ConnectionError as error:
        raise ValueError(f"ray.address is {config.address}, where no Ray answers ({error}): start one there") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
