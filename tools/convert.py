"""Make weights that others have published into a folder, or a file, that ppvilg reads (docs/weights.md).

python tools/convert.py taming last.ckpt model.yaml --out models/vqgan_f16

Torch's files need `pip install -r requirements-convert.txt`.
"""

import argparse
from pathlib import Path

from ppvilg.cli import run
from ppvilg.files import check_new_folder

# By the kinds of ppvilg.convert, whose import takes seconds: what each reads.
SOURCES = {
    "artist": ("folder", "image_tokenizer"),
    "taming": ("checkpoint", "model_yaml"),
    "llamagen": ("checkpoint",),
    "rudalle": ("checkpoint", "bpe_model", "vqgan"),
    "lpips": ("vgg16", "lpips"),
    "inception": ("weights",),
}
ABOUT = {
    "artist": "PaddleNLP's Artist, pai-painter-*-zh: its folder, and that of the image tokenizer (taming's VQGAN f16 16384).",
    "taming": "An image tokenizer of taming-transformers, a VQGAN or one with a Gumbel codebook: its .ckpt and its model.yaml.",
    "llamagen": "An image tokenizer of LlamaGen, VQ-16 or VQ-8: its .pt file.",
    "rudalle": "ruDALL-E of version 3 (Malevich, Kandinsky): pytorch_model_v3.bin, bpe.model, vqgan.gumbelf8-sber.model.ckpt.",
    "lpips": "The perceptual loss, one .safetensors file: torchvision's vgg16-397923af.pth and LPIPS's weights/v0.1/vgg.pth.",
    "inception": "The FID's network, one .safetensors file: pytorch-fid's pt_inception-2015-12-05-6726825d.pth.",
}


def main() -> None:
    """Parse, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, sources in SOURCES.items():
        kind = kinds.add_parser(name, help=ABOUT[name], description=ABOUT[name])
        for source in sources:
            kind.add_argument(source, type=Path, metavar=source.upper())
        kind.add_argument("--out", type=Path, required=True, help="what to write, which must not exist yet")
    arguments = vars(parser.parse_args())
    check_new_folder("--out", arguments["out"])

    from ppvilg.convert import KINDS

    print(KINDS[arguments.pop("kind")](**arguments))


if __name__ == "__main__":
    run(main)
