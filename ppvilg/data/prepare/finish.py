"""From parts to prepared data: duplicates over all of them, splits, shards, counts and the report.

Everything here is in the order of the units and of the rows in them, so the result does not depend on who made the parts.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ppvilg.checkpoint import checksum, weights_file
from ppvilg.data import prepared
from ppvilg.data.filters import Example, Funnel, Step, choose_examples
from ppvilg.data.images import decode_image, encode_jpeg
from ppvilg.data.prepare.config import PrepareExperiment
from ppvilg.data.prepare.report import Preparation, write_report
from ppvilg.data.prepare.unit import CAPTION_HASHES, IMAGE_HASH, KEY_HASH, PARTS, Part
from ppvilg.data.records import Record, read_place
from ppvilg.data.sources import split_of
from ppvilg.data.table import SCHEMA, RecordTable, to_batches
from ppvilg.folder import ImageTokenizerConfig, read_config

_ROWS = 16384  # of a batch in a shard; opening many batches takes time and memory
_EXAMPLES = 16  # to choose among
_THUMBNAIL = 96


def finish(config: PrepareExperiment, parts: Sequence[Part]) -> None:
    """Write the shards, the report and, last, the manifest; then the parts go."""
    output = Path(config.output)
    records = RecordTable.open([part.path(output, ".arrow") for part in parts])
    rows, step = _without_duplicates(config, records)
    splits = _splits(config, records, rows)
    shards, unigram = [], {}
    for split in sorted(set(splits.tolist())):
        chosen = rows.of(splits == split)
        made, counts = _write_split(config, records, chosen, split)
        shards += made
        if counts is not None:
            unigram[split] = counts.tolist()
    found = _Found.of([part.path(output, ".json") for part in parts])
    funnel = Funnel([*found.funnel.steps, step])
    by_split = dict(sorted(Counter(splits.tolist()).items()))
    write_report(output, Preparation(config.output, config.decisive(), funnel, found.faults, found.untranslated, by_split))
    tokenizer = None if config.tokenizer is None else checksum(weights_file(config.tokenizer))
    codes = len(next(iter(unigram.values()), []))
    manifest = prepared.Manifest(config.image_size, shards, tokenizer, codes, unigram, config.decisive())
    prepared.write_manifest(output, manifest)
    shutil.rmtree(output / PARTS)


@dataclass(frozen=True)
class _Rows:
    """Rows of the parts that are kept, and what becomes of them."""

    indices: np.ndarray
    """Int64 [N], ascending."""
    merged: dict[int, list[int]]
    """Row: later rows of the same image, whose captions go to it."""
    dropped_captions: dict[int, set[int]]
    """Row: which of its captions came before."""

    def of(self, mask: np.ndarray) -> "_Rows":
        """Some of them, by a mask bool [N]."""
        return _Rows(self.indices[mask], self.merged, self.dropped_captions)


def _without_duplicates(config: PrepareExperiment, records: RecordTable) -> tuple[_Rows, Step]:
    """Rows of one key become one; then images and captions that came before go."""
    table = records.table
    step, gone = Step("duplicates", len(records)), np.zeros(len(records), bool)
    lengths = pc.list_value_length(table.column(CAPTION_HASHES)).to_numpy()
    step.captions = int(lengths.sum())
    examples: dict[str, list[int]] = {}

    firsts, later = _repeats(table.column(KEY_HASH).to_numpy())
    merged: dict[int, list[int]] = {}
    for first, row in zip(firsts.tolist(), later.tolist(), strict=True):
        merged.setdefault(first, []).append(row)
    gone[later] = True
    if len(later):
        step.dropped_pairs["rows of one image, now one pair"] = len(later)
    if config.duplicates.images:
        remaining = np.flatnonzero(~gone)
        _, repeated = _repeats(table.column(IMAGE_HASH).to_numpy()[remaining])
        repeated = remaining[repeated]
        gone[repeated] = True
        _note(step, examples, "an image that came before", repeated, lengths)
    dropped: dict[int, set[int]] = {}
    if config.duplicates.captions:
        emptied = _repeated_captions(table.column(CAPTION_HASHES), gone, dropped, step)
        gone[emptied] = True
        _note(step, examples, "all its captions came before", emptied, np.zeros_like(lengths))
    for reason, some in examples.items():
        step.examples[reason] = choose_examples(
            Example(record.key, tuple(text for texts in record.captions.values() for text in texts), _jpeg(record))
            for record in (records[i] for i in some)
        )
    return _Rows(np.flatnonzero(~gone), merged, dropped), step


def _note(step: Step, examples: dict[str, list[int]], reason: str, rows: np.ndarray, lengths: np.ndarray) -> None:
    if len(rows):
        step.dropped_pairs[reason] += len(rows)
        if captions := int(lengths[rows].sum()):
            step.dropped_captions[reason] += captions
        examples[reason] = rows[:_EXAMPLES].tolist()


def _jpeg(record: Record) -> bytes | None:
    """A thumbnail, where the squares are kept."""
    return None if record.place is None else encode_jpeg(decode_image(read_place(record.place), _THUMBNAIL))


def _repeats(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value int64 [N] that occurred before: where it first did, and its own place, in ascending order."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    firsts = first[inverse]
    later = np.flatnonzero(firsts != np.arange(len(values)))
    return firsts[later], later


def _repeated_captions(column: pa.ChunkedArray, gone: np.ndarray, dropped: dict[int, set[int]], step: Step) -> np.ndarray:
    """Fill `dropped`; returns the rows of which no caption is left."""
    lengths = pc.list_value_length(column).to_numpy()
    owner = np.repeat(np.arange(len(lengths)), lengths)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    hashes = pc.list_flatten(column).to_numpy()
    kept = ~gone[owner]
    owner, number, hashes = owner[kept], number[kept], hashes[kept]
    _, later = _repeats(hashes)
    left = Counter(owner.tolist())
    for i in later.tolist():
        dropped.setdefault(int(owner[i]), set()).add(int(number[i]))
    if len(later):
        step.dropped_captions["a caption that came before"] += len(later)
    return np.array(sorted(row for row, which in dropped.items() if len(which) == left[row]), np.int64)


def _splits(config: PrepareExperiment, records: RecordTable, rows: _Rows) -> np.ndarray:
    """The split of each row, as it would be if they were opened where they lie."""
    return split_of(records.take(rows.indices), config.validation_fraction, config.seed)[0]


def _write_split(
    config: PrepareExperiment, records: RecordTable, rows: _Rows, split: str
) -> tuple[list[prepared.Shard], np.ndarray | None]:
    """The shards of a split, and how often each code occurs in it."""
    table, output = records.table, Path(config.output)
    has_tokens = prepared.TOKENS in table.schema.names
    schema = pa.schema([*SCHEMA, *([table.schema.field(prepared.TOKENS)] if has_tokens else [])])
    shards = []
    for number, first in enumerate(range(0, len(rows.indices), config.rows_per_shard)):
        some = rows.indices[first : first + config.rows_per_shard]
        name = f"{split}-{number:05d}.arrow"
        batches = (_batch(records, rows, some[i : i + _ROWS], schema, has_tokens) for i in range(0, len(some), _ROWS))
        shards.append(prepared.write_shard(output, name, split, schema, batches))
    if not has_tokens:
        return shards, None
    codes = _codes(config)
    manifest = prepared.Manifest(config.image_size, shards, codes=codes)
    return shards, prepared.TokenTable(prepared.open_shards(output, shards), manifest).unigram


def _codes(config: PrepareExperiment) -> int:
    return read_config(config.tokenizer, ImageTokenizerConfig).vqgan.codebook.size


def _batch(records: RecordTable, rows: _Rows, some: np.ndarray, schema: pa.Schema, has_tokens: bool) -> pa.RecordBatch:
    (batch,) = to_batches(_merged(records, rows, some), len(some))
    columns = list(batch.columns)
    if has_tokens:
        columns.append(records.table.column(prepared.TOKENS).take(pa.array(some)).combine_chunks())
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _merged(records: RecordTable, rows: _Rows, some: np.ndarray) -> Iterator[Record]:
    for row in some.tolist():
        record = records[row]
        lost = rows.dropped_captions.get(row, ())
        captions: dict[str, list[str]] = {}
        texts = ((language, text) for language, own in record.captions.items() for text in own)
        for number, (language, text) in enumerate(texts):
            if number not in lost:
                captions.setdefault(language, []).append(text)
        questions = list(record.questions)
        for other in (records[i] for i in rows.merged.get(row, ())):
            for language, own in other.captions.items():
                known = captions.setdefault(language, [])
                known += [text for text in own if text not in known]
            questions += [question for question in other.questions if question not in questions]
        yield Record(record.key, captions, record.metadata, record.place, record.version, questions)


@dataclass
class _Found:
    """What the parts' counts say together."""

    funnel: Funnel
    faults: list[tuple[str, str]]
    untranslated: int

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "_Found":
        found = cls(Funnel(), [], 0)
        for path in paths:
            tree = json.loads(path.read_text("utf-8"))
            found.funnel += Funnel.from_json(tree["funnel"])
            found.faults += [(key, reason) for key, reason in tree["faults"]]
            found.untranslated += tree["untranslated"]
        return found
