"""One unit of a corpus becomes one part: a file of rows and a file of counts.

A part depends on its unit and the config alone, so it does not matter who makes it, when, or how often it was begun. A worker
that dies while it works on a unit leaves a note of where it was; who tries again goes pair by pair there, leaves out the pair
that kills workers, and names it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from ppvilg.data import prepared
from ppvilg.data.filters import Funnel, Pair, Step, apply_filters, caption_hash, image_hash, setup_filters
from ppvilg.data.filters.funnel import Example
from ppvilg.data.prepare.config import PrepareExperiment
from ppvilg.data.readers import Fault, Unit
from ppvilg.data.records import Record
from ppvilg.data.table import SCHEMA, to_batches
from ppvilg.data.translation import TranslationError, add_translations
from ppvilg.files import whole_file, write_whole
from ppvilg.pictures import to_model

PARTS = "parts"
_PAIRS = 64  # that are filtered and tokenized together
_TRIES = 2  # at one place, before its pairs are tried one by one, or the pair is left out
_MOST_DEATHS = 40  # of workers on one unit
_FAULTS_NAMED = 1000  # of a unit
KEY_HASH, IMAGE_HASH, CAPTION_HASHES = "key_hash", "image_hash", "caption_hashes"


@dataclass(frozen=True)
class Part:
    """What a unit is called, and where its part lies."""

    source: str
    unit: Unit

    def path(self, output: Path, ending: str) -> Path:
        """Of one of its files."""
        name = hashlib.sha256(f"{self.source}\n{self.unit.id}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return output / PARTS / f"{name}{ending}"

    def is_done(self, output: Path) -> bool:
        """Whether its part is whole; its counts are written last."""
        return self.path(output, ".json").is_file()


def part_schema(config: PrepareExperiment, tokens: pa.Field | None) -> pa.Schema:
    """The columns of a part: a record's, its tokens, and the hashes by which duplicates are found over all parts."""
    hashes = [pa.field(KEY_HASH, pa.int64()), pa.field(IMAGE_HASH, pa.int64()), pa.field(CAPTION_HASHES, pa.list_(pa.int64()))]
    return pa.schema([*SCHEMA, *([] if tokens is None else [tokens]), *hashes])


class Worker:
    """What a process loads once, and does with each unit."""

    def __init__(self, config: PrepareExperiment):
        """Raises `ValueError` for a tokenizer, filter or translation that cannot be had."""
        self._config, self._output = config, Path(config.output)
        self._filters = setup_filters(config.filters)
        self._translate = config.translation.setup()
        self._vqgan = None
        if config.tokenizer is not None:
            from ppvilg.vqgan.folder import load_vqgan

            self._vqgan = load_vqgan(config.tokenizer)
        self._tokens = None if self._vqgan is None else token_field(config, self._vqgan.config)

    def __call__(self, part: Part) -> None:
        """Make a part, unless it is done. Raises `TranslationError` or `OSError` where the preparation cannot go on at all."""
        note = part.path(self._output, ".at")
        while not part.is_done(self._output):
            before = note.read_bytes() if note.is_file() else None
            try:
                self._make(part, _Note(note))
            except (TranslationError, OSError):  # no pair's fault
                note.unlink(missing_ok=True) if before is None else write_whole(note, before)
                raise
            except Exception:  # as if the worker had died there, which the note says
                continue

    def _make(self, part: Part, note: "_Note") -> None:
        reader, counts = self._config.sources[part.source], _Counts()
        counts.funnel = apply_filters(self._filters, [], self._config.image_size)[1]  # of a unit without pairs
        schema = part_schema(self._config, self._tokens)
        path = part.path(self._output, ".arrow")
        with whole_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for number, items in enumerate(note.batches(reader.read(part.unit), part, counts)):
                for group in note.groups(number, items, part, counts):
                    for batch in self._rows(group, part.source, counts):
                        writer.write_batch(batch)
        write_whole(part.path(self._output, ".json"), json.dumps(counts.to_json(part), ensure_ascii=False))
        note.forget()

    def _rows(self, records: list[Record], source: str, counts: "_Counts") -> Iterator[pa.RecordBatch]:
        """The rows of some records that pass everything."""
        records = [replace(record, metadata=record.metadata | {"source": source}) for record in records]
        translation = self._config.translation
        if translation.by != "none":
            records, missing = add_translations(records, self._translate, translation.source, translation.target)
            counts.untranslated += missing
        kept, funnel = apply_filters(self._filters, [Pair(record) for record in records], self._config.image_size)
        counts.funnel += funnel
        if not kept:
            return
        squares = np.stack([pair.squares[self._config.image_size] for pair in kept])
        (batch,) = to_batches(self._without_place(kept, squares), len(kept))
        columns = list(batch.columns)
        if self._vqgan is not None:
            columns.append(prepared.token_column(self._encode(squares), self._vqgan.config.codebook.size))
        keys = [key_hash(source, pair.record.key) for pair in kept]
        captions = [[caption_hash(text) for _, text in pair.captions()] for pair in kept]
        columns += [pa.array(keys, pa.int64()), pa.array(map(image_hash, squares), pa.int64())]
        columns.append(pa.array(captions, pa.list_(pa.int64())))
        yield pa.RecordBatch.from_arrays(columns, schema=part_schema(self._config, self._tokens))

    def _without_place(self, pairs: list[Pair], squares: np.ndarray) -> Iterator[Record]:
        """The records with the square in place of the raw image."""
        for pair, square in zip(pairs, squares, strict=True):
            yield replace(pair.record, place=self._encoded(square), version="")

    def _encoded(self, square: np.ndarray) -> bytes | None:
        config = self._config
        if config.images is None:
            return None
        options = [cv2.IMWRITE_WEBP_QUALITY, config.quality] if config.images == "webp" else []
        return cv2.imencode(f".{config.images}", cv2.cvtColor(square, cv2.COLOR_RGB2BGR), options)[1].tobytes()

    def _encode(self, squares: np.ndarray) -> np.ndarray:
        """Tokens int [N, n]; always as many images at a time, so that an image's tokens never depend on those around it."""
        import paddle

        from ppvilg.ops import from_numpy

        padded = np.zeros((_PAIRS, *squares.shape[1:]), np.uint8)
        padded[: len(squares)] = squares
        with paddle.no_grad():
            return self._vqgan.encode(from_numpy(to_model(padded))).flatten(1).numpy()[: len(squares)]


