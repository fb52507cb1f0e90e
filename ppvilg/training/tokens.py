"""Image tokens of a data set, computed once for a frozen tokenizer and kept on disk."""

import hashlib
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.data.sources import Source
from ppvilg.pictures import to_model
from ppvilg.training.data import pictures
from ppvilg.vqgan.model import VQGAN

_BATCH = 64


def picture_tokens(source: Source, vqgan: VQGAN, tokenizer_checksum: str, image_size: int, cache: Path) -> np.ndarray:
    """Tokens int32 [samples, n] of every picture of a source, in raster order.

    The file's name in the folder `cache` holds the checksums of the tokenizer and the data, so it is found again exactly when
    both are the same.
    """
    key = hashlib.sha256(f"{tokenizer_checksum} {source.checksum} {image_size}".encode()).hexdigest()[:20]
    path = cache / f"tokens-{key}.npy"
    if path.is_file():
        tokens = np.load(path)
        if len(tokens) == len(source):
            return tokens
    vqgan.eval()
    parts = []
    for first in tqdm(range(0, len(source), _BATCH), desc="image tokens", unit="batch", leave=False):
        chosen = list(range(first, min(first + _BATCH, len(source))))
        batch = paddle.to_tensor(to_model(pictures(source, chosen, image_size)))
        parts.append(vqgan.encode(batch).flatten(1).numpy().astype(np.int32))
    tokens = np.concatenate(parts)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, tokens)
    temporary.replace(path)
    return tokens
