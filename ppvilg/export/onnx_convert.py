"""From exported programs to models of ONNX Runtime, by Paddle2ONNX: those that run once for every token.

ONNX has no operator that writes to its input. A converted decode step has each cache's new content as another output, which
`OnnxProgram` puts where the input is.
"""

import logging
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from ppvilg.export.onnx_program import WRITTEN
from ppvilg.export.program_file import PROGRAM, ProgramFile, load_weights, weights_file
from ppvilg.export.programs import ONNX, ONNX_INT8, SHARED
from ppvilg.model.mask import Direction

STEPS = (*(f"{direction.value}_decode_step" for direction in Direction), "image_logits", "text_logits")
_MISSING = "ONNX Runtime or Paddle2ONNX is not installed: pip install -r requirements-onnx.txt"
_BLOCK = 128  # weights that share a scale


def convert_steps(programs: Path, folder: Path) -> None:
    """Write the programs that run once for every token to `onnx/` and, with 8-bit weights, `onnx_int8/` in a folder.

    Raises `ValueError` where a package is missing or a program cannot be converted.
    """
    try:
        import onnx_ir  # noqa: F401, which the quantiser needs
        import onnxruntime  # noqa: F401
        import paddle2onnx  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(_MISSING) from None
    for name in (ONNX, ONNX_INT8):
        (folder / name).mkdir()
    # In a process of its own, which Paddle2ONNX aborts at what it does not know.
    process = multiprocessing.get_context("spawn").Process(target=_convert_all, args=(programs, folder))
    process.start()
    process.join()
    if process.exitcode:
        raise ValueError("Paddle2ONNX cannot convert this model, see its message above: export it without --onnx")


def _convert_all(programs: Path, folder: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the converters tell what they do
    logging.disable(logging.INFO)
    for name in STEPS:
        _convert(programs, name, folder)


def _convert(programs: Path, name: str, folder: Path) -> None:
    import onnx
    import paddle2onnx

    saved = ProgramFile(programs / f"{name}{PROGRAM}")
    weights = load_weights(weights_file(programs, name, SHARED), saved.weights)
    saved.parameters_to_inputs()
    saved.not_in_place()
    with tempfile.TemporaryDirectory() as temporary:
        pure, converted = Path(temporary) / f"{name}{PROGRAM}", Path(temporary) / f"{name}.onnx"
        saved.save(pure)
        paddle2onnx.export(str(pure), "", str(converted), opset_version=18, enable_onnx_checker=False, verbose=False)
        model = onnx.load(str(converted))
    graph = model.graph
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    given = {value.name: value for value in graph.input}
    used = {name for node in graph.node for name in node.input}
    for weight in given.keys() & weights.keys():
        graph.input.remove(given[weight])
        if weight in used:
            graph.initializer.append(onnx.numpy_helper.from_array(weights[weight].numpy(), weight))
    for node in graph.node:
        if node.op_type in ("ScatterND", "ScatterElements") and node.input[0].startswith("caches."):
            output, written = node.output[0], f"{node.input[0]}{WRITTEN}"
            for other in graph.node:
                for i, used in enumerate(other.input):
                    if used == output:
                        other.input[i] = written
            node.output[0] = written
            kind = given[node.input[0]].type.tensor_type.elem_type
            graph.output.append(onnx.helper.make_tensor_value_info(written, kind, None))
    _tanh_gelu(graph)
    _save(_with_8_bits(model), folder / ONNX_INT8 / f"{name}.onnx")
    _save(model, folder / ONNX / f"{name}.onnx")


def _tanh_gelu(graph) -> None:
    """Put the tanh form of GELU back, which is the model's: Paddle2ONNX writes x / √2, erf, + 1, · x, · 0.5 for either form."""
    import onnx

    readers = {name: node for node in graph.node for name in node.input}
    makers = {name: node for node in graph.node for name in node.output}
    for erf in [node for node in graph.node if node.op_type == "Erf"]:
        first, plus = makers[erf.input[0]], readers[erf.output[0]]
        last = readers[(product := readers[plus.output[0]]).output[0]]
        chain = [first, erf, plus, product, last]
        if [node.op_type for node in chain] != ["Div", "Erf", "Add", "Mul", "Mul"]:
            raise ValueError("Paddle2ONNX writes GELU in a form that this version does not know: export it without --onnx")
        gelu = onnx.helper.make_node("FastGelu", [first.input[0]], list(last.output), domain="com.microsoft")
        graph.node.insert(list(graph.node).index(last), gelu)
        for node in chain:
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(constant)


def _with_8_bits(model):
    """Weights of matrix products as 8-bit numbers, with a scale for each block of a column. Their inputs are rounded to 8 bits
    as well while they are multiplied, which is several times as fast as float32 inputs."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = MatMulNBitsQuantizer(copy, bits=8, block_size=_BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return quantizer.model.model


def _save(model, path: Path) -> None:
    """With the weights in a file beside it, since one file may not have more than 2 GB."""
    import onnx

    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.stem}.data", size_threshold=1024)
