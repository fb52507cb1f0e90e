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
from ppvilg.export.folder import DUAL_ENCODER, FORMAT, MANIFEST, PROGRAMS, WEIGHTS, files_of, is_export
from ppvilg.export.tracing import save_program, weights_of
from ppvilg.folder import PipelineConfig, ScorerConfig, new_folder, write_config
from ppvilg.model.dual_encoder import DualEncoder
from ppvilg.model.kv_cache import DecodeInputs, DecodeState
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from ppvilg.text import TextTokenizer
from ppvilg.vqgan.model import VQGAN


def write_export(
    folder: str | Path,
    model: ViLG,
    vqgan: VQGAN,
    text_tokenizer: TextTokenizer,
    config: PipelineConfig,
    made_from: dict[str, Any],
    dual_encoder: tuple[DualEncoder, TextTokenizer, ScorerConfig] | None = None,
) -> None:
    """Write models that were trained, in evaluation mode, as a new folder; it gets its name when it is complete.

    `made_from` is kept in the manifest, e.g. what `origin` returns. Raises `ValueError` where the folder exists, and for models
    that are exports themselves.
    """
    if not isinstance(model, ViLG):
        raise ValueError("the model is an export already: give the folder that it was made from")
    with new_folder(folder) as temporary:
        programs = temporary / PROGRAMS
        programs.mkdir()
        layers: dict[str, nn.Layer] = {"model": model, "vqgan": vqgan}
        used = save_transformer(model, programs) | _save_vqgan(vqgan, config, programs)
        _write_description(temporary, config, text_tokenizer)
        if dual_encoder is not None:
            layers["dual_encoder"] = dual_encoder[0]
            used |= _save_dual_encoder(dual_encoder[0], programs)
            (temporary / DUAL_ENCODER).mkdir()
            _write_description(temporary / DUAL_ENCODER, dual_encoder[2], dual_encoder[1])
        weights = weights_of(layers)
        checkpoint.save_arrays({name: weights[name].numpy() for name in sorted(used)}, temporary / WEIGHTS)
        versions = {"ppvilg": ppvilg.__version__, "paddle": paddle.__version__}
        manifest = {"format": FORMAT, "made_from": made_from, "versions": versions, "files": files_of(temporary)}
        (temporary / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")


def origin(folder: str | Path) -> dict[str, str]:
    """Which weights of a model folder or of a training run are read, and their checksum; raises `ValueError` for an export."""
    folder = Path(folder)
    if is_export(folder):
        raise ValueError(f"{folder} is an export already: give the folder that it was made from")
    weights = checkpoint.weights_file(folder)
    return {"weights": str(weights.relative_to(folder)), "run": folder.resolve().name, "sha256": checkpoint.checksum(weights)}


def _write_description(folder: Path, config: PipelineConfig | ScorerConfig, text_tokenizer: TextTokenizer) -> None:
    """The config and the vocabulary, as a model folder has them."""
    (folder / "text").mkdir()
    text_tokenizer.save(folder / "text")
    write_config(config, folder)


def save_transformer(model: ViLG, folder: Path) -> set[str]:
    """Write all programs of a transformer; returns the names of the weights that they read, as parts of `model`."""
    layers, used = {"model": model}, set()
    for direction in Direction:

        def prefill(ids: paddle.Tensor, mask: paddle.Tensor, direction: Direction = direction) -> list:
            states, prefixes = model.prefill(direction, ids, mask)
            return [states, *(tensor for prefix in prefixes for tensor in (prefix.keys, prefix.values))]

        def decode_step(direction: Direction = direction, **inputs: Any) -> list:
            return [model.decode_step(direction, DecodeInputs(**inputs))]

        prompts, inputs = zip(_arguments(model, direction, 2, 3, 5), _arguments(model, direction, 3, 4, 6), strict=True)
        used |= save_program(layers, prefill, *prompts, folder / f"{direction.value}_prefill")
        used |= save_program(layers, decode_step, *inputs, folder / f"{direction.value}_decode_step")
    hidden = {"states": ("float32", [model.config.hidden])}
    for name, logits in (("image_logits", model.image_logits), ("text_logits", model.text_logits)):
        used |= _save_simple(layers, logits, hidden, folder / name)
    if model.reconstructor is not None:
        states = {"states": ("float32", [model.config.image_length, model.config.hidden])}
        used |= _save_simple(layers, model.reconstructor, states, folder / "reconstruct")
    return used


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


def _save_vqgan(vqgan: VQGAN, config: PipelineConfig, folder: Path) -> set[str]:
    layers, size = {"vqgan": vqgan}, config.image_size
    used = _save_simple(layers, vqgan.encode, {"pixels": ("float32", [3, size, size])}, folder / "encode")
    grid = {"ids": ("int64", [config.transformer.rows, config.transformer.columns])}
    return used | _save_simple(layers, vqgan.decode, grid, folder / "decode")


def _save_dual_encoder(model: DualEncoder, folder: Path) -> set[str]:
    layers, size = {"dual_encoder": model}, model.config.image_size
    used = _save_simple(layers, model.embed_image, {"pixels": ("float32", [3, size, size])}, folder / "embed_image")
    texts = [{"ids": paddle.zeros([n, n + 1], "int64"), "mask": paddle.ones([n, n + 1], "bool")} for n in (2, 3)]
    return used | save_program(layers, lambda **given: [model.embed_text(**given)], *texts, folder / "embed_text")


def _save_simple(
    layers: dict[str, nn.Layer], function: Callable, inputs: dict[str, tuple[str, list[int]]], path: Path
) -> set[str]:
    """A function from one batch to one other; `inputs` has the dtype and the shape of one example."""
    examples = [{name: paddle.zeros([n, *shape], dtype) for name, (dtype, shape) in inputs.items()} for n in (2, 3)]
    return save_program(layers, lambda **given: [function(*given.values())], *examples, path)