def token_field(config: PrepareExperiment, vqgan: Any) -> pa.Field:
    """The field of the tokens that a tokenizer with this config makes."""
    return prepared.token_field((config.image_size // vqgan.downsampling) ** 2, vqgan.codebook.size)


def key_hash(source: str, key: str) -> int:
    """int64, equal for equal sources and keys."""
    name = f"{source}\n{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)


class _Counts:
    """What became of a unit."""

    def __init__(self):
        self.read, self.captions, self.untranslated = 0, 0, 0
        self.faults: list[Fault] = []
        self.reasons: Counter[str] = Counter()
        self.funnel = Funnel()

    def fault(self, fault: Fault) -> None:
        """Note what cannot be used."""
        self.reasons[fault.reason] += 1
        if len(self.faults) < _FAULTS_NAMED:
            self.faults.append(fault)

    def to_json(self, part: Part) -> dict[str, Any]:
        """As JSON's types; the first step of the funnel is reading."""
        examples: dict[str, list[Example]] = {}
        for fault in self.faults:
            examples.setdefault(fault.reason, []).append(Example(fault.key, ()))
        pairs = self.read + self.reasons.total()
        read = Step("read", pairs, self.captions, self.reasons, Counter(), {})
        step = replace(read, examples=examples) + Step("read")  # chooses among the examples
        return {
            "source": part.source,
            "unit": part.unit.id,
            "untranslated": self.untranslated,
            "funnel": Funnel([step, *self.funnel.steps]).to_json(),
            "faults": [[fault.key, fault.reason] for fault in self.faults],
        }


class _Note:
    """Where the work on a unit is, in a file that outlives the worker."""

    def __init__(self, path: Path):
        self._path = path
        try:
            before = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            before = {"at": None, "tries": 0, "deaths": -1, "one_by_one": [], "left_out": []}
        self._died_at, self._tries = before["at"], before["tries"]
        self._deaths: int = before["deaths"] + 1
        self._one_by_one: list[int] = before["one_by_one"]
        """Numbers of batches that have killed workers."""
        self._left_out: list[list[int]] = before["left_out"]
        """(batch, pair) of what has killed workers."""

    def batches(self, items: Iterable[Record | Fault], part: Part, counts: _Counts) -> Iterator[list[Record]]:
        """What the reader gives, a few at a time; faults are noted. Ends before what has killed its readers."""
        items = iter(items)
        for number in count():
            if self._at([number]) > _TRIES or self._deaths > _MOST_DEATHS:
                why = "the rest kills its reader" if self._deaths <= _MOST_DEATHS else "the rest kills too many workers"
                counts.fault(Fault(f"{part.unit.id}, after {counts.read} pairs", why))
                return
            some = list(islice(items, _PAIRS))
            if not some:
                return
            for item in some:
                if isinstance(item, Fault):
                    counts.fault(item)
            records = [item for item in some if isinstance(item, Record)]
            counts.read += len(records)
            counts.captions += sum(len(texts) for record in records for texts in record.captions.values())
            yield records

    def groups(self, number: int, records: list[Record], part: Part, counts: _Counts) -> Iterator[list[Record]]:
        """The records of a batch, all at once or, where that has killed workers, one by one without those that did."""
        if number not in self._one_by_one and self._at([number, -1]) <= _TRIES:
            yield records
            return
        if number not in self._one_by_one:
            self._one_by_one.append(number)
        for i, record in enumerate(records):
            if [number, i] not in self._left_out and self._at([number, i]) > _TRIES:
                self._left_out.append([number, i])
            if [number, i] in self._left_out:
                counts.fault(Fault(f"{part.unit.file}: {record.key}", "kills its worker"))
            else:
                yield [record]

    def forget(self) -> None:
        """The unit is done."""
        self._path.unlink(missing_ok=True)

    def _at(self, place: list[int]) -> int:
        """Note that the work is here now; returns how often it has come here, this time included, since a worker last died at
        another place."""
        tries = self._tries + 1 if self._died_at == place else 1
        found = {"at": place, "tries": tries, "deaths": self._deaths}
        found |= {"one_by_one": self._one_by_one, "left_out": self._left_out}
        write_whole(self._path, json.dumps(found))
        return tries
