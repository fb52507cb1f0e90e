"""Image tokens of a data set, computed once for a frozen tokenizer and kept on disk."""

import hashlib
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.data.sources import Source
from ppvilg.data.splits import load_images
from ppvilg.files import whole_file
from ppvilg.pictures import to_model
from ppvilg.train.context import ParallelContext
from ppvilg.vqgan.model import VQGAN

_BATCH = 64


def image_tokens(
    source: Source, vqgan: VQGAN, tokenizer_checksum: str, image_size: int, cache: Path, context: ParallelContext
) -> np.ndarray:
    """Tokens int32 [samples, n] of every image of a source, in raster order; several processes compute some each.

    The file's name in the folder `cache` holds the checksums of the tokenizer and the data, so it is found again exactly when
    both are the same.
    """
    key = hashlib.sha256(f"{tokenizer_checksum} {source.checksum} {image_size}".encode()).hexdigest()[:20]
    path = cache / f"tokens-{key}.npy"
    cached = path.is_file() and len(np.load(path, mmap_mode="r")) == len(source)
    context.barrier()  # all have looked before one writes
    if not cached:
        cache.mkdir(parents=True, exist_ok=True)
        own = np.array_split(np.arange(len(source)), context.world_size)[context.rank]
        _write(cache / f"tokens-{key}-{context.rank}.npy", _encode(source, vqgan, image_size, own))
        context.barrier()
        if context.is_main_process:
            parts = [cache / f"tokens-{key}-{rank}.npy" for rank in range(context.world_size)]
            _write(path, np.concatenate([np.load(part) for part in parts]))
            for part in parts:
                part.unlink()
        context.barrier()
    return np.load(path, mmap_mode="r")  # the processes of a machine share one copy


def _encode(source: Source, vqgan: VQGAN, image_size: int, indices: np.ndarray) -> np.ndarray:
    vqgan.eval()
    parts = [np.empty((0, (image_size // vqgan.config.downsampling) ** 2), np.int32)]
    for first in tqdm(range(0, len(indices), _BATCH), desc="image tokens", unit="batch", leave=False):
        images = load_images(source, indices[first : first + _BATCH].tolist(), image_size)
        parts.append(vqgan.encode(paddle.to_tensor(to_model(images))).flatten(1).numpy().astype(np.int32))
    return np.concatenate(parts)


def _write(path: Path, tokens: np.ndarray) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, tokens)
