"""From a run to an exported model's folder."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

import ppvilg
from ppvilg import checkpoint
from ppvilg.config import save_config
from ppvilg.errors import UserError
from ppvilg.export.folder import FORMAT, MANIFEST, files_of, is_export
from ppvilg.export.tracing import save_program, weights_of
from ppvilg.matching import MatchingModel
from ppvilg.pipeline import Pipeline
from ppvilg.transformer.attention import Part
from ppvilg.transformer.cache import Cache, Source, Step
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.layers import dims
from ppvilg.transformer.model import ViLG
from ppvilg.transformer.pattern import Direction

Arguments = dict[str, Any]


def export(run: str | Path, output: str | Path, matching: str | Path | None = None) -> None:
    """Write the newest checkpoint of a transformer's run, and that of a matching model's, as a new folder.

    The folder gets its name when it is complete. Raises `UserError` where it exists already, and for runs that cannot be read.
    """
    run, output = Path(run), Path(output)
    if output.exists():
        raise UserError(f"{output} exists already: give a new folder")
    if is_export(run):
        raise UserError(f"{run} is an export already: give the run that it was made from")
    pipeline = Pipeline.load(run)
    scorer = None if matching is None else MatchingModel.load(matching)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "programs").mkdir(parents=True)
    made_from = {"model": _origin(run)}
    used = save_transformer(pipeline.model, temporary / "programs") | _save_vqgan(pipeline, temporary / "programs")
    layers: dict[str, nn.Layer] = {"model": pipeline.model, "vqgan": pipeline.vqgan}
    _describe(pipeline, run, temporary)
    if scorer is not None:
        made_from["matching"] = _origin(Path(matching))
        layers["matching"] = scorer.model
        used |= _save_matching(scorer, temporary / "programs")
        _describe(scorer, Path(matching), temporary / "matching")
    weights = weights_of(layers)
    checkpoint.save_arrays({name: weights[name].numpy() for name in sorted(used)}, temporary / "weights.safetensors")
    versions = {"ppvilg": ppvilg.__version__, "paddle": paddle.__version__}
    manifest = {"format": FORMAT, "made_from": made_from, "versions": versions, "files": files_of(temporary)}
    (temporary / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")
    os.replace(temporary, output)


def _origin(run: Path) -> dict[str, str]:
    weights = checkpoint.weights_file(run)
    return {"weights": str(weights.relative_to(run)), "run": run.resolve().name, "sha256": checkpoint.checksum(weights)}


def _describe(model: Pipeline | MatchingModel, run: Path, folder: Path) -> None:
    """The config and the vocabulary, as a run has them."""
    folder.mkdir(exist_ok=True)
    save_config(replace(model.config, parallel=type(model.config.parallel)()), folder / "config.yml")
    shutil.copytree(run / "text", folder / "text")


def save_transformer(model: ViLG, folder: Path) -> set[str]:
    """Write all programs of a transformer; returns the names of the weights that they read, as parts of `model`."""
    layers, used = {"model": model}, set()
    for direction in Direction:
        model.lay_out_heads(direction)
        calls, others = _calls(model, direction, 2, 3, 5), _calls(model, direction, 3, 4, 6)

        def read_source(direction: Direction = direction, **arguments: Any) -> list:
            rows, sources = model.read_source(direction, **arguments)
            return [rows, *(part for source in sources for part in (source.keys, source.values))]

        def read_target(direction: Direction = direction, *, sources: list[Source], **arguments: Any) -> list:
            shape = dims(sources[0].keys)  # of every layer's
            return [model.target_states(direction, sources=[replace(s, shape=shape) for s in sources], **arguments)]

        used |= save_program(layers, read_source, calls.source, others.source, folder / f"{direction.value}_source")
        used |= save_program(layers, read_target, calls.target, others.target, folder / f"{direction.value}_target")
    width = model.hidden_width
    for name, logits in (("image_logits", model.image_logits), ("text_logits", model.text_logits)):
        used |= _save_simple(layers, logits, {"hidden": ("float32", [width])}, folder / name)
    if model.reconstructor is not None:
        states = {"hidden": ("float32", [model.rows * model.columns, width])}
        used |= _save_simple(layers, model.reconstructor, states, folder / "reconstruct")
    return used


class _Calls(Decoder):
    """A transformer that notes what its functions are called with."""

    def __init__(self, model: ViLG):
        self.rows, self.columns, self.heads = model.rows, model.columns, model.heads
        self.attention, self.kinds = model.attention, model.kinds
        self._model = model
        self.source: Arguments = {}
        self.target: Arguments = {}

    def read_source(self, direction: Direction, ids: paddle.Tensor, slots: paddle.Tensor, parts: dict[str, Part]):
        self.source = {"ids": ids, "slots": slots, "parts": parts}
        return self._model.read_source(direction, **self.source)

    def read_target(
        self,
        direction: Direction,
        ids: paddle.Tensor,
        slots: np.ndarray,
        steps: dict[str, Step],
        sources: list[Source],
        caches: list[Cache],
    ):
        self.target = {"ids": ids, "slots": slots, "steps": steps, "sources": sources, "caches": caches}
        return self._model.read_target(direction, **self.target)


def _calls(model: ViLG, direction: Direction, prompts: int, candidates: int, text_length: int) -> _Calls:
    """A call of each function, with token 0 everywhere."""
    calls = _Calls(model)
    to_image = direction is Direction.TEXT_TO_IMAGE
    # The longest caption is the model's, so its caches have one size; prompts are as long as they are.
    length = text_length if to_image else model.text_position.weight.shape[0]
    source = paddle.zeros([prompts, length if to_image else model.rows * model.columns], dtype="int64")
    _, state = calls.start(direction, source, source == 0, candidates, length)
    zeros = np.zeros(state.batch, dtype=np.int64)
    calls.step(state, paddle.to_tensor(zeros), zeros)
    return calls


def _save_vqgan(pipeline: Pipeline, folder: Path) -> set[str]:
    layers, size = {"vqgan": pipeline.vqgan}, pipeline.config.data.image_size
    used = _save_simple(layers, pipeline.vqgan.encode, {"pictures": ("float32", [3, size, size])}, folder / "encode")
    grid = {"ids": ("int64", [*pipeline.config.grid])}
    return used | _save_simple(layers, pipeline.vqgan.decode, grid, folder / "decode")


def _save_matching(scorer: MatchingModel, folder: Path) -> set[str]:
    layers, size = {"matching": scorer.model}, scorer.config.data.image_size
    pictures = {"pictures": ("float32", [3, size, size])}
    used = _save_simple(layers, scorer.model.embed_image, pictures, folder / "matching_image")
    texts = [{"ids": paddle.zeros([n, n + 1], "int64"), "valid": paddle.ones([n, n + 1], "bool")} for n in (2, 3)]
    return used | save_program(layers, lambda **given: [scorer.model.embed_text(**given)], *texts, folder / "matching_text")


def _save_simple(
    layers: dict[str, nn.Layer], function: Callable, inputs: dict[str, tuple[str, list[int]]], path: Path
) -> set[str]:
    """A function from one batch to one other; `inputs` has the dtype and the shape of one of it."""
    examples = [{name: paddle.zeros([n, *shape], dtype) for name, (dtype, shape) in inputs.items()} for n in (2, 3)]
    return save_program(layers, lambda **given: [function(*given.values())], *examples, path)
