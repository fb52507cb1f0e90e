"""What others made: files of predictions and references, folders of images, files of features."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ppvilg.data.images import decode_image
from ppvilg.evaluation.extractor import Extractor
from ppvilg.files import read_arrays

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read_predictions(predictions: Path, references: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Ids, predicted texts and reference texts of two JSONL files: {"id": ..., "text": ...} on each line of one, {"id": ...,
    "texts": [...]} on each of the other, in any order.

    Raises `ValueError` for a file that can't be read or is empty, a line that is no such object, an id that stands twice, and
    predictions without references or references without a prediction.
    """
    predicted = {key: texts[0] for key, texts in _lines(predictions, "text").items()}
    expected = _lines(references, "texts")
    for left, right, lack, file in (
        (predicted, expected, "has no references", references),
        (expected, predicted, "has no prediction", predictions),
    ):
        missing = [key for key in left if key not in right]
        if missing:
            more = f" ({len(missing)} in all)" if len(missing) > 1 else ""
            raise ValueError(f"{missing[0]}{more} {lack} in {file}: add it, or leave the id out of both files")
    keys = list(predicted)
    return keys, [predicted[key] for key in keys], [expected[key] for key in keys]


def read_features(path: Path, extractor: Extractor, size: int) -> np.ndarray:
    """Features float32 [N, D] of all images in a folder, each first brought to size x size pixels, or those of an .npz or
    .npy file with one such array.

    Raises `ValueError` for a folder without images, and for a file that is damaged or holds something else.
    """
    if path.is_dir():
        features, _ = extractor.network(_images(path, size))
        return features
    arrays = list(read_arrays(path, "give a folder of images, or an .npz or .npy file of features").values())
    if len(arrays) != 1 or arrays[0].ndim != 2 or not np.issubdtype(arrays[0].dtype, np.floating):
        raise ValueError(f"{path} should hold one array of floats [images, features]")
    return arrays[0]


def _images(folder: Path, size: int) -> Iterator[np.ndarray]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
    if not files:
        raise ValueError(f"there are no images in {folder}: expected files that end in {', '.join(_ENDINGS)}")
    for file in files:
        try:
            yield decode_image(file.read_bytes(), size)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


def _lines(path: Path, field: str) -> dict[str, list[str]]:
    """{id: texts} of a JSONL file whose lines have a text, or a list of them, in a field."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            key, texts = str(entry["id"]), entry[field]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path}:{number}: expected {{"id": ..., "{field}": ...}}') from None
        texts = [texts] if field == "text" else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}:{number}: {field} is not {'a text' if field == 'text' else 'a list of texts'}")
        if key in found:
            raise ValueError(f"{path}:{number}: the id {key} stands twice")
        found[key] = texts
    if not found:
        raise ValueError(f"{path} is empty: give one line for each sample")
    return found
