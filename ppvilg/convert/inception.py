"""The Inception network that the FID is defined by."""

from pathlib import Path

from ppvilg.checkpoint import check_weights, checksum, save_arrays
from ppvilg.convert.torch_file import read_torch
from ppvilg.evaluation.inception import weight_shapes

# How the SHA-256 of pt_inception-2015-12-05-6726825d.pth begins.
_SHA256 = "6726825d"
_UNUSED = ("fc.bias", ".num_batches_tracked")


def convert_inception(weights: Path, out: Path) -> str:
    """The FID's network, one .safetensors file: pytorch-fid's pt_inception-2015-12-05-6726825d.pth.

    torch-fidelity's file of that date holds the same names. `out` becomes the file that `load_inception` reads. What is
    returned warns where it is not the published file, by the SHA-256 that its name holds: with other weights distances can't be
    compared with published ones. Raises `ValueError` if the file can't be read or lacks a weight.
    """
    arrays = {name: array for name, array in read_torch(weights).items() if not name.endswith(_UNUSED)}
    check_weights(arrays, weight_shapes(), str(weights))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(arrays, out)
    if checksum(weights).startswith(_SHA256):
        return str(out)
    return f"{out}\nwarning: {weights} is not the published file; distances can't be compared with published ones"
