"""A folder of images with a captions file, JSONL, CSV or TSV, or with the files of a published data set."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path

from ppvilg.data.readers.annotations import BROKEN, image_rows
from ppvilg.data.readers.base import Fault
from ppvilg.data.readers.rows import row_records
from ppvilg.data.readers.text import table_rows, table_units
from ppvilg.data.records import Record
from ppvilg.data.report import Report

_KINDS = (".jsonl", ".csv", ".tsv")
_UNIT = 8 << 20


def read_folder(path: Path, captions: str | list[str] | None, report: Report) -> tuple[list[Record], list[str]]:
    """Records of every row whose image exists, and what identifies the files with captions or questions.

    Rows of the same image become one record. Raises `ValueError` if there is no captions file, or several of which none is
    named, or one can't be read.
    """
    named = [captions] if isinstance(captions, str) else captions
    tables = [path / name for name in named] if named else [find_captions(path)]
    records: dict[str, Record] = {}
    for item in _all(path, tables):
        if isinstance(item, Fault):
            report.skip(item.reason, item.key)
            continue
        record = records.setdefault(item.key, replace(item, captions={}, questions=[]))
        record.questions.extend(item.questions)
        for language, texts in item.captions.items():
            record.captions.setdefault(language, []).extend(texts)
    return list(records.values()), [_sha256(table) for table in tables]


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


def _all(path: Path, tables: list[Path]) -> Iterator[Record | Fault]:
    """Of all files, published data sets' last. Where files as such are damaged, it raises `ValueError`."""
    published = [table for table in tables if table.suffix.lower() in (".json", ".txt")]
    for table in tables:
        if table not in published:
            kind = table.suffix.lower().removeprefix(".")
            try:
                rows = chain.from_iterable(table_rows(unit, kind) for unit in table_units(table, kind, _UNIT))
                yield from row_records(_readable(rows), table.parent, path)
            except OSError as error:
                raise ValueError(f"cannot read the captions file {table}: {error.strerror}") from None
    if published:
        yield from row_records(_readable(image_rows(published, path)), path, path)


def _readable(rows: Iterator[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    for where, row in rows:
        file = where.rpartition(":")[0] or where
        if row == BROKEN:
            raise ValueError(f"{file} is not valid JSON: fetch it again")
        if row == "row is not UTF-8":
            raise ValueError(f"{where} is not UTF-8; save the file as UTF-8")
        if isinstance(row, str) and row.startswith("an entry "):
            raise ValueError(f"{file} is damaged: {row}")
        yield where, row


def _sha256(table: Path) -> str:
    with open(table, "rb") as stream:
        digest = sha256()
        while data := stream.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
