"""What others made: files of predictions and references, folders of images, files of features."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppvilg.data.images import decode_image
from ppvilg.evaluation.extractor import Extractor
from ppvilg.files import read_arrays

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read_predictions(predictions: Path, references: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Ids, predicted texts and reference texts of two JSONL files: {"id": ..., "text": ...} on each line of one, {"id": ...,
    "texts": [...]} on each of the other, in any order.

    Predictions may also be what tools/infer.py --json writes, of which the first caption or answer counts. In place of an id
    may stand an `image`, of whose path only the file's name counts, with its `question` if there is one.

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
    """{id: texts} of a JSONL file whose lines have a text, or a list of them, in a field, or of what tools/infer.py wrote."""
    found: dict[str, list[str]] = {}
    for where, entry in _entries(path):
        try:
            key, name = _key(entry), next(name for name in (field, "captions", "answers") if name in entry)
        except (StopIteration, KeyError, TypeError, AttributeError):
            raise ValueError(f'{where}: expected {{"id": ..., "{field}": ...}}') from None
        texts = [entry[name]] if name == "text" else entry[name]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: {field} is not {'a text' if field == 'text' else 'a list of texts'}")
        if key in found:
            raise ValueError(f"{where}: the id {key} stands twice")
        found[key] = texts
    if not found:
        raise ValueError(f"{path} is empty: give one line for each sample")
    return found


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, entry) of a JSONL file, or of a JSON file with a list; an entry that can't be read is None."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if text.lstrip().startswith("["):
        try:
            yield from ((f"{path}: entry {number}", entry) for number, entry in enumerate(json.loads(text), 1))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield f"{path}:{number}", entry


def _key(entry: dict[str, Any]) -> str:
    if "id" in entry:
        return str(entry["id"])
    name = Path(entry["image"]).name
    return f"{name} {entry['question']}" if "question" in entry else name
