"""Pairs of images and captions, wherever they lie: one kind of `Source` for shards and for plain folders.

`open_source` reads the names, captions and metadata of everything once; images stay where they are until asked for.
What can't be used is left out and named in the source's `report`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ppvilg.data import prepared
from ppvilg.data.folder import read_folder
from ppvilg.data.images import decode_image
from ppvilg.data.prepared import TokenTable
from ppvilg.data.readers import Fault
from ppvilg.data.readers.webdataset import shard_records
from ppvilg.data.records import Place, Record, read_place
from ppvilg.data.report import Report
from ppvilg.data.shards import read_manifest, verify_shard
from ppvilg.data.table import RecordTable

SPLITS_OF_OWN_DATA = ("train", "validation", "all")
_SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "val", "valid", "dev")},
}
"""What data sets call the splits, and what they are called here."""


class EmptySplitError(ValueError):
    """A data set has no such split, or nothing in it that can be used."""


@dataclass(frozen=True)
class Sample:
    """One image with its captions."""

    key: str
    image: bytes
    """The encoded file; see `ppvilg.data.images.decode_image`."""
    captions: dict[str, list[str]]
    """{language: captions}, none of them empty; where there is a canonical caption it is the first."""
    metadata: dict[str, Any]


class Source:
    """Samples by index, readable from several threads."""

    def __init__(
        self,
        records: RecordTable,
        content: Iterable[str],
        report: Report,
        prepared: bool = False,
        tokens: TokenTable | None = None,
    ):
        """`prepared`: the content, checksums of the files that the records are in, says all of them, so that none needs to be
        read; `tokens`: of the images, where they were prepared too. Raises `EmptySplitError` if there are no records."""
        self.records = records
        self.prepared = prepared
        self.report = report
        self.tokens = tokens
        self.content = sorted(content)
        """Identifies the files behind the records."""
        report.used = len(self.records)
        if not report.used:
            raise EmptySplitError(f"nothing to use in {report}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        return Sample(record.key, _read(record.place), record.captions, record.metadata)

    @property
    def checksum(self) -> str:
        """Identifies the samples and their order: equal checksums mean equal data."""
        if self.prepared:
            return self.fingerprint
        digest = sha256("\n".join(self.content).encode())
        for record in self.records:
            digest.update(f"\n{record.key}\t{record.version}\t{record.captions}{_asked(record)}".encode())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Identifies the samples wherever they lie and in whatever order: names, sizes of the images, captions; of prepared
        data, by the checksums of their files."""
        if self.prepared:
            rows = b"" if self.records.rows is None else self.records.rows.astype(np.int64).tobytes()
            return sha256("\n".join(self.content).encode() + rows).hexdigest()
        lines = sorted(f"{record.key}\t{_size(record.place)}\t{record.captions}{_asked(record)}" for record in self.records)
        return sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()

    def check(self, threads: int = 2) -> "Source":
        """The source without the images that can't be decoded, each of which is decoded once to find out.

        Not needed for shards with a manifest. The report is carried on; raises `EmptySplitError` if nothing is left.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max(1, threads)) as pool:
            faults = list(pool.map(_fault, self.records))
        for record, fault in zip(self.records, faults, strict=True):
            if fault:
                self.report.skip(fault, record.key)
        good = np.array([not fault for fault in faults])
        return Source(self.records.where(good), self.content, self.report)


def open_source(
    path: str | Path,
    split: str = "train",
    *,
    keep: dict[str, list[str]] | None = None,
    captions: str | list[str] | None = None,
    questions: bool = False,
    validation_fraction: float = 0.05,
    seed: int = 0,
) -> Source:
    """Open a split of a data set.

    path: prepared data, a folder of tar shards with or without a manifest, or a folder of images with a captions file.
        Checksums of shards are verified where there is a manifest, of prepared data the files' sizes.
    split: a split the data has; "all"; or "train" or "validation" of data that has no splits, which are then
        made by hashing the keys, `validation_fraction` and `seed`, with at least one sample each. A split that the data call
        val, valid or dev is "validation".
    keep: {field: values}: only samples whose metadata has one of the values (compared as text, null as "null").
    captions: the captions file or files of a folder of images, relative to it; None finds the only one.
    questions: whether samples need a question with an answer instead of a caption; those without are left out.

    Raises `ValueError` if the path is no such folder or a shard is damaged, `EmptySplitError` if nothing is left.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"data.path {path} is not a folder; give a folder of tar shards or of images with captions")
    report = Report(f"{path} ({split})")
    manifest = prepared.read_manifest(path)
    if manifest is not None:
        return _prepared(path, manifest, _split_name(split), keep or {}, questions, report)
    shards = sorted([*path.glob("*.tar"), *path.glob("*.tar.gz"), *path.glob("*.tgz")])
    if (path / "manifest.json").exists():
        records, content, has_splits = *_from_manifest(path, split, report), True
    elif shards:
        records, content, has_splits = _from_shards(path, shards, _split_name(split), report)
    else:
        records, content, has_splits = *read_folder(path, captions, report), False
    table = _keep(_with_texts(RecordTable.of(records), questions, report), keep or {}, report, path)
    if not has_splits:
        table = _own_split(table, _split_name(split), report, path, validation_fraction, seed)
    return Source(table, content, report)


