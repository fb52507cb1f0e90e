"""The tokenizer as a whole: shapes, f, patches, attention, saving."""

import numpy as np
import paddle
import pytest

from ppvilg.config import CodebookConfig, VQGANConfig
from ppvilg.folder import ImageTokenizerConfig, write_config
from ppvilg.vqgan.folder import load_vqgan, save_vqgan
from ppvilg.vqgan.model import VQGAN
from ppvilg.vqgan.network import AttentionBlock


def small(multipliers=(1, 2), patch_size=1, attention=(), **codebook):
    codebook = CodebookConfig(**{"size": 16, "dim": 4} | codebook)
    return VQGANConfig(8, list(multipliers), 1, list(attention), 12, patch_size, codebook=codebook)


@pytest.mark.parametrize(
    ("multipliers", "patch_size", "f"), [([1], 1, 1), ([1, 2], 1, 2), ([1, 2, 2], 1, 4), ([1, 2], 2, 4), ([1], 4, 4)]
)
def test_f_is_patch_size_times_two_to_the_halvings(multipliers, patch_size, f):
    config = small(multipliers, patch_size)
    assert config.downsampling == f
    model = VQGAN(config, 16)
    pictures = paddle.rand([2, 3, 16, 8]) * 2 - 1
    ids = model.encode(pictures)
    assert (ids.shape, ids.dtype) == ([2, 16 // f, 8 // f], paddle.int64)
    assert ids.min() >= 0
    assert ids.max() < 16
    assert model.decode(ids).shape == [2, 3, 16, 8]
    reconstruction, quantized = model(pictures)
    assert reconstruction.shape == [2, 3, 16, 8]
    assert quantized.latents.shape == [2, 4, 16 // f, 8 // f]


def test_decode_and_forward_agree():
    model = VQGAN(small(patch_size=2, normalize=True), 16)
    model.eval()
    pictures = paddle.rand([2, 3, 16, 16]) * 2 - 1
    reconstruction, quantized = model(pictures)
    np.testing.assert_array_equal(model.encode(pictures).numpy(), quantized.ids.numpy())
    np.testing.assert_allclose(model.decode(quantized.ids).numpy(), reconstruction.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.decode_latents(quantized.latents).numpy(), reconstruction.numpy(), atol=1e-5)


def test_a_patch_holds_the_pixels_of_its_square():
    """One pixel changes: only latents near its patch change, and each output patch is written from one position."""
    model = VQGAN(small([1], patch_size=4), 16)
    model.eval()
    pictures = paddle.zeros([1, 3, 16, 16])
    x = paddle.nn.functional.pixel_unshuffle(pictures + paddle.arange(16, dtype="float32"), 4)
    assert x.shape == [1, 48, 4, 4]
    np.testing.assert_array_equal(x[0, 0, 0].numpy(), [0, 4, 8, 12])
    np.testing.assert_array_equal(paddle.nn.functional.pixel_shuffle(x, 4)[0, 0, 0].numpy(), np.arange(16))


def test_attention_stands_where_the_config_says():
    def count(attention, image_size):
        model = VQGAN(small([1, 2], attention=attention), image_size)
        return sum(isinstance(layer, AttentionBlock) for layer in model.sublayers())

    assert count([], 16) == 2  # the middle of encoder and decoder
    assert count([8], 16) == 2 + 1 + 2
    assert count([16, 8], 16) == 2 + 2 + 4
    assert count([8], 8) == 2 + 1 + 2
    assert count([3], 16) == 2


def test_every_weight_gets_a_gradient():
    model = VQGAN(small([1, 2], 2, attention=[8, 4]), 16)
    reconstruction, quantized = model(paddle.rand([2, 3, 16, 16]) * 2 - 1)
    (reconstruction.square().mean() + quantized.loss).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert model.last_layer is model.decoder.conv_out.weight


@pytest.mark.parametrize("shape", [[1, 3, 15, 16], [1, 1, 16, 16], [3, 16, 16], [1, 3, 16, 18]])
def test_pictures_of_a_wrong_shape_are_refused(shape):
    model = VQGAN(small([1, 2], 2), 16)
    for call in (model, model.encode):
        with pytest.raises(ValueError, match="multiples of f = 4, got"):
            call(paddle.zeros(shape))


def test_a_saved_tokenizer_loads(tmp_path):
    vqgan = small([1, 2], 2, normalize=True, revive_after=3)
    model = VQGAN(vqgan, 16)
    pictures = paddle.rand([2, 3, 16, 16]) * 2 - 1
    model(pictures)
    save_vqgan(model, tmp_path / "run")
    loaded = load_vqgan(tmp_path / "run")
    assert not loaded.training
    np.testing.assert_array_equal(loaded.quantize.idle.numpy(), model.quantize.idle.numpy())
    model.eval()
    np.testing.assert_array_equal(loaded(pictures)[0].numpy(), model(pictures)[0].numpy())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json and no config\.yml"):
        load_vqgan(tmp_path)
    save_vqgan(VQGAN(small([1, 2], 2, dim=5), 16), tmp_path)
    write_config(ImageTokenizerConfig(small([1, 2], 2), 16), tmp_path)
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight is \[16, 5\], not \[16, 4\]"):
        load_vqgan(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_vqgan(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        load_vqgan(tmp_path)
