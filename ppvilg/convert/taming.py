"""Image tokenizers of taming-transformers."""

from pathlib import Path

import yaml

from ppvilg.checkpoint import fill
from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.convert.torch_file import read_torch
from ppvilg.folder import ImageTokenizerConfig, new_folder
from ppvilg.vqgan.folder import save_vqgan, summary
from ppvilg.vqgan.model import VQGAN

# What our network has no counterpart for, with the only value that means the same as not having it.
_FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "give_pre_end": False}


def convert_taming(checkpoint: Path, model_yaml: Path, out: Path) -> str:
    """An image tokenizer of taming-transformers, a VQGAN or one with a Gumbel codebook: its .ckpt and its model.yaml.

    The encoder's, decoder's and codebook's weights are kept as they are, under the same names but one; the loss and
    its discriminator are left out. `out` becomes a folder that `load_vqgan` reads. Raises `ValueError` if a file can't be read,
    asks for something our network lacks, or the weights do not fit the YAML.
    """
    config = taming_config(model_yaml)
    model = load_taming(checkpoint, config)
    with new_folder(out) as folder:
        save_vqgan(model, folder)
    return f"{out}: {summary(config)}"


def load_taming(checkpoint: Path, config: ImageTokenizerConfig) -> VQGAN:
    """The image tokenizer of a config with a checkpoint's weights; raises `ValueError` as `convert_taming` does."""
    weights = {}
    for name, array in read_torch(checkpoint).items():
        if not name.startswith("loss."):
            weights[name.replace("quantize.embed.", "quantize.embedding.")] = array
    model = VQGAN(config.vqgan, config.image_size)
    fill(model, weights, str(checkpoint))
    return model


def taming_config(path: Path) -> ImageTokenizerConfig:
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
