"""Image tokens of a data set for a frozen tokenizer: those that were prepared with the data, or made once and kept on disk."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ppvilg.data.prepared import (
    Manifest,
    TokenTable,
    found_shard,
    open_shards,
    read_manifest,
    token_column,
    token_field,
    write_manifest,
    write_shard,
)
from ppvilg.data.sources import Source
from ppvilg.data.splits import load_images
from ppvilg.ops import from_numpy
from ppvilg.pictures import to_model
from ppvilg.train.context import ParallelContext
from ppvilg.vqgan.model import VQGAN

_ROWS = 1024  # of a file
_SPLIT = "all"  # the source is one
_BATCH = 64


def image_tokens(
    source: Source, vqgan: VQGAN, tokenizer_checksum: str, image_size: int, cache: Path, context: ParallelContext
) -> TokenTable:
    """The tokens of every image of a source, in its order.

    Data that were prepared with tokens have them. Of others all processes together make them, a file for each few thousand
    images, so that an interrupted preparation goes on where it was; the folder's name in `cache` holds the checksums of the
    tokenizer and the data. Raises `ValueError` for data that were prepared with another tokenizer or for another size.
    """
    if source.tokens is not None:
        made = source.tokens.manifest
        if (made.tokenizer, made.image_size) != (tokenizer_checksum, image_size):
            other = f"images of {made.image_size} pixels" if made.image_size != image_size else "another image tokenizer"
            raise ValueError(f"{source.report.source} was prepared with {other}: prepare it again for this train.tokenizer")
        return source.tokens
    key = hashlib.sha256(f"{tokenizer_checksum} {source.checksum} {image_size}".encode()).hexdigest()[:20]
    folder, codes = cache / key, vqgan.config.codebook.size
    made = read_manifest(folder)
    context.barrier()  # all have looked before one writes
    if made is None:
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(source), _ROWS)
        for first in starts[context.rank :: context.world_size]:
            rows = range(first, min(first + _ROWS, len(source)))
            if not (folder / _name(first)).is_file():
                _write(folder / _name(first), _encode(source, vqgan, image_size, rows), codes)
        context.barrier()
        if context.is_main_process:
            write_manifest(folder, _manifest(folder, [_name(first) for first in starts], image_size, tokenizer_checksum, codes))
        context.barrier()
        made = read_manifest(folder)
    return TokenTable(open_shards(folder, made.shards), made, made.unigram[_SPLIT])


def _name(first: int) -> str:
    return f"{first // _ROWS:05d}.arrow"


def _encode(source: Source, vqgan: VQGAN, image_size: int, rows: range) -> np.ndarray:
    vqgan.eval()
    parts = []
    shown = f"image tokens, {rows.start} to {rows.stop} of {len(source)}"
    for first in tqdm(range(rows.start, rows.stop, _BATCH), desc=shown, unit="batch", leave=False):
        images = load_images(source, list(range(first, min(first + _BATCH, rows.stop))), image_size)
        parts.append(vqgan.encode(from_numpy(to_model(images))).flatten(1).numpy())
    return np.concatenate(parts)


def _write(path: Path, tokens: np.ndarray, codes: int) -> None:
    batch = pa.record_batch([token_column(tokens, codes)], pa.schema([token_field(tokens.shape[1], codes)]))
    write_shard(path.parent, path.name, _SPLIT, batch.schema, [batch])


def _manifest(folder: Path, names: list[str], image_size: int, tokenizer_checksum: str, codes: int) -> Manifest:
    """Of files that several processes, or earlier ones, wrote."""
    shards = [found_shard(folder, name, _SPLIT) for name in names]
    made = Manifest(image_size, shards, tokenizer_checksum, codes)
    unigram = TokenTable(open_shards(folder, shards), made).unigram
    return replace(made, unigram={_SPLIT: unigram.tolist()})
