"""Samples as an Arrow table: what is known of each besides its image, in memory or memory-mapped from files.

No Python object is kept for a sample: `RecordTable` makes a `Record` of a row when it is asked for. A million rows take what
their texts take, and rows of memory-mapped files take no memory of the process at all until they are read.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from ppvilg.data.questions import Question
from ppvilg.data.records import Place, Record, metadata_text

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
    """Rows of `SCHEMA`, or of more columns than these, as a sequence of records."""

    def __init__(self, table: pa.Table, rows: np.ndarray | None = None):
        """`rows`: int [k], those that are meant, in this order; None: all."""
        self.table, self.rows = table, rows
        self._batches = table.to_batches()
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "RecordTable":
        """A table in memory."""
        return cls(pa.Table.from_batches(to_batches(records), SCHEMA))

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "RecordTable":
        """The rows of Arrow IPC files one after the other, memory-mapped.

        Raises `ValueError` naming a file that is missing, cut off, or no such file.
        """
        tables = [open_arrow(path).read_all() for path in paths]
        return cls(pa.concat_tables(tables) if tables else SCHEMA.empty_table())

    def __len__(self) -> int:
        return self.table.num_rows if self.rows is None else len(self.rows)

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
        row = row if self.rows is None else int(self.rows[row])
        batch = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[batch]) - len(self._batches[batch])
        return next(_records(self._batches[batch].slice(row - first, 1)))

    def __iter__(self) -> Iterator[Record]:
        if self.rows is not None:
            yield from (self[i] for i in range(len(self)))
            return
        for batch in self._batches:
            for first in range(0, len(batch), _ROWS_TOGETHER):
                yield from _records(batch.slice(first, _ROWS_TOGETHER))

    def take(self, indices: np.ndarray) -> "RecordTable":
        """A view of some rows int [k], in this order."""
        return RecordTable(self.table, indices if self.rows is None else self.rows[indices])

    def where(self, wanted: np.ndarray) -> "RecordTable":
        """A view of the rows for which a mask bool [N] is true."""
        return self if wanted.all() else self.take(np.flatnonzero(wanted))

    def names(self) -> list[str]:
        """The records' names."""
        return list(map(_text, self.column("key").to_pylist()))

    def column(self, name: str) -> pa.Array | pa.ChunkedArray:
        """A column of the records that are meant."""
        column = self.table.column(name)
        return column if self.rows is None else column.take(pa.array(self.rows, pa.int64()))

    def metadata_codes(self, name: str) -> tuple[list[str | None], np.ndarray]:
        """The different values of a metadata field as configs write them, None for its absence, and for each record the
        number int32 [N] of its own among these. Reads each different metadata once."""
        values: dict[str | None, int] = {}
        parts = [np.empty(0, np.int32)]
        for chunk in self._metadata_chunks():
            found = (json.loads(text) for text in chunk.dictionary.to_pylist())
            texts = [metadata_text(metadata[name]) if name in metadata else None for metadata in found]
            codes = np.array([values.setdefault(text, len(values)) for text in texts], np.int32)
            parts.append(codes[chunk.indices.to_numpy()])
        return list(values), np.concatenate(parts)

    def metadata_names(self) -> list[str]:
        """All fields that the metadata of some record have."""
        texts = (text for chunk in self._metadata_chunks() for text in chunk.dictionary.to_pylist())
        return sorted({name for text in texts for name in json.loads(text)})

    def _metadata_chunks(self) -> Iterator[pa.DictionaryArray]:
        column = self.column("metadata")
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            yield chunk.dictionary_encode()


def open_arrow(path: Path) -> pa.ipc.RecordBatchFileReader:
    """An Arrow IPC file, memory-mapped; raises `ValueError` naming a file that is missing, cut off, or no such file."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        what = str(error).split(". ")[0]
        raise ValueError(f"{path} cannot be read as an Arrow file ({what}); fetch or prepare it again") from None


def _row(record: Record) -> dict[str, Any]:
    place = record.place
    held = isinstance(place, bytes | None)
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


def _records(batch: pa.RecordBatch) -> Iterator[Record]:
    """Column by column, which is many times as fast as `to_pylist` of the rows."""
    columns = {
        name: batch.column(name).to_pylist() for name in ("key", "metadata", "image", "file", "offset", "size", "version")
    }
    captions = zip(_lists(batch.column("captions"), "language"), _lists(batch.column("captions"), "text"), strict=True)
    asked = [_lists(batch.column("questions"), name) for name in ("text", "answers", "id", "type")]
    questions = ([Question(t, tuple(a), i, k) for t, a, i, k in zip(*parts, strict=True)] for parts in zip(*asked, strict=True))
    places = zip(*(columns[name] for name in ("image", "file", "offset", "size")), strict=True)
    rows = zip(columns["key"], captions, columns["metadata"], places, columns["version"], questions, strict=True)
    for key, (languages, texts), metadata, place, version, own_questions in rows:
        own_captions: dict[str, list[str]] = {}
        for language, text in zip(languages, texts, strict=True):
            own_captions.setdefault(language, []).append(text)
        yield Record(_text(key), own_captions, json.loads(metadata), _place(*place), version, own_questions)


def _lists(column: pa.ListArray, field: str) -> Iterator[list]:
    """For each row the values of a field of its structs."""
    ends = (column.offsets.to_numpy() - column.offsets[0].as_py()).tolist()
    values = column.flatten().field(field).to_pylist()
    return (values[first:end] for first, end in pairwise(ends))


def _place(image: bytes | None, file: bytes | None, offset: int | None, size: int | None) -> Place:
    if image is not None or file is None:
        return image
    path = Path(_text(file))
    return path if offset is None else (path, offset, size)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
