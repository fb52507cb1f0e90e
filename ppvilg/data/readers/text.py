"""Captions files, JSONL, CSV or TSV, beside a folder of images.

Each row names an image and has a caption or a question. Big files are cut into units at the ends of rows, never between rows of
one image that follow each other, which are one record. Rows of one image that lie apart are records with the same key: whoever
wants one of each image merges them, as `ppvilg.data.folder` does.
"""

import csv
import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Literal

from ppvilg.data.readers.base import STRICT, Bytes, Fault, Unit, named_files, top_folder
from ppvilg.data.readers.rows import FILE_COLUMNS, row_records, same_image
from ppvilg.data.records import Record

Kind = Literal["jsonl", "csv", "tsv"]

_AHEAD = 1 << 20
"""So far beyond a unit the end of a row is looked for at first: more than the longest field that the csv module reads."""
_LONGEST = 64 << 20
"""A unit ends here even within a row, as in a file that has no ends of lines at all."""
_TEXT_COLUMNS = {"caption", "captions", "text", "question"}


@dataclass(frozen=True)
class TextTable:
    """One captions file or several."""

    __pydantic_config__ = STRICT
    format: Kind
    path: str
    """A file, a folder (all files there that end like the format) or a pattern with *."""
    images: str | None = None
    """The folder that all images are in, named relative to it or to the captions file; null: that of the captions files."""
    unit_bytes: Bytes = 8 << 20
    """How much text makes a unit, about."""

    def units(self) -> list[Unit]:
        """Raises `ValueError` for no files, and for a CSV or TSV file whose first line does not name the columns."""
        files = named_files(self.path, (f".{self.format}",))
        return [unit for file in files for unit in table_units(file, self.format, self.unit_bytes)]

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """See `Reader`."""
        root = Path(self.images) if self.images else top_folder(self.path)
        yield from row_records(table_rows(unit, self.format), Path(unit.file).parent, root)


def table_units(file: Path, kind: Kind, size: int) -> Iterator[Unit]:
    """The units of one file, of about `size` bytes each. Raises `ValueError` as `TextTable.units` does."""
    header = _header(file, kind)
    first, line, end = 0, 1, file.stat().st_size
    with open(file, "rb") as stream:
        while first < end:
            last, lines = _next_cut(stream, first, end, kind, size, header)
            yield Unit.of(file, first, last, line)
            first, line = last, line + lines


def table_rows(unit: Unit, kind: Kind) -> Iterator[tuple[str, Any]]:
    """(file:line, row) of a unit; instead of a row that cannot be read, a text that says why."""
    file = Path(unit.file)
    try:
        header = _header(file, kind)
        with open(file, "rb") as stream:
            text, _ = _text(stream, unit.first, unit.last - unit.first)
    except (OSError, ValueError):
        yield file.name, "the file cannot be read"
        return
    for begins, after, row in _rows(_lines(text, kind), kind, header):
        if row is not None and (header is None or unit.first + begins):
            # A table's row is known by its last line, except one that cannot be read, of which that is unknown.
            yield f"{file.name}:{unit.line + after - 1}", row


