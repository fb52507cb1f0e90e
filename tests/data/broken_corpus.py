"""A corpus in every format, of which a tenth is broken in every way that we know of."""

import gzip
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass
class Corpus:
    """What was written."""

    readers: list[dict[str, Any]] = field(default_factory=list)
    """As sections of a config."""
    good: dict[str, str] = field(default_factory=dict)
    """Key: caption, of all that can be read. No two images are alike."""
    undecodable: list[str] = field(default_factory=list)
    """Keys of `good` whose image begins like one but cannot be decoded, which a reader cannot know."""
    broken: dict[str, str] = field(default_factory=dict)
    """Where: why."""


class _Writer:
    def __init__(self, folder: Path, size: int):
        self.folder = folder
        self.size = size
        self.random = np.random.default_rng(0)
        self.corpus = Corpus()

    def jpeg(self) -> bytes:
        stream = io.BytesIO()
        pixels = self.random.integers(0, 256, (self.size, self.size, 3), np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        return stream.getvalue()

    def caption(self, name: str) -> str:
        return f"a picture called {name}"

    def images(self, folder: Path, prefix: str, number: int) -> list[str]:
        """Image files, the last of which breaks off, and what is none."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{prefix}{i}.jpg" for i in range(number)]
        for name in names:
            (folder / name).write_bytes(self.jpeg())
        (folder / names[-1]).write_bytes(self.jpeg()[:-200])
        (folder / "zero.jpg").write_bytes(b"")
        (folder / "text.jpg").write_text("this is a text, not a picture")
        (folder / "folder.jpg").mkdir()
        (folder.parent / "outside.jpg").write_bytes(self.jpeg())
        return names

    def good(self, keys: list[str], undecodable: str | None = None) -> None:
        self.corpus.good |= {key: self.caption(key) for key in keys}
        if undecodable:
            self.corpus.undecodable.append(undecodable)


def write_corpus(folder: Path, inputs: int = 1000, size: int = 24) -> Corpus:
    """Write about so many inputs below a folder, with images of noise of this size, and say what they are.

    At least 600 inputs, since else there is no room for a tenth of all kinds.
    """
    writer = _Writer(folder, size)
    kinds = (_jsonl, _csv, _tsv, _tars, _parquet, _img2dataset, _annotations)
    for kind in kinds:
        kind(writer, inputs // len(kinds))
    return writer.corpus


_BROKEN_IMAGES = {
    "gone.jpg": "no such file",
    "zero.jpg": "not an image",
    "text.jpg": "not an image",
    "folder.jpg": "no such file",
    "../outside.jpg": "image outside the folder",
    "/etc/hostname": "image outside the folder",
}


def _strewn(good: list[Any], broken: list[Any], again: bool = True) -> list[Any]:
    """Both, the broken ones at even distances, each of them more than once if it may be and they are too few."""
    assert len(broken) < len(good)
    broken = broken * max(1, round(len(good) / 9 / len(broken)) if again and broken else 1)
    every = len(good) // (len(broken) + 1)
    mixed = []
    for number, item in enumerate(good):
        if number % every == every - 1 and broken:
            mixed.append(broken.pop(0))
        mixed.append(item)
    return mixed


def _jsonl(writer: _Writer, number: int) -> None:
    names = writer.images(writer.folder / "jsonl", "j", number)
    broken = [({"file": name, "caption": "x"}, name, reason) for name, reason in _BROKEN_IMAGES.items()]
    broken += [
        (b'{"file": "j0.jpg", "caption": "x"', None, "row is not a record"),
        (b"[1, 2]", None, "row is not a record"),
        (b"[" * 100_000, None, "row is not a record"),
        (b'{"file": "j0.jpg", "caption": "\xff\xfe"}', None, "row is not UTF-8"),
        (b'{"file": "j0.jpg", "caption": "\\ud83d"}', "j0.jpg", "the text is not Unicode"),
        ({"file": "a\0b.jpg", "caption": "x"}, "a\0b.jpg", "no such file"),
        ({"file": "j0.jpg", "caption": "  "}, "j0.jpg", "no caption"),
        ({"file": "j0.jpg"}, "j0.jpg", "no caption"),
        ({"caption": "x"}, None, "row names no image"),
        ({"file": 7, "caption": "x"}, None, "row names no image"),
    ]
    good = [({"file": name, "caption": writer.caption(name)}, None, None) for name in names]
    lines = [
        (row if isinstance(row, bytes) else json.dumps(row).encode(), name, reason)
        for row, name, reason in _strewn(good, broken)
    ]
    _write_lines(writer, writer.folder / "jsonl" / "j.jsonl", lines, 1)
    writer.good(names, names[-1])


def _csv(writer: _Writer, number: int) -> None:
    _table(writer, "csv", b",", number)


def _tsv(writer: _Writer, number: int) -> None:
    _table(writer, "tsv", b"\t", number)


def _table(writer: _Writer, kind: str, mark: bytes, number: int) -> None:
    names = writer.images(writer.folder / kind, kind[0], number)
    first = names[0].encode()
    broken: list = [(name.encode() + mark + b"x", name, reason) for name, reason in _BROKEN_IMAGES.items()]
    broken += [
        (first + mark + b'"never closed', None, "a quote is not closed"),
        (first + mark + b"\xff", None, "row is not UTF-8"),
        (first + mark, names[0], "no caption"),
        (first, names[0], "no caption"),
        (mark + b"x", None, "row names no image"),
        (b'"' + first + b'"' + mark + b'"never closed too', None, "a quote is not closed"),
    ]
    # Quotes as they may be.
    forms = ("{0}{1}{2}", '{0}{1}"{2}"', '"{0}"{1}"{2}"')
    good = [
        (forms[i % 3].format(name, mark.decode(), writer.caption(name)).encode(), None, None) for i, name in enumerate(names)
    ]
    lines = [(b"file" + mark + b"caption", None, None), *_strewn(good, broken)]
    _write_lines(writer, writer.folder / kind / f"{kind[0]}.{kind}", lines, 1)
    writer.good(names, names[-1])


def _write_lines(writer: _Writer, file: Path, lines: list[tuple[bytes, str | None, str | None]], first: int) -> None:
    """Lines with, if they are broken, the image's name that the fault has and the reason."""
    file.write_bytes(b"".join(line + b"\n" for line, _, _ in lines))
    for number, (_, name, reason) in enumerate(lines, first):
        if reason:
            writer.corpus.broken[f"{file.name}:{number}" + (f" ({name})" if name else "")] = reason
    writer.corpus.readers.append({"format": file.suffix[1:], "path": str(file), "unit_bytes": 1000})


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _tars(writer: _Writer, number: int) -> None:
    """A shard with broken samples, and small ones that are damaged as files."""
    folder = writer.folder / "tars"
    folder.mkdir()
    _sample_shard(writer, folder, number - 60)
    damages = {
        # (what is left of its content, given where its samples begin and end; how many of its ten samples are whole)
        "header.tar": (lambda content, starts: content[: starts[7] + 100], 7),
        "image.tar": (lambda content, starts: content[: starts[7] + 600], 7),
        "between.tar": (lambda content, starts: content[: starts[7]], 7),
        "bytes.tar": (lambda content, starts: content[: starts[4]] + b"\x55" * 512 + content[starts[4] + 512 :], 4),
        "noend.tar": (lambda content, starts: content[: starts[10]], 10),
        "cut.tar.gz": (lambda content, starts: _cut_gzip(content, starts[6] + 700), 6),
        "inner.tar.gz": (lambda content, starts: gzip.compress(content[: starts[5]]), 5),
        "nothing.tar": (lambda content, starts: b"", 0),
        "text.tar": (lambda content, starts: b"no tar at all" * 1000, 0),
        "text.tgz": (lambda content, starts: b"no gzip at all" * 1000, 0),
    }
    for name, (damage, kept) in damages.items():
        shard = name.split(".")[0] + name.split(".")[-1]
        keys = [f"{shard}{i}" for i in range(10)]
        files, starts, at = [], [], 0
        for key in keys:
            starts.append(at)
            image = writer.jpeg()
            caption = writer.caption(f"{_shard_name(name)}/{key}").encode()
            files += [(f"{key}.jpg", image), (f"{key}.txt", caption)]
            at += 512 + _blocks(image) + 512 + _blocks(caption)
        starts.append(at)
        (folder / name).write_bytes(damage(_tar(files), starts))
        writer.good([f"{_shard_name(name)}/{key}" for key in keys[:kept]])
        writer.corpus.broken[name] = "the shard is cut off or damaged"
    writer.corpus.readers.append({"format": "webdataset", "path": str(folder)})


def _shard_name(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")


def _blocks(content: bytes) -> int:
    return -(-len(content) // 512) * 512


def _cut_gzip(content: bytes, at: int) -> bytes:
    """A gzip file that breaks off where its content has come so far."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as file:
        file.write(content[:at])
        file.flush()  # all that was written can be read
        end = stream.tell()
        file.write(content[at:])
    return stream.getvalue()[:end]


def _sample_shard(writer: _Writer, folder: Path, number: int) -> None:
    broken = {
        "noimage": ({"json": b'{"caption": "x"}'}, "no image in the shard"),
        "badjson": ({"jpg": writer.jpeg(), "json": b'{"caption": '}, "damaged JSON"),
        "listjson": ({"jpg": writer.jpeg(), "json": b"[]"}, "damaged JSON"),
        "badtext": ({"jpg": writer.jpeg(), "txt": b"\xff\xfe"}, "the caption is not UTF-8"),
        "half": ({"jpg": writer.jpeg(), "json": b'{"caption": "\\udc00"}'}, "the text is not Unicode"),
        "empty": ({"jpg": writer.jpeg(), "txt": b" \n"}, "no caption"),
        "none": ({"jpg": writer.jpeg()}, "no caption"),
        "zero": ({"jpg": b"", "txt": b"x"}, "not an image"),
        "text": ({"jpg": b"this is no picture", "txt": b"x"}, "not an image"),
    }
    keys = [f"s{i}" for i in range(number)]
    samples = {key: {"jpg": writer.jpeg(), "txt": writer.caption(f"samples/{key}").encode()} for key in keys}
    samples[keys[-1]]["jpg"] = writer.jpeg()[:-200]
    files = []
    for key in _strewn(keys, list(broken), again=False):
        parts = broken[key][0] if key in broken else samples[key]
        files += [(f"{key}.{kind}", content) for kind, content in parts.items()]
    (folder / "samples.tar").write_bytes(_tar(files))
    writer.corpus.broken |= {f"samples.tar:{key}": reason for key, (_, reason) in broken.items()}
    writer.good([f"samples/{key}" for key in keys], f"samples/{keys[-1]}")


def _parquet(writer: _Writer, number: int) -> None:
    """One file with images, one with names, and two that are damaged as files."""
    folder = writer.folder / "parquet"
    half = number // 2 - 20
    names = writer.images(folder, "p", half)
    rows: list = [({"image": name, "caption": writer.caption(name)}, None) for name in names]
    broken: list = [({"image": name, "caption": "x"}, (name, reason)) for name, reason in _BROKEN_IMAGES.items()]
    broken += [
        ({"image": names[0], "caption": None}, (names[0], "no caption")),
        ({"image": None, "caption": "x"}, (None, "row has no image")),
    ]
    _write_parquet(writer, folder / "names.parquet", _strewn(rows, broken))
    writer.good(names, names[-1])

    broken = [
        ({"image": None, "caption": "x"}, (None, "row has no image")),
        ({"image": {"bytes": b"", "path": None}, "caption": "x"}, (None, "row has no image")),
        ({"image": {"bytes": b"this is no picture", "path": "a.jpg"}, "caption": "x"}, (None, "not an image")),
        ({"image": {"bytes": writer.jpeg(), "path": None}, "caption": ""}, (None, "no caption")),
        ({"image": {"bytes": writer.jpeg(), "path": None}, "caption": None}, (None, "no caption")),
    ]
    mixed = _strewn([None] * half, broken)
    keys = []
    for i, item in enumerate(mixed):
        if item is None:
            keys.append(f"held.parquet:{i + 1}")
            mixed[i] = ({"image": {"bytes": writer.jpeg(), "path": None}, "caption": writer.caption(keys[-1])}, None)
    _write_parquet(writer, folder / "held.parquet", mixed)
    writer.good(keys)

    whole = [({"image": writer.jpeg(), "caption": writer.caption(f"page.parquet:{i + 1}")}, None) for i in range(20)]
    _write_parquet(writer, folder / "page.parquet", whole, group=5)
    content = bytearray((folder / "page.parquet").read_bytes())
    group = pq.ParquetFile(folder / "page.parquet").metadata.row_group(2).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    (folder / "page.parquet").write_bytes(content)
    writer.good([f"page.parquet:{i + 1}" for i in range(20) if not 10 <= i < 15])
    writer.corpus.broken["page.parquet:11"] = "the rest of the row group is damaged"

    _write_parquet(writer, folder / "cut.parquet", whole)
    (folder / "cut.parquet").write_bytes((folder / "cut.parquet").read_bytes()[:-300])
    writer.corpus.broken["cut.parquet"] = "the file is cut off or damaged"


def _write_parquet(writer: _Writer, file: Path, rows: list[tuple[dict, tuple | None]], group: int = 10) -> None:
    pq.write_table(pa.Table.from_pylist([row for row, _ in rows]), file, row_group_size=group)
    for number, (_, fault) in enumerate(rows, 1):
        if fault:
            name, reason = fault
            writer.corpus.broken[f"{file.name}:{number}" + (f" ({name})" if name else "")] = reason
    writer.corpus.readers.append({"format": "parquet", "path": str(file), "unit_rows": 20})


def _img2dataset(writer: _Writer, number: int) -> None:
    """Two shards as folders, with their list in which the captions are."""
    root = writer.folder / "img2dataset"
    lines, per_shard = [], number // 2
    for shard in range(2):
        folder = root / f"{shard:05d}"
        folder.mkdir(parents=True)
        for i in range(per_shard):
            key, url = f"{shard:05d}{i:04d}", f"http://example.com/{shard}/{i}.jpg"
            record = f"{shard:05d}/{key}"
            image, metadata, caption = writer.jpeg(), {"url": url, "key": key, "caption": None}, writer.caption(record)
            reason = None
            if i == 11:
                metadata["url"], reason = "http://example.com/another.jpg", "its address is not among its lines of the list"
            elif i == 22:
                image, reason = b"", "not an image"
            elif i == 33:
                caption, reason = "", "no caption"
            elif i == 44:
                image, reason = None, "no image in the shard"
            lines.append(f"{caption}\t{url}\n")
            if image is not None:
                (folder / f"{key}.jpg").write_bytes(image)
            (folder / f"{key}.json").write_text(json.dumps(metadata))
            if reason:
                writer.corpus.broken[f"{shard:05d}:{key}"] = reason
            else:
                writer.good([record])
    (root / "cc.tsv").write_text("".join(lines))
    (root / "00001.parquet").write_bytes(b"not looked at")
    reader = {"format": "img2dataset", "path": str(root), "tsv": str(root / "cc.tsv"), "rows_per_shard": per_shard}
    writer.corpus.readers.append(reader)


def _annotations(writer: _Writer, number: int) -> None:
    """COCO's form, COCO-CN's text, and a JSON file that breaks off."""
    third = number // 3
    for kind, prefix in (("coco", "a"), ("coco_cn", "b"), ("cut", "d")):
        folder = writer.folder / kind
        names = writer.images(folder, prefix, third)
        if kind == "coco_cn":
            lines: list = [(f"{name[:-4]}#0\t{writer.caption(name)}".encode(), None, None) for name in names]
            broken: list = [
                (b"no number", None, "row is not a caption of an image"),
                (b"b0#1\t\xff", None, "row is not UTF-8"),
                (b"gone#0\tx", "gone", "no such file"),
                (b"zero#0\tx", "zero.jpg", "not an image"),
            ]
            lines = [lines[0], *_strewn(lines[1:], broken)]
            (folder / "cn.txt").write_bytes(b"".join(line + b"\n" for line, _, _ in lines))
            for i, (_, name, reason) in enumerate(lines, 1):
                if reason:
                    writer.corpus.broken[f"cn.txt:{i}" + (f" ({name})" if name else "")] = reason
            file = folder / "cn.txt"
        else:
            entries: list = [({"image_id": i, "caption": writer.caption(name)}, None, None) for i, name in enumerate(names)]
            broken = [
                ({"image_id": 0}, None, "an entry lacks 'caption'"),
                ({"caption": "x"}, None, "an entry lacks 'image_id'"),
                ("x", None, "an entry is of another type than the format has"),
                ({"image_id": 0, "caption": ""}, f"{prefix}0.jpg", "no caption"),
                ({"image_id": 9999, "caption": "x"}, "9999", "no such file"),
                ({"image_id": 9998, "caption": "x"}, "text.jpg", "not an image"),
            ]
            entries = _strewn(entries, broken if kind == "coco" else [])
            images = [{"id": i, "file_name": name} for i, name in enumerate(names)] + [{"id": 9998, "file_name": "text.jpg"}]
            file = folder / f"{kind}.json"
            text = json.dumps({"info": {}, "images": images, "annotations": [entry for entry, _, _ in entries]})
            if kind == "cut":
                text = text[: text.index(f'{{"image_id": {third - 5},') + 20]
                names = names[: third - 5]
                writer.corpus.broken["cut.json"] = "not valid JSON from somewhere on"
            file.write_text(text)
            for i, (_, name, reason) in enumerate(entries, 1):
                if reason:
                    writer.corpus.broken[f"{file.name}:{i}" + (f" ({name})" if name else "")] = reason
        writer.good(names, names[-1] if kind != "cut" else None)
        reader = {"format": "annotations", "files": [str(file)], "images": str(folder), "unit_bytes": 2000}
        writer.corpus.readers.append(reader)
