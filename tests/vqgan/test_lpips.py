"""LPIPS against VGG16 written layer by layer, and its place in the loss."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from safetensors.numpy import save_file

from ppvilg.config import VQGANLossConfig
from ppvilg.convert.lpips import convert_lpips
from ppvilg.vqgan.loss import VQGANLoss
from ppvilg.vqgan.lpips import LPIPS, weight_shapes
from ppvilg.vqgan.quantizer import Quantized

# torchvision's `vgg16.features`: widths of the convolutions, M a max-pooling; ReLU after each convolution.
LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
COMPARED = [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if name.startswith("lin"):
            return rng.uniform(0, 1, shape).astype("float32")
        return (rng.normal(size=shape) * (2 / max(1, np.prod(shape[1:]))) ** 0.5 * 0.5).astype("float32")

    return {name: draw(name, shape) for name, shape in weight_shapes().items()}


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(weights, path)
    return str(path)


def features(weights, images):
    x = (images - np.array([-0.030, -0.088, -0.188], "float32").reshape(1, 3, 1, 1)) / np.array(
        [0.458, 0.448, 0.450], "float32"
    ).reshape(1, 3, 1, 1)
    x, number, kept = paddle.to_tensor(x), 0, []
    for layer in LAYERS:
        if layer == "M":
            x, number = F.max_pool2d(x, 2, 2), number + 1
            continue
        w, b = (paddle.to_tensor(weights[f"features.{number}.{kind}"]) for kind in ("weight", "bias"))
        x, number = F.relu(F.conv2d(x, w, b, padding=1)), number + 2
        if number - 1 in COMPARED:
            kept.append(x.numpy())
    return kept


def test_distance(weights, path):
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, [2, 2, 3, 32, 32]).astype("float32")
    expected = np.zeros(2)
    for i, (a, b) in enumerate(zip(features(weights, x), features(weights, y), strict=True)):
        a, b = (f / (np.sqrt((f**2).sum(1, keepdims=True)) + 1e-10) for f in (a, b))
        expected += ((a - b) ** 2 * weights[f"lin{i}.weight"]).sum(1).mean((1, 2))
    layer = LPIPS(path)
    np.testing.assert_allclose(layer(paddle.to_tensor(x), paddle.to_tensor(y)).numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(layer(paddle.to_tensor(x), paddle.to_tensor(x)).numpy(), 0, atol=1e-7)


def test_gradient_reaches_the_image_and_stays_finite(path):
    x = paddle.zeros([1, 3, 16, 16])
    x.stop_gradient = False
    LPIPS(path)(x, paddle.ones([1, 3, 16, 16])).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    assert x.grad.abs().sum() > 0


def test_the_loss_uses_it_and_keeps_it_out_of_checkpoints(path):
    layer = VQGANLoss(VQGANLossConfig(l1=0.0, perceptual=2.0, perceptual_weights=path))
    assert not layer.state_dict()
    assert not layer.parameters()
    x, y = paddle.rand([2, 2, 3, 16, 16]) * 2 - 1
    zero = paddle.zeros([])
    loss, logs = layer.generator(x, y, Quantized(x, x, zero, zero, zero), x, 0)
    np.testing.assert_allclose(logs["perceptual"].item(), LPIPS(path)(x, y).mean().item(), rtol=1e-5)
    np.testing.assert_allclose(loss.item(), 2 * logs["perceptual"].item(), rtol=1e-5)


def test_a_wrong_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        LPIPS(str(tmp_path / "none.safetensors"))
    save_file({"x": np.zeros(1, "float32")}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"it lacks features\.0\.bias and 30 more"):
        LPIPS(str(tmp_path / "x.safetensors"))


def test_conversion(weights, tmp_path):
    torch = pytest.importorskip("torch")
    vgg = {k: torch.from_numpy(v) for k, v in weights.items() if k.startswith("features.")}
    linear = {k.replace(".weight", ".model.1.weight"): torch.from_numpy(v) for k, v in weights.items() if k.startswith("lin")}
    torch.save(vgg | {"classifier.0.bias": torch.zeros(1)}, tmp_path / "vgg16.pth")
    torch.save(linear, tmp_path / "vgg.pth")
    convert_lpips(tmp_path / "vgg16.pth", tmp_path / "vgg.pth", tmp_path / "out" / "lpips.safetensors")
    LPIPS(str(tmp_path / "out" / "lpips.safetensors"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["lpips.safetensors"]
    with pytest.raises(ValueError, match=r"vgg\.pth does not hold .* lacks features\.0\.bias"):
        convert_lpips(tmp_path / "vgg.pth", tmp_path / "vgg.pth", tmp_path / "out" / "lpips.safetensors")
