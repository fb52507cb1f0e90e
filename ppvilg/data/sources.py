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

from ppvilg.data.folder import read_folder
from ppvilg.data.images import decode_image
from ppvilg.data.readers import Fault
from ppvilg.data.readers.webdataset import read_place, shard_records
from ppvilg.data.records import Place, Record, metadata_text
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

    def __init__(self, records: Iterable[Record], content: Iterable[str], report: Report):
        """Raises `EmptySplitError` if there are no records."""
        self.records = records if isinstance(records, RecordTable) else RecordTable.of(records)
        self.report = report
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
        digest = sha256("\n".join(self.content).encode())
        for record in self.records:
            digest.update(f"\n{record.key}\t{record.version}\t{record.captions}{_asked(record)}".encode())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Identifies the samples wherever they lie and in whatever order: names, sizes of the images, captions."""
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
        good = np.flatnonzero([not fault for fault in faults])
        return Source(self.records.take(good), self.content, self.report)


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

    path: a folder of tar shards with or without a manifest, or a folder of images with a captions file. Checksums are
        verified where there is a manifest.
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
    shards = sorted([*path.glob("*.tar"), *path.glob("*.tar.gz"), *path.glob("*.tgz")])
    if (path / "manifest.json").exists():
        records, content, has_splits = *_from_manifest(path, split, report), True
    elif shards:
        records, content, has_splits = _from_shards(path, shards, _split_name(split), report)
    else:
        records, content, has_splits = *read_folder(path, captions, report), False
    records = _keep(_with_texts(records, questions, report), keep or {}, report, path)
    if not has_splits:
        records = _own_split(records, _split_name(split), report, path, validation_fraction, seed)
    return Source(records, content, report)


def _read(place: Place) -> bytes:
    try:
        return read_place(place)
    except OSError as error:
        path = place[0] if isinstance(place, tuple) else place
        raise ValueError(f"cannot read {path}: {error.strerror}; was it moved since training began?") from None


def _asked(record: Record) -> str:
    return f"\t{record.questions}" if record.questions else ""


def _size(place: Place) -> int:
    """Bytes of an image."""
    if isinstance(place, bytes):
        return len(place)
    return place[2] if isinstance(place, tuple) else place.stat().st_size


def _fault(record: Record) -> str | None:
    try:
        decode_image(_read(record.place), 8)
    except ValueError as error:
        return str(error)
    return None


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


def _own_split(
    records: list[Record], split: str, report: Report, path: Path, validation_fraction: float, seed: int
) -> list[Record]:
    """The records of a split that only a hash of their keys decides; a `split` column of the data goes first."""
    splits = [_split_name(str(record.metadata.get("split") or "")) for record in records]
    if split not in SPLITS_OF_OWN_DATA and split not in splits:
        raise EmptySplitError(f"{path} has no split {split!r}; data without splits has {', '.join(SPLITS_OF_OWN_DATA)}")
    chances = {i: _chance(f"{seed} {record.key}") for i, record in enumerate(records) if not splits[i]}
    for i, chance in chances.items():
        splits[i] = "validation" if chance < validation_fraction else "train"
    # The hash may leave nothing of few samples to one of them.
    if chances and "train" not in splits and validation_fraction < 1:
        splits[max(chances, key=chances.get)] = "train"
    if len(chances) > 1 and "validation" not in splits and validation_fraction > 0:
        splits[min(chances, key=chances.get)] = "validation"
        if split == "validation":
            part = f"data.validation_fraction = {validation_fraction:g} of {len(chances)}"
            report.notes.append(f"one sample is kept for validation, since by their hash {part} are none")
    chosen = [record for record, own in zip(records, splits, strict=True) if split in ("all", own)]
    if records and not chosen:
        counts = ", ".join(f"{count} in {name!r}" for name, count in sorted(Counter(splits).items()))
        how = f" (data.validation_fraction = {validation_fraction:g})" if chances else ""
        raise EmptySplitError(f"{path} has no sample in the split {split!r}, but {counts}{how}")
    report.filtered += len(records) - len(chosen)
    return chosen


def _chance(text: str) -> float:
    """A number in [0, 1) that looks random and is a function of the text."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64


def _split_name(name: str) -> str:
    return _SPLIT_NAMES.get(name.lower(), name)


def _with_texts(records: list[Record], questions: bool, report: Report) -> list[Record]:
    """Those with a question that has an answer or, if those are not asked for, a caption."""
    chosen = []
    for record in records:
        if any(question.answers for question in record.questions) if questions else record.captions:
            chosen.append(record)
        else:
            report.skip("no question with an answer" if questions else "no caption", record.key)
    return chosen


def _keep(records: list[Record], keep: dict[str, list[str]], report: Report, path: Path) -> list[Record]:
    for name, values in keep.items():
        present = {metadata_text(record.metadata[name]) for record in records if name in record.metadata}
        if records and not present:
            known = sorted({field for record in records for field in record.metadata})
            raise EmptySplitError(f"data.keep: no sample of {path} has {name!r}; there is {', '.join(known) or 'nothing'}")
        if records and not present & set(values):
            some = ", ".join(sorted(present)[:20])
            raise EmptySplitError(f"data.keep.{name}: none of {', '.join(values)} occurs in {path}; values are {some}")
    chosen = [
        record
        for record in records
        if all(name in record.metadata and metadata_text(record.metadata[name]) in keep[name] for name in keep)
    ]
    if records and not chosen:
        raise EmptySplitError(f"data.keep: no sample of {path} fits all of {', '.join(keep)} together")
    report.filtered += len(records) - len(chosen)
    return chosen
