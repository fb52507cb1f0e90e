"""From taming-transformers' and LPIPS's torch files to ours. The only module that needs torch."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from ppvilg.checkpoint import check_weights, fill
from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.folder import ImageTokenizerConfig
from ppvilg.vqgan.folder import save_vqgan
from ppvilg.vqgan.lpips import GROUPS, weight_shapes
from ppvilg.vqgan.model import VQGAN

# What our network has no counterpart for, with the only value that means the same as not having it.
_FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "give_pre_end": False}


def convert_taming(checkpoint: str | Path, model_yaml: str | Path, folder: str | Path) -> ImageTokenizerConfig:
    """Convert a VQModel or GumbelVQ checkpoint with its YAML into a folder that `load_vqgan` reads.

    The encoder's, decoder's and codebook's weights are kept as they are, under the same names but one; the loss and
    its discriminator are left out. Returns the config written. Raises `ValueError` if a file can't be read, asks for
    something our network lacks, or the weights do not fit the YAML.
    """
    config = taming_config(model_yaml)
    weights = {}
    for name, array in read_torch(checkpoint).items():
        if not name.startswith("loss."):
            weights[name.replace("quantize.embed.", "quantize.embedding.")] = array
    model = VQGAN(config.vqgan, config.image_size)
    fill(model, weights, str(checkpoint))
    save_vqgan(model, folder)
    return config


def taming_config(path: str | Path) -> ImageTokenizerConfig:
    """Our config for the model that a taming YAML describes; raises `ValueError` if it can't be expressed."""
    try:
        model = yaml.safe_load(Path(path).read_text("utf-8"))["model"]
        kind, parameters = model["target"].rpartition(".")[2], model["params"]
        network = parameters["ddconfig"]
        size, dim = parameters["n_embed"], parameters["embed_dim"]
        image_size, latent_channels = network["resolution"], network["z_channels"]
        vqgan = {
            "channels": network["ch"],
            "channel_multipliers": list(network["ch_mult"]),
            "res_blocks": network["num_res_blocks"],
            "attention_resolutions": list(network["attn_resolutions"]),
        }
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    except KeyError as error:
        raise ValueError(f"{path} is not the YAML of a taming VQGAN: it has no key {error}") from None
    except (TypeError, AttributeError):
        raise ValueError(f"{path} is not the YAML of a taming VQGAN: expected model.params.ddconfig") from None
    if kind not in ("VQModel", "GumbelVQ"):
        raise ValueError(f"{path}: model.target is {kind}; only VQModel and GumbelVQ can be converted")
    for key, value in _FIXED.items():
        if network.get(key, value) != value:
            raise ValueError(f"{path}: ddconfig.{key} is {network[key]!r}; only {value!r} can be converted")
    if parameters.get("remap"):
        raise ValueError(f"{path}: remap is {parameters['remap']!r}; models with remapped codes can't be converted")
    if kind == "GumbelVQ":
        if dim != latent_channels:
            raise ValueError(f"{path}: embed_dim {dim} and z_channels {latent_channels} of a GumbelVQ have to be equal")
        codebook = CodebookConfig(size, dim, learning="gumbel", kl_weight=parameters.get("kl_weight", 1e-8))
    else:
        codebook = CodebookConfig(size, dim)
    vqgan = VQGANConfig(**vqgan, latent_channels=latent_channels, dropout=network.get("dropout", 0.0), codebook=codebook)
    return ImageTokenizerConfig(vqgan, image_size)


def convert_lpips(vgg: str | Path, linear: str | Path, output: str | Path) -> None:
    """Join torchvision's VGG16 and LPIPS's linear layers (vgg.pth, version 0.1) into the file that `LPIPS` reads.

    Raises `ValueError` if a file can't be read or lacks a weight.
    """
    convolutions = {name: array for name, array in read_torch(vgg).items() if name.startswith("features.")}
    layers = {name.replace(".model.1.", "."): array for name, array in read_torch(linear).items()}
    shapes = weight_shapes()
    check_weights(convolutions, {name: shape for name, shape in shapes.items() if name.startswith("f")}, str(vgg))
    check_weights(layers, {f"lin{i}.weight": shapes[f"lin{i}.weight"] for i in range(len(GROUPS))}, str(linear))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    save_file(convolutions | layers, temporary)
    temporary.rename(output)


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a torch pickle, either a state_dict or a training checkpoint with one, as float32 arrays by name.

    No code of the file is run: it is read with `weights_only`, and objects of unknown classes, which Lightning stores
    beside the weights, become empty stand-ins. Raises `ValueError` if torch is missing or the file holds no weights.
    """
    try:
        import torch
    except ImportError:
        raise ValueError("conversion needs torch: pip install -r requirements-convert.txt") from None
    unknown = []
    try:
        if zipfile.is_zipfile(path):  # files of torch before 1.6, such as VGG16's, are no zip and can't be searched
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type("StandIn", (_StandIn,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # torch raises many kinds here (RuntimeError, ValueError, UnpicklingError, KeyError ...)
        if not unknown:
            raise ValueError(f"{path} is not a torch checkpoint, or is damaged") from None
        raise ValueError(
            f"{path} can't be read without running code from {', '.join(sorted(unknown))}; if you trust it, save its "
            "state_dict alone: torch.save(torch.load(PATH, weights_only=False)['state_dict'], NEW_PATH)"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state_dict: expected weights by name, or a checkpoint with `state_dict`")
    return {name: tensor.float().contiguous().numpy() for name, tensor in state.items()}


class _StandIn:
    """Takes the place of any class in a pickle: accepts whatever it is built from and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass
