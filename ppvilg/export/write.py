"""From models in memory to an exported folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

import ppvilg
from ppvilg import checkpoint
from ppvilg.config import DTYPES
from ppvilg.export.folder import DUAL_ENCODER, FORMAT, MANIFEST, PROGRAMS, README, Engine, files_of, is_export
from ppvilg.export.measure import fastest_engine
from ppvilg.export.onnx_convert import convert_steps
from ppvilg.export.program_file import PROGRAM, WEIGHTS, ProgramFile, weights_file
from ppvilg.export.programs import ONNX, SHARED
from ppvilg.export.readme import readme
from ppvilg.export.structure import arrays
from ppvilg.export.text_to_image import text_to_image
from ppvilg.export.tracing import TracedProgram, save_parameters, trace
from ppvilg.folder import PipelineConfig, ScorerConfig, new_folder, write_config
from ppvilg.model.config import ViLGConfig
from ppvilg.model.dual_encoder import DualEncoder
from ppvilg.model.kv_cache import DecodeInputs, DecodeState, SlotTables, empty_cache
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from ppvilg.text import TextTokenizer
from ppvilg.vqgan.model import VQGAN

PRECISIONS = DTYPES | {"fp64": "float64"}  # the last only to find what computes in a fixed precision


def write_export(
    folder: str | Path,
    model: ViLG,
    vqgan: VQGAN,
    text_tokenizer: TextTokenizer,
    config: PipelineConfig,
    made_from: dict[str, Any],
    dual_encoder: tuple[DualEncoder, TextTokenizer, ScorerConfig] | None = None,
    onnx: bool = False,
    engine: Engine = "auto",
) -> None:
    """Write models that were trained, in evaluation mode, as a new folder; it gets its name when it is complete.

    `made_from` is kept in the manifest, e.g. what `origin` returns. `onnx`: also for ONNX Runtime. `engine`: what the export
    runs on where its user does not choose; auto: the fastest, which is measured. Raises `ValueError` where the folder exists,
    for models that are exports themselves, and as `convert_steps` does.
    """
    if engine == "onnxruntime" and not onnx:
        raise ValueError("engine is onnxruntime: export for ONNX Runtime too, with --onnx")
    if onnx and _dtype(model) != "float32":
        raise ValueError(f"the model has {_dtype(model)}, but ONNX Runtime is for the CPU, with float32: choose precision fp32")
    if not isinstance(model, ViLG):
        raise ValueError("the model is an export already: give the folder that it was made from")
    with new_folder(folder) as temporary:
        programs = temporary / PROGRAMS
        programs.mkdir()
        save_transformer(model, programs, vqgan)
        _save_vqgan(vqgan, config, programs)
        _write_description(temporary, config, text_tokenizer)
        if dual_encoder is not None:
            _save_dual_encoder(dual_encoder[0], programs)
            (temporary / DUAL_ENCODER).mkdir()
            _write_description(temporary / DUAL_ENCODER, dual_encoder[2], dual_encoder[1])
        seconds: dict[str, float] = {}
        if onnx:
            convert_steps(programs, temporary)
            if engine == "auto":
                engine, seconds = fastest_engine(model.config, programs, {"onnxruntime": temporary / ONNX})
        manifest = {
            "format": FORMAT,
            "precision": next(precision for precision, dtype in PRECISIONS.items() if dtype == _dtype(model)),
            "engine": "paddle" if engine == "auto" else engine,
            "seconds_per_token": seconds,
            "made_from": made_from,
            "versions": {"ppvilg": ppvilg.__version__, "paddle": paddle.__version__},
            "programs": {path.stem: _describe(path, model.config) for path in sorted(programs.glob(f"*{PROGRAM}"))},
        }
        shared = (programs / f"{SHARED}{WEIGHTS}").stat().st_size
        (temporary / README).write_text(readme(manifest, model.config, text_tokenizer, shared), "utf-8")
        manifest["files"] = files_of(temporary)
        (temporary / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")


def origin(folder: str | Path) -> dict[str, str]:
    """Which weights of a model folder or of a training run are read, and their checksum; raises `ValueError` for an export."""
    folder = Path(folder)
    if is_export(folder):
        raise ValueError(f"{folder} is an export already: give the folder that it was made from")
    weights = checkpoint.weights_file(folder)
    return {"weights": str(weights.relative_to(folder)), "run": folder.resolve().name, "sha256": checkpoint.checksum(weights)}


def _describe(path: Path, config: ViLGConfig) -> dict[str, Any]:
    """What the manifest says of a program; of a decode step also the shapes of one sequence's caches."""
    name = path.stem
    inputs, outputs = ProgramFile(path).signature()
    described = {"weights": weights_file(path.parent, name, SHARED).name, "inputs": inputs, "outputs": outputs}
    for direction in Direction:
        if name == f"{direction.value}_decode_step":
            masks = [config.mask(kind, direction, config.max_text_length) for kind in config.kinds]
            width = config.hidden // config.heads
            caches = [empty_cache(mask, 1, config.heads, width, config.hidden, "float32") for mask in masks]
            described["caches"] = {name: array.shape for name, array in arrays(caches, "caches").items()}
    return described


def _write_description(folder: Path, config: PipelineConfig | ScorerConfig, text_tokenizer: TextTokenizer) -> None:
    """The config and the vocabulary, as a model folder has them."""
    (folder / "text").mkdir()
    text_tokenizer.save(folder / "text")
    write_config(config, folder)


