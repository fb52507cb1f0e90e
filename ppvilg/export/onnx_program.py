"""Converted programs on ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppvilg.export.structure import arrays
from ppvilg.ops import from_numpy
from ppvilg.runtime import threads

WRITTEN = ".written"
"""What follows a cache's name in that of the output with its new content."""


class OnnxProgram:
    """A program as `onnx_convert` makes it, on the CPU; not for several threads at once.

    It reads tensors where they are, and writes the new content of a cache to where the old one is.
    """

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        # Threads that wait for work would hold back Paddle's between two steps.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {given.name for given in self._session.get_inputs()}
        names = [output.name for output in self._session.get_outputs()]
        self._outputs = [name for name in names if not name.endswith(WRITTEN)]
        self._written = {name.removesuffix(WRITTEN): name for name in names if name.endswith(WRITTEN)}
        self._binding: Any = None
        self._given: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> list[paddle.Tensor]:
        """As of a `Program`."""
        lists = {name: value for name, value in arguments.items() if isinstance(value, list)}
        if self._binding is None or any(self._given.get(name) is not value for name, value in lists.items()):
            self._binding = self._session.io_binding()
            for name in self._outputs:
                self._binding.bind_output(name, "cpu")
            for argument, structure in lists.items():
                for name, tensor in arrays(structure, argument).items():
                    self._bind(name, tensor)
        for argument, value in arguments.items():
            if argument not in lists:
                for name, array in arrays(value, argument).items():
                    self._bind(name, array)
        self._given = arguments  # the binding has only their addresses
        for name in self._outputs:  # anew in its place, since its size may be another
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        return [from_numpy(output.numpy()) for output in self._binding.get_outputs()[: len(self._outputs)]]

    def _bind(self, name: str, array: np.ndarray | paddle.Tensor) -> None:
        if name not in self._inputs:  # a program has no inputs that it does not use
            return
        if isinstance(array, np.ndarray):
            self._binding.bind_cpu_input(name, array)
            return
        dtype = np.dtype(str(array.dtype).removeprefix("paddle."))
        where = ("cpu", 0, dtype, list(array.shape), array.data_ptr())
        self._binding.bind_input(name, *where)
        if name in self._written:
            self._binding.bind_output(self._written[name], *where)
