"""A folder of images with a captions file: JSONL, CSV or TSV."""

import csv
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from ppvilg.data.images import looks_like_image
from ppvilg.data.records import Record, take_captions
from ppvilg.data.report import Report

_KINDS = (".jsonl", ".csv", ".tsv")
_FILE_COLUMNS = ("file", "image", "picture", "file_name")


def read_folder(path: Path, captions: str | None, report: Report) -> tuple[list[Record], list[str]]:
    """Records of every row whose image exists, and what identifies the captions file.

    Rows of the same image become one record. Raises `ValueError` if there is no captions file, or several, or it can't
    be read.
    """
    table = path / captions if captions else find_captions(path)
    try:
        content = table.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the captions file {table}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 (at byte {error.start}); save it as UTF-8") from None
    records: dict[str, Record] = {}
    for number, row in _rows(table, text):
        name = f"{table.name}:{number}"
        if not isinstance(row, dict):
            report.skip("row is not a record", name)
            continue
        file = next((row.pop(column) for column in _FILE_COLUMNS if isinstance(row.get(column), str)), "")
        file = file.strip()
        if not file:
            report.skip("row names no image", name)
            continue
        found = take_captions(row)
        if not found:
            report.skip("no caption", f"{name} ({file})")
        elif file in records:
            for language, texts in found.items():
                records[file].captions.setdefault(language, []).extend(texts)
        else:
            place, version, fault = _look(table.parent, path, file)
            if fault:
                report.skip(fault, f"{name} ({file})")
            else:
                records[file] = Record(file, found, row, place, version)
    return list(records.values()), [sha256(content).hexdigest()]


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


def _rows(table: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line number, row); a row that can't be read is None."""
    lines = text.splitlines()
    if table.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None
        return
    dialect = "excel-tab" if table.suffix.lower() == ".tsv" else "excel"
    reader = csv.reader(text.splitlines(keepends=True), dialect)
    header = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num, None
            continue
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            if not set(header) & set(_FILE_COLUMNS) or not set(header) & {"caption", "captions", "text"}:
                raise ValueError(
                    f"{table}: the first line must name the columns, among them `file` and `caption`; it is {lines[0][:80]!r}"
                )
        elif cells:
            yield reader.line_num, dict(zip(header, cells, strict=False))


def _look(base: Path, root: Path, file: str) -> tuple[Path, str, str | None]:
    """(path, version, why it can't be used) of an image named relative to the captions file or the folder."""
    for folder in dict.fromkeys((base, root)):
        path = folder / file
        try:
            if not path.resolve().is_relative_to(root.resolve()):
                return path, "", "image outside the folder"
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
    return root / file, "", "no such file"
