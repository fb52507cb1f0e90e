"""LlamaGen's image tokenizers: the same ids and images from converted checkpoints.

No package holds the original code, so the reference is written here in torch, as its `vq_model.py` describes the network and
under its names of weights.
"""

import numpy as np
import paddle
import pytest

from ppvilg.convert.llamagen import convert_llamagen
from ppvilg.vqgan.folder import load_vqgan

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


def norm(x, group_norm):
    return F.silu(group_norm(x))


class Res(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, eps=1e-6), nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv2(norm(self.conv1(norm(x, self.norm1)), self.norm2))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attn(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=0 if stride == 2 else 1)

    def forward(self, x):
        x = F.pad(x, (0, 1, 0, 1)) if self.conv.stride[0] == 2 else F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)


class Half(nn.Module):
    """The encoder, or the decoder, whose blocks run from the lowest resolution to the highest."""

    def __init__(self, inputs, outputs, width, multipliers, blocks, down):
        super().__init__()
        widths = [width * m for m in multipliers]
        order = widths if down else widths[::-1]
        channels, self.down = width if down else order[0], down
        self.conv_in = nn.Conv2d(inputs, channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, wide in enumerate(order):
            lowest = i == (len(order) - 1 if down else 0)
            block = nn.Module()
            block.res, block.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                block.res.append(Res(channels, wide))
                channels = wide
                if lowest:
                    block.attn.append(Attn(wide))
            if i != len(order) - 1:
                setattr(block, "downsample" if down else "upsample", Resample(wide, 2 if down else 1))
            self.conv_blocks.append(block)
        self.mid = nn.ModuleList([Res(widths[-1], widths[-1]), Attn(widths[-1]), Res(widths[-1], widths[-1])])
        self.norm_out = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        x = x if self.down else self.middle(x)
        for block in self.conv_blocks:
            for i, res in enumerate(block.res):
                x = res(x)
                x = block.attn[i](x) if len(block.attn) else x
            resample = getattr(block, "downsample" if self.down else "upsample", None)
            x = x if resample is None else resample(x)
        x = self.middle(x) if self.down else x
        return self.conv_out(norm(x, self.norm_out))

    def middle(self, x):
        for layer in self.mid:
            x = layer(x)
        return x


class Reference(nn.Module):
    def __init__(self, multipliers, width, latent, blocks=2, size=16384, dim=8):
        super().__init__()
        self.encoder = Half(3, latent, width, multipliers, blocks, down=True)
        self.decoder = Half(latent, 3, width, multipliers, blocks + 1, down=False)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(size, dim)
        self.quantize.register_buffer("codebook_used", torch.zeros(65536))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, dim, 1), nn.Conv2d(dim, latent, 1)
        for parameter in self.parameters():  # as far from their start as trained weights are
            parameter.data.add_(0.02 * torch.randn_like(parameter))

    def ids(self, images):
        z = F.normalize(self.quant_conv(self.encoder(images)), dim=1).permute(0, 2, 3, 1)
        return torch.cdist(z.flatten(0, 2), F.normalize(self.quantize.embedding.weight, dim=-1)).argmin(1).view(z.shape[:3])

    def decode(self, ids):
        return self.decoder(self.post_quant_conv(F.normalize(self.quantize.embedding(ids), dim=-1).permute(0, 3, 1, 2)))


def write(path, multipliers, width, latent, **sizes):
    torch.manual_seed(0)
    reference = Reference(multipliers, width, latent, **sizes).eval()
    torch.save({"model": reference.state_dict(), "steps": 7}, path)
    return reference


def assert_parity(folder, reference, side):
    summary = convert_llamagen(folder / "vq.pt", folder / "out")
    ours = load_vqgan(folder / "out")
    images = np.random.default_rng(0).uniform(-1, 1, [1, 3, side, side]).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected_ids = reference.ids(torch.from_numpy(images))
        expected = reference.decode(expected_ids).numpy()
        ids = ours.encode(paddle.to_tensor(images))
        decoded = ours.decode(ids).numpy()
    assert len(np.unique(ids.numpy())) > 1
    np.testing.assert_array_equal(ids.numpy(), expected_ids.numpy())
    np.testing.assert_allclose(decoded, expected, atol=1e-4)
    return summary


@pytest.mark.parametrize("multipliers", [[1, 1, 2], [1, 2, 2]])
def test_same_ids_and_images(multipliers, tmp_path):
    reference = write(tmp_path / "vq.pt", multipliers, width=32, latent=64, size=512)
    assert assert_parity(tmp_path, reference, side=32).endswith("f = 4, 512 codes, 256 pixels")


@pytest.mark.slow
@pytest.mark.parametrize(("f", "multipliers"), [(16, [1, 1, 2, 2, 4]), (8, [1, 2, 2, 4])], ids=["f16", "f8"])
def test_same_ids_and_images_at_full_size(f, multipliers, tmp_path):
    reference = write(tmp_path / "vq.pt", multipliers, width=128, latent=256)
    assert assert_parity(tmp_path, reference, side=256).endswith(f"f = {f}, 16384 codes, 256 pixels")


def test_averaged_weights_come_first(tmp_path):
    state = Reference([1, 2], 32, 32, size=16).state_dict()
    averaged = {name: array + 1 for name, array in state.items()}
    torch.save({"model": state, "ema": averaged}, tmp_path / "vq.pt")
    convert_llamagen(tmp_path / "vq.pt", tmp_path / "out")
    expected = averaged["encoder.conv_in.bias"].numpy()
    np.testing.assert_array_equal(load_vqgan(tmp_path / "out").encoder.conv_in.bias.numpy(), expected)


def test_other_checkpoints_are_refused(tmp_path):
    torch.save({"model": {"tok_embeddings.weight": torch.zeros(2), "cls_embedding.x": torch.zeros(2)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"but cls_embedding\.x, tok_embeddings\.weight \.\.\.: known are .*VQ-16 and VQ-8"):
        convert_llamagen(tmp_path / "x.pt", tmp_path / "out")
    state = Reference([1, 2], 32, 32, size=16).state_dict()
    torch.save(state | {"decoder.norm_out.running_mean": torch.zeros(32)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt .* has the unknown decoder\.norm_out\.running_mean"):
        convert_llamagen(tmp_path / "x.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
