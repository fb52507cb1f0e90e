"""Programs as Paddle Inference runs them.

The weights are inputs as well. So the programs that read sources and those that write targets, in both directions, share one
copy of them, on disk and in memory, and the caches are inputs that a program writes to in place.
"""

from pathlib import Path
from typing import Any

import paddle
from paddle import inference

from ppvilg.export.structure import arrays
from ppvilg.runtime import threads

SUFFIX = ".json"  # what Paddle Inference expects of a program's name


class Program:
    """A saved program on Paddle Inference's native engine; not for several threads at once."""

    def __init__(self, path: Path, weights: dict[str, paddle.Tensor]):
        config = inference.Config(str(path), "")
        config.disable_glog_info()
        config.disable_mkldnn()  # it plans anew for every shape, which costs several times what it gains
        config.set_cpu_math_library_num_threads(threads())
        self._predictor = inference.create_predictor(config)
        self._inputs = {name: self._predictor.get_input_handle(name) for name in self._predictor.get_input_names()}
        self._outputs = [self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()]
        self._weights = weights  # the engine has only their addresses
        for name in self._inputs.keys() & weights.keys():
            self._inputs[name].share_external_data(weights[name])
        self._given: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> list[paddle.Tensor]:
        """The outputs for arguments as they were traced. An argument that is the very object it was last time is not looked
        into again."""
        for argument, structure in arguments.items():
            if self._given.get(argument) is not structure:
                for name, array in arrays(structure, argument).items():
                    if name in self._inputs:  # a program has no inputs that it does not use
                        self._inputs[name].share_external_data(array)
        self._given = arguments
        self._predictor.run()
        return [paddle.to_tensor(output.copy_to_cpu()) for output in self._outputs]


class Programs:
    """The programs in a folder, each loaded when it is first called."""

    def __init__(self, folder: Path, weights: dict[str, paddle.Tensor]):
        self._folder, self._weights = folder, weights
        self._loaded: dict[str, Program] = {}

    def __call__(self, program: str, **arguments: Any) -> list[paddle.Tensor]:
        """The outputs of a program by its name."""
        if program not in self._loaded:
            self._loaded[program] = Program(self._folder / f"{program}{SUFFIX}", self._weights)
        return self._loaded[program](**arguments)