def _next_cut(stream: IO[bytes], first: int, end: int, kind: Kind, size: int, header: list[str] | None) -> tuple[int, int]:
    """(byte where the unit from `first` on ends, its number of lines)."""
    ahead = _AHEAD if header else min(_AHEAD, size)
    while True:
        text, mark = _text(stream, first, size + ahead)
        whole = first + size + ahead >= end
        lines = _lines(text, kind)
        ends = list(accumulate((len(line.encode("utf-8", "surrogateescape")) for line in lines), initial=mark))
        start = 0
        if kind == "jsonl":  # where the rows before the last one need not be read to know where that begins
            start = max(0, bisect_left(ends, size, hi=len(lines)) - 1)
            while start and not lines[start].strip():
                start -= 1
        before: Any = None
        for begins, after, row in _rows(lines[start:], kind, header):
            if row is None:
                continue
            begins, after = start + begins, start + after
            if begins and ends[begins] >= size and not same_image(before, row):
                # What reaches the end of this text, or may have been misread for its end, is read again with more of it.
                if whole or (after < len(lines) and ends[begins] < size + ahead // 2):
                    return first + ends[begins], begins
                break
            before = row
        if whole:
            return end, len(lines)
        if ahead >= _LONGEST:
            return first + ends[-1], len(lines) - 1
        ahead *= 4


def _text(stream: IO[bytes], first: int, size: int) -> tuple[str, int]:
    """(text from byte `first` on, number of bytes of the mark at the beginning of a file, which is in no line)."""
    stream.seek(first)
    data = stream.read(size)
    mark = 3 if first == 0 and data.startswith(b"\xef\xbb\xbf") else 0
    return data[mark:].decode("utf-8", "surrogateescape"), mark


def _lines(text: str, kind: Kind) -> list[str]:
    # Not splitlines, which knows more ends of lines than tables do: U+2028 is a character like others.
    lines = re.split(r"(?<=\n)" if kind == "jsonl" else r"(?<=\n)|(?<=\r)(?!\n)", text)
    return lines if lines[-1] else lines[:-1]


def _header(file: Path, kind: Kind) -> list[str] | None:
    """The names of a table's columns; raises `ValueError` if its first line does not have them."""
    if kind == "jsonl":
        return None
    with open(file, "rb") as stream:
        text, _ = _text(stream, 0, _AHEAD)
    row = next((cells for _, _, cells in _cells(_lines(text, kind), kind)), "")
    header = [] if isinstance(row, str) else [cell.strip().lower() for cell in row]
    if not set(header) & set(FILE_COLUMNS) or not set(header) & _TEXT_COLUMNS:
        first = text.split("\n", 1)[0].strip()
        raise ValueError(f"{file}: the first line must name the columns, among them `file` and `caption`; it is {first[:80]!r}")
    return header


def _rows(lines: list[str], kind: Kind, header: list[str] | None) -> Iterator[tuple[int, int, Any]]:
    """(index of its first line, index after its last, row) of each row; a text of one that cannot be read, None of no row."""
    if header is None:
        for number, line in enumerate(lines):
            yield number, number + 1, _json_row(line) if line.strip() else None
        return
    for begins, after, cells in _cells(lines, kind):
        if not isinstance(cells, str) and any(not _is_utf8(cell) for cell in cells):
            cells = "row is not UTF-8"
        row = cells if isinstance(cells, str) else dict(zip(header, cells, strict=False)) if cells else None
        yield begins, after, row


def _json_row(line: str) -> Any:
    if not _is_utf8(line):
        return "row is not UTF-8"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "row is not a record"
    return row if isinstance(row, dict) else "row is not a record"


def _cells(lines: list[str], kind: Kind) -> Iterator[tuple[int, int, list[str] | str]]:
    """(index of its first line, index after its last, cells) of each row; of one that cannot be read why."""
    dialect = "excel-tab" if kind == "tsv" else "excel"
    first = 0  # of the row that comes next
    while first < len(lines):
        # Strict, since else a quote that is not closed would swallow all rows up to the next quote.
        reader = csv.reader((lines[i] for i in range(first, len(lines))), dialect, strict=True)
        read = 0
        try:
            for cells in reader:
                yield first + read, first + reader.line_num, cells
                read = reader.line_num
            return
        except csv.Error:
            first += read
        # The row's first line alone, where quotes may stand for themselves.
        line = lines[first]
        try:
            cells = "a quote is not closed" if line.count('"') % 2 else next(csv.reader([line], dialect), [])
        except csv.Error:
            cells = "row is not a record"
        yield first, first + 1, cells
        first += 1


def _is_utf8(text: str) -> bool:
    return text.isascii() or re.search("[\udc80-\udcff]", text) is None
