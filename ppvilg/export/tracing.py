"""From a model's functions to programs without weights, whose open sizes are those in which two examples differ."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from ppvilg.export.structure import arrays, with_arrays


def save_program(
    layers: dict[str, nn.Layer],
    function: Callable[..., list],
    example: dict[str, Any],
    other: dict[str, Any],
    path: Path,
) -> set[str]:
    """Trace what `function` computes with the weights of `layers` and write it to `path`, to which paddle adds a suffix.

    `example` and `other` are arguments of different sizes. The program's outputs are the tensors of the returned list in their
    order. Returns the names of the weights that it reads.
    """
    found, others = _flat(example), _flat(other)
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
            paddle.static.save_inference_model(str(path), [*given, *read.values()], outputs, executor, program=program)
    finally:
        paddle.disable_static()
    return set(read)


def weights_of(layers: dict[str, nn.Layer]) -> dict[str, paddle.Tensor]:
    """Parameters and buffers by the names that they have as inputs."""
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
