"""Captions that one model or several write for the images of a split, scored beside one another."""

import json
from pathlib import Path
from typing import Literal

import numpy as np

from ppvilg.config import ViLGExperiment
from ppvilg.data.sources import Source
from ppvilg.data.splits import load_images, open_split
from ppvilg.evaluation.captions import caption_scores
from ppvilg.evaluation.pairs import of_one_language
from ppvilg.files import write_whole
from ppvilg.pipeline import ViLGPipeline

_IMAGES = 64  # that are described together


def describe_split(
    models: list[Path],
    config: ViLGExperiment,
    split: str,
    output: Path,
    count: int | None,
    num_beams: int,
    unit: Literal["characters", "words"],
) -> dict[str, dict[str, float]]:
    """For each measure of `caption_scores` its value of each model, by the names of the models' folders.

    The images are those of a split of a config's data, or `count` of them drawn with its seed; an image's references are all
    its captions in the heaviest language. Writes references.jsonl and each model's captions into `output` in the form that
    `eval.py captions` reads. Raises `ValueError` for models whose folders have one name.
    """
    names = [model.resolve().name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"two models' folders are called {max(names, key=names.count)}: give folders of different names")
    source = open_split(config.data, split, config.train.seed)
    chosen = range(len(source)) if count is None else np.random.default_rng(config.train.seed).permutation(len(source))[:count]
    keys = [source.records[i].key for i in chosen]
    references = [of_one_language(source.records[i], config.data.languages) for i in chosen]
    _write(output / "references.jsonl", keys, "texts", references)
    scores: dict[str, dict[str, float]] = {}
    for name, model in zip(names, models, strict=True):
        written = _describe(ViLGPipeline.from_pretrained(model), source, [int(i) for i in chosen], num_beams)
        _write(output / f"{name}.jsonl", keys, "text", written)
        for measure, value in caption_scores(written, references, unit).items():
            scores.setdefault(measure, {})[name] = value
    return scores


def _describe(pipeline: ViLGPipeline, source: Source, chosen: list[int], num_beams: int) -> list[str]:
    written = []
    for first in range(0, len(chosen), _IMAGES):
        images = load_images(source, chosen[first : first + _IMAGES], pipeline.config.image_size)
        written += [text for (text,) in pipeline.caption(images, num_beams=num_beams)]
    return written


def _write(path: Path, keys: list[str], field: str, values: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"id": key, field: value} for key, value in zip(keys, values, strict=True)]
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
