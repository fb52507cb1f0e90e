"""Generation of image tokens, of a config against its dense plan or against PaddleNLP's Artist."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import paddle

from ppvilg.benchmark.peers.artist import artist_run
from ppvilg.benchmark.random_pairs import random_pairs
from ppvilg.benchmark.runner import Competitor, Timing, compare, quartiles
from ppvilg.benchmark.training import dense
from ppvilg.config import ViLGExperiment
from ppvilg.generate.engine import GenerativeModel, generate_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.config import vilg_config
from ppvilg.model.kv_cache import DecodeState
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG

_TOKENIZER = SimpleNamespace(pad=0)  # what generation without guidance asks of a text tokenizer


class Generated(NamedTuple):
    """Image tokens, and how long each took."""

    tokens: np.ndarray
    """Int64 [B, n]."""
    seconds: list[float]
    """Of each token after the first, which reads the prompt."""
    cache_bytes: int
    """Of the keys, values and inputs that are kept."""


def generation(model: GenerativeModel, prompt: list[int], batch: int, sampling: Sampling) -> Callable[[], Generated]:
    """A function that generates all tokens of `batch` images of one prompt."""
    text, mask = paddle.to_tensor([prompt]), paddle.ones([1, len(prompt)], "bool")
    _, prefixes = model.prefill(Direction.TEXT_TO_IMAGE, text, mask)
    state = DecodeState.empty(model.config, Direction.TEXT_TO_IMAGE, len(prompt), prefixes, mask.numpy(), batch)
    cache_bytes = state.bytes

    def run() -> Generated:
        steps = generate_images(model, [prompt], _TOKENIZER, list(range(batch)), sampling)
        outputs, times = zip(*((output, time.perf_counter()) for output in steps), strict=True)
        return Generated(outputs[-1].tokens, np.diff(times).tolist(), cache_bytes)

    return run


def vilg_generation(config: ViLGExperiment, batch: int) -> Callable[[], Generated]:
    """All image tokens of `batch` candidates of one prompt of the longest length, by a model with random weights."""
    model = ViLG(vilg_config(config))
    model.eval()
    return generation(model, longest_prompt(config), batch, Sampling())


def longest_prompt(config: ViLGExperiment) -> list[int]:
    """A random text of the longest length."""
    text, _, _ = random_pairs(config, 1)
    return text[0].tolist()


def compare_generation(
    config: ViLGExperiment, batch: int, versus: list[str], repetitions: int
) -> tuple[list[Timing], list[str]]:
    """Image tokens of `batch` candidates of one prompt; `versus` may name dense and artist, which then come first. Returns the
    timings and a line about each model's steps and caches."""
    peers = {
        "dense": Competitor("dense", vilg_generation, (dense(config), batch)),
        "artist": Competitor("artist", artist_run, (config, batch)),
    }
    competitors = [*(peers[name] for name in versus), Competitor("ours", vilg_generation, (config, batch))]
    timings = compare(competitors, repetitions, batch * config.image_tokens, "tokens")
    return timings, [steps_line(timing) for timing in timings if timing.name != "artist"]


def steps_line(timing: Timing) -> str:
    """How long steps take, and how large the caches are, of a competitor that returns `Generated`."""
    runs: list[Generated] = [repetition.result for repetition in timing.repetitions]
    count = min(100, len(runs[0].seconds) // 2)
    first = quartiles([seconds for run in runs for seconds in run.seconds[:count]])[1]
    last = quartiles([seconds for run in runs for seconds in run.seconds[-count:]])[1]
    return (
        f"{timing.name}: a step takes {first * 1e3:.1f} ms at the first {count} tokens, {last * 1e3:.1f} ms at the last "
        f"({last / first:.2f} times); caches {runs[0].cache_bytes / 2**20:.1f} MB"
    )
