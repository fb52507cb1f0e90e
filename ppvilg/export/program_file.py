"""The files of a program: what it computes (`.json`, Paddle's IR) and its weights (`.pdiparams`).

Paddle Inference reads a weights file from beginning to end, and takes no weights that the program does not declare. So programs
that share a file all declare all weights in it, also those that they do not use.

To everyone else weights are parameters. In this project's own processes they are inputs, so that several programs share one
copy of them in memory.
"""

import json
import re
from pathlib import Path
from typing import Any

import paddle
from paddle.base import core

PROGRAM, WEIGHTS = ".json", ".pdiparams"  # what Paddle Inference expects of the names
_DTYPES = {"0.t_f32": "float32", "0.t_f64": "float64", "0.t_f16": "float16", "0.t_bf16": "bfloat16"}
_DTYPES |= {"0.t_i64": "int64", "0.t_i32": "int32", "0.t_bool": "bool", "0.t_ui8": "uint8"}
_INPUT, _OUTPUT, _PARAMETER = "1.data", "1.fetch", "p"


class ProgramFile:
    """A program as it was saved. Raises `ValueError` for a file of another form than this version of Paddle writes."""

    def __init__(self, path: Path):
        self._tree = json.loads(path.read_text("utf-8"))
        try:
            self._operations: list[dict[str, Any]] = self._tree["program"]["regions"][0]["blocks"][0]["ops"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{path} is no program of paddle {paddle.__version__}: export the model again") from None

    def save(self, path: Path) -> None:
        """Write it, the smallest way."""
        path.write_text(json.dumps(self._tree, separators=(",", ":")), "utf-8")

    @property
    def weights(self) -> list[str]:
        """The names of all parameters, in the order of their file."""
        return sorted(operation["A"][3] for operation in self._operations if operation["#"] == _PARAMETER)

    def signature(self) -> tuple[dict[str, dict], dict[str, dict]]:
        """Inputs and outputs by name, each `{"dtype": ..., "shape": [...]}` with -1 for sizes that are open."""
        inputs = {_name(op): _type(op["O"][0]) for op in self._operations if op["#"] == _INPUT}
        outputs = {_name(op): _type(op["O"][0]) for op in self._operations if op["#"] == _OUTPUT}
        return inputs, outputs

    def name_outputs(self, names: list[str]) -> None:
        """Give the outputs names, in their order."""
        outputs = [operation for operation in self._operations if operation["#"] == _OUTPUT]
        for operation, name in zip(outputs, names, strict=True):
            _attribute(operation, "name")["D"] = name

    def inputs_to_parameters(self, names: set[str]) -> dict[str, dict]:
        """Make parameters of inputs; returns what declares them, by name."""
        made = {}
        for i, operation in enumerate(self._operations):
            if operation["#"] == _INPUT and (name := _name(operation)) in names:
                # The attributes: distributed or not, a parameter, clipped; persistable, without gradient, trainable.
                made[name] = {
                    "#": _PARAMETER,
                    "A": [0, 1, 1, name],
                    "DA": [],
                    "O": operation["O"][0],
                    "OA": [1, 1, 0],
                    "QA": [],
                }
                self._operations[i] = made[name]
        return made

    def declare(self, parameters: list[dict]) -> None:
        """Add parameters that the program does not use."""
        numbers = map(int, re.findall(r'"%": (\d+)', json.dumps(self._tree)))
        free = max(numbers, default=0) + 1
        self._operations[:0] = [{**operation, "O": {**operation["O"], "%": free + i}} for i, operation in enumerate(parameters)]

    def not_in_place(self) -> None:
        """Have no operator write to its input."""
        for operation in self._operations:
            if operation["#"] == "1.scatter_":
                operation["#"] = "1.scatter"

    def parameters_to_inputs(self) -> None:
        """The opposite of `inputs_to_parameters`."""
        for i, operation in enumerate(self._operations):
            if operation["#"] == _PARAMETER:
                found, place = _type(operation["O"]), {"#": "1.a_place", "D": [0, 0, ""]}
                self._operations[i] = {
                    "#": _INPUT,
                    "A": [
                        {"AT": {"#": "0.a_str", "D": operation["A"][3]}, "N": "name"},
                        {"AT": {"#": "1.a_intarray", "D": found["shape"]}, "N": "shape"},
                        {"AT": {"#": "1.a_dtype", "D": found["dtype"]}, "N": "dtype"},
                        {"AT": place, "N": "place"},
                    ],
                    "I": [],
                    "O": [operation["O"]],
                    "OA": [{"AT": {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": True}]}, "N": "stop_gradient"}],
                }


def _attribute(operation: dict, name: str) -> dict:
    return next(attribute["AT"] for attribute in operation["A"] if attribute["N"] == name)


def _name(operation: dict) -> str:
    return _attribute(operation, "name")["D"]


def _type(value: dict) -> dict:
    dtype, shape, *_ = value["TT"]["D"]
    return {"dtype": _DTYPES[dtype["#"]], "shape": shape}


def save_weights(weights: dict[str, paddle.Tensor], path: Path) -> None:
    """Write tensors as a weights file."""
    names = sorted(weights)
    core.save_combine_func([weights[name].get_tensor() for name in names], names, str(path), True, False, False)


def load_weights(path: Path, names: list[str]) -> dict[str, paddle.Tensor]:
    """A weights file, of which `names` are all names in their order, on the current device."""
    found = {name: paddle.empty([1]) for name in names}  # which get the shapes and dtypes of the file
    place = paddle.framework._current_expected_place()
    core.load_combine_func(str(path), names, [tensor.get_tensor() for tensor in found.values()], False, place)
    return found


def weights_file(folder: Path, program: str, shared: str) -> Path:
    """The file of a program's weights: its own, or where it has none the one that is shared."""
    own = folder / f"{program}{WEIGHTS}"
    return own if own.is_file() else folder / f"{shared}{WEIGHTS}"
