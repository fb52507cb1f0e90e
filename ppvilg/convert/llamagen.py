"""Image tokenizers of LlamaGen (Sun et al. 2024): VQ-16 and VQ-8."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ppvilg.checkpoint import Arrays, fill
from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.convert.torch_file import read_torch
from ppvilg.folder import ImageTokenizerConfig, new_folder
from ppvilg.vqgan.folder import save_vqgan, summary
from ppvilg.vqgan.model import VQGAN

_IMAGE_SIZE = 256
"""Pixels per side that the published tokenizers were trained on."""
_KNOWN = "known are its image tokenizers VQ-16 and VQ-8 (vq_ds16_c2i.pt, vq_ds16_t2i.pt, vq_ds8_c2i.pt)"


def convert_llamagen(checkpoint: Path, out: Path) -> str:
    """An image tokenizer of LlamaGen, VQ-16 or VQ-8: its .pt file.

    The network is taming's, with attention at the lowest resolution only and l2-normalised codes, under other names. Of a
    training checkpoint the averaged weights (`ema`) are taken. `out` becomes a folder that `load_vqgan` reads. Raises
    `ValueError` if the file can't be read or holds anything else.
    """
    weights = read_torch(checkpoint, ("ema", "model", "state_dict"))
    config = _config(weights, checkpoint)
    model = VQGAN(config.vqgan, config.image_size)
    fill(model, dict(_renamed(weights, len(config.vqgan.channel_multipliers))), str(checkpoint))
    with new_folder(out) as folder:
        save_vqgan(model, folder)
    return f"{out}: {summary(config)}"


def _config(weights: Arrays, checkpoint: Path) -> ImageTokenizerConfig:
    """The sizes, which the file does not name, from the shapes of its weights."""
    try:
        channels = len(weights["encoder.conv_in.weight"])
        widths = [len(block) for block in _numbered(weights, "encoder.conv_blocks.{}.res.0.conv1.weight")]
        size, dim = weights["quantize.embedding.weight"].shape
        latent_channels = len(weights["encoder.conv_out.weight"])
        res_blocks = len(list(_numbered(weights, "encoder.conv_blocks.0.res.{}.conv1.weight")))
    except (KeyError, ValueError):
        found = ", ".join(sorted(weights)[:3])
        raise ValueError(f"{checkpoint} holds no image tokenizer of LlamaGen but {found} ...: {_KNOWN}") from None
    if not widths or any(width % channels for width in widths) or not res_blocks:
        raise ValueError(f"{checkpoint} holds convolutions of {channels} and {widths} channels: {_KNOWN}")
    multipliers = [width // channels for width in widths]
    lowest = _IMAGE_SIZE // 2 ** (len(widths) - 1)
    codebook = CodebookConfig(size, dim, normalize=True)
    return ImageTokenizerConfig(
        VQGANConfig(channels, multipliers, res_blocks, [lowest], latent_channels, codebook=codebook), _IMAGE_SIZE
    )


def _numbered(weights: Arrays, name: str) -> Iterator[np.ndarray]:
    """The weights of a name with 0, 1, 2 ... in it, as far as there are."""
    number = 0
    while name.format(number) in weights:
        yield weights[name.format(number)]
        number += 1


def _renamed(weights: Arrays, resolutions: int) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by the names of `VQGAN`; without the usage counts, which training keeps."""
    middle, largest = {"0": "block_1", "1": "attn_1", "2": "block_2"}, resolutions - 1
    for name, array in weights.items():
        if name == "quantize.codebook_used":
            continue
        name = re.sub(r"\.mid\.([012])\.", lambda found: f".mid.{middle[found[1]]}.", name)
        name = re.sub(r"^encoder\.conv_blocks\.(\d+)\.", r"encoder.down.\1.", name)
        # Its decoder numbers the resolutions as they run, the smallest first.
        name = re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda found: f"decoder.up.{largest - int(found[1])}.", name)
        yield re.sub(r"^((?:en|de)coder\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name), array
