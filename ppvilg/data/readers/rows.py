"""Rows that name an image and say what is seen on it, whatever kind of file they stand in."""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppvilg.data.images import looks_like_image
from ppvilg.data.questions import Question, take_questions
from ppvilg.data.readers.base import Fault
from ppvilg.data.records import Record, take_captions

Row = dict[str, Any]
FILE_COLUMNS = ("file", "image", "picture", "file_name")


def image_name(row: Any) -> str:
    """The image's name in a row; empty where there is none."""
    if not isinstance(row, dict):
        return ""
    return next((row[column] for column in FILE_COLUMNS if isinstance(row.get(column), str)), "").strip()


def same_image(one: Any, other: Any) -> bool:
    """Whether two rows name the same image."""
    name = image_name(one)
    return bool(name) and _normal(name) == _normal(image_name(other))


def row_records(rows: Iterable[tuple[str, Any]], base: Path, root: Path) -> Iterator[Record | Fault]:
    """A record of each run of rows about one image, and a fault of each row that cannot be used.

    rows: (where, row); instead of a row, a text that says why it cannot be read.
    base, root: the folders that images are named relative to, tried in this order; none may lie outside `root`.
    """
    pending: Record | None = None
    pending_name = ""
    for where, row in rows:
        name = _normal(image_name(row))
        known = pending if name and name == pending_name else None
        item = _one(where, row, base, root, known)
        if known is not None and isinstance(item, Record):
            for language, texts in item.captions.items():
                known.captions.setdefault(language, []).extend(texts)
            known.questions.extend(item.questions)
            continue
        if pending is not None:
            yield pending
        pending, pending_name = (item, name) if isinstance(item, Record) else (None, "")
        if isinstance(item, Fault):
            yield item
    if pending is not None:
        yield pending


def _one(where: str, row: Any, base: Path, root: Path, known: Record | None) -> Record | Fault:
    """The record or fault of one row; `known`: that of the row before, if it is about the same image."""
    if isinstance(row, str):
        return Fault(where, row)
    if not isinstance(row, dict):
        return Fault(where, "row is not a record")
    file = image_name(row)
    if not file:
        return Fault(where, "row names no image")
    metadata = dict(row)
    del metadata[next(column for column in FILE_COLUMNS if isinstance(row.get(column), str))]
    found = texts_of(metadata)
    if isinstance(found, str):
        return Fault(f"{where} ({printable(file)})", found)
    if known is not None:
        return replace(known, captions=found[0], questions=found[1])
    place, version, fault = find_image(base, root, file)
    if fault:
        return Fault(f"{where} ({printable(file)})", fault)
    key = os.path.relpath(place, root).replace(os.sep, "/")
    return Record(key, found[0], metadata, place, version, found[1])


def texts_of(metadata: dict[str, Any]) -> tuple[dict[str, list[str]], list[Question]] | str:
    """A sample's captions and questions, taken out of its metadata; a text that says why where there are none."""
    captions, questions = take_captions(metadata), take_questions(metadata)
    if not captions and not questions:
        return "no caption"
    texts = [text for texts in captions.values() for text in texts]
    texts += [text for question in questions for text in (question.text, question.id, question.kind, *question.answers)]
    try:  # JSON can say half of a character that has two halves in UTF-16
        "".join([*captions, *texts]).encode()
    except UnicodeEncodeError:
        return "the text is not Unicode"
    return captions, questions


def printable(name: str) -> str:
    """A name as a report can have it."""
    return name[:200].encode("utf-8", "backslashreplace").decode()


def _normal(name: str) -> str:
    return posixpath.normpath(name) if name else ""


def find_image(base: Path, root: Path, file: str) -> tuple[Path, str, str | None]:
    """(path, version, why it can't be used) of an image named relative to the folder `base` or `root`.

    A name may not lead out of `root`; a link that somebody has put there may.
    """
    fault = "no such file"
    within = os.path.join(os.path.abspath(root), "")
    for folder in dict.fromkeys((base, root)):
        path = os.path.normpath(os.path.join(folder, file))  # as texts, since Path is slow
        if not os.path.abspath(path).startswith(within):
            fault = "image outside the folder"
            continue
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                continue
            with open(path, "rb", buffering=0) as stream:
                head = stream.read(16)
        except (OSError, ValueError):
            continue
        if not looks_like_image(head):
            return Path(path), "", "not an image"
        return Path(path), f"{status.st_size} {status.st_mtime_ns}", None
    return root / file, "", fault
