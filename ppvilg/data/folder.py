"""A folder of images with a captions file, JSONL, CSV or TSV, or with the JSON files of a published data set."""

import csv
import json
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from ppvilg.data.annotations import read_annotations
from ppvilg.data.images import looks_like_image
from ppvilg.data.questions import take_questions
from ppvilg.data.records import Record, take_captions
from ppvilg.data.report import Report

_KINDS = (".jsonl", ".csv", ".tsv")
_FILE_COLUMNS = ("file", "image", "picture", "file_name")


def read_folder(path: Path, captions: str | list[str] | None, report: Report) -> tuple[list[Record], list[str]]:
    """Records of every row whose image exists, and what identifies the files with captions or questions.

    Rows of the same image become one record. Raises `ValueError` if there is no captions file, or several of which none is
    named, or one can't be read.
    """
    named = [captions] if isinstance(captions, str) else captions
    tables = [path / name for name in named] if named else [find_captions(path)]
    records: dict[str, Record] = {}
    keys: dict[str, str] = {}  # of names as they are written, of which an image may have several
    for base, name, row in _all_rows(path, tables):
        if isinstance(row, str):
            report.skip(row, name)
            continue
        if not isinstance(row, dict):
            report.skip("row is not a record", name)
            continue
        file = next((row.pop(column) for column in _FILE_COLUMNS if isinstance(row.get(column), str)), "")
        file = file.strip()
        if not file:
            report.skip("row names no image", name)
            continue
        found, questions = take_captions(row), take_questions(row)
        if not found and not questions:
            report.skip("no caption", f"{name} ({file})")
            continue
        if file not in keys:
            place, version, fault = _look(base, path, file)
            if fault:
                report.skip(fault, f"{name} ({file})")
                continue
            keys[file] = Path(os.path.relpath(place, path)).as_posix()
        record = records.setdefault(keys[file], Record(keys[file], {}, row, place, version))
        record.questions.extend(questions)
        for language, texts in found.items():
            record.captions.setdefault(language, []).extend(texts)
    return list(records.values()), [sha256(table.read_bytes()).hexdigest() for table in tables]


def find_captions(path: Path) -> Path:
    """The one .jsonl, .csv or .tsv file of a folder: at the top, or else anywhere below."""
    for found in (path.glob("*"), path.rglob("*")):
        tables = sorted(file for file in found if file.suffix.lower() in _KINDS and file.is_file())
        if len(tables) == 1:
            return tables[0]
        if tables:
            names = ", ".join(str(file.relative_to(path)) for file in tables[:5])
            raise ValueError(f"{path} has several captions files ({names}); say which with data.captions")
    raise ValueError(f"{path} has neither tar shards nor a captions file (.jsonl, .csv or .tsv)")


def _all_rows(path: Path, tables: list[Path]) -> Iterator[tuple[Path, str, Any]]:
    """(folder that names are relative to, where, row) of all files, published data sets' JSON last; rows as of `_rows`."""
    for table in tables:
        if table.suffix.lower() != ".json":
            for number, row in _rows(table, _read_text(table)):
                yield table.parent, f"{table.name}:{number}", row
    published = [table for table in tables if table.suffix.lower() == ".json"]
    if published:
        for name, row in read_annotations(path, published):
            yield path, name, row


def _read_text(table: Path) -> str:
    try:
        return table.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the captions file {table}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 (at byte {error.start}); save it as UTF-8") from None


def _rows(table: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line number, row); of a row that can't be read why, as text, or None."""
    if table.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield number, None if isinstance(row, str) else row
        return
    header = None
    for number, cells in _cells(text, "excel-tab" if table.suffix.lower() == ".tsv" else "excel"):
        if isinstance(cells, str):
            yield number, cells
        elif header is None:
            header = [cell.strip().lower() for cell in cells]
            if not set(header) & set(_FILE_COLUMNS) or not set(header) & {"caption", "captions", "text", "question"}:
                first = text.split("\n", 1)[0].strip()
                raise ValueError(
                    f"{table}: the first line must name the columns, among them `file` and `caption`; it is {first[:80]!r}"
                )
        elif cells:
            yield number, dict(zip(header, cells, strict=False))


def _cells(text: str, dialect: str) -> Iterator[tuple[int, list[str] | str]]:
    """(number of the last line, cells) of each row of a table; of a row that can't be read why."""
    # Not splitlines, which knows more ends of lines than tables do: U+2028 is a character like others.
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
    first = 0  # of the row that comes next
    while first < len(lines):
        # Strict, since else a quote that is not closed would swallow all rows up to the next quote.
        reader = csv.reader((lines[i] for i in range(first, len(lines))), dialect, strict=True)
        read = 0
        try:
            for cells in reader:
                read = reader.line_num
                yield first + read, cells
            return
        except csv.Error:
            first += read + 1
        # The row's first line alone, where quotes may stand for themselves.
        line = lines[first - 1]
        try:
            yield first, "a quote is not closed" if line.count('"') % 2 else next(csv.reader([line], dialect), [])
        except csv.Error:
            yield first, "row is not a record"


def _look(base: Path, root: Path, file: str) -> tuple[Path, str, str | None]:
    """(path, version, why it can't be used) of an image named relative to the captions file or the folder.

    A name may not lead out of the folder; a link that somebody has put there may.
    """
    fault = "no such file"
    for folder in dict.fromkeys((base, root)):
        path = Path(os.path.normpath(folder / file))
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
            fault = "image outside the folder"
            continue
        try:
            if not path.is_file():
                continue
            with open(path, "rb") as stream:
                head = stream.read(16)
            status = path.stat()
        except (OSError, ValueError):
            continue
        if not looks_like_image(head):
            return path, "", "not an image"
        return path, f"{status.st_size} {status.st_mtime_ns}", None
    return root / file, "", fault
