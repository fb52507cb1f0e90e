"""A transformer in memory against its export, and the export on other engines."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from paddle import inference

from ppvilg.benchmark.generation import Generated, generation, longest_prompt, steps_line
from ppvilg.benchmark.runner import Competitor, Timing, compare, quartiles, run_alone
from ppvilg.config import ViLGExperiment
from ppvilg.export.model import ExportedViLG
from ppvilg.export.onnx_convert import convert_steps
from ppvilg.export.programs import ONNX, ONNX_INT8, Programs, native
from ppvilg.export.write import save_transformer
from ppvilg.generate.sampling import Sampling
from ppvilg.model.config import vilg_config
from ppvilg.model.vilg import ViLG
from ppvilg.runtime import environment

Engine = Callable[[ViLGExperiment, int], Callable[[], Generated]]


def compare_export(config: ViLGExperiment, batch: int, versus: list[str], repetitions: int) -> tuple[list[Timing], list[str]]:
    """Image tokens of `batch` candidates of one prompt of the longest length, the likeliest each time, counted in images.

    Dygraph comes first, then the export as it is deployed, then other engines: `versus` may name onednn, openvino, onnx and
    onnx-int8. Returns the timings and lines about steps and about tokens, which are compared with dygraph's.
    """
    others: dict[str, Engine] = {"onednn": onednn, "openvino": openvino, "onnx": onnx, "onnx-int8": onnx_int8}
    engines = {"dygraph": dygraph, "native": exported} | {name: others[name] for name in versus}
    competitors = [Competitor(name, build, (config, batch)) for name, build in engines.items()]
    timings = compare(competitors, repetitions, batch, "images")
    tokens = {timing.name: timing.repetitions[0].result.tokens for timing in timings}
    same = ", ".join(f"{name} {(found == tokens['dygraph']).mean():.2%}" for name, found in tokens.items())
    lines = [*map(steps_line, timings), f"greedy tokens that are equal: {same}"]
    return timings, lines + ([bandwidth_line(config, timings)] if batch == 1 else [])


def bandwidth_line(config: ViLGExperiment, timings: list[Timing]) -> str:
    """Of a step of one sequence: which share of the time it takes to read all of a step's weights once, as float32."""
    speed, read = run_alone(memory_bandwidth), step_bytes(config)
    bound = read / speed
    shares = []
    for timing in timings:
        runs: list[Generated] = [repetition.result for repetition in timing.repetitions]
        step = quartiles([seconds for run in runs for seconds in run.seconds])[1]
        shares.append(f"{timing.name} {bound / step:.0%}")
    what = f"a step reads {read / 1e6:.0f} MB of weights, {bound * 1e3:.1f} ms at {speed / 1e9:.1f} GB/s"
    return f"{what}; of that bound: {', '.join(shares)}"


def step_bytes(config: ViLGExperiment) -> float:
    """Of the weights, float32, that one token goes through: those of the layers and of the head that chooses it."""
    model = config.transformer
    layer = (4 + 2 * model.ffn_multiplier) * model.hidden**2
    return 4.0 * (model.layers * layer + model.hidden * config.vqgan.codebook.size)


def memory_bandwidth() -> Callable[[], float]:
    """Bytes a second at which a matrix that fits no cache is read, in a product with a vector; the best of some."""
    import time

    import paddle

    matrix, vector = paddle.rand([8192, 8192]), paddle.rand([1, 8192])

    def measure() -> float:
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            paddle.matmul(vector, matrix).numpy()
            seconds.append(time.perf_counter() - began)
        return matrix.numel().item() * 4 / min(seconds)

    return measure


def dygraph(config: ViLGExperiment, batch: int) -> Callable[[], Generated]:
    """The model in memory."""
    return _greedy(_model(config), config, batch)


def exported(
    config: ViLGExperiment, batch: int, backend: Callable[[inference.Config], None] = native
) -> Callable[[], Generated]:
    """The same model's programs in Paddle Inference."""
    model = _model(config)
    with tempfile.TemporaryDirectory() as folder:
        save_transformer(model, Path(folder))
        run = _greedy(ExportedViLG(model.config, Programs(Path(folder), backend)), config, batch)
        run()  # programs are loaded when they are first called
    return run


def onednn(config: ViLGExperiment, batch: int) -> Callable[[], Generated]:
    """Programs on oneDNN."""
    return exported(config, batch, inference.Config.enable_mkldnn)


def openvino(config: ViLGExperiment, batch: int) -> Callable[[], Generated]:
    """Programs on OpenVINO."""
    return exported(config, batch, inference.Config.enable_openvino_engine)


def onnx(config: ViLGExperiment, batch: int, int8: bool = False) -> Callable[[], Generated]:
    """Decode steps in ONNX Runtime."""
    model = _model(config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_transformer(model, folder)
        convert_steps(folder, folder)
        programs = Programs(folder, converted=folder / (ONNX_INT8 if int8 else ONNX))
        run = _greedy(ExportedViLG(model.config, programs), config, batch)
        run()
    return run


def onnx_int8(config: ViLGExperiment, batch: int) -> Callable[[], Generated]:
    """Decode steps in ONNX Runtime with 8-bit weights."""
    return onnx(config, batch, int8=True)


def _model(config: ViLGExperiment) -> ViLG:
    """The same random weights in every process."""
    import paddle

    paddle.seed(0)
    model = ViLG(vilg_config(config))
    model.eval()
    return model


def _greedy(model: ViLG | ExportedViLG, config: ViLGExperiment, batch: int) -> Callable[[], Generated]:
    return generation(model, longest_prompt(config), batch, Sampling(0))


_START = """
import json, sys, time
began = time.perf_counter()
from ppvilg import ViLGPipeline
imported = time.perf_counter()
pipe = ViLGPipeline.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
pipe(sys.argv[2])
drawn = time.perf_counter()
pipe(sys.argv[2])
again = time.perf_counter()
from ppvilg.benchmark.runner import peak_resident
print(json.dumps([imported - began, loaded - imported, drawn - loaded, again - drawn, peak_resident()]))
"""


def start_line(folder: str, prompt: str) -> str:
    """How long a new process takes until its first image and for the next one, and its memory."""
    command = [sys.executable, "-c", _START, folder, prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    imported, loaded, drawn, again, peak = json.loads(done.stdout.splitlines()[-1])
    total = imported + loaded + drawn
    parts = f"imports {imported:.2f} s, load {loaded:.2f} s, first image {drawn:.2f} s, together {total:.2f} s"
    return f"{folder}: {parts}; the next image {again:.2f} s; {peak / 2**20:.0f} MB"
