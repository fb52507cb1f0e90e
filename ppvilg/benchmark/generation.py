"""Generation of image tokens, of a config against its dense plan or against PaddleNLP's Artist."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import paddle

from ppvilg.benchmark.timing import Timing, interleaved, quartiles
from ppvilg.benchmark.training import dense
from ppvilg.config import ViLGExperiment
from ppvilg.generate.decoding import write_images
from ppvilg.generate.sampling import Sampling
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.model import ViLG
from ppvilg.transformer.pattern import Direction


class NoText:
    """Stands for a text tokenizer; what a prompt's tokens are does not change the speed."""

    pad = 0


@dataclass
class Generation:
    """Writes pictures for one prompt and notes how long each token took."""

    model: Decoder
    prompt: list[int]
    batch: int
    steps: list[list[float]] = field(default_factory=list)

    def __call__(self) -> None:
        """All tokens of `batch` candidates."""
        times = [time.perf_counter()]
        for _ in write_images(self.model, [self.prompt], NoText(), list(range(self.batch)), Sampling()):
            times.append(time.perf_counter())
        self.steps.append(np.diff(times).tolist())

    def flatness(self, count: int) -> tuple[float, float]:
        """Median seconds of the first and of the last `count` tokens (the very first, which reads the prompt, left out)."""
        first = [seconds for run in self.steps for seconds in run[1 : 1 + count]]
        last = [seconds for run in self.steps for seconds in run[-count:]]
        return quartiles(first)[1], quartiles(last)[1]

    def steps_line(self, name: str) -> str:
        """How long steps take, and how large the caches are."""
        count = min(100, len(self.steps[0]) // 2)
        first, last = self.flatness(count)
        text = paddle.to_tensor([self.prompt])
        valid = paddle.ones(text.shape, dtype="bool")
        _, state = self.model.start(Direction.TEXT_TO_IMAGE, text, valid, self.batch, text.shape[1])
        return (
            f"{name}: a step takes {first * 1e3:.1f} ms at the first {count} tokens, {last * 1e3:.1f} ms at the last "
            f"({last / first:.2f} times); caches {state.bytes / 2**20:.1f} MB"
        )


def time_generation(config: ViLGExperiment, batch: int, versus: list[str], repetitions: int) -> tuple[list[Timing], list[str]]:
    """Image tokens of `batch` candidates of one prompt of the longest length; `versus` may name dense and artist, which then
    come first. Returns the timings and a line about each model's steps and caches."""
    prompt = np.random.default_rng(0).integers(5, config.text.vocabulary_size, config.text.max_length).tolist()
    runs: dict[str, Callable[[], object]] = {}
    for peer in versus:
        if peer == "dense":
            runs[peer] = Generation(_model(dense(config)), prompt, batch)
        else:
            from ppvilg.benchmark.peers.artist import artist_generation

            model, text = config.transformer, config.text
            sizes = (model.layers, model.hidden, model.heads, text.vocabulary_size, config.vqgan.codebook.size)
            runs[peer] = artist_generation(*sizes, text.max_length, config.image_tokens, batch)
    runs["ours"] = Generation(_model(config), prompt, batch)
    timings = interleaved(runs, repetitions, batch * config.image_tokens, "tokens")
    return timings, [run.steps_line(name) for name, run in runs.items() if isinstance(run, Generation)]


def _model(config: ViLGExperiment) -> ViLG:
    model = ViLG(config)
    model.eval()
    return model
