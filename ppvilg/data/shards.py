"""Tar shards: `{key}.webp`, `{key}.json`, ... side by side, and a manifest that vouches for them."""

import contextlib
import gzip
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from ppvilg.data.records import Place
from ppvilg.files import write_whole

MANIFEST_FORMAT = 1


def pack_shard(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The bytes of a .tar.gz with these (name, content) pairs; equal input gives equal bytes, whenever and wherever."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    # An empty name and time zero, because gzip would otherwise record both.
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as stream:
        stream.write(tar.getvalue())
    return packed.getvalue()


def write_shards(
    folder: Path, samples: Iterable[tuple[str, str, bytes, dict[str, Any]]], limit: int = 2000
) -> list[dict[str, Any]]:
    """Write (split, key, WebP image, metadata) samples as `{split}-{00000}.tar.gz`, sorted by key.

    At most `limit` samples go into a shard. Returns the manifest's entries: file, split, samples, bytes, sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list] = {}
    for split, key, image, metadata in samples:
        splits.setdefault(split, []).append((key, image, metadata))
    entries = []
    for split in sorted(splits):
        ordered = sorted(splits[split], key=lambda sample: sample[0])
        for number, start in enumerate(range(0, len(ordered), limit)):
            part = ordered[start : start + limit]
            files = []
            for key, image, metadata in part:
                text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
                files += [(f"{key}.json", text.encode()), (f"{key}.webp", image)]
            name, content = f"{split}-{number:05d}.tar.gz", pack_shard(files)
            write_whole(folder / name, content)
            entries.append(
                {
                    "file": name,
                    "split": split,
                    "samples": len(part),
                    "bytes": len(content),
                    "sha256": sha256(content).hexdigest(),
                }
            )
    return entries


def write_manifest(folder: Path, entries: list[dict[str, Any]], **more: Any) -> None:
    """Write `manifest.json` for these shards; further keys are kept as they are."""
    manifest = {"format": MANIFEST_FORMAT, **more, "shards": entries}
    write_whole(folder / "manifest.json", (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked content of `manifest.json`; raises `ValueError` if it is damaged or of a later format."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version = manifest["format"]
        for entry in manifest["shards"]:
            _ = entry["file"] + entry["split"] + entry["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a manifest of shards ({error}); fetch or build the data again") from None
    if version != MANIFEST_FORMAT:
        raise ValueError(f"{path}: format {version} is not {MANIFEST_FORMAT}, which this version of ppvilg reads")
    return manifest


def verify_shard(path: Path, checksum: str) -> bytes:
    """The content of a shard whose SHA-256 is `checksum`; raises `ValueError` naming the file otherwise."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the shard {path}: {error.strerror}; fetch or build the data again") from None
    if sha256(content).hexdigest() != checksum:
        raise ValueError(f"{path} is truncated or damaged: its SHA-256 is not the manifest's; fetch or build it again")
    return content


def shard_members(path: Path, content: bytes | None = None) -> Iterator[tuple[str, Place]]:
    """(name, place) of each file in a shard, which is read as a stream.

    The place in a plain .tar is where the file lies there; of a compressed shard it is the file's content. `content`: that of
    the shard, if it has been read already. Raises `ValueError` at the place where the shard is damaged or cut off.

    By tarfile, as the library webdataset does, whose own iterator tells no offsets, reads every image, and takes a shard that
    is cut off between two files for a whole one.
    """
    plain = path.suffix == ".tar"
    try:
        with contextlib.ExitStack() as stack:
            if plain:
                tail = None
                stream = stack.enter_context(open(path, "rb"))
                size = stream.seek(0, os.SEEK_END)
                stream.seek(0)
            else:
                opened = stack.enter_context(open(path, "rb")) if content is None else io.BytesIO(content)
                stream = tail = _Tail(stack.enter_context(gzip.GzipFile(fileobj=opened)))
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:" if plain else "r|"))
            end = 0
            for member in archive:
                if member.isfile():
                    # Of a file that is cut off tarfile would say so only when asked for the next.
                    if plain and member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    place = (path, member.offset_data, member.size) if plain else archive.extractfile(member).read()
                    yield member.name, place
                end = member.offset_data + -(-member.size // 512) * 512
                archive.members.clear()  # which else holds them all
            # A shard cut off between two files, or with a damaged header, ends for tarfile where the next file should begin.
            if tail is None:
                stream.seek(end)
            if (stream.read(512) if tail is None else tail.rest(end)) != bytes(512):
                raise tarfile.ReadError("the end is missing")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch or build it again") from None


class _Tail:
    """A gzip stream that gives all there is before it breaks off, and keeps what was read last, since tarfile reads whole
    chunks and cannot go back in a stream."""

    def __init__(self, stream: gzip.GzipFile):
        self.stream = stream
        self.begins = 0
        self.chunk = b""
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        if self.error:
            raise self.error
        self.begins += len(self.chunk)
        parts = []
        try:
            while size and (part := self.stream.read1(size)):
                parts.append(part)
                size -= len(part)
        except (EOFError, OSError, zlib.error) as error:
            if not parts:
                raise
            self.error = error
        self.chunk = b"".join(parts)
        return self.chunk

    def rest(self, offset: int) -> bytes:
        """The block at an offset; the stream is read to its end, where gzip has its checksum."""
        block = self.chunk[offset - self.begins :][:512] if offset >= self.begins else b""
        while self.read(1 << 20):
            continue
        return block
