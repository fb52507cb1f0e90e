"""An exported transformer whose steps run in ONNX Runtime, to compare engines; text to image only."""

from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import ViLGExperiment
from ppvilg.errors import UserError
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import SUFFIX, Programs
from ppvilg.export.structure import arrays
from ppvilg.runtime import threads
from ppvilg.transformer.cache import Cache, Source, Step
from ppvilg.transformer.pattern import Direction


class OnnxViLG(ExportedViLG):
    """As an `ExportedViLG`, but targets are read by ONNX Runtime.

    Its operators write to no input, so every step hands the caches back as new arrays. With `int8` the weights of matrix
    products are rounded to 8 bits when the model is made, their inputs at each step.
    """

    def __init__(self, config: ViLGExperiment, folder: Path, weights: dict[str, paddle.Tensor], int8: bool = False):
        super().__init__(config, Programs(folder, weights))
        self._session, self._written = _session(folder / f"{Direction.TEXT_TO_IMAGE.value}_target{SUFFIX}", weights, int8)
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._caches: list[Cache] | None = None
        self._kept: dict[str, np.ndarray] = {}

    def read_target(
        self,
        direction: Direction,
        ids: paddle.Tensor,
        slots: np.ndarray,
        steps: dict[str, Step],
        sources: list[Source],
        caches: list[Cache],
    ) -> paddle.Tensor:
        """As a `Decoder`, but the caches that are given are those before the first token."""
        if self._caches is not caches:
            self._caches = caches
            given = arrays(sources, "sources") | arrays(caches, "caches")
            self._kept = {name: tensor.numpy() for name, tensor in given.items()}
        given = {"ids": ids.numpy(), "slots": slots} | arrays(steps, "steps") | self._kept
        hidden, *written = self._session.run(None, {name: given[name] for name in self._inputs})
        self._kept |= dict(zip(self._written, written, strict=True))
        return paddle.to_tensor(hidden)


def _session(program: Path, weights: dict[str, paddle.Tensor], int8: bool):
    """ONNX Runtime's session for a program, and the names of the caches that it hands back."""
    try:
        import onnx
        import onnxruntime
        import paddle2onnx
    except ModuleNotFoundError:
        raise UserError("ONNX Runtime is not installed: pip install -r requirements-bench.txt") from None
    # Paddle2ONNX knows only the operator that does not work in place.
    pure = program.with_suffix(".pure.json")
    pure.write_text(program.read_text("utf-8").replace('"1.scatter_"', '"1.scatter"'), "utf-8")
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