def save_transformer(model: ViLG, folder: Path, vqgan: VQGAN | None = None) -> None:
    """Write all programs of a transformer, with the image tokenizer also the one that makes images of texts."""
    layers, shared = {"model": model}, []
    for direction in Direction:

        def prefill(ids: paddle.Tensor, mask: paddle.Tensor, direction: Direction = direction) -> dict[str, paddle.Tensor]:
            states, prefixes = model.prefill(direction, ids, mask)
            return {"states": states} | arrays(prefixes, "prefixes")

        def decode_step(direction: Direction = direction, **inputs: Any) -> dict[str, paddle.Tensor]:
            return {"states": model.decode_step(direction, DecodeInputs(**inputs))}

        prompts, inputs = zip(_arguments(model, direction, 2, 3, 5), _arguments(model, direction, 3, 4, 6), strict=True)
        tables = inputs[0]["tables"]
        own = layers | {f"{direction.value}_slots.{kind}": table for kind, table in tables.items()}
        shared.append(trace(layers, prefill, *prompts, folder / f"{direction.value}_prefill"))
        shared.append(trace(own, decode_step, *inputs, folder / f"{direction.value}_decode_step"))
        if vqgan is not None and direction is Direction.TEXT_TO_IMAGE:
            shared.append(_trace_text_to_image(model, vqgan, tables, own, folder))
    save_parameters(shared, folder / SHARED)
    hidden = {"states": (_dtype(model), [model.config.hidden])}
    for name, logits in (("image_logits", model.image_logits), ("text_logits", model.text_logits)):
        _save_simple(layers, logits, hidden, "logits", folder / name)
    if model.reconstructor is not None:
        states = {"states": (_dtype(model), [model.config.image_length, model.config.hidden])}
        _save_simple(layers, model.reconstructor, states, "pixels", folder / "reconstruct")


def _arguments(model: ViLG, direction: Direction, prompts: int, candidates: int, text_length: int) -> tuple[dict, dict]:
    """Arguments of `prefill` and of `decode_step`, with token 0 everywhere."""
    config, to_image = model.config, direction is Direction.TEXT_TO_IMAGE
    ids = paddle.zeros([prompts, text_length if to_image else config.question_length + config.image_length], "int64")
    mask = ids == 0
    _, prefixes = model.prefill(direction, ids, mask)
    # Prompts are as long as they are; texts to generate have one length, so that their caches have one size.
    text_length = text_length if to_image else config.max_text_length
    state = DecodeState.empty(config, direction, text_length, prefixes, mask.numpy(), candidates)
    zeros = np.zeros(state.batch, dtype=np.int64)
    return {"ids": ids, "mask": mask}, vars(state.inputs(zeros, zeros))


def _trace_text_to_image(
    model: ViLG, vqgan: VQGAN, tables: dict[str, SlotTables], layers: dict[str, nn.Layer], folder: Path
) -> TracedProgram:
    """With the loop over an image's tokens inside."""
    config, options = model.config, {name: paddle.ones([1]) for name in ("temperature", "top_p", "guidance")}
    options["top_k"] = paddle.zeros([1], "int64")

    def arguments(images: int, text_length: int) -> dict[str, paddle.Tensor]:
        ids = paddle.zeros([2 * images, text_length], "int64")
        noise = paddle.zeros([config.image_length, images, config.image_vocab_size])
        return {"ids": ids, "mask": ids == 0, "noise": noise, **options}

    def draw(**given: paddle.Tensor) -> dict[str, paddle.Tensor]:
        return text_to_image(model, vqgan, tables, **given)

    return trace(layers | {"vqgan": vqgan}, draw, arguments(1, 5), arguments(2, 6), folder / "text_to_image")


def _save_vqgan(vqgan: VQGAN, config: PipelineConfig, folder: Path) -> None:
    layers, size = {"vqgan": vqgan}, config.image_size
    _save_simple(layers, vqgan.encode, {"pixels": ("float32", [3, size, size])}, "ids", folder / "encode")
    grid = {"ids": ("int64", [config.transformer.rows, config.transformer.columns])}
    _save_simple(layers, vqgan.decode, grid, "pixels", folder / "decode")


def _save_dual_encoder(model: DualEncoder, folder: Path) -> None:
    layers, size = {"dual_encoder": model}, model.config.image_size
    _save_simple(layers, model.embed_image, {"pixels": ("float32", [3, size, size])}, "embedding", folder / "embed_image")
    texts = [{"ids": paddle.zeros([n, n + 1], "int64"), "mask": paddle.ones([n, n + 1], "bool")} for n in (2, 3)]
    path = folder / "embed_text"
    save_parameters([trace(layers, lambda **given: {"embedding": model.embed_text(**given)}, *texts, path)], path)


def _save_simple(
    layers: dict[str, nn.Layer], function: Callable, inputs: dict[str, tuple[str, list[int]]], output: str, path: Path
) -> None:
    """A function from one batch to one other; `inputs` has the dtype and the shape of one example."""
    examples = [{name: paddle.zeros([n, *shape], dtype) for name, (dtype, shape) in inputs.items()} for n in (2, 3)]
    program = trace(layers, lambda **given: {output: function(*given.values())}, *examples, path)
    save_parameters([program], path)


def _dtype(model: ViLG) -> str:
    return str(model.embedding.segment.weight.dtype).removeprefix("paddle.")
