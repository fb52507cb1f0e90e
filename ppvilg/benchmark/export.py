"""A transformer in memory against its export, and the export's step on other engines."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paddle.inference import Config as Engine

from ppvilg.benchmark.generation import Generation, NoText
from ppvilg.benchmark.onnx_engine import OnnxViLG
from ppvilg.benchmark.timing import Timing, interleaved
from ppvilg.config import ViLGExperiment
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import Programs
from ppvilg.export.tracing import weights_of
from ppvilg.export.write import save_transformer
from ppvilg.generate.decoding import write_images
from ppvilg.generate.sampling import Sampling
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.model import ViLG


@dataclass
class Engines:
    """A transformer with random weights and its export on several engines."""

    models: dict[str, Decoder]
    prompt: list[int]

    @classmethod
    def of(cls, config: ViLGExperiment, folder: Path, names: list[str]) -> "Engines":
        """Export to a folder; the prompt has the longest length."""
        model = ViLG(config)
        model.eval()
        save_transformer(model, folder)
        weights = weights_of({"model": model})
        made: dict[str, Callable[[], Decoder]] = {
            "dygraph": lambda: model,
            "native": lambda: ExportedViLG(config, Programs(folder, weights)),
            "onednn": lambda: ExportedViLG(config, Programs(folder, weights, Engine.enable_mkldnn)),
            "openvino": lambda: ExportedViLG(config, Programs(folder, weights, _openvino)),
            "onnx": lambda: OnnxViLG(config, folder, weights),
            "onnx-int8": lambda: OnnxViLG(config, folder, weights, int8=True),
        }
        prompt = np.random.default_rng(0).integers(5, config.text.vocabulary_size, config.text.max_length).tolist()
        return cls({name: made[name]() for name in names}, prompt)

    def time(self, batch: int, repetitions: int) -> tuple[list[Timing], list[str]]:
        """Image tokens of `batch` candidates of one prompt; what is counted is pictures. Returns the timings and lines about
        steps and about greedy tokens, which are compared with the first engine's."""
        runs: dict[str, Callable[[], object]] = {
            name: Generation(model, self.prompt, batch) for name, model in self.models.items()
        }
        timings = interleaved(runs, repetitions, batch, "pictures")
        tokens = {name: self._greedy(model, batch) for name, model in self.models.items()}
        first = next(iter(tokens.values()))
        same = ", ".join(f"{name} {(found == first).mean():.2%}" for name, found in tokens.items())
        return timings, [*(run.steps_line(name) for name, run in runs.items()), f"greedy tokens that are equal: {same}"]

    def _greedy(self, model: Decoder, batch: int) -> np.ndarray:
        *_, written = write_images(model, [self.prompt], NoText(), [0] * batch, Sampling(0))
        return written.tokens


def _openvino(engine: Engine) -> None:
    engine.enable_openvino_engine()


_START = """
import json, sys, time
began = time.perf_counter()
from ppvilg.pipeline import Pipeline
imported = time.perf_counter()
model = Pipeline.load(sys.argv[1])
loaded = time.perf_counter()
model.generate([sys.argv[2]])
drawn = time.perf_counter()
# Not getrusage, whose peak begins with that of the process that started this one.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps([imported - began, loaded - imported, drawn - loaded, peak]))
"""


def start_line(folder: str, prompt: str) -> str:
    """How long a new process takes until its first picture, and its memory."""
    done = subprocess.run([sys.executable, "-c", _START, folder, prompt], capture_output=True, text=True, check=True)
    imported, loaded, drawn, peak = json.loads(done.stdout.splitlines()[-1])
    total = imported + loaded + drawn
    parts = f"imports {imported:.2f} s, load {loaded:.2f} s, first picture {drawn:.2f} s, together {total:.2f} s"
    return f"{folder}: {parts}; {peak:.0f} MB"
