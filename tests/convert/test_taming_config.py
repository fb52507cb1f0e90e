"""What a taming YAML becomes, and what is refused; needs no torch."""

import copy
import json

import pytest

from ppvilg.convert.taming import taming_config
from ppvilg.folder import ImageTokenizerConfig, read_config, write_config

NETWORK = {
    "double_z": False,
    "z_channels": 256,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
}
MODEL = {
    "target": "taming.models.vqgan.VQModel",
    "params": {"embed_dim": 256, "n_embed": 16384, "ddconfig": NETWORK},
}


def read(tmp_path, model):
    (tmp_path / "model.yaml").write_text(json.dumps({"model": model}))
    return taming_config(tmp_path / "model.yaml")


def test_config_of_a_vqmodel(tmp_path):
    config = read(tmp_path, MODEL)
    assert (config.image_size, config.vqgan.downsampling) == (256, 16)
    assert (config.vqgan.codebook.size, config.vqgan.codebook.learning) == (16384, "gradient")
    write_config(config, tmp_path)
    assert read_config(tmp_path, ImageTokenizerConfig) == config


def test_config_of_a_gumbel_model(tmp_path):
    model = copy.deepcopy(MODEL)
    model["target"] = "taming.models.vqgan.GumbelVQ"
    model["params"] |= {"n_embed": 8192, "kl_weight": 1e-8, "ddconfig": NETWORK | {"ch_mult": [1, 1, 2, 4]}}
    config = read(tmp_path, model)
    assert (config.vqgan.downsampling, config.vqgan.codebook.learning) == (8, "gumbel")
    model["params"]["embed_dim"] = 64
    with pytest.raises(ValueError, match="embed_dim 64 and z_channels 256 of a GumbelVQ have to be equal"):
        read(tmp_path, model)


@pytest.mark.parametrize(("key", "value"), [("double_z", True), ("in_channels", 4), ("resamp_with_conv", False)])
def test_networks_we_lack_are_refused(tmp_path, key, value):
    model = copy.deepcopy(MODEL)
    model["params"]["ddconfig"][key] = value
    with pytest.raises(ValueError, match=rf"ddconfig\.{key} is {value}; only"):
        read(tmp_path, model)


def test_other_yaml_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it has no key 'target'"):
        read(tmp_path, {"params": {}})
    with pytest.raises(ValueError, match=r"expected model\.params\.ddconfig"):
        read(tmp_path, [1])
    with pytest.raises(ValueError, match="only VQModel and GumbelVQ can be converted"):
        read(tmp_path, MODEL | {"target": "taming.models.cond_transformer.Net2NetTransformer"})
    with pytest.raises(ValueError, match="remapped codes can't be converted"):
        read(tmp_path, MODEL | {"params": MODEL["params"] | {"remap": "used.npy"}})
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="is not valid YAML"):
        taming_config(tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="cannot read"):
        taming_config(tmp_path / "none.yaml")
