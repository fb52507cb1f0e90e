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
from ppvilg.config import Config, save_config
from ppvilg.data.loader import ahead
from ppvilg.errors import UserError
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

    def batch(self, step: int, part: int) -> Any:
        """The micro-batch `part` of a step: numpy arrays."""

    def units(self, batch: Any) -> int:
        """How many units a micro-batch holds."""

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, paddle.Tensor, Scalars]]:
        """For one module after another: its name, its loss, and what to log.

        The caller runs the loss's backward before it asks for the next.
        """

    def validate(self, step: int) -> dict[str, float]:
        """Measures on the validation split."""

    def preview(self) -> Preview:
        """Fixed samples, to look at."""


def train(config: Config, task: Task, resume: bool) -> bool:
    """Train until `config.train.steps`; False if it was interrupted (and saved) before.

    Raises `UserError` where the run's folder holds a run already and `resume` is False, or a checkpoint does not fit.
    """
    settings = config.train
    run = Path(settings.output)
    found = checkpoint.checkpoints(run)
    if found and not resume:
        raise UserError(f"{run} holds a run already: continue it with --resume, or give another train.output")
    run.mkdir(parents=True, exist_ok=True)
    task.prepare(run)
    optimizers = {name: Optimizer(module, settings) for name, module in task.modules.items()}
    average = WeightAverage(task.modules["model"], settings.ema_decay) if settings.ema_decay else None
    start = _restore(found[-1], task, optimizers, average) if found else 0
    save_config(config, run / "config.yml")

    def save(step: int) -> None:
        files = {name: checkpoint.to_arrays(module.state_dict()) for name, module in task.modules.items()}
        files |= {f"optimizer-{name}": optimizer.state() for name, optimizer in optimizers.items()}
        if average is not None:
            files["average"] = average.state()
        checkpoint.save_checkpoint(run, step, files, settings.keep_checkpoints)

    def parts(step: int) -> list[Any]:
        return [task.batch(step, part) for part in range(settings.accumulate)]

    steps = range(start, settings.steps)
    with Logs(run, start, settings.steps) as logs, _interruption() as interrupted:
        for step, batches in zip(steps, ahead(parts, steps, config.data.workers), strict=True):
            began = time.perf_counter()
            # Whatever a step draws depends on the seed and the step alone, so that a resumed run draws the same.
            paddle.seed(settings.seed + step)
            rate = learning_rate(settings, step)
            scalars = run_step(task, optimizers, batches, step, rate)
            if average is not None:
                average.update(step)
            done = step + 1
            last = done == settings.steps
            units = sum(task.units(batch) for batch in batches)
            if done % settings.log_every == 0 or last:
                values = {name: float(value) for name, value in scalars.items()}
                _refuse_nan(values, step)
                logs.train(done, values, rate)
            logs.tick(done, units, task.unit, time.perf_counter() - began)
            if done % settings.validate_every == 0 or last:
                with _evaluating(task, average):
                    logs.validation(done, task.validate(step))
            if done % settings.preview_every == 0 or last:
                with _evaluating(task, average):
                    logs.preview(done, task.preview())
            if done % settings.save_every == 0 or last or interrupted():
                save(done)
            if interrupted():
                return last
    return True


def run_step(task: Task, optimizers: dict[str, Optimizer], batches: list, step: int, rate: float) -> Scalars:
    """One optimizer step of every module; returns what is logged, as means over the micro-batches."""
    sums: Scalars = {}
    active = set()
    for batch in batches:
        for name, loss, scalars in task.losses(batch, step):
            (loss / len(batches)).backward()
            active.add(name)
            for key, value in scalars.items():
                sums[key] = sums[key] + value if key in sums else value
    for name in optimizers:
        if name in active:
            optimizers[name].step(rate)
    return {key: value / len(batches) for key, value in sums.items()}


def _refuse_nan(values: dict[str, float], step: int) -> None:
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    if bad:
        raise UserError(
            f"{bad[0]} is not finite at step {step}: resume from the last checkpoint with a smaller train.learning_rate"
        )


def _restore(folder: Path, task: Task, optimizers: dict[str, Optimizer], average: WeightAverage | None) -> int:
    step, files = checkpoint.load_checkpoint(folder)
    for name in task.modules:
        if name not in files or f"optimizer-{name}" not in files:
            raise UserError(f"{folder} does not fit the config: it has no {name}.safetensors with its optimizer's")
        checkpoint.fill(task.modules[name], files[name], str(folder / f"{name}.safetensors"))
        optimizers[name].load_state(files[f"optimizer-{name}"])
    if average is not None:
        average.load_state(files.get("average", files["model"]))
    return step


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
def _interruption() -> Iterator:
    """A function that says whether Ctrl-C or a termination signal came; a second Ctrl-C ends at once."""
    came = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
