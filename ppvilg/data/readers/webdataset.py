"""Tar shards as WebDataset has them: `{key}.jpg`, `{key}.txt`, `{key}.json`, ... side by side."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ppvilg.data.images import looks_like_image
from ppvilg.data.readers.base import STRICT, Fault, Unit, named_files, top_folder
from ppvilg.data.readers.rows import printable, texts_of
from ppvilg.data.records import Place, Record, read_place
from ppvilg.data.shards import shard_members

Parts = dict[str, Place]
"""The files of a sample by kind: `jpg`, `txt`, `json`."""
ENDINGS = (".tar", ".tar.gz", ".tgz")
_IMAGE_KINDS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}


@dataclass(frozen=True)
class WebDataset:
    """Tar shards, each a unit. Records are named after shard and key, as keys may be the same in several shards."""

    __pydantic_config__ = STRICT
    format: Literal["webdataset"]
    path: str
    """A .tar, .tar.gz or .tgz, a folder of them or a pattern with *."""

    def units(self) -> list[Unit]:
        """Raises `ValueError` if there are no shards."""
        return [Unit.of(file, 0, file.stat().st_size) for file in named_files(self.path, ENDINGS)]

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """See `Reader`."""
        file = Path(unit.file)
        shard = re.sub(r"\.(tar|tar\.gz|tgz)$", "", file.relative_to(top_folder(self.path)).as_posix())
        try:
            for item in shard_records(file):
                yield item if isinstance(item, Fault) else replace(item, key=f"{shard}/{item.key}")
        except (OSError, ValueError):
            yield Fault(file.name, "the shard is cut off or damaged")


def shard_records(path: Path, content: bytes | None = None) -> Iterator[Record | Fault]:
    """The samples of one shard, whose content may be given. Raises `ValueError` as `shard_samples` does."""
    for key, parts in shard_samples(path, content):
        yield sample_record(f"{path.name}:{printable(key)}", key, parts)


def shard_samples(path: Path, content: bytes | None = None) -> Iterator[tuple[str, Parts]]:
    """(key, parts) of each sample: files in a row that share the name up to the first dot.

    Raises `ValueError` where the shard is damaged, after the samples before that place. The sample just before it is among them
    if it has all kinds of files that the one before it has; else it may have lost some.
    """
    key, parts, kinds = "", {}, set()
    try:
        for name, place in shard_members(path, content):
            found, kind = key_and_kind(name)
            if found != key and parts:
                yield key, parts
                parts, kinds = {}, set(parts)
            key = found
            parts[kind] = place
    except ValueError:
        if parts and set(parts) == kinds:
            yield key, parts
        raise
    if parts:
        yield key, parts


def sample_record(where: str, key: str, parts: Parts, captions: dict[str, str] | None = None) -> Record | Fault:
    """The record of a sample; its captions are in its .txt or .json or, where `captions` are given, there at the `url` that its
    .json says."""
    try:
        return _sample_record(where, key, parts, captions)
    except OSError:
        return Fault(where, "its files cannot be read")


def _sample_record(where: str, key: str, parts: Parts, captions: dict[str, str] | None) -> Record | Fault:
    kind = next((kind for kind in parts if kind in _IMAGE_KINDS), None)
    if kind is None:
        return Fault(where, "no image in the shard")
    metadata = {}
    if "json" in parts:
        try:
            metadata = json.loads(read_place(parts["json"]))
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            return Fault(where, "damaged JSON")
    if captions is not None:
        metadata["caption"] = captions.get(str(metadata.get("url")))
        if metadata["caption"] is None:
            return Fault(where, "its address is not among its lines of the list")
    elif "txt" in parts:
        try:
            metadata["caption"] = read_place(parts["txt"]).decode()
        except UnicodeDecodeError:
            return Fault(where, "the caption is not UTF-8")
    found = texts_of(metadata)
    if isinstance(found, str):
        return Fault(where, found)
    if kind not in ("tif", "tiff") and not looks_like_image(read_place(parts[kind], 16)):
        return Fault(where, "not an image")
    return Record(key, found[0], metadata, parts[kind], questions=found[1])


def key_and_kind(name: str) -> tuple[str, str]:
    """A file's key (with its folder) and kind: `a/b.seg.PNG` -> `a/b`, `seg.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()
