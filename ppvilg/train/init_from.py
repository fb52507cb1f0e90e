"""Weights to start from (`train.init_from`): those of a run or a model, fitted to the model that is to be trained.

What both models have under one name is taken over. What depends on a vocabulary, on a picture's size or on a length is fitted:
rows of tokens are found by the tokens' names, positions in an image are interpolated, positions in a text keep their numbers.
What the source lacks stays as it was drawn.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from paddle import nn

from ppvilg.checkpoint import CheckpointReader, ShardedTensor, weights_reader
from ppvilg.config import TrainingExperiment, ViLGExperiment
from ppvilg.export.folder import is_export
from ppvilg.folder import ImageTokenizerConfig, PipelineConfig, ScorerConfig, base_file, read_config
from ppvilg.model.config import ViLGConfig, vilg_config
from ppvilg.model.dual_encoder import dual_encoder_sizes
from ppvilg.model.init import draw_weight, own_part, whole_shape
from ppvilg.model.vilg import ViLG
from ppvilg.text import TextTokenizer, saved_text_tokenizer
from ppvilg.train.context import ParallelContext
from ppvilg.train.pipe import ViLGPipe
from ppvilg.train.shards import is_distributed, named_tensors
from ppvilg.train.task import Task
from ppvilg.vqgan.model import VQGAN


@dataclass(frozen=True)
class Fit:
    """What becomes of a tensor that depends on a vocabulary, a size or a length."""

    part: str
    """Its line in the report."""
    how: Literal["taken", "fitted", "new"]
    make: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """Where it is fitted: the source's tensor and the drawn one, both whole -> the one to begin with."""
    note: str = ""


Fits = dict[str, Fit]
"""By the tensors' names; tensors that are not listed are taken as they are."""


def with_image_tokenizer(config: TrainingExperiment) -> TrainingExperiment:
    """The config, with the image tokenizer of `train.init_from` where a transformer's `train.tokenizer` is null."""
    train = config.train
    if not isinstance(config, ViLGExperiment) or train.init_from is None or train.tokenizer is not None:
        return config
    return replace(config, train=replace(train, tokenizer=str(Path(train.init_from) / "tokenizer")))


def init_from(task: Task, context: ParallelContext) -> str:
    """Give a task's model the weights of the folder `train.init_from`, each process its part; returns a table of it.

    Raises `ValueError` where the folder cannot be read, or its model is of another kind or width.
    """
    folder = Path(task.config.train.init_from)
    try:
        if is_export(folder):
            raise ValueError(f"{folder} is an export, whose weights are final: give the run or the model that it was made from")
        if base_file(folder) is not None:
            raise ValueError(f"{folder} holds an adapter and its base: merge them first, tools/merge_checkpoint.py {folder}")
        fits = _FITS[task.config.task](task, folder)
        reader = weights_reader(folder)
        for name, tensor in named_tensors(task.modules["model"]).items():
            if name in reader.shapes and (name not in fits or fits[name].how != "new"):
                _set(name, tensor, fits.get(name), reader, task, context.mp_group)
            elif getattr(task.config, "lora", None) is not None:
                raise ValueError(f"{folder} has no {name} for this model: lora trains no new weights, so train without it")
    except ValueError as error:
        raise ValueError(f"train.init_from: {error}") from None
    return _report(folder, _names(task.modules["model"]), set(reader.shapes), fits)


def _set(name: str, tensor: paddle.Tensor, fit: Fit | None, reader: CheckpointReader, task: Task, mp_group) -> None:
    """Give one tensor what it begins with."""
    if fit is not None and fit.make is not None:
        drawn = _drawn(name, tensor, task, mp_group)
        value = own_part(tensor, fit.make(reader.read(name).astype(drawn.dtype), drawn), mp_group)
    elif is_distributed(tensor):
        nothing = np.broadcast_to(np.float32(0), tensor.shape)
        value = reader.like(ShardedTensor.split(nothing, tensor.split_axis, mp_group.rank, mp_group.nranks), name)
    else:
        value = reader.like(ShardedTensor.whole(np.broadcast_to(np.float32(0), tensor.shape)), name)
    tensor.set_value(value.astype(tensor.numpy().dtype))


def _drawn(name: str, tensor: paddle.Tensor, task: Task, mp_group) -> np.ndarray:
    """The whole of what a tensor has been given before."""
    if not is_distributed(tensor):
        return tensor.numpy()
    config, shape = task.config, whole_shape(tensor, mp_group)
    if len(shape) == 1:  # a bias
        return np.zeros(shape, np.float32)
    return draw_weight(name, shape, config.train.seed, config.transformer.layers)


# What each kind of model fits


