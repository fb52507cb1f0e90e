"""Timing of training steps and of generation, on random data of a config's shapes."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle

from ppvilg.config import Config
from ppvilg.generate.decoding import write_images
from ppvilg.generate.sampling import Sampling
from ppvilg.training.loop import Task, run_step
from ppvilg.training.optimizer import Optimizer, learning_rate


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, what each repetition made, and the process's peak memory in MB afterwards."""

    seconds: list[float]
    made: int
    unit: str
    memory: float

    def row(self, name: str) -> str:
        """One line of a table: median, spread (quartiles), rate, memory."""
        low, median, high = statistics.quantiles(self.seconds, n=4)
        rate = self.made / median
        return f"{name:12} {median:9.4f} s  ({low:.4f} to {high:.4f})  {rate:9.2f} {self.unit}/s  {self.memory:7.0f} MB"


def time_training(config: Config, task: Task, repetitions: int) -> Timing:
    """Whole training steps (loss, backward, clipping, AdamW) of a task whose data is ready."""
    optimizers = {name: Optimizer(module, config.train) for name, module in task.modules.items()}
    batches = [[task.batch(step, part) for part in range(config.train.accumulate)] for step in range(4)]

    def once(i: int) -> None:
        run_step(task, optimizers, batches[i % len(batches)], i, learning_rate(config.train, i))

    return _timed(once, repetitions, config.train.batch_size, "samples")


def time_generation(config: Config, model, vqgan, batch: int, repetitions: int) -> Timing:
    """Pictures written and painted from prompts of half the longest length, `batch` at a time."""
    text = paddle.to_tensor(np.random.default_rng(0).integers(5, config.text.vocabulary_size, [batch, _half(config)]))
    valid = paddle.ones(text.shape, dtype="bool")
    model.eval()
    vqgan.eval()

    def once(i: int) -> None:
        for tokens in write_images(model, text, valid, list(range(batch)), Sampling()):
            ids = tokens
        with paddle.no_grad():
            vqgan.decode(ids.reshape([batch, *config.grid])).numpy()

    return _timed(once, repetitions, batch, "pictures")


def _half(config: Config) -> int:
    return max(3, config.text.max_length // 2)


def _timed(once: Callable[[int], None], repetitions: int, made: int, unit: str) -> Timing:
    for i in range(3):  # the first steps allocate
        once(i)
    seconds = []
    for i in range(repetitions):
        began = time.perf_counter()
        once(i)
        seconds.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Timing(seconds, made, unit, memory)
