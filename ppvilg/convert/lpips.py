"""VGG16 and LPIPS, the weights of the perceptual loss."""

from pathlib import Path

from ppvilg.checkpoint import check_weights, save_arrays
from ppvilg.convert.torch_file import read_torch
from ppvilg.vqgan.lpips import GROUPS, weight_shapes


def convert_lpips(vgg16: Path, lpips: Path, out: Path) -> str:
    """The perceptual loss, one .safetensors file: torchvision's vgg16-397923af.pth and LPIPS's weights/v0.1/vgg.pth.

    `out` becomes the file that `vqgan.loss.perceptual_weights` names. Raises `ValueError` if a file can't be read or lacks a
    weight.
    """
    convolutions = {name: array for name, array in read_torch(vgg16).items() if name.startswith("features.")}
    layers = {name.replace(".model.1.", "."): array for name, array in read_torch(lpips).items()}
    shapes = weight_shapes()
    check_weights(convolutions, {name: shape for name, shape in shapes.items() if name.startswith("f")}, str(vgg16))
    check_weights(layers, {f"lin{i}.weight": shapes[f"lin{i}.weight"] for i in range(len(GROUPS))}, str(lpips))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(convolutions | layers, out)
    return str(out)
