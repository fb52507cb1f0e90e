"""Published data sets as their JSON files come: captions of COCO, COCO-CN and AIC-ICC, questions of FM-IQA and VQA v2.

Each format is a function from its files to rows as a captions file has them; `FORMATS` says what a file of it is known by.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""`file`, an image's name without folders, and what a row of a captions file may have besides."""


@dataclass(frozen=True)
class Annotations:
    """One JSON file."""

    name: str
    tree: Any
    """Its content."""


def coco_captions(files: list[Annotations]) -> Iterator[Row]:
    """COCO's captions, and COCO-CN's in the same form: {"images": [{"id", "file_name"}], "annotations": [{"image_id",
    "caption"}]}."""
    for file in files:
        names = {image["id"]: image["file_name"] for image in file.tree["images"]}
        for annotation in file.tree["annotations"]:
            name = names.get(annotation["image_id"], str(annotation["image_id"]))
            yield {"file": name, "caption": annotation["caption"], "split": split_of(file.name, name)}


def aic_icc(files: list[Annotations]) -> Iterator[Row]:
    """AI Challenger's Chinese captions: [{"image_id": file name, "caption": [five captions]}]."""
    for file in files:
        for image in file.tree:
            yield {"file": image["image_id"], "captions": image["caption"], "language": "zh", "split": split_of(file.name)}


def fm_iqa(files: list[Annotations]) -> Iterator[Row]:
    """FM-IQA's questions about COCO's images: {"train": [{"image_id", "question_id", "Question", "Answer"}], "val": [...]}."""
    for file in files:
        for part, questions in file.tree.items():
            for asked in questions:
                question = {"question": asked["Question"], "answer": asked["Answer"], "id": asked["question_id"]}
                yield {"file": coco_name(f"{part}2014", asked["image_id"]), "questions": [question], "split": split_of(part)}


def vqa_v2(files: list[Annotations]) -> Iterator[Row]:
    """VQA v2's questions, {"data_subtype", "questions": [{"image_id", "question", "question_id"}]}, with the answers of ten
    people where their file is there too, {"annotations": [{"question_id", "answer_type", "answers": [{"answer"}]}]}."""
    annotations = [annotation for file in files for annotation in file.tree.get("annotations", ())]
    answered = {annotation["question_id"]: annotation for annotation in annotations}
    for file in files:
        subtype = file.tree.get("data_subtype", "")
        for asked in file.tree.get("questions", ()):
            found = answered.get(asked["question_id"], {})
            question = {"question": asked["question"], "id": asked["question_id"], "type": found.get("answer_type")}
            question["answers"] = [answer["answer"] for answer in found.get("answers", ())]
            yield {"file": coco_name(subtype, asked["image_id"]), "questions": [question], "split": split_of(subtype)}


FORMATS: dict[Callable[[list[Annotations]], Iterator[Row]], Callable[[Any], bool]] = {
    coco_captions: lambda tree: _has(tree, "images", "annotations"),
    vqa_v2: lambda tree: _has(tree, "questions") or _has(tree, "annotations", "data_subtype"),
    fm_iqa: lambda tree: _has(tree, "train") or _has(tree, "val"),
    aic_icc: lambda tree: isinstance(tree, list) and bool(tree) and _has(tree[0], "image_id", "caption"),
}
"""For each format, what its files are known by; the first that fits."""


def read_annotations(root: Path, paths: list[Path]) -> Iterator[tuple[str, Row]]:
    """(where, row) of JSON files of one format or several, with each image's path relative to the folder `root`, anywhere in
    which the images may lie.

    Raises `ValueError` for a file that cannot be read or is of no format.
    """
    by_format: dict[Callable, list[Annotations]] = {}
    for path in paths:
        file = Annotations(path.name, _read(path))
        known = next((function for function, fits in FORMATS.items() if fits(file.tree)), None)
        if known is None:
            raise ValueError(
                f"{path} is of no known format: expected captions of COCO or AIC-ICC, or questions of FM-IQA or VQA v2"
            )
        by_format.setdefault(known, []).append(file)
    images = _images(root)
    for function, files in by_format.items():
        where = files[0].name
        try:
            for number, row in enumerate(function(files), 1):
                row["file"] = images.get(_stem(row["file"]), row["file"])
                row = {name: value for name, value in row.items() if value is not None}
                yield f"{where}:{number}", row
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is damaged: an entry lacks {error}, or is of another type than the format has") from None


def split_of(*names: str) -> str | None:
    """The split that the name of a file or of a part of a data set tells, the first that does."""
    for name in names:
        found = re.search(r"train|val|test", name.lower())
        if found:
            return {"train": "train", "val": "validation", "test": "test"}[found[0]]
    return None


def coco_name(subtype: str, image_id: int | str) -> str:
    """The name of one of COCO's images, e.g. of part train2014."""
    return f"COCO_{subtype}_{int(image_id):012d}.jpg"


def _has(tree: Any, *keys: str) -> bool:
    return isinstance(tree, dict) and all(key in tree for key in keys)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from None


def _images(root: Path) -> dict[str, str]:
    """Path below the folder by name without ending, of every file whose name is there once."""
    found: dict[str, str | None] = {}
    for path in root.rglob("*"):
        if path.suffix.lower() in _ENDINGS:
            name = path.relative_to(root).as_posix()
            found[_stem(name)] = None if _stem(name) in found else name
    return {stem: name for stem, name in found.items() if name is not None}


_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def _stem(name: str) -> str:
    base = name.rpartition("/")[2]
    stem, dot, ending = base.rpartition(".")
    return stem if dot + ending.lower() in _ENDINGS else base
