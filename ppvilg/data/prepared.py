"""Prepared data: rows of `ppvilg.data.table.SCHEMA` with their image tokens, in Arrow files that training maps into memory.

    folder/
      manifest.json           what made the tokens, and for each shard its split, rows, bytes and SHA-256
      train-00000.arrow ...   at most some rows each

Opening reads the manifest and the files' footers only, and what a process keeps in memory of the rows is what it has just read.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ppvilg.checkpoint import checksum
from ppvilg.data.table import RecordTable, open_arrow
from ppvilg.files import whole_file, write_whole

MANIFEST, FORMAT = "manifest.json", "ppvilg-prepared-1"
TOKENS = "tokens"
_COUNTED_TOGETHER = 2**22  # tokens


@dataclass(frozen=True)
class Shard:
    """One file."""

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    image_size: int
    """Pixels per side of the images that were tokenized, or are kept."""
    shards: list[Shard]
    tokenizer: str | None = None
    """SHA-256 of the weights of the image tokenizer; None where there are no tokens."""
    codes: int = 0
    """Size of its codebook."""
    unigram: dict[str, list[int]] = field(default_factory=dict)
    """How often each code occurs in a split."""
    made_with: dict[str, Any] = field(default_factory=dict)
    """The config that the data were prepared with."""
    format: str = FORMAT


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of prepared data; None for a folder that holds none. Raises `ValueError` for one that is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree.get("format") != FORMAT:
            return None
        return TypeAdapter(Manifest).validate_python(tree)
    except (ValueError, AttributeError, ValidationError):
        raise ValueError(f"{path} is damaged: prepare the data again") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, which makes a folder of shards prepared data."""
    write_whole(folder / MANIFEST, json.dumps(asdict(manifest), ensure_ascii=False) + "\n")


def write_shard(folder: Path, name: str, split: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Shard:
    """One file, whole or not at all; equal batches give equal bytes."""
    path = folder / name
    with whole_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return found_shard(folder, name, split)


def found_shard(folder: Path, name: str, split: str) -> Shard:
    """What there is to say of a file that was written before."""
    path = folder / name
    return Shard(name, split, open_arrow(path).read_all().num_rows, path.stat().st_size, checksum(path))


def open_shards(folder: Path, shards: Sequence[Shard]) -> pa.Table:
    """Their rows, memory-mapped; raises `ValueError` naming a file that is missing or has another size than it should."""
    tables = []
    for shard in shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise ValueError(f"{path} is {'cut off' if path.is_file() else 'missing'}: fetch or prepare it again")
        tables.append(open_arrow(path).read_all())
    return pa.concat_tables(tables)


def verify(folder: Path) -> int:
    """Read all shards and compare their checksums; returns their number. Raises `ValueError` naming the first that differs."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} holds no prepared data: give the output of tools/prepare_data.py")
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or checksum(path) != shard.sha256:
            raise ValueError(f"{path} is damaged: fetch or prepare it again")
    return len(manifest.shards)


def token_column(tokens: np.ndarray, codes: int) -> pa.FixedSizeListArray:
    """Tokens int [rows, n] of a codebook of `codes` codes as a column: uint16 where that is enough, else int32."""
    values = tokens.astype(np.uint16 if codes <= 2**16 else np.int32).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(values), tokens.shape[1])


def token_field(length: int, codes: int) -> pa.Field:
    """The field of `token_column`."""
    return pa.field(TOKENS, pa.list_(pa.uint16() if codes <= 2**16 else pa.int32(), length), nullable=False)


class TokenTable:
    """The image tokens of many images, where they lie."""

    def __init__(self, table: pa.Table, manifest: Manifest, unigram: list[int] | None = None, rows: np.ndarray | None = None):
        """`table` has a column `tokens`; `rows` int [k] are meant, in this order, or all; `unigram` is theirs."""
        chunks = [chunk for chunk in table.column(TOKENS).chunks if len(chunk)]
        self._parts = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self._rows, self._unigram = rows, unigram
        self.manifest = manifest
        self.length: int = table.schema.field(TOKENS).type.list_size
        """Of an image's tokens."""

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The tokens int64 [k, n], in raster order, of the images int [k]."""
        rows = np.asarray(indices, np.int64)
        rows = rows if self._rows is None else self._rows[rows]
        tokens = np.empty((len(rows), self.length), np.int64)
        of_part = np.searchsorted(self._ends, rows, side="right")
        for i, (row, part) in enumerate(zip(rows.tolist(), of_part.tolist(), strict=True)):
            tokens[i] = self._parts[part][row - self._ends[part]]  # ends at -1: counted from the part's end
        return tokens

    def of(self, records: RecordTable) -> "TokenTable":
        """Those of a view of the records that have the table's rows."""
        if records.rows is None:
            return self
        return TokenTable(records.table, self.manifest, None, records.rows)

    @cached_property
    def unigram(self) -> np.ndarray:
        """How often each code occurs: int64 [codes]; from the manifest, or counted once for a part of a split."""
        if self._unigram is not None:
            return np.array(self._unigram)
        counts, step = np.zeros(self.manifest.codes, np.int64), max(1, _COUNTED_TOGETHER // self.length)
        for first in range(0, len(self), step):
            tokens = self[range(first, min(first + step, len(self)))]
            counts += np.bincount(tokens.ravel(), minlength=self.manifest.codes)
        return counts
