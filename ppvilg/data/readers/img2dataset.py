"""Conceptual Captions (CC3M, CC12M) and other lists of addresses, as img2dataset has downloaded them.

img2dataset cuts the list into shards of `number_sample_per_shard` lines and writes shard 17 as the folder or tar 00017 with
`{key}.jpg`, `{key}.json` and, if it was told the captions' column, `{key}.txt`. Where it was not, the captions are in the list
alone, at the address that the JSON says: a unit is a shard with its lines of the list.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ppvilg.data.readers.base import STRICT, Fault, Unit
from ppvilg.data.readers.rows import printable
from ppvilg.data.readers.webdataset import ENDINGS, Parts, key_and_kind, sample_record, shard_samples
from ppvilg.data.records import Record


@dataclass(frozen=True)
class Img2Dataset:
    """The output of img2dataset, with the list it was made from or without."""

    __pydantic_config__ = STRICT
    format: Literal["img2dataset"]
    path: str
    """Its output folder: of its formats, `files` and `webdataset`. (`parquet` is read by the format parquet.)"""
    tsv: str | None = None
    """The list, if the captions are in it alone: a caption and an address in a line, in whichever order, with a tab between, as
    CC3M and CC12M have them; a first line without an address is taken for a header."""
    rows_per_shard: Annotated[int, Field(gt=0)] = 10_000
    """img2dataset's number_sample_per_shard."""

    def units(self) -> list[Unit]:
        """Raises `ValueError` if the output or the list is not there."""
        root = Path(self.path)
        found = root.iterdir() if root.is_dir() else ()
        shards = sorted(filter(_is_shard, found))
        if not shards:
            raise ValueError(
                f"{self.path}: no folders or tars 00000, 00001, ... there, as img2dataset writes them; correct path"
            )
        if self.tsv is None:
            return [Unit.of(shard, -1, -1) for shard in shards]
        starts = self._starts()
        end = len(starts) - 1
        numbers = [int(shard.name.split(".")[0]) for shard in shards]
        ranges = [(starts[min(number, end)], starts[min(number + 1, end)]) for number in numbers]
        return [Unit.of(shard, *range_) for shard, range_ in zip(shards, ranges, strict=True)]

    def _starts(self) -> list[int]:
        """At which byte of the list each shard's lines begin, and its end."""
        try:
            with open(self.tsv, "rb") as stream:
                header = stream.readline()
                at = 0 if _said(header) else len(header)
                stream.seek(at)
                starts = [at]
                for number, line in enumerate(stream, 1):
                    at += len(line)
                    if number % self.rows_per_shard == 0:
                        starts.append(at)
                return [*starts, at]
        except OSError as error:
            raise ValueError(f"cannot read {self.tsv}: {error.strerror}") from None

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """See `Reader`. A unit is a shard and the range of its lines in the list."""
        shard = Path(unit.file)
        name = shard.name.split(".")[0]
        try:
            captions = self._captions(unit) if self.tsv else None
            for key, parts in shard_samples(shard) if shard.is_file() else _folder_samples(shard):
                item = sample_record(f"{shard.name}:{printable(key)}", key, parts, captions)
                yield item if isinstance(item, Fault) else replace(item, key=f"{name}/{key}")
        except (OSError, ValueError):
            yield Fault(shard.name, "the shard is cut off or damaged")

    def _captions(self, unit: Unit) -> dict[str, str]:
        with open(self.tsv, "rb") as stream:
            stream.seek(unit.first)
            lines = stream.read(unit.last - unit.first).split(b"\n")
        return dict(said for line in lines if (said := _said(line)))


def _is_shard(file: Path) -> bool:
    return file.name.split(".")[0].isdigit() and (file.is_dir() or file.name.endswith(ENDINGS))


def _said(line: bytes) -> tuple[str, str] | None:
    """(address, caption) of a line of the list."""
    fields = line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")
    address = next((number for number, field in enumerate(fields[:2]) if field.startswith(("http://", "https://"))), None)
    return None if address is None or len(fields) < 2 else (fields[address], fields[1 - address])


def _folder_samples(folder: Path) -> Iterator[tuple[str, Parts]]:
    """As `shard_samples`, of a folder."""
    for key, names in groupby(sorted(os.listdir(folder)), lambda name: key_and_kind(name)[0]):
        yield key, {key_and_kind(name)[1]: folder / name for name in names}
