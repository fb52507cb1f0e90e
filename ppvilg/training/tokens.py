"""Image tokens of a data set, computed once for a frozen tokenizer and kept on disk."""

import hashlib
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.data.sources import Source
from ppvilg.data.splits import load_images
from ppvilg.parallel.topology import Topology
from ppvilg.pictures import to_model
from ppvilg.vqgan.model import VQGAN

_BATCH = 64


def picture_tokens(
    source: Source, vqgan: VQGAN, tokenizer_checksum: str, image_size: int, cache: Path, topology: Topology | None = None
) -> np.ndarray:
    """Tokens int32 [samples, n] of every picture of a source, in raster order; several processes compute some each.

    The file's name in the folder `cache` holds the checksums of the tokenizer and the data, so it is found again exactly when
    both are the same.
    """
    key = hashlib.sha256(f"{tokenizer_checksum} {source.checksum} {image_size}".encode()).hexdigest()[:20]
    path = cache / f"tokens-{key}.npy"
    topology = topology or Topology()
    there = path.is_file() and len(np.load(path, mmap_mode="r")) == len(source)
    topology.wait()  # all have looked before one writes
    if not there:
        cache.mkdir(parents=True, exist_ok=True)
        own = np.array_split(np.arange(len(source)), topology.processes)[topology.rank]
        _write(cache / f"tokens-{key}-{topology.rank}.npy", _tokens(source, vqgan, image_size, own))
        topology.wait()
        if topology.leads:
            parts = [cache / f"tokens-{key}-{rank}.npy" for rank in range(topology.processes)]
            _write(path, np.concatenate([np.load(part) for part in parts]))
            for part in parts:
                part.unlink()
        topology.wait()
    return np.load(path, mmap_mode="r")  # the processes of a machine share one copy


def _tokens(source: Source, vqgan: VQGAN, image_size: int, chosen: np.ndarray) -> np.ndarray:
    vqgan.eval()
    parts = [np.empty((0, vqgan.encode(paddle.zeros([1, 3, image_size, image_size])).flatten(1).shape[1]), np.int32)]
    for first in tqdm(range(0, len(chosen), _BATCH), desc="image tokens", unit="batch", leave=False):
        batch = paddle.to_tensor(to_model(load_images(source, chosen[first : first + _BATCH].tolist(), image_size)))
        parts.append(vqgan.encode(batch).flatten(1).numpy().astype(np.int32))
    return np.concatenate(parts)


def _write(path: Path, tokens: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, tokens)
    temporary.replace(path)
