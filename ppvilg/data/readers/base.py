"""What all readers have in common: units of work, faults, and how files are named in a config."""

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import ConfigDict, Field

from ppvilg.data.records import Record

# As in ppvilg/config, which cannot be imported here since its experiments hold readers.
STRICT = ConfigDict(extra="forbid", strict=True)

Bytes = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Unit:
    """A part of a corpus that is read at once, small enough for one worker's memory."""

    id: str
    """Unique, and the same in every run as long as the file is the same."""
    file: str
    first: int
    last: int
    """From where up to where (exclusive), in bytes, rows or whatever the reader counts."""
    line: int = 1
    """Number of the first line, of text files."""

    @classmethod
    def of(cls, file: str | Path, first: int, last: int, line: int = 1) -> "Unit":
        """A unit that is named after its file and range."""
        return cls(f"{file}:{first}-{last}", str(file), first, last, line)


@dataclass(frozen=True)
class Fault:
    """One input that cannot be used."""

    key: str
    """Where it is: file:line or file:key, with the image's name where there is one."""
    reason: str
    """Why, in a few words without names, so that reasons can be counted."""


class Reader(Protocol):
    """One format of raw pairs: a dataclass of a config, with `format` as its tag.

    What is broken never raises: a file that is cut off or damaged gives the records before the damage and one fault, and so
    does each row, sample or image file that cannot be used. Whether an image can be decoded is not known before it is decoded.
    """

    def units(self) -> list[Unit]:
        """All units in a fixed order; raises `ValueError` for a file that the config names and that is not there."""
        ...

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """The records and faults of a unit in a fixed order, one at a time; units may be read in any order, by any process."""
        ...


def named_files(path: str, endings: tuple[str, ...]) -> list[Path]:
    """The files that `path` means, sorted: a file, a folder (of which those with these endings), or a pattern with * in it.

    Raises `ValueError` if there are none.
    """
    here = Path(path)
    if here.is_file():
        return [here]
    if here.is_dir():
        found = [file for file in here.iterdir() if file.name.lower().endswith(endings) and file.is_file()]
    else:
        found = [file for name in glob.glob(path, recursive=True) if (file := Path(name)).is_file()]
    if not found:
        raise ValueError(f"{path}: no file {' or '.join('*' + ending for ending in endings)} there; correct the path")
    return sorted(found)


def all_units(files: list[Path], units: Callable[[Path], Iterable[Unit]]) -> list[Unit]:
    """The units of all files. A `ValueError` of the only file is a mistake in the config; one of several files that has one
    becomes a unit, with which the mistake is found again."""
    found = []
    for file in files:
        try:
            found += units(file)
        except ValueError:
            if len(files) == 1:
                raise
            found.append(Unit.of(file, 0, 0))
    return found


def top_folder(path: str) -> Path:
    """The folder that all of `named_files(path)` are in."""
    parts = []
    for part in Path(path).parts:
        if glob.has_magic(part):
            return Path(*parts)
        parts.append(part)
    return Path(path) if Path(path).is_dir() else Path(path).parent
