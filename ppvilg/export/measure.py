"""Which engine writes a model's tokens fastest, measured on the machine that exports it."""

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from ppvilg.benchmark.runner import Competitor, compare
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import Programs
from ppvilg.model.config import ViLGConfig
from ppvilg.model.kv_cache import DecodeState
from ppvilg.model.mask import Direction

_STEPS, _ROUNDS = 32, 3
_ROUNDING = 1e-4  # how far logits of float32 may be apart, of the largest


def fastest_engine(config: ViLGConfig, programs: Path, converted: dict[str, Path]) -> tuple[str, dict[str, float]]:
    """The fastest of those engines whose logits are those of `paddle`, and each one's seconds for a token of a single image.

    `converted` has the folder of programs of each engine but paddle. The engines run in processes of their own, in turns.
    """
    engines = {"paddle": None} | converted
    competitors = [Competitor(name, image_steps, (config, programs, folder)) for name, folder in engines.items()]
    timings = compare(competitors, _ROUNDS, _STEPS, "tokens")
    seconds = {timing.name: round(statistics.median(timing.seconds) / _STEPS, 6) for timing in timings}
    logits = {timing.name: timing.repetitions[0].result for timing in timings}
    # Not their likeliest tokens, which hardly show that an operator was converted into another.
    limit = _ROUNDING * np.abs(logits["paddle"]).max()
    exact = [name for name in engines if np.abs(logits[name] - logits["paddle"]).max() <= limit]
    return min(exact, key=lambda name: seconds[name]), seconds


def image_steps(config: ViLGConfig, programs: Path, converted: Path | None) -> Callable[[], np.ndarray]:
    """A function that reads the first tokens of an image, which are any, after a text of zeros of the longest length; it
    returns the logits [n, V] of each."""
    model, direction = ExportedViLG(config, Programs(programs, converted=converted)), Direction.TEXT_TO_IMAGE
    ids = paddle.zeros([1, config.max_text_length], "int64")
    states, prefixes = model.prefill(direction, ids, ids == 0)

    def run() -> np.ndarray:
        state = DecodeState.empty(config, direction, config.max_text_length, prefixes, (ids == 0).numpy())
        last, logits = states[:, -1], []
        for i in range(min(_STEPS, config.image_length)):
            logits.append(model.image_logits(last).numpy()[0])
            last = model.decode_step(direction, state.inputs(np.array([i % config.image_vocab_size]), np.array([i])))
        return np.stack(logits)

    return run
