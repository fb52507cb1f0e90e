"""Published data sets as their files come: captions of COCO, COCO-CN and AIC-ICC, questions of FM-IQA and VQA v2.

Several files may be given together: COCO's captions with Chinese ones beside, questions with the file of their answers, parts
of a data set. All that is said of one image is one record. A JSON file of half a gigabyte is one document without places to
cut it at, so a unit is not a range of it: each unit reads the files as a stream (ijson) and keeps those images that a hash of
their names gives it. What a process holds is a unit's texts, and the names of the images that a file of COCO's form lists.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal
from zlib import crc32

from ppvilg.data.readers.base import STRICT, Bytes, Fault, Unit
from ppvilg.data.readers.rows import Row, row_records
from ppvilg.data.records import Record

Entry = tuple[str, Row | Fault]
"""(where, row as a captions file has it, with an image's name without folders as `file`), or what is wrong there."""
BROKEN = "not valid JSON from somewhere on"


@dataclass(frozen=True)
class Annotations:
    """The files of one data set, or of several about the same images; what they are is known by their content."""

    __pydantic_config__ = STRICT
    format: Literal["annotations"]
    files: list[str]
    """JSON files of COCO, COCO-CN, AIC-ICC, FM-IQA or VQA v2, and .txt files of COCO-CN: captions, and lists of images whose
    names say of which split they are (coco-cn_train.txt)."""
    images: str
    """The folder anywhere in which the images are."""
    unit_bytes: Bytes = 64 << 20
    """How much of the files makes a unit, about."""

    def units(self) -> list[Unit]:
        """Raises `ValueError` for a file that is not there or of no known format."""
        paths = [Path(file) for file in self.files]
        for path in paths:
            file_format(path)
        size = sum(path.stat().st_size for path in paths)
        parts = max(1, size // self.unit_bytes)
        return [Unit.of(f"{'+'.join(self.files)} ({size} bytes)", part, parts) for part in range(parts)]

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """See `Reader`. A unit is part `first` of `last`."""
        root = Path(self.images)
        rows = image_rows([Path(file) for file in self.files], root, unit.first, unit.last)
        try:
            yield from row_records(rows, root, root)
        except (OSError, ValueError):
            yield Fault(unit.file, "the file cannot be read")


def image_rows(paths: list[Path], root: Path, part: int = 0, parts: int = 1) -> Iterator[tuple[str, Row | str]]:
    """(where, row), rows of one image next to each other, with images' paths relative to the folder `root`; of what is damaged
    why, in part 0 alone, so that it is named once.

    Raises `ValueError` for a file that cannot be read or is of no format.
    """
    by_format: dict[Callable, list[Path]] = {}
    for path in paths:
        by_format.setdefault(file_format(path), []).append(path)
    splits = dict(chain.from_iterable(map(_split_list, by_format.pop(_split_list, []))))
    images = _images(root)
    found: dict[str, list[tuple[str, Row]]] = {}
    damaged: list[Fault] = []

    def ours(name: str) -> bool:
        return crc32(_stem(name).encode("utf-8", "backslashreplace")) % parts == part

    for function, files in by_format.items():
        for where, row in function(files, ours):
            if isinstance(row, Fault):
                damaged.append(row)
                continue
            name = _stem(row["file"])
            row["file"] = images.get(name, row["file"])
            row["split"] = splits.get(name, row.get("split"))
            found.setdefault(name, []).append((where, {key: value for key, value in row.items() if value is not None}))
    yield from chain.from_iterable(found.values())
    if part == 0:
        yield from ((fault.key, fault.reason) for fault in damaged)


def coco_captions(files: list[Path], ours: Callable[[str], bool]) -> Iterator[Entry]:
    """COCO's captions, and COCO-CN's in the same form: {"images": [{"id", "file_name"}], "annotations": [{"image_id",
    "caption"}]}."""
    for file in files:
        names: dict[Any, str] = {}

        def note(image: dict, names: dict[Any, str] = names) -> None:
            names[image["id"]] = image["file_name"]

        yield from (entry for entry in _each(file, "images.item", note, names_break=False) if isinstance(entry[1], Fault))

        def row(annotation: dict, file: Path = file, names: dict[Any, str] = names) -> Row:
            name = names.get(annotation["image_id"], str(annotation["image_id"]))
            return {"file": name, "caption": annotation["caption"], "split": split_of(file.name, name)}

        yield from _own(_each(file, "annotations.item", row), ours)


def coco_cn_text(files: list[Path], ours: Callable[[str], bool]) -> Iterator[Entry]:
    """COCO-CN's captions as text: lines `COCO_val2014_000000000042#0`, a tab, a caption."""
    for file in files:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                where = f"{file.name}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    yield where, Fault(where, "row is not UTF-8")
                    continue
                said = _SAID.match(text)
                if said and ours(said[1]):
                    yield where, {"file": said[1], "caption": said[2], "split": split_of(file.name, said[1])}
                elif text and not said:
                    yield where, Fault(where, "row is not a caption of an image")


def aic_icc(files: list[Path], ours: Callable[[str], bool]) -> Iterator[Entry]:
    """AI Challenger's Chinese captions: [{"image_id": file name, "caption": [five captions]}]."""
    for file in files:

        def row(image: dict, file: Path = file) -> Row:
            captions = {"captions": image["caption"], "language": "zh"}
            return {"file": image["image_id"], **captions, "split": split_of(file.name)}

        yield from _own(_each(file, "item", row), ours)


def fm_iqa(files: list[Path], ours: Callable[[str], bool]) -> Iterator[Entry]:
    """FM-IQA's questions about COCO's images: {"train": [{"image_id", "question_id", "Question", "Answer"}], "val": [...]}."""
    for file in files:
        for part in ("train", "val"):

            def row(asked: dict, part: str = part) -> Row:
                question = {"question": asked["Question"], "answer": asked["Answer"], "id": asked["question_id"]}
                name = coco_name(f"{part}2014", asked["image_id"])
                return {"file": name, "questions": [question], "split": split_of(part)}

            yield from _own(_each(file, f"{part}.item", row, names_break=part == "val"), ours)


def vqa_v2(files: list[Path], ours: Callable[[str], bool]) -> Iterator[Entry]:
    """VQA v2's questions, {"data_subtype", "questions": [{"image_id", "question", "question_id"}]}, with the answers of ten
    people where their file is there too, {"annotations": [{"question_id", "answer_type", "answers": [{"answer"}]}]}."""
    subtypes = {file: next(_items(file, "data_subtype"), "") for file in files}
    answered: dict[Any, tuple[str | None, list[str]]] = {}
    for file in files:

        def note(annotation: dict, file: Path = file) -> None:
            if ours(coco_name(subtypes[file], annotation["image_id"])):
                answers = [answer["answer"] for answer in annotation.get("answers", ())]
                answered[annotation["question_id"]] = annotation.get("answer_type"), answers

        yield from (entry for entry in _each(file, "annotations.item", note) if isinstance(entry[1], Fault))
    for file in files:

        def row(asked: dict, file: Path = file) -> Row:
            kind, answers = answered.get(asked["question_id"], (None, []))
            question = {"question": asked["question"], "id": asked["question_id"], "type": kind, "answers": answers}
            name = coco_name(subtypes[file], asked["image_id"])
            return {"file": name, "questions": [question], "split": split_of(subtypes[file])}

        yield from _own(_each(file, "questions.item", row, names_break=False), ours)


def file_format(path: Path) -> Callable:
    """Which of the functions here reads a file, by how it begins.

    Raises `ValueError` for a file that cannot be read or is of no format.
    """
    try:
        if path.suffix.lower() == ".txt":
            with open(path, "rb") as stream:
                line = stream.readline(1000).decode("utf-8-sig", "replace").strip()
            known = coco_cn_text if _SAID.match(line) else _split_list if re.fullmatch(r"\S+", line) else None
        else:
            known = _json_format(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if known is None:
        raise ValueError(
            f"{path} is of no known format: expected captions of COCO, COCO-CN or AIC-ICC, or questions of FM-IQA or VQA v2"
        )
    return known


def _json_format(path: Path) -> Callable | None:
    import ijson

    marks = {"images": coco_captions, "questions": vqa_v2, "train": fm_iqa, "val": fm_iqa}
    inner = {
        ("annotations.item", "caption"): coco_captions,
        ("annotations.item", "question_id"): vqa_v2,
        ("item", "image_id"): aic_icc,
        ("item", "caption"): aic_icc,
    }
    try:
        with _open(path) as stream:
            for prefix, event, value in ijson.parse(stream):
                if event == "map_key" and prefix == "" and value in marks:
                    return marks[value]
                if event == "map_key" and (prefix, value) in inner:
                    return inner[prefix, value]
    except (ijson.JSONError, UnicodeDecodeError):
        raise ValueError(f"{path} is not valid JSON: fetch it again") from None
    return None


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


_SAID = re.compile(r"(\S+?)#(?:\w+#)?\d+\s+(.*\S)")
"""An image's name, the number of a caption, and the caption."""


def _split_list(file: Path) -> Iterator[tuple[str, str | None]]:
    """(image's name, split) of a list of images that is named after the split."""
    for name in file.read_text("utf-8-sig", "replace").split():
        yield _stem(name), split_of(file.name)


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as stream:
        if stream.read(3) != b"\xef\xbb\xbf":
            stream.seek(0)
        yield stream


def _items(path: Path, prefix: str) -> Iterator[Any]:
    """The values at a place of a JSON file, as a stream, up to where it is damaged."""
    import ijson

    with _open(path) as stream:
        try:
            yield from ijson.items(stream, prefix, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError):
            return


def _each(path: Path, prefix: str, function: Callable[[dict], Any], names_break: bool = True) -> Iterator[tuple[str, Any]]:
    """(where, result) of a function of each value at a place of a JSON file, or a fault; and one where the file is damaged."""
    import ijson

    with _open(path) as stream:
        try:
            for number, item in enumerate(ijson.items(stream, prefix, use_float=True), 1):
                where = f"{path.name}:{number}"
                try:
                    result = function(item)
                except KeyError as error:
                    result = Fault(where, f"an entry lacks {error}")
                except (TypeError, AttributeError, ValueError):
                    result = Fault(where, "an entry is of another type than the format has")
                yield where, result
        except (ijson.JSONError, UnicodeDecodeError):
            if names_break:
                yield path.name, Fault(path.name, BROKEN)


def _own(entries: Iterable[Entry], ours: Callable[[str], bool]) -> Iterator[Entry]:
    """The rows of this unit's images, and all faults."""
    for where, row in entries:
        if isinstance(row, Fault):
            yield where, row
        elif not isinstance(row["file"], str):
            yield where, Fault(where, "an entry is of another type than the format has")
        elif ours(row["file"]):
            yield where, row


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
