"""A transformer in memory against its export, and the export's step on other engines."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppvilg.benchmark.generation import Generation, NoText
from ppvilg.benchmark.timing import Timing, interleaved
from ppvilg.config import Config
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import Programs
from ppvilg.export.tracing import weights_of
from ppvilg.export.write import save_transformer
from ppvilg.generate.decoding import write_images
from ppvilg.generate.sampling import Sampling
from ppvilg.transformer.model import ViLG


@dataclass
class Both:
    """A transformer with random weights and its export."""

    model: ViLG
    exported: ExportedViLG
    prompt: list[int]

    @classmethod
    def of(cls, config: Config, folder: Path) -> "Both":
        """Export to a folder; the prompt has the longest length."""
        model = ViLG(config)
        model.eval()
        save_transformer(model, folder)
        exported = ExportedViLG(config, Programs(folder, weights_of({"model": model})))
        prompt = np.random.default_rng(0).integers(5, config.text.vocabulary_size, config.text.max_length).tolist()
        return cls(model, exported, prompt)


def time_export(both: Both, batch: int, repetitions: int) -> tuple[list[Timing], list[str]]:
    """Image tokens of `batch` candidates of one prompt; what is counted is pictures. Returns the timings and lines about
    steps and about greedy tokens."""
    runs: dict[str, Callable[[], object]] = {
        name: Generation(model, both.prompt, batch) for name, model in (("dygraph", both.model), ("exported", both.exported))
    }
    timings = interleaved(runs, repetitions, batch, "pictures")
    return timings, [*(run.steps_line(name) for name, run in runs.items()), _greedy_line(both, batch)]


def _greedy_line(both: Both, batch: int) -> str:
    tokens = []
    for model in (both.model, both.exported):
        *_, written = write_images(model, [both.prompt], NoText(), [0] * batch, Sampling(0))
        tokens.append(written.tokens)
    return f"greedy tokens: {(tokens[0] == tokens[1]).mean():.2%} equal"


_START = """
import json, resource, sys, time
began = time.perf_counter()
from ppvilg.pipeline import Pipeline
imported = time.perf_counter()
model = Pipeline.load(sys.argv[1])
loaded = time.perf_counter()
model.generate([sys.argv[2]])
drawn = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([imported - began, loaded - imported, drawn - loaded, peak]))
"""


def start_line(folder: str, prompt: str) -> str:
    """How long a new process takes until its first picture, and its memory."""
    done = subprocess.run([sys.executable, "-c", _START, folder, prompt], capture_output=True, text=True, check=True)
    imported, loaded, drawn, peak = json.loads(done.stdout.splitlines()[-1])
    total = imported + loaded + drawn
    parts = f"imports {imported:.2f} s, load {loaded:.2f} s, first picture {drawn:.2f} s, together {total:.2f} s"
    return f"{folder}: {parts}; {peak:.0f} MB"
