"""How prepared data behave by the number of their rows, and how their format does beside others."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ppvilg.data import prepared
from ppvilg.data.table import SCHEMA

_CODES, _LENGTH, _SIDE = 1024, 64, 64
_PER_SHARD, _PER_BATCH, _PER_GROUP = 2**20, 2**14, 2**12
_BATCH, _BATCHES = 16, 500  # pairs of a step, and steps
SCALE_HEADER = f"{'rows':>12}{'GB':>8}{'open s':>9}{'first batch s':>15}{'batches/s':>11}{'own memory MB':>15}{'before MB':>11}"
FORMAT_HEADER = f"{'format':24}{'MB':>8}{'open ms':>10}{'random pairs/s':>16}"


def scale_line(rows: int, folder: str) -> str:
    """Make so many rows in a temporary folder, and open and read them in a new process."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary)
        size = synthetic(path, rows)
        script = f"from ppvilg.benchmark.data_scale import measure; measure({temporary!r})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1])
        found = json.loads(done.stdout)
    speed, memory = f"{found['batches']:>11.0f}{found['memory']:>15.0f}{found['before']:>11.0f}", size / 1e9
    return f"{rows:>12,}{memory:>8.2f}{found['open']:>9.2f}{found['first']:>15.3f}{speed}"


def measure(folder: str) -> None:
    """Print what `scale_line` shows, of this process."""
    from ppvilg.data.loader import SampleStream, draw_caption
    from ppvilg.data.sources import open_source

    before, began = _own_memory(), time.perf_counter()
    source = open_source(folder, "train")
    stream = SampleStream(source.records, {}, 0)
    opened = time.perf_counter() - began

    def batch(step: int) -> None:
        places = stream.places(range(step * _BATCH, (step + 1) * _BATCH))
        for epoch, i in places:
            draw_caption(source.records[i].captions, {}, 0, epoch, i)
        source.tokens[[i for _, i in places]]

    began = time.perf_counter()
    batch(0)
    first, began = time.perf_counter() - began, time.perf_counter()
    for step in range(1, _BATCHES + 1):
        batch(step)
    speed = _BATCHES / (time.perf_counter() - began)
    print(json.dumps({"open": opened, "first": first, "batches": speed, "memory": _own_memory() - before, "before": before}))


def _own_memory() -> float:
    """MB of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def synthetic(folder: Path, rows: int) -> int:
    """Prepared data of random tokens and numbered captions; returns their bytes."""
    shards = []
    for number, first in enumerate(range(0, rows, _PER_SHARD)):
        batches = _random_batches(first, min(rows, first + _PER_SHARD))
        shards.append(prepared.write_shard(folder, f"train-{number:05d}.arrow", "train", _schema(), batches))
    manifest = prepared.Manifest(_SIDE, shards, "random", _CODES, {"train": [1] * _CODES})
    prepared.write_manifest(folder, manifest)
    return sum(shard.bytes for shard in shards)


def _schema() -> pa.Schema:
    return pa.schema([*SCHEMA, prepared.token_field(_LENGTH, _CODES)])


def _random_batches(first: int, last: int) -> Iterator[pa.RecordBatch]:
    """Made column by column, without a record in between."""
    schema = _schema()
    for start in range(first, last, _PER_BATCH):
        count = min(last, start + _PER_BATCH) - start
        tokens = np.random.default_rng(start).integers(0, _CODES, (count, _LENGTH))
        numbers = [f"{i:09d}" for i in range(start, start + count)]
        captions = [f"第{number}张图片上的东西" for number in numbers]
        fields = list(schema.field("captions").type.value_type)
        texts = pa.StructArray.from_arrays([pa.array(["zh"] * count), pa.array(captions)], fields=fields)
        ends = pa.array(np.arange(count + 1), pa.int32())
        columns = {
            "key": pa.array(numbers).cast(pa.binary()),
            "captions": pa.ListArray.from_arrays(ends, texts),
            "questions": pa.array([[]] * count, schema.field("questions").type),
            "metadata": pa.array(['{"source": "synthetic"}'] * count),
            "version": pa.array([""] * count),
            prepared.TOKENS: prepared.token_column(tokens, _CODES),
        }
        arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def format_lines(rows: int) -> list[str]:
    """The same rows as Arrow IPC, Parquet and, where array_record is installed, ArrayRecord: size, opening, random reads."""
    lines = [FORMAT_HEADER]
    with tempfile.TemporaryDirectory() as folder:
        for name, write, read in (
            ("Arrow IPC, mapped", _write_arrow, _read_arrow),
            ("Parquet, groups of 4096", _write_parquet, _read_parquet),
            ("ArrayRecord", _write_array_record, _read_array_record),
        ):
            path = Path(folder) / name.split(",")[0].replace(" ", "")
            try:
                write(path, rows)
            except ModuleNotFoundError:
                continue
            began = time.perf_counter()
            pair = read(path)
            pair(0)
            opened, chosen = time.perf_counter() - began, np.random.default_rng(0).integers(0, rows, 400).tolist()
            began = time.perf_counter()
            for i in chosen:
                pair(i)
            speed = len(chosen) / (time.perf_counter() - began)
            lines.append(f"{name:24}{path.stat().st_size / 1e6:>8.1f}{1e3 * opened:>10.1f}{speed:>16.0f}")
    return lines


def _write_arrow(path: Path, rows: int) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _schema()) as writer:
        for batch in _random_batches(0, rows):
            writer.write_batch(batch)


def _read_arrow(path: Path) -> Callable[[int], object]:
    from ppvilg.data.table import RecordTable

    records = RecordTable.open([path])
    tokens = prepared.TokenTable(records.table, prepared.Manifest(_SIDE, []))
    return lambda i: (records[i].captions, tokens[[i]])


def _write_parquet(path: Path, rows: int) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema()) as writer:
        for batch in _random_batches(0, rows):
            writer.write_batch(batch, row_group_size=_PER_GROUP)


def _read_parquet(path: Path) -> Callable[[int], object]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)

    def pair(i: int) -> object:
        group = file.read_row_group(i // _PER_GROUP, columns=["captions", prepared.TOKENS])
        return group.slice(i % _PER_GROUP, 1).to_pylist()

    return pair


def _write_array_record(path: Path, rows: int) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for batch in _random_batches(0, rows):
        tokens = batch.column(prepared.TOKENS).flatten().to_numpy().reshape(len(batch), -1)
        for captions, row in zip(batch.column("captions").to_pylist(), tokens, strict=True):
            writer.write(json.dumps(captions).encode() + b"\0" + row.tobytes())
    writer.close()


def _read_array_record(path: Path) -> Callable[[int], object]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))

    def pair(i: int) -> object:
        text, _, tokens = reader.read([i])[0].partition(b"\0")
        return json.loads(text), np.frombuffer(tokens, np.uint16)

    return pair
