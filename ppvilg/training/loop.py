"""The training loop: it knows a task that gives losses, and nothing of what the task trains."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import nn

from ppvilg import checkpoint
from ppvilg.config import PreviewTrainConfig, TrainingExperiment, save_config
from ppvilg.data.loader import ahead
from ppvilg.errors import UserError
from ppvilg.parallel.topology import Topology
from ppvilg.training.logs import Logs, Preview
from ppvilg.training.optimizer import Optimizer, WeightAverage, learning_rate

Scalars = dict[str, paddle.Tensor]


class Task(Protocol):
    """One thing that can be trained."""

    modules: dict[str, nn.Layer]
    """What is trained, each by an optimizer of its own; the one called `model` is averaged and exported."""
    unit: str
    """What the speed is counted in, e.g. tokens."""

    def prepare(self, run: Path) -> None:
        """Put into the run's folder what the model needs besides its weights."""

    def batch(self, first: int, part: int) -> Any:
        """This process's share of micro-batch `part` of a step: numpy arrays. `first` is the place in the stream of samples at
        which the step's begin."""

    def units(self, batch: Any) -> int:
        """How many units a micro-batch holds."""

    def gradients(self, batches: list, step: int, scale: float) -> tuple[set[str], Scalars]:
        """Leave in the modules the gradients of the mean loss of micro-batches, times `scale`; returns the names of the modules
        that have some, and what to log: means over the micro-batches, on the last pipeline stage."""

    def validate(self, step: int) -> dict[str, float]:
        """Measures on the validation split."""

    def preview(self) -> Preview:
        """Fixed samples, to look at."""


def train(config: TrainingExperiment, task: Task, topology: Topology, resume: bool) -> bool:
    """Train until `config.train.steps`; False if it was interrupted (and saved) before. All processes call it.

    Raises `UserError` where the run's folder holds a run already and `resume` is False, or a checkpoint does not fit.
    """
    settings = config.train
    run = Path(settings.output)
    found = checkpoint.checkpoints(run)
    if found and not resume:
        raise UserError(f"{run} holds a run already: continue it with --resume, or give another train.output")
    topology.wait()  # all have looked before one writes
    if topology.leads:
        run.mkdir(parents=True, exist_ok=True)
        task.prepare(run)
    topology.wait()
    optimizers = {name: Optimizer(module, settings, config.parallel, topology) for name, module in task.modules.items()}
    average = None
    state = {"step": 0, "samples": 0}
    if found:
        state = _restore(found[-1], task, optimizers)
    if settings.ema_decay:
        average = WeightAverage(optimizers["model"], settings.ema_decay)
        if found and any(found[-1].glob("average*.safetensors")):  # else it starts from the weights as they are
            _restore_average(found[-1], average, optimizers["model"])
    if topology.leads:
        save_config(config, run / "config.yml")
    start = state["step"]

    def samples(step: int) -> int:
        """Samples that were seen before a step, in this run and those that it goes on from."""
        return state["samples"] + (step - start) * settings.batch_size

    def save(step: int) -> None:
        files = {}
        for name, module in task.modules.items():
            optimizer = optimizers[name]
            files[name] = optimizer.module_state(module, optimizer.weights)
            files[f"optimizer-{name}"] = optimizer.state()
        if average is not None:
            files["average"] = optimizers["model"].module_state(task.modules["model"], average.values)
        position = {"step": step, "samples": samples(step)}
        checkpoint.save_checkpoint(run, position, files, settings.keep_checkpoints, topology)

    def parts(step: int) -> list[Any]:
        return [task.batch(samples(step), part) for part in range(settings.gradient_accumulation_steps)]

    steps = range(start, settings.steps)
    with Logs(run, start, settings.steps, topology.leads) as logs, _interruption(topology) as interrupted:
        for step, batches in zip(steps, ahead(parts, steps, config.data.workers), strict=True):
            began = time.perf_counter()
            # Whatever a step draws depends on the seed, the step and the part of the batch alone, so that a resumed run draws
            # the same; what tensor parallel processes draw for the same rows has to be the same too.
            paddle.seed(settings.seed + step + _SEEDS_APART * topology.data_rank)
            rate = learning_rate(settings, step)
            scalars = run_step(task, optimizers, batches, step, rate)
            if average is not None:
                average.update(step)
            done = step + 1
            last = done == settings.steps
            units = sum(task.units(batch) for batch in batches) * topology.data_ranks
            if done % settings.log_every == 0 or last:
                values = {name: topology.mean_of_parts(value.clone()).item() for name, value in scalars.items()}
                _refuse_nan(values, step)
                logs.train(done, values, rate)
            logs.tick(done, units, task.unit, time.perf_counter() - began)
            if done % settings.validate_every == 0 or last:
                with _evaluating(task, average):
                    logs.validation(done, task.validate(step))
            if isinstance(settings, PreviewTrainConfig) and (done % settings.preview_every == 0 or last):
                with _evaluating(task, average):
                    logs.preview(done, task.preview())
            stop = interrupted()
            if done % settings.save_every == 0 or last or stop:
                save(done)
            if stop:
                return last
    return True


_SEEDS_APART = 1_000_003  # so that steps of one part of the batch do not draw what another part's do


def run_step(task: Task, optimizers: dict[str, Optimizer], batches: list, step: int, rate: float) -> Scalars:
    """One optimizer step of every module; returns what is logged, as means over the micro-batches."""
    active, scalars = task.gradients(batches, step, optimizers["model"].loss_scale.value)
    for name in optimizers:
        if name in active:
            optimizers[name].step(rate)
    return scalars


def means(scalars: list[Scalars]) -> Scalars:
    """Of each scalar over the micro-batches that have it, as a sum over all of them divided by their number."""
    names = {name: None for values in scalars for name in values}  # in order
    return {name: sum(values[name] for values in scalars if name in values) / len(scalars) for name in names}


def _refuse_nan(values: dict[str, float], step: int) -> None:
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    if bad:
        raise UserError(
            f"{bad[0]} is not finite at step {step}: resume from the last checkpoint with a smaller train.learning_rate"
        )


def _restore(folder: Path, task: Task, optimizers: dict[str, Optimizer]) -> dict[str, int]:
    """Fill modules and optimizers; returns the checkpoint's state."""
    for name, module in task.modules.items():
        optimizers[name].load_module(module, checkpoint.Stored(folder, name))
        optimizers[name].load_state(checkpoint.Stored(folder, f"optimizer-{name}"))
    return checkpoint.checkpoint_state(folder)


def _restore_average(folder: Path, average: WeightAverage, optimizer: Optimizer) -> None:
    stored = checkpoint.Stored(folder, "average")
    for name, value in average.values.items():
        value.set_value(stored.like(optimizer.piece(name, value), name))


@contextmanager
def _evaluating(task: Task, average: WeightAverage | None) -> Iterator[None]:
    """Evaluation mode, averaged weights, no gradients."""
    for module in task.modules.values():
        module.eval()
    with paddle.no_grad(), average.swapped_in() if average is not None else nullcontext():
        yield
    for module in task.modules.values():
        module.train()


@contextmanager
def _interruption(topology: Topology) -> Iterator:
    """A function that says whether Ctrl-C or a termination signal came to any process; a second Ctrl-C ends at once."""
    came = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: topology.any(bool(came))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
