"""Parquet files whose rows hold an image, or name its file, and say what is seen on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ppvilg.data.images import looks_like_image
from ppvilg.data.readers.base import STRICT, Fault, Unit, all_units, named_files, top_folder
from ppvilg.data.readers.rows import Row, row_records, texts_of
from ppvilg.data.records import Record

_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "file", "picture", "file_name")
_CAPTION_COLUMNS = ("caption", "captions", "text", "txt")
_ROWS_TOGETHER = 64


@dataclass(frozen=True)
class Parquet:
    """Parquet files; row groups that follow each other make a unit.

    A row whose image is in it is a record of its own, named after file and row. Rows that name files are as those of a captions
    file (`ppvilg.data.readers.text`), except that rows of one image are one record within a row group only.
    """

    __pydantic_config__ = STRICT
    format: Literal["parquet"]
    path: str
    """A file, a folder (all .parquet files there) or a pattern with *."""
    images: str | None = None
    """Where the images are files: the folder they are all in; null: the folder of the Parquet files."""
    image_column: str | None = None
    """With the encoded image (bytes, or `{bytes, path}` as of the library datasets) or the name of its file; null: the first of
    image, jpg, jpeg, png, webp, file, picture and file_name that is there."""
    caption_column: str | None = None
    """null: caption, captions, text or txt (as img2dataset calls it)."""
    unit_rows: Annotated[int, Field(gt=0)] = 2000
    """At least as many rows make a unit, where the file has them."""

    def units(self) -> list[Unit]:
        """Raises `ValueError` for no files, and if the only one does not have the columns. One of several without them, and one
        that is damaged, is a unit, and `read` says so."""
        return all_units(named_files(self.path, (".parquet",)), self._units)

    def _units(self, file: Path) -> Iterator[Unit]:
        try:
            groups = _open(file)
        except (OSError, ValueError):
            yield Unit.of(file, 0, 0)
            return
        with groups:
            self._columns(file, groups.schema_arrow.names)
            first, row, rows = 0, 0, 0
            for group in range(groups.num_row_groups):
                rows += groups.metadata.row_group(group).num_rows
                if rows >= self.unit_rows or group == groups.num_row_groups - 1:
                    yield Unit.of(file, first, group + 1, row + 1)
                    first, row, rows = group + 1, row + rows, 0

    def read(self, unit: Unit) -> Iterator[Record | Fault]:
        """See `Reader`. A unit is a range of row groups."""
        file = Path(unit.file)
        root = Path(self.images) if self.images else top_folder(self.path)
        name = file.relative_to(top_folder(self.path)).as_posix()
        try:
            groups = _open(file)
        except (OSError, ValueError):
            yield Fault(file.name, "the file is cut off or damaged")
            return
        with groups:
            try:
                image, caption = self._columns(file, groups.schema_arrow.names)
            except ValueError:
                yield Fault(file.name, "the file does not have the columns")
                return
            number = unit.line
            for group in range(unit.first, unit.last):
                rows = groups.metadata.row_group(group).num_rows
                yield from _group_records(groups, group, number, (image, caption), name, root)
                number += rows

    def _columns(self, file: Path, names: list[str]) -> tuple[str, str | None]:
        """The image's column, and the captions' if there is one; there may be questions instead."""
        for column in (self.image_column, self.caption_column):
            if column is not None and column not in names:
                raise ValueError(f"{file} has no column {column!r}; it has {', '.join(names)}")
        image = self.image_column or next((column for column in _IMAGE_COLUMNS if column in names), None)
        caption = self.caption_column or next((column for column in _CAPTION_COLUMNS if column in names), None)
        if image is None:
            raise ValueError(f"{file}: set image_column to the images' column, one of {', '.join(names)}")
        return image, caption


def _open(file: Path):
    """A `pyarrow.parquet.ParquetFile`; raises `OSError` or `ValueError` for what is none."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)


def _group_records(
    groups, group: int, number: int, columns: tuple[str, str | None], name: str, root: Path
) -> Iterator[Record | Fault]:
    """Of one row group, whose first row has this number; a fault where it is damaged."""
    image, caption = columns
    file_name = name.rpartition("/")[2]
    named: list[tuple[str, Row]] = []
    damaged = None
    try:
        for batch in groups.iter_batches(_ROWS_TOGETHER, row_groups=[group], use_threads=False):
            for row in batch.to_pylist():
                where = f"{file_name}:{number}"
                content = row.pop(image)
                if isinstance(content, dict):
                    content = content.get("bytes") or content.get("path")
                if caption is not None:
                    row["caption"] = row.pop(caption)
                if isinstance(content, str):
                    named.append((where, {**_plain(row), "file": content}))
                else:
                    yield _with_image(where, f"{name}:{number}", content, _plain(row))
                number += 1
    except (OSError, ValueError):
        damaged = Fault(f"{file_name}:{number}", "the rest of the row group is damaged")
    yield from row_records(named, root, root)
    if damaged:
        yield damaged


def _with_image(where: str, key: str, content: bytes | None, row: Row) -> Record | Fault:
    if not content:
        return Fault(where, "row has no image")
    found = texts_of(row)
    if isinstance(found, str):
        return Fault(where, found)
    if not looks_like_image(content[:16]):
        return Fault(where, "not an image")
    return Record(key, found[0], row, content, questions=found[1])


def _plain(row: Row) -> Row:
    """What JSON can say of a row: bytes are left out, dates and the like become texts."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(inner) for key, inner in value.items() if not isinstance(inner, bytes)}
        if isinstance(value, list):
            return [known(inner) for inner in value if not isinstance(inner, bytes)]
        return value if value is None or isinstance(value, str | int | float) else str(value)

    return known(row)
