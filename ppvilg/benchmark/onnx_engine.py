"""An exported transformer whose decode steps run in ONNX Runtime, to compare engines; text to image only."""

from pathlib import Path

import numpy as np
import paddle

from ppvilg.export.model import ExportedViLG
from ppvilg.export.program_file import PROGRAM, ProgramFile, load_weights, weights_file
from ppvilg.export.programs import SHARED, Programs
from ppvilg.export.structure import arrays
from ppvilg.model.config import ViLGConfig
from ppvilg.model.kv_cache import Cache, DecodeInputs
from ppvilg.model.mask import Direction
from ppvilg.runtime import threads


class OnnxViLG(ExportedViLG):
    """As an `ExportedViLG`, but decode steps run in ONNX Runtime.

    Its operators write to no input, so every step hands the caches back as new arrays. With `int8` the weights of matrix
    products are rounded to 8 bits when the model is made, their inputs at each step.
    """

    def __init__(self, config: ViLGConfig, folder: Path, int8: bool = False):
        super().__init__(config, Programs(folder))
        program = folder / f"{Direction.TEXT_TO_IMAGE.value}_decode_step{PROGRAM}"
        self._session, self._written = _session(program, int8)
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._caches: list[Cache] | None = None
        self._kept: dict[str, np.ndarray] = {}

    def decode_step(self, direction: Direction, inputs: DecodeInputs) -> paddle.Tensor:
        """As `ViLG.decode_step`, but the caches that are given are those before the first token."""
        given = {name: value for field, part in vars(inputs).items() for name, value in arrays(part, field).items()}
        if self._caches is not inputs.caches:
            self._caches = inputs.caches
            self._kept = {name: tensor.numpy() for name, tensor in given.items() if isinstance(tensor, paddle.Tensor)}
        given = {name: value for name, value in given.items() if isinstance(value, np.ndarray)} | self._kept
        hidden, *written = self._session.run(None, {name: given[name] for name in self._inputs})
        self._kept |= dict(zip(self._written, written, strict=True))
        return paddle.to_tensor(hidden)


def _session(program: Path, int8: bool):
    """ONNX Runtime's session for a program, and the names of the caches that it hands back."""
    try:
        import onnx
        import onnxruntime
        import paddle2onnx
    except ModuleNotFoundError:
        raise ValueError("ONNX Runtime is not installed: pip install -r requirements-bench.txt") from None
    saved = ProgramFile(program)
    weights = load_weights(weights_file(program.parent, program.stem, SHARED), saved.weights)
    saved.parameters_to_inputs()
    pure = program.with_suffix(".pure.json")
    saved.save(pure)
    # Paddle2ONNX knows only the operator that does not work in place.
    pure.write_text(pure.read_text("utf-8").replace('"1.scatter_"', '"1.scatter"'), "utf-8")
    file = program.with_suffix(".onnx")
    paddle2onnx.export(str(pure), "", str(file), opset_version=18, enable_onnx_checker=False)
    model = onnx.load(str(file))
    graph = model.graph
    given = {value.name: value for value in graph.input}
    for name in given.keys() & weights.keys():
        graph.initializer.append(onnx.numpy_helper.from_array(weights[name].numpy(), name))
        graph.input.remove(given[name])
    written = []
    for node in graph.node:
        if node.op_type in ("ScatterND", "ScatterElements") and node.input[0].startswith("caches."):
            written.append(node.input[0])
            graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(file))
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        rounded = program.with_suffix(".int8.onnx")
        quantize_dynamic(str(file), str(rounded), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
        file = rounded
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]), written
