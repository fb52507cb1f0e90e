"""Convert torch weights: a taming-transformers VQGAN into a tokenizer folder, or VGG16 + LPIPS into one file.

Needs `pip install -r requirements-convert.txt`.
"""

import argparse
from pathlib import Path

from ppvilg.cli import run


def main() -> None:
    """Parse, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    taming = commands.add_parser("taming", help="VQGAN or Gumbel-VQ checkpoint -> config.json + model.safetensors")
    taming.add_argument("checkpoint", type=Path, help="the .ckpt file")
    taming.add_argument("config", type=Path, help="its model.yaml")
    taming.add_argument("output", type=Path, help="folder to write")
    lpips = commands.add_parser("lpips", help="the perceptual loss's weights, for vqgan.loss.perceptual_weights")
    lpips.add_argument("vgg", type=Path, help="torchvision's vgg16-397923af.pth")
    lpips.add_argument("linear", type=Path, help="LPIPS's weights/v0.1/vgg.pth")
    lpips.add_argument("output", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()

    from ppvilg.vqgan.convert import convert_lpips, convert_taming

    if arguments.command == "taming":
        config = convert_taming(arguments.checkpoint, arguments.config, arguments.output)
        f, size = config.vqgan.downsampling, config.vqgan.codebook.size
        print(f"{arguments.output}: f = {f}, {size} codes, {config.image_size} pixels")
    else:
        convert_lpips(arguments.vgg, arguments.linear, arguments.output)
        print(arguments.output)


if __name__ == "__main__":
    run(main)
