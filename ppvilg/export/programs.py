"""Programs as Paddle Inference runs them.

The weights are inputs here. So the programs of prefill and decode step, in both directions, share one copy of them in memory.
The caches are inputs that a program writes to in place.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import inference

from ppvilg.export.onnx_program import OnnxProgram
from ppvilg.export.program_file import PROGRAM, ProgramFile, load_weights, weights_file
from ppvilg.export.structure import arrays
from ppvilg.ops import from_numpy
from ppvilg.runtime import threads

SHARED = "transformer"
"""The weights file of the programs that have none of their own."""
ONNX, ONNX_INT8 = "onnx", "onnx_int8"
"""An export's folders of programs for ONNX Runtime."""
GPU_MEMORY = 256  # MB that a predictor reserves at first
_GARBAGE = "FLAGS_eager_delete_tensor_gb"

Backend = Callable[[inference.Config], None]
"""Chooses what a program runs on."""


def native(config: inference.Config) -> None:
    """Paddle's own operators, on paddle's current device.

    On a CPU its other backends plan anew for every shape, which costs several times what it gains. On a GPU (which has not been
    run) the passes over the program are on, and TensorRT, whose engines are built for each shape, is off, as by default.
    """
    kind, _, number = paddle.get_device().partition(":")
    if kind == "gpu":
        config.enable_use_gpu(GPU_MEMORY, int(number))
    config.disable_mkldnn()


class Program:
    """A program on Paddle Inference, of a file whose weights are inputs; not for several threads at once.

    One that is `small` keeps the memory of its intermediate results, instead of freeing and allocating it hundreds of times a
    run, which takes as long as the work itself.
    """

    def __init__(self, path: Path, weights: dict[str, paddle.Tensor], small: bool, backend: Backend):
        config = inference.Config(str(path), "")
        config.disable_glog_info()
        backend(config)
        config.set_cpu_math_library_num_threads(threads())
        self._predictor = inference.create_predictor(config)
        self._inputs = {name: self._predictor.get_input_handle(name) for name in self._predictor.get_input_names()}
        self._outputs = [self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()]
        self._weights = weights  # the predictor has only their addresses
        for name in self._inputs.keys() & weights.keys():
            self._inputs[name].share_external_data(weights[name])
        self._given: dict[str, Any] = {}
        self._run = self._run_and_keep if small else self._predictor.run

    def __call__(self, **arguments: Any) -> list[paddle.Tensor]:
        """The outputs for arguments as they were traced; numpy arrays are copied, tensors are read, and written to, where they
        are. A list that is the very object it was last time, as a state's prefixes and caches, is not looked into again."""
        for argument, structure in arguments.items():
            if not isinstance(structure, list) or self._given.get(argument) is not structure:
                for name, array in arrays(structure, argument).items():
                    if name in self._inputs:  # a program has no inputs that it does not use
                        given = self._inputs[name]
                        (given.copy_from_cpu if isinstance(array, np.ndarray) else given.share_external_data)(array)
        self._given = arguments
        self._run()
        return [from_numpy(output.copy_to_cpu()) for output in self._outputs]

    def _run_and_keep(self) -> None:
        """The first run, which is when the predictor reads how it is to collect garbage."""
        flags = paddle.get_flags(_GARBAGE)
        paddle.set_flags({_GARBAGE: -1.0})
        try:
            self._predictor.run()
        finally:
            paddle.set_flags(flags)
        self._run = self._predictor.run


class Programs:
    """The programs in a folder, each loaded when it is first called.

    `converted` is a folder of programs for ONNX Runtime, which take the places of those of the same names.
    """

    def __init__(self, folder: Path, backend: Backend = native, converted: Path | None = None):
        self._folder, self._backend, self._converted = folder, backend, converted
        self._weights: dict[Path, dict[str, paddle.Tensor]] = {}  # by file
        self._loaded: dict[str, Program | OnnxProgram] = {}

    def __call__(self, program: str, *, small: bool = False, **arguments: Any) -> list[paddle.Tensor]:
        """The outputs of a program by its name."""
        if program not in self._loaded:
            self._loaded[program] = self._load(program, small)
        return self._loaded[program](**arguments)

    def _load(self, name: str, small: bool) -> Program | OnnxProgram:
        if self._converted is not None and (converted := self._converted / f"{name}.onnx").is_file():
            return OnnxProgram(converted)
        file, weights = ProgramFile(self._folder / f"{name}{PROGRAM}"), weights_file(self._folder, name, SHARED)
        if weights not in self._weights:
            self._weights[weights] = load_weights(weights, file.weights)
        file.parameters_to_inputs()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}{PROGRAM}"
            file.save(path)
            return Program(path, self._weights[weights], small, self._backend)
