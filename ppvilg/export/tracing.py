"""From a model's functions to programs, whose open sizes are those in which two examples differ."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from ppvilg.export.program_file import PROGRAM, WEIGHTS, ProgramFile, save_weights
from ppvilg.export.structure import arrays, with_arrays


@dataclass(frozen=True)
class TracedProgram:
    """A program whose weights are still inputs."""

    path: Path
    weights: dict[str, paddle.Tensor]
    """Those that it reads, by the names of the inputs."""


def trace(
    layers: dict[str, nn.Layer],
    function: Callable[..., dict[str, paddle.Tensor]],
    example: dict[str, Any],
    other: dict[str, Any],
    path: Path,
) -> TracedProgram:
    """Write what `function` computes with the weights of `layers` to `path`, which has no suffix.

    `example` and `other` are arguments of different sizes. The program's outputs are named as in the dictionary that the
    function returns.
    """
    found, others = _flat(example), _flat(other)
    originals = weights_of(layers)
    paddle.enable_static()
    try:
        with paddle.static.program_guard(paddle.static.Program()), warnings.catch_warnings(action="ignore"):
            inputs = {}
            for name, array in found.items():
                sizes = [a if a == b else -1 for a, b in zip(array.shape, others[name].shape, strict=True)]
                inputs[name] = paddle.static.data(name, sizes, str(array.dtype).removeprefix("paddle."))
            with _weights_as_inputs(layers) as weights, paddle.no_grad():
                outputs = function(**{key: with_arrays(value, inputs, key) for key, value in example.items()})
            read = {name: value for name, value in weights.items() if not value.use_empty()}
            given = [value for value in inputs.values() if not value.use_empty()]
            executor = paddle.static.Executor(paddle.CPUPlace())
            program = paddle.static.default_main_program()
            written = list(outputs.values())
            paddle.static.save_inference_model(str(path), [*given, *read.values()], written, executor, program=program)
    finally:
        paddle.disable_static()
    file = path.with_name(path.name + PROGRAM)
    saved = ProgramFile(file)
    saved.name_outputs(list(outputs))
    saved.save(file)
    return TracedProgram(file, {name: originals[name] for name in read})


def save_parameters(programs: list[TracedProgram], path: Path) -> None:
    """Write the weights of programs into one file, to which `path` lacks the suffix, and make them parameters."""
    weights = {name: tensor for program in programs for name, tensor in program.weights.items()}
    save_weights(weights, path.with_name(path.name + WEIGHTS))
    files = {program.path: ProgramFile(program.path) for program in programs}
    used = {path: file.inputs_to_parameters(set(weights)) for path, file in files.items()}
    declared = {name: operation for own in used.values() for name, operation in own.items()}
    for path, file in files.items():
        file.declare([declared[name] for name in sorted(declared.keys() - used[path].keys())])
        file.save(path)


def weights_of(layers: dict[str, nn.Layer]) -> dict[str, paddle.Tensor]:
    """Parameters and buffers by the names that they have in programs."""
    return {name: store[key] for name, store, key in _places(layers)}


def _flat(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: array for key, value in arguments.items() for name, array in arrays(value, key).items()}


def _places(layers: dict[str, nn.Layer]) -> Iterator[tuple[str, dict, str]]:
    """For each weight its name, and where its layer keeps it."""
    for title, layer in layers.items():
        for path, inner in layer.named_sublayers(prefix=title, include_self=True):
            for store in (inner._parameters, inner._buffers):
                for key, tensor in store.items():
                    if tensor is not None:
                        yield f"{path}.{key}", store, key


@contextmanager
def _weights_as_inputs(layers: dict[str, nn.Layer]) -> Iterator[dict]:
    places = list(_places(layers))
    originals = [store[key] for _, store, key in places]
    try:
        for name, store, key in places:
            store[key] = paddle.static.data(name, store[key].shape, store[key].dtype)
        yield weights_of(layers)
    finally:
        for (_, store, key), original in zip(places, originals, strict=True):
            store[key] = original
