"""Samples as an Arrow table: what is known of each besides its image, in memory or memory-mapped from files.

No Python object is kept for a sample: `RecordTable` makes a `Record` of a row when it is asked for. A million rows take what
their texts take, and rows of memory-mapped files take no memory of the process at all until they are read.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from ppvilg.data.questions import Question
from ppvilg.data.records import Place, Record

_TEXT = pa.struct([("language", pa.string()), ("text", pa.string())])
_QUESTION = pa.struct([("text", pa.string()), ("answers", pa.list_(pa.string())), ("id", pa.string()), ("type", pa.string())])
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(), nullable=False),
        pa.field("captions", pa.list_(_TEXT), nullable=False),
        pa.field("questions", pa.list_(_QUESTION), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("image", pa.large_binary()),
        pa.field("file", pa.binary()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
    ]
)
"""A row for each sample. `metadata` is JSON. The encoded image stands in `image`, or it is `size` bytes of `file` from `offset`
on, or all of the file where these are null. Keys and file names are bytes, since names in a file system need not be UTF-8."""

_ROWS_TOGETHER = 4096


def to_batches(records: Iterable[Record], rows: int = _ROWS_TOGETHER) -> Iterator[pa.RecordBatch]:
    """The records as batches of `SCHEMA`, at most `rows` in each; reads no more of them than a batch holds."""
    records = iter(records)
    while some := list(islice(records, rows)):
        yield pa.RecordBatch.from_pylist([_row(record) for record in some], SCHEMA)


class RecordTable(Sequence[Record]):
    """Rows of `SCHEMA` as a sequence of records."""

    def __init__(self, table: pa.Table):
        self.table = table
        self._batches = table.to_batches()
        lengths = [len(batch) for batch in self._batches]
        self._ends = np.cumsum(lengths, dtype=np.int64)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "RecordTable":
        """A table in memory."""
        return cls(pa.Table.from_batches(to_batches(records), SCHEMA))

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "RecordTable":
        """The rows of Arrow IPC files one after the other, memory-mapped.

        Raises `ValueError` naming a file that is missing, cut off, or no such file.
        """
        tables = []
        for path in paths:
            try:
                with pa.ipc.open_file(pa.memory_map(str(path))) as file:
                    tables.append(file.read_all())
            except (OSError, pa.ArrowInvalid) as error:
                what = str(error).split(". ")[0]
                raise ValueError(f"{path} cannot be read as an Arrow file ({what}); fetch or prepare it again") from None
        return cls(pa.concat_tables(tables) if tables else SCHEMA.empty_table())

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "RecordTable": ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"the table has {len(self)} samples, not one numbered {index}")
        row = index % len(self)
        batch = int(np.searchsorted(self._ends, row, side="right"))
        first = self._ends[batch] - len(self._batches[batch])
        return _record(self._batches[batch].slice(row - first, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        for batch in self._batches:
            for first in range(0, len(batch), _ROWS_TOGETHER):
                yield from map(_record, batch.slice(first, _ROWS_TOGETHER).to_pylist())

    def take(self, indices: np.ndarray) -> "RecordTable":
        """Some rows int [k], in this order, in memory."""
        return RecordTable(self.table.take(pa.array(indices, pa.int64())))


def _row(record: Record) -> dict[str, Any]:
    place = record.place
    held = isinstance(place, bytes)
    path, offset, size = (None, None, None) if held else place if isinstance(place, tuple) else (place, None, None)
    return {
        "key": _bytes(record.key),
        "captions": [{"language": language, "text": text} for language, texts in record.captions.items() for text in texts],
        "questions": [{"text": q.text, "answers": q.answers, "id": q.id, "type": q.kind} for q in record.questions],
        "metadata": json.dumps(record.metadata),
        "image": place if held else None,
        "file": None if path is None else _bytes(str(path)),
        "offset": offset,
        "size": size,
        "version": record.version,
    }


def _record(row: dict[str, Any]) -> Record:
    captions: dict[str, list[str]] = {}
    for caption in row["captions"]:
        captions.setdefault(caption["language"], []).append(caption["text"])
    questions = [Question(q["text"], tuple(q["answers"]), q["id"], q["type"]) for q in row["questions"]]
    return Record(_text(row["key"]), captions, json.loads(row["metadata"]), _place(row), row["version"], questions)


def _place(row: dict[str, Any]) -> Place:
    if row["image"] is not None:
        return row["image"]
    path = Path(_text(row["file"]))
    return path if row["offset"] is None else (path, row["offset"], row["size"])


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
