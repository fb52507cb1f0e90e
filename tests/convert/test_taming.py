"""Parity with taming-transformers: same ids, same reconstructions, from converted checkpoints."""

import json

import numpy as np
import paddle
import pytest

from ppvilg.convert.taming import convert_taming
from ppvilg.folder import ImageTokenizerConfig, read_config
from ppvilg.vqgan.folder import load_vqgan

torch = pytest.importorskip("torch")
taming_model = pytest.importorskip("taming.modules.diffusionmodules.model")
taming_quantize = pytest.importorskip("taming.modules.vqvae.quantize")

SMALL = {
    "double_z": False,
    "z_channels": 24,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
}
# The published f16-16384 model and the f8-8192 Gumbel model.
F16 = SMALL | {"z_channels": 256, "resolution": 256, "ch": 128, "ch_mult": [1, 1, 2, 2, 4]}
F8_GUMBEL = F16 | {"ch_mult": [1, 1, 2, 4], "attn_resolutions": [32]}


class Original(torch.nn.Module):
    """taming's VQModel and GumbelVQ without Lightning: the same parts under the same names."""

    def __init__(self, gumbel, network, dim, size):
        super().__init__()
        self.encoder = taming_model.Encoder(**network)
        self.decoder = taming_model.Decoder(**network)
        self.quant_conv = torch.nn.Conv2d(network["z_channels"], dim, 1)
        self.post_quant_conv = torch.nn.Conv2d(dim, network["z_channels"], 1)
        if gumbel:
            self.quantize = taming_quantize.GumbelQuantize(network["z_channels"], dim, size)
        else:
            self.quantize = taming_quantize.VectorQuantizer2(size, dim, beta=0.25, sane_index_shape=True)
        for parameter in self.parameters():  # as far from their start as trained weights are
            parameter.data.add_(0.02 * torch.randn_like(parameter))

    def ids(self, images):
        latents = self.quant_conv(self.encoder(images))
        if isinstance(self.quantize, taming_quantize.GumbelQuantize):
            return self.quantize.proj(latents).argmax(1)
        return self.quantize(latents)[2][2]

    def decode(self, ids):
        shape = (*ids.shape, self.post_quant_conv.in_channels)
        return self.decoder(self.post_quant_conv(self.quantize.get_codebook_entry(ids.flatten(), shape)))


def write_original(folder, gumbel, network, dim, size, **extra):
    """A checkpoint as Lightning writes it, and its YAML (JSON is YAML)."""
    torch.manual_seed(0)
    original = Original(gumbel, network, dim, size).eval()
    state = original.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"epoch": 3, "global_step": 70, "state_dict": state, **extra}, folder / "last.ckpt")
    target = "taming.models.vqgan." + ("GumbelVQ" if gumbel else "VQModel")
    parameters = {"embed_dim": dim, "n_embed": size, "ddconfig": network, "lossconfig": {"target": "x"}}
    (folder / "model.yaml").write_text(json.dumps({"model": {"target": target, "params": parameters}}))
    return original


def assert_parity(folder, original, side, batch=2):
    convert_taming(folder / "last.ckpt", folder / "model.yaml", folder / "out")
    ours = load_vqgan(folder / "out")
    images = np.random.default_rng(0).uniform(-1, 1, [batch, 3, side, side]).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected_ids = original.ids(torch.from_numpy(images))
        expected = original.decode(expected_ids).numpy()
        ids = ours.encode(paddle.to_tensor(images))
        reconstruction = ours(paddle.to_tensor(images))[0].numpy()
        decoded = ours.decode(ids).numpy()
    assert len(np.unique(ids.numpy())) > 1
    np.testing.assert_array_equal(ids.numpy(), expected_ids.numpy())
    np.testing.assert_allclose(decoded, expected, atol=1e-4)
    np.testing.assert_allclose(reconstruction, expected, atol=1e-4)


@pytest.mark.parametrize("gumbel", [False, True], ids=["vqmodel", "gumbel"])
def test_same_ids_and_images(tmp_path, gumbel):
    original = write_original(tmp_path, gumbel, SMALL, dim=24, size=512)
    assert_parity(tmp_path, original, side=32)
    config = read_config(tmp_path / "out", ImageTokenizerConfig)
    assert config.vqgan.downsampling == 4
    assert config.vqgan.codebook.learning == ("gumbel" if gumbel else "gradient")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gumbel", "network", "size"), [(False, F16, 16384), (True, F8_GUMBEL, 8192)], ids=["f16", "gumbel-f8"]
)
def test_same_ids_and_images_at_full_size(tmp_path, gumbel, network, size):
    assert_parity(tmp_path, write_original(tmp_path, gumbel, network, 256, size), side=256, batch=1)


def test_weights_that_do_not_fit_the_yaml(tmp_path):
    original = write_original(tmp_path, False, SMALL, dim=24, size=64)

    def convert(state):
        torch.save(state, tmp_path / "x.ckpt")
        convert_taming(tmp_path / "x.ckpt", tmp_path / "model.yaml", tmp_path / "out")

    state = original.state_dict()
    weight = state.pop("decoder.conv_in.weight")
    with pytest.raises(ValueError, match=r"x\.ckpt does not hold the expected weights: it lacks decoder\.conv_in\.weight"):
        convert(state)
    with pytest.raises(ValueError, match=r"has the unknown decoder\.extra"):
        convert(state | {"decoder.conv_in.weight": weight, "decoder.extra": weight})
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight is \[64, 24, 1, 1\], not \[64, 24, 3, 3\]"):
        convert(state | {"decoder.conv_in.weight": weight[:, :, :1, :1]})
    with pytest.raises(ValueError, match="holds no state_dict"):
        convert([1, 2])
    assert not (tmp_path / "out").exists()