def _read(place: Place) -> bytes:
    if place is None:
        raise ValueError("the data were prepared without their images, which this needs: prepare them with images kept")
    try:
        return read_place(place)
    except OSError as error:
        path = place[0] if isinstance(place, tuple) else place
        raise ValueError(f"cannot read {path}: {error.strerror}; was it moved since training began?") from None


def _asked(record: Record) -> str:
    return f"\t{record.questions}" if record.questions else ""


def _size(place: Place) -> int:
    """Bytes of an image."""
    if isinstance(place, bytes | None):
        return len(place or b"")
    return place[2] if isinstance(place, tuple) else place.stat().st_size


def _fault(record: Record) -> str | None:
    try:
        decode_image(_read(record.place), 8)
    except ValueError as error:
        return str(error)
    return None


def _prepared(
    path: Path, manifest: prepared.Manifest, split: str, keep: dict[str, list[str]], questions: bool, report: Report
) -> Source:
    """A split of prepared data. Nothing is read of rows that need not be chosen among."""
    wanted = [shard for shard in manifest.shards if split in (shard.split, "all")]
    if not wanted:
        splits = ", ".join(sorted({shard.split for shard in manifest.shards}))
        raise EmptySplitError(f"{path} has no split {split!r}; it has {splits} (and `all`)")
    records = RecordTable(prepared.open_shards(path, wanted))
    tokens = None
    if manifest.tokenizer is not None:
        tokens = prepared.TokenTable(records.table, manifest, manifest.unigram.get(split))
    chosen = _keep(_with_texts(records, questions, report) if questions else records, keep, report, path)
    content = [shard.sha256 for shard in wanted]
    return Source(chosen, content, report, True, tokens and tokens.of(chosen))


def _from_manifest(path: Path, split: str, report: Report) -> tuple[list[Record], list[str]]:
    entries = read_manifest(path)["shards"]
    splits = sorted({entry["split"] for entry in entries})
    wanted = [entry for entry in entries if split in (entry["split"], "all")]
    if not wanted:
        raise EmptySplitError(f"{path} has no split {split!r}; it has {', '.join(splits)} (and `all`)")
    records = []
    for entry in wanted:
        file = path / entry["file"]
        records += _shard_records(file, verify_shard(file, entry["sha256"]), report)
    return records, [entry["sha256"] for entry in wanted]


def _from_shards(path: Path, shards: list[Path], split: str, report: Report) -> tuple[list[Record], list[str], bool]:
    """Records, what identifies the shards, and whether the shards' names say which split they are."""
    named: dict[str, list[Path]] = {}
    for shard in shards:
        name = re.fullmatch(r"(.+?)-\d+\.(tar|tar\.gz|tgz)", shard.name)
        named.setdefault(_split_name(name[1]) if name else "", []).append(shard)
    has_splits = bool({"train", "validation"} & set(named)) or split in named
    if has_splits and split != "all":
        if split not in named:
            raise EmptySplitError(f"{path} has no shards {split}-*.tar; its splits are {', '.join(sorted(named))}")
        shards = named[split]
    records = [record for shard in shards for record in _shard_records(shard, None, report)]
    status = [shard.stat() for shard in shards]
    content = [f"{s.name} {st.st_size} {st.st_mtime_ns}" for s, st in zip(shards, status, strict=True)]
    return records, content, has_splits