def _vilg_fits(task: Task, folder: Path) -> Fits:
    config = read_config(folder, PipelineConfig)
    old, new = config.transformer, vilg_config(task.config)
    _check(folder, "transformer", old, new, _VILG_MAY_DIFFER)
    known = saved_text_tokenizer(folder, config.text_tokenizer, old.text_vocab_size)
    text = _token_fit(known, task.text_tokenizer, (old.text_vocab_size, new.text_vocab_size), _paddings(old, new))
    image, grids = _code_fit(folder, task), ((old.rows, old.columns), (new.rows, new.columns))
    encoder = {}
    if old.text_encoder is not None and new.text_encoder is not None:
        rows = old.text_encoder.sizes.vocab_size, new.text_encoder.sizes.vocab_size
        words = _token_fit(known, task.text_tokenizer, rows, {})(0)
        encoder["embedding.text_encoder.embeddings.word_embeddings.weight"] = words
    return {
        **encoder,
        "embedding.text.weight": text(0),
        "head.text.weight": text(1),
        "head.text.bias": text(0),
        "embedding.image.weight": image,
        "head.image.weight": image,
        "head.image.bias": image,
        "embedding.text_position.weight": _length_fit(old.max_text_length, new.max_text_length),
        "embedding.row_position.weight": _grid_fit(*grids, lambda table, _: _interpolation(old.rows, new.rows) @ table),
        "embedding.column_position.weight": _grid_fit(
            *grids, lambda table, _: _interpolation(old.columns, new.columns) @ table
        ),
        "embedding.image_position.weight": _grid_fit(*grids, lambda table, _: _interpolated(table, *grids)),
    }


def _paddings(old: ViLGConfig, new: ViLGConfig) -> dict[int, int]:
    """Of the padding tokens that have no name (`text.padding: positional`) the number here, and that of the same there."""
    if new.text_padding != "positional":
        return {}
    first_old, first_new = (config.text_vocab_size - config.max_text_length for config in (old, new))
    return {first_new + i: first_old + i for i in range(min(old.max_text_length, new.max_text_length))}


