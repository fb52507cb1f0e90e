"""The training loop. It knows a task that turns batches into losses, and nothing of what the task trains."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.checkpoint import CheckpointReader, checkpoint_state, checkpoints, save_checkpoint
from ppvilg.config import PreviewTrainConfig, TrainingExperiment, save_config
from ppvilg.data.loader import own_positions, prefetch
from ppvilg.train.context import ParallelContext
from ppvilg.train.ema import EMA
from ppvilg.train.fleet import distribute
from ppvilg.train.logs import Logs, Preview
from ppvilg.train.optimizer import build_optimizer, build_schedule
from ppvilg.train.run_folder import check_config, check_inputs, check_output, load_base, save_inputs
from ppvilg.train.task import Losses, Task

_SEEDS_APART = 1_000_003  # so that the steps of one data rank do not draw what those of another do


class Trainer:
    """Trains a task until `train.steps`; all processes of a layout make one and call the same methods."""

    def __init__(self, config: TrainingExperiment, task: Task, context: ParallelContext | None = None):
        self.config, self.task, self.context = config, task, context or ParallelContext()
        self.run = Path(config.train.output)
        self.step = 0
        """Optimizer steps done."""
        task.begin()
        self.schedule = build_schedule(config.train)
        self.models = {}
        """`task.modules` as Fleet trains them, each with its optimizer."""
        for name, module in task.modules.items():
            optimizer = build_optimizer(module, config.train, self.schedule)
            self.models[name] = distribute(module, optimizer, config.parallel, self.context)
        self.ema = EMA(self.models["model"].state, config.train.ema_decay) if config.train.ema_decay else None
        self._first_position = 0  # in the stream of samples, at step 0 as if every step had had this batch size

    def fit(self) -> bool:
        """Train to the last step; False if it was interrupted (and saved) before.

        Raises `ValueError` where the folder holds a run that was not resumed, or a loss is not finite.
        """
        settings = self.config.train
        self._open_folder()
        steps = range(self.step, settings.steps)
        with Logs(self.run, self.step, settings.steps, self.context.is_main_process) as logs, _interruption() as came:
            asked = time.perf_counter()
            for micro_batches in prefetch(self.micro_batches, steps, self.config.data.workers):
                began = time.perf_counter()
                losses = self.train_step(micro_batches)
                last = self.step == settings.steps
                if self.step % settings.log_every == 0 or last:
                    logs.log_losses(self.step, self._fetch(losses), self.schedule.get_lr())
                units = sum(map(self.task.units, micro_batches)) * self.context.data_world_size
                logs.log_step(self.step, units, self.task.unit, time.perf_counter() - began, began - asked)
                if self.step % settings.validate_every == 0 or last:
                    logs.log_validation(self.step, self.evaluate())
                if isinstance(settings, PreviewTrainConfig) and (self.step % settings.preview_every == 0 or last):
                    logs.log_preview(self.step, self.preview())
                # To ask the other processes is to wait for the device, which a step is not to do.
                asks = self.context.world_size == 1 or last or self.step % settings.log_every == 0
                interrupted = asks and self.context.any(came())
                if self.step % settings.save_every == 0 or last or interrupted:
                    self.save()
                if interrupted:
                    return last
                asked = time.perf_counter()
        return True

    def micro_batches(self, step: int) -> list[Any]:
        """This process's share of a step's micro-batches."""
        settings, context = self.config.train, self.context
        size = settings.batch_size // settings.gradient_accumulation_steps
        first = self._position(step)
        return [
            self.task.batch(own_positions(first + i * size, size, context.data_rank, context.data_world_size))
            for i in range(settings.gradient_accumulation_steps)
        ]

    def train_step(self, micro_batches: list[Any]) -> Losses:
        """One step of every optimizer; returns the losses' means over the micro-batches, which are still on the device."""
        # What a step draws depends on the seed, the step and the data rank alone, so that a resumed run draws the same, and
        # tensor parallel processes the same for the same samples.
        paddle.seed(self.config.train.seed + self.step + _SEEDS_APART * self.context.data_rank)
        self.schedule.step(self.step)
        losses = self._forward_backward(micro_batches)
        for model in self.models.values():
            model.step()
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        return losses

    def _forward_backward(self, micro_batches: list[Any]) -> Losses:
        model = self.models["model"]
        if self.config.parallel.pp_degree > 1:  # the stages work on several micro-batches at once
            losses = model.forward_backward([batch.to_tensors() for batch in micro_batches], self.task.criterion)
        else:
            losses = []
            for batch in micro_batches:
                losses.append(self.task.loss(model, batch, self.step))
                model.backward(losses[-1]["loss"] / len(micro_batches))
        names = losses[0] if losses else ()  # only the last pipeline stage has some
        return {name: sum(values[name].detach() for values in losses) / len(losses) for name in names}

    def evaluate(self) -> dict[str, float]:
        """Metrics of the averaged weights on the validation split."""
        with self._evaluating():
            return self.task.validate(self.models["model"], self.step)

    def preview(self) -> Preview:
        """Fixed samples by the averaged weights; nothing where no process has all of them."""
        if self.config.parallel.cuts_model:
            return Preview()
        with self._evaluating():
            return self.task.preview()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        files = {}
        for name, model in self.models.items():
            files[name] = model.state.model_shards()
            files[f"optimizer-{name}"] = model.state.optimizer_shards()
        if self.ema is not None:
            files["average"] = self.ema.shards()
        state = {"step": self.step, "samples": self._position(self.step), "loss_scale": self.models["model"].loss_scale()}
        save_checkpoint(self.run, state, files, self.config.train.keep_checkpoints, self.context)
        if self.context.is_main_process:
            self.task.saved(self.run)

    def resume(self) -> None:
        """Go on from the run's newest checkpoint, if it has one; writes nothing.

        Raises `ValueError` where the run was trained with another model, vocabulary, image tokenizer or data.
        """
        found = checkpoints(self.run)
        if not found:
            return
        check_config(self.run, self.config)
        check_inputs(self.config, self.task)
        load_base(self.run, self.task)
        newest = found[-1]
        for name, model in self.models.items():
            model.state.load_model(CheckpointReader(newest, name))
            model.state.load_optimizer(CheckpointReader(newest, f"optimizer-{name}"))
        if self.ema is not None:
            averaged = any(newest.glob("average*.safetensors"))  # else the average starts from the weights as they are
            self.ema.load(CheckpointReader(newest, "average" if averaged else "model"))
        state = checkpoint_state(newest)
        self.models["model"].load_loss_scale(state["loss_scale"])
        self.step = state["step"]
        self._first_position = state["samples"] - self.step * self.config.train.batch_size

    def _open_folder(self) -> None:
        """Write into the run's folder what comes before the first step."""
        check_output(self.config, resume=self.step > 0)
        self.context.barrier()  # all have looked before one writes
        self.task.prepare()
        if self.context.is_main_process:
            self.run.mkdir(parents=True, exist_ok=True)
            report = f"{self.task.training.report}\n{self.task.validation.report}"
            (self.run / "data_report.txt").write_text(report + "\n", "utf-8")
            tqdm.write(report)
            if self.step == 0:
                save_inputs(self.run, self.task)
            save_config(self.config, self.run / "config.yml")
        self.context.barrier()

    def _position(self, step: int) -> int:
        """Where a step's samples begin in the stream: those seen before it, in this run and those that it goes on from."""
        return self._first_position + step * self.config.train.batch_size

    def _fetch(self, losses: Losses) -> dict[str, float]:
        """The losses' means over the data ranks as numbers; the only place of a step that waits for the device."""
        if not losses:
            return {}
        means = self.context.mean(paddle.stack([value.astype("float32") for value in losses.values()])).tolist()
        for name, value in zip(losses, means, strict=True):
            if not np.isfinite(value):
                raise ValueError(
                    f"{name} is not finite at step {self.step}: resume from the last checkpoint with a smaller "
                    f"train.learning_rate"
                )
        return dict(zip(losses, means, strict=True))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode, averaged weights, no gradients."""
        for module in self.task.modules.values():
            module.eval()
        with paddle.no_grad(), self.ema.applied() if self.ema is not None else nullcontext():
            yield
        for module in self.task.modules.values():
            module.train()


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
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