def _shard_records(path: Path, content: bytes | None, report: Report) -> list[Record]:
    """The samples of one shard that can be used."""
    records = []
    for item in shard_records(path, content):
        if isinstance(item, Fault):
            report.skip(item.reason, item.key)
        else:
            records.append(item)
    return records


def split_of(records: RecordTable, validation_fraction: float, seed: int) -> tuple[np.ndarray, bool]:
    """The split object [N] of each record: what its metadata calls `split`, else "train" or "validation" by a hash of its key.

    Of two records or more, the hash of which would leave nothing for validation, one is put there, which the flag says.
    """
    values, codes = records.metadata_codes("split")
    splits = np.array([*(_split_name("" if value in (None, "null") else value) for value in values), ""], object)[codes]
    drawn = np.flatnonzero(splits == "")
    chances = np.array([_chance(f"{seed} {key}") for key in records.where(splits == "").names()])
    splits[drawn] = np.where(chances < validation_fraction, "validation", "train")
    # The hash may leave nothing of few samples to one of them.
    if len(drawn) and "train" not in splits and validation_fraction < 1:
        splits[drawn[chances.argmax()]] = "train"
    moved = len(drawn) > 1 and "validation" not in splits and validation_fraction > 0
    if moved:
        splits[drawn[chances.argmin()]] = "validation"
    return splits, moved


def _own_split(
    records: RecordTable, split: str, report: Report, path: Path, validation_fraction: float, seed: int
) -> RecordTable:
    """The records of a split that only they themselves decide."""
    splits, moved = split_of(records, validation_fraction, seed)
    if split not in SPLITS_OF_OWN_DATA and split not in splits:
        raise EmptySplitError(f"{path} has no split {split!r}; data without splits has {', '.join(SPLITS_OF_OWN_DATA)}")
    chosen = np.full(len(records), split == "all") | (splits == split)
    if len(records) and not chosen.any():
        counts = ", ".join(f"{count} in {name!r}" for name, count in sorted(Counter(splits.tolist()).items()))
        how = f" (data.validation_fraction = {validation_fraction:g})"
        raise EmptySplitError(f"{path} has no sample in the split {split!r}, but {counts}{how}")
    if moved and split == "validation":
        part = f"data.validation_fraction = {validation_fraction:g} of {len(records)}"
        report.notes.append(f"one sample is kept for validation, since by their hash {part} are none")
    report.filtered += len(records) - int(chosen.sum())
    return records.where(chosen)


def _chance(text: str) -> float:
    """A number in [0, 1) that looks random and is a function of the text."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64


def _split_name(name: str) -> str:
    return _SPLIT_NAMES.get(name.lower(), name)


def _with_texts(records: RecordTable, questions: bool, report: Report) -> RecordTable:
    """Those with a question that has an answer or, if those are not asked for, a caption."""
    if questions:
        has = np.array([any(question.answers for question in record.questions) for record in records], bool)
    else:
        has = pc.list_value_length(records.column("captions")).to_numpy() > 0
    for key in records.where(~has).names():
        report.skip("no question with an answer" if questions else "no caption", key)
    return records.where(has)


def _keep(records: RecordTable, keep: dict[str, list[str]], report: Report, path: Path) -> RecordTable:
    wanted = np.ones(len(records), bool)
    for name, values in keep.items():
        found, codes = records.metadata_codes(name)
        present = {value for value in found if value is not None}
        if len(records) and not present:
            known = records.metadata_names()
            raise EmptySplitError(f"data.keep: no sample of {path} has {name!r}; there is {', '.join(known) or 'nothing'}")
        if len(records) and not present & set(values):
            some = ", ".join(sorted(present)[:20])
            raise EmptySplitError(f"data.keep.{name}: none of {', '.join(values)} occurs in {path}; values are {some}")
        wanted &= np.array([value in values for value in found], bool)[codes]
    if len(records) and not wanted.any():
        raise EmptySplitError(f"data.keep: no sample of {path} fits all of {', '.join(keep)} together")
    report.filtered += len(records) - int(wanted.sum())
    return records.where(wanted)
