"""Captions files, JSONL, CSV or TSV, beside a folder of images.

Each row names an image and has a caption or a question. Big files are cut into units at the ends of rows, never between rows of
one image that follow each other, which are one record. Rows of one image that lie apart are records with the same key: whoever
wants one of each image merges them, as `ppvilg.data.folder` does.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any, Literal

from ppvilg.data.readers.base import STRICT, Bytes, Fault, Unit, all_units, named_files, top_folder
from ppvilg.data.readers.rows import FILE_COLUMNS, row_records, same_image
from ppvilg.data.records import Record

Kind = Literal["jsonl", "csv", "tsv"]

_AHEAD = 1 << 20
"""So far beyond a unit the end of a row is looked for at first: more than the longest field that the csv module reads."""
_LONGEST = 64 << 20
"""A unit ends there even within a row, as in a file that has no ends of lines at all."""
_BLANK = " \t\n\r\v\f"
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
        """Raises `ValueError` for no files, and if the only one's first line, of CSV or TSV, does not name the columns. One of
        several without columns is a unit, and `read` says so."""
        files = named_files(self.path, (f".{self.format}",))
        return all_units(files, lambda file: table_units(file, self.format, self.unit_bytes))

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """See `Reader`."""
        root = Path(self.images) if self.images else top_folder(self.path)
        yield from row_records(table_rows(unit, self.format), Path(unit.file).parent, root)


def table_units(file: Path, kind: Kind, size: int) -> Iterator[Unit]:
    """The units of one file, of about `size` bytes each. Raises `ValueError` if the first line does not name the columns."""
    first, line, end = 0, 1, file.stat().st_size
    with open(file, "rb") as stream:
        header = _header(stream, kind)
        while first < end:
            last, lines = _next_cut(stream, first, end, kind, size, header)
            yield Unit.of(file, first, last, line)
            first, line = last, line + lines


def table_rows(unit: Unit, kind: Kind) -> Iterator[tuple[str, Any]]:
    """(file:line, row) of a unit; instead of a row that cannot be read, a text that says why."""
    file = Path(unit.file)
    try:
        with open(file, "rb") as stream:
            header = _header(stream, kind)
            stream.seek(unit.first)
            text, _ = _text(stream.read(unit.last - unit.first), unit.first)
    except OSError:
        yield file.name, "the file cannot be read"
        return
    except ValueError:
        yield file.name, "the first line does not name the columns"
        return
    for begins, after, cells in _cells(_lines(text, kind), kind):
        if cells and (header is None or unit.first + begins):
            # A table's row is known by its last line, except one that cannot be read, of which that is unknown.
            yield f"{file.name}:{unit.line + after - 1}", _row(cells, header)


def _next_cut(stream: IO[bytes], first: int, end: int, kind: Kind, size: int, header: list[str] | None) -> tuple[int, int]:
    """(byte where the unit from `first` on ends, its number of lines)."""
    ahead = _AHEAD if header else min(_AHEAD, size)
    while True:
        stream.seek(first)
        data = stream.read(size + ahead)
        whole = first + size + ahead >= end
        # Rows of JSON need not be read up to the last one that begins before the unit may end; where tables' rows end is only
        # known by reading them all.
        start = len(data[:size].rstrip().rpartition(b"\n")[0]) if kind == "jsonl" else 0
        text, mark = _text(data[start:], first + start)
        passed, start = data.count(b"\n", 0, start), start + mark
        lines = _lines(text, kind)
        ends = list(accumulate((len(line.encode("utf-8", "surrogateescape")) for line in lines), initial=start))
        before: list[str] | str = ""
        for begins, after, cells in _cells(lines, kind):
            if not cells:
                continue
            if begins and ends[begins] >= size and not same_image(_row(before, header), _row(cells, header)):
                # What reaches the end of this text, or may have been misread for its end, is read again with more of it.
                if whole or (after < len(lines) and ends[begins] < size + ahead // 2):
                    return first + ends[begins], passed + begins
                break
            before = cells
        if whole:
            return end, passed + len(lines)
        if ahead >= _LONGEST:
            return first + ends[-1], passed + len(lines) - 1
        ahead *= 4


def _text(data: bytes, first: int) -> tuple[str, int]:
    """(text, number of bytes of the mark at the beginning of a file, which is in no line)."""
    mark = 3 if first == 0 and data.startswith(b"\xef\xbb\xbf") else 0
    return data[mark:].decode("utf-8", "surrogateescape"), mark


def _lines(text: str, kind: Kind) -> list[str]:
    # Not splitlines, which knows more ends of lines than tables do: U+2028 is a character like others.
    return list(io.StringIO(text, newline="\n" if kind == "jsonl" else ""))


def _header(stream: IO[bytes], kind: Kind) -> list[str] | None:
    """The names of a table's columns; raises `ValueError` if its first line does not have them."""
    if kind == "jsonl":
        return None
    stream.seek(0)
    text, _ = _text(stream.read(_AHEAD), 0)
    row = next((cells for _, _, cells in _cells(_lines(text, kind), kind)), "")
    header = [] if isinstance(row, str) else [cell.strip().lower() for cell in row]
    if not set(header) & set(FILE_COLUMNS) or not set(header) & _TEXT_COLUMNS:
        first = text.split("\n", 1)[0].strip()
        raise ValueError(
            f"{stream.name}: the first line must name the columns, among them `file` and `caption`; it is {first[:80]!r}"
        )
    return header


def _row(cells: list[str] | str, header: list[str] | None) -> Any:
    """What `_cells` gives as a row, or a text that says why it is none."""
    if header is not None:
        if isinstance(cells, str):
            return cells
        return dict(zip(header, cells, strict=False)) if all(map(_is_utf8, cells)) else "row is not UTF-8"
    if not _is_utf8(cells):
        return "row is not UTF-8"
    try:
        row = json.loads(cells)
    except (ValueError, RecursionError):
        return "row is not a record"
    return row if isinstance(row, dict) else "row is not a record"


def _cells(lines: list[str], kind: Kind) -> Iterator[tuple[int, int, list[str] | str]]:
    """(index of its first line, index after its last, cells) of each row, which has none if it is blank; of JSON the line, and
    of a table's row that cannot be read why."""
    if kind == "jsonl":
        yield from ((number, number + 1, line.strip(_BLANK)) for number, line in enumerate(lines))
        return
    dialect = "excel-tab" if kind == "tsv" else "excel"
    first = 0  # of the row that comes next
    while first < len(lines):
        # Strict, since else a quote that is not closed would swallow all rows up to the next quote.
        reader = csv.reader(islice(lines, first, None), dialect, strict=True)
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