def _dual_encoder_fits(task: Task, folder: Path) -> Fits:
    config = read_config(folder, ScorerConfig)
    old, new = config.dual_encoder, dual_encoder_sizes(task.config)
    _check(folder, "dual_encoder", old, new, _DUAL_ENCODER_MAY_DIFFER)
    known = saved_text_tokenizer(folder, config.text_tokenizer, old.text_vocab_size)
    grids = [(sizes.image_size // sizes.patch_size,) * 2 for sizes in (old, new)]
    return {
        "text_embedding.weight": _token_fit(known, task.text_tokenizer, (old.text_vocab_size, new.text_vocab_size), {})(0),
        "text_position.weight": _length_fit(old.max_text_length, new.max_text_length),
        "patch_position.weight": _grid_fit(*grids, lambda table, _: _interpolated(table, *grids)),
    }


def _vqgan_fits(task: Task, folder: Path) -> Fits:
    old, new = read_config(folder, ImageTokenizerConfig).vqgan, task.config.vqgan
    _check(folder, "vqgan", old, new, _VQGAN_MAY_DIFFER)
    if old.codebook.size == new.codebook.size:
        return {}
    note = f"{old.codebook.size} codes there, {new.codebook.size} here"
    names = [name for name in named_tensors(task.modules["model"]) if name.startswith("quantize.")]
    return dict.fromkeys(names, Fit("codebook", "new", note=note))


_FITS = {"vilg": _vilg_fits, "dual_encoder": _dual_encoder_fits, "vqgan": _vqgan_fits}
_VILG_MAY_DIFFER = (
    "text_vocab_size",
    "max_text_length",
    "text_encoder",
    "image_vocab_size",
    "rows",
    "columns",
    "layers",
    "dropout",
    "attention",
    "question_length",
    "reconstructor",
)
_DUAL_ENCODER_MAY_DIFFER = (
    "image_size",
    "text_vocab_size",
    "max_text_length",
    "image_layers",
    "text_layers",
    "temperature",
    "dropout",
)
_VQGAN_MAY_DIFFER = (
    "loss",
    "dropout",
    "codebook.size",
    "codebook.commitment",
    "codebook.ema_decay",
    "codebook.revive_after",
    "codebook.temperature",
    "codebook.kl_weight",
)


def _check(folder: Path, section: str, old: Any, new: Any, may_differ: tuple[str, ...]) -> None:
    """Raise `ValueError` for what else two models' configs differ in."""
    before, now = (dict(_keys(asdict(config))) for config in (old, new))
    for key, value in now.items():
        if before.get(key) != value and not any(f"{key}.".startswith(f"{name}.") for name in may_differ):
            raise ValueError(
                f"{folder} holds a model with {section}.{key}: {before.get(key)!r}, but the config says {value!r}: weights "
                f"cannot be taken from it, so set {before.get(key)!r} or give another folder"
            )


def _keys(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Vocabularies


def _token_fit(old: TextTokenizer, new: TextTokenizer, sizes: tuple[int, int], more: dict[int, int]) -> Callable[[int], Fit]:
    """Of a tensor that has the text tokens along an axis, `sizes` there and here: those that the source knows by name, and
    `more`, by their numbers here and there."""
    part = "text tokens"
    if sizes[0] == sizes[1] and old.tokens == new.tokens and all(here == there for here, there in more.items()):
        return lambda axis: Fit(part, "taken", note=f"the same {new.size} tokens")
    numbers = {token: number for number, token in enumerate(old.tokens)}
    roles = {new.begin: old.begin, new.end: old.end}  # which have other names in another tokenizer
    found = {i: roles.get(i, numbers.get(token)) for i, token in enumerate(new.tokens)}
    known = {i: number for i, number in found.items() if number is not None}
    rows = np.array([*(known | more).items()]).T
    note = f"{len(known)} of {new.size} tokens are known there"
    return lambda axis: Fit(part, "fitted", partial(_rows, rows=rows, axis=axis), note)


def _rows(table: np.ndarray, drawn: np.ndarray, rows: np.ndarray, axis: int) -> np.ndarray:
    """The drawn table with rows (columns, for axis 1) of the source's: int [2, N], here and there."""
    made = np.moveaxis(drawn.copy(), axis, 0)
    made[rows[0]] = np.moveaxis(table, axis, 0)[rows[1]]
    return np.moveaxis(made, 0, axis)


def _code_fit(folder: Path, task: Task) -> Fit:
    """Of the image tokens' tables: taken where the image tokenizer gives the tokens of the source's."""
    part, own = "image tokens", folder / "tokenizer"
    if own.is_dir() and _same_codes(weights_reader(own), task.vqgan):
        return Fit(part, "taken", note="the same image tokenizer")
    return Fit(part, "new", note=f"train.tokenizer {task.image_tokenizer} is not that of {folder}, which null takes")


def _same_codes(reader: CheckpointReader, vqgan: VQGAN) -> bool:
    """Whether all weights are equal that decide which tokens an image has."""
    parameters = {name: parameter.numpy() for name, parameter in vqgan.named_parameters()}
    decisive = {name: a for name, a in parameters.items() if not name.startswith(("decoder.", "post_quant_conv."))}
    return all(reader.shapes.get(name) == a.shape and (reader.read(name) == a).all() for name, a in decisive.items())


# Positions


def _length_fit(old: int, new: int) -> Fit:
    if old == new:
        return Fit("text positions", "taken")
    return Fit("text positions", "fitted", _leading, f"{min(old, new)} of {new} are known there")


def _leading(table: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The drawn table with as many first rows of the source's as both have."""
    count = min(len(table), len(drawn))
    return np.concatenate([table[:count], drawn[count:]])


def _grid_fit(old: tuple[int, int], new: tuple[int, int], make: Callable) -> Fit:
    part = "image positions"
    if old == new:
        return Fit(part, "taken")
    return Fit(part, "fitted", make, f"{old[0]}x{old[1]} interpolated to {new[0]}x{new[1]}")


def _interpolation(old: int, new: int) -> np.ndarray:
    """Float32 [new, old]: values at `old` evenly spread places -> those at `new` places over the same span, linearly."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - abs(places[:, None] - np.arange(old))).astype(np.float32)


def _interpolated(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Positions [old rows · old columns, width] of a grid in raster order -> [new rows · new columns, width]."""
    rows, columns = (_interpolation(*sides) for sides in zip(old, new, strict=True))
    grid = np.einsum("ri,cj,ijw->rcw", rows, columns, table.reshape(*old, -1), optimize=True)
    return grid.reshape(-1, table.shape[-1])


# The report


def _names(model: nn.Layer) -> list[str]:
    """The tensors of the whole model."""
    if isinstance(model, ViLGPipe):
        with paddle.LazyGuard():
            model = ViLG(model.config)
    return list(named_tensors(model))


def _report(folder: Path, names: list[str], stored: set[str], fits: Fits) -> str:
    """How many tensors of each part of the model were taken, fitted, or are new, and how many of the source have no place."""
    counts: dict[str, Counter[str]] = {}
    notes: dict[str, str] = {}
    for name in [*names, *sorted(stored - set(names))]:
        fit = fits.get(name, Fit(_part(name), "taken"))
        how = "left out" if name not in names else fit.how if name in stored else "new"
        counts.setdefault(fit.part, Counter())[how] += 1
        if fit.note and how == fit.how:
            notes[fit.part] = fit.note
    columns = ("taken", "fitted", "new", "left out")
    width = max(map(len, counts))
    lines = [f"tensors from {folder}", f"  {'':{width}}  {'  '.join(columns)}"]
    for part, found in counts.items():
        numbers = "  ".join(f"{found[column] or '-':>{len(column)}}" for column in columns)
        lines.append(f"  {part:{width}}  {numbers}  {notes.get(part, '')}".rstrip())
    return "\n".join(lines)


def _part(name: str) -> str:
    parts = {".reconstructor.": "reconstructor", ".text_encoder.": "text encoder"}
    return next((part for inside, part in parts.items() if inside in name), name.partition(".")[0])
