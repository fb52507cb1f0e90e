"""The Inception network against pytorch-fid with random weights, and what needs no torch."""

import sys
from types import ModuleType

import cv2
import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from ppvilg.checkpoint import checksum
from ppvilg.convert.inception import convert_inception
from ppvilg.evaluation import inception
from ppvilg.evaluation.inception import InceptionV3, load_inception, weight_shapes
from tests.helpers import run_tool


def image(height, width, seed=0):
    """Smooth, but with noise."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(0, 255, [5, 5, 3]), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype("uint8")


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if len(shape) > 1:
            return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype("float32")
        if name.endswith(("running_var", "weight")):
            return rng.uniform(0.5, 1.5, shape).astype("float32")
        return rng.normal(0, 0.3, shape).astype("float32")

    return {name: draw(name, shape) for name, shape in weight_shapes().items()}


@pytest.fixture(scope="module")
def network(weights):
    return InceptionV3(weights)


def test_parameters_are_as_many_as_published():
    # torchvision's count for 1000 classes, less that classifier, plus this one.
    expected = 23_834_568 - 1000 * 2049 + 1008 * 2048
    assert sum(np.prod(shape) for name, shape in weight_shapes().items() if "running" not in name) == expected


def test_a_batch_gives_what_its_images_give(network, monkeypatch):
    monkeypatch.setattr(InceptionV3, "batch", 2)
    images = [image(60, 90, 1), image(299, 299, 2), image(16, 16, 3)]
    features, logits = network(iter(images))
    assert (features.shape, features.dtype) == ((3, 2048), np.float32)
    assert (logits.shape, logits.dtype) == ((3, 1008), np.float32)
    assert features.min() >= 0
    assert features.std(0).max() > 1e-3
    alone = network(images[1][None])
    np.testing.assert_allclose(alone[0][0], features[1], atol=1e-4 * features.std())
    np.testing.assert_allclose(alone[1][0], logits[1], atol=1e-4 * logits.std())
    assert [found.shape for found in network([])] == [(0, 2048), (0, 1008)]


def test_images_are_scaled_and_normalised(network):
    for value, expected in ((0, -1), (255, 1)):
        prepared = network.prepare(np.full([400, 7, 3], value, "uint8"))
        assert prepared.shape == (3, 299, 299)
        np.testing.assert_allclose(prepared, expected, atol=1e-6)
    # OpenCV's bilinear interpolation takes the same samples.
    for size in ((40, 60), (299, 299), (400, 350)):
        original = image(*size).astype("float32")
        expected = cv2.resize(original, (299, 299), interpolation=cv2.INTER_LINEAR) / 127.5 - 1
        found = network.prepare(original.astype("uint8")).transpose(1, 2, 0)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_averages_do_not_count_the_padding():
    assert (inception._average(paddle.ones([1, 1, 4, 5])).numpy() == 1).all()


def test_no_random_numbers_are_drawn(weights):
    paddle.seed(3)
    expected = paddle.rand([4]).numpy()
    paddle.seed(3)
    InceptionV3(weights)
    np.testing.assert_array_equal(paddle.rand([4]).numpy(), expected)


def test_files(weights, tmp_path):
    save_file(weights, tmp_path / "weights.safetensors")
    features, logits = load_inception(str(tmp_path / "weights.safetensors"))([image(32, 32)])
    expected = InceptionV3(weights)([image(32, 32)])
    np.testing.assert_array_equal(features, expected[0])
    np.testing.assert_array_equal(logits, expected[1])
    with pytest.raises(ValueError, match=r"cannot read .*none\.safetensors"):
        load_inception(tmp_path / "none.safetensors")
    save_file({"fc.weight": weights["fc.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(
        ValueError, match=r"part\.safetensors does not hold the expected weights: it lacks Conv2d_1a_3x3\.bn\.bias"
    ):
        load_inception(tmp_path / "part.safetensors")


def test_other_images_are_refused(network):
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        network([np.zeros([8, 8, 3], "float32")])


@pytest.fixture(scope="module")
def torch_file(weights, tmp_path_factory):
    """The weights as pytorch-fid's file holds them."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    state["fc.bias"] = torch.randn(1008, generator=torch.Generator().manual_seed(0))
    for name in weights:
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    path = tmp_path_factory.mktemp("torch") / "weights.pth"
    torch.save(state, path)
    return path


def test_conversion(weights, torch_file, tmp_path):
    done = run_tool("convert", "inception", torch_file, "--out", tmp_path / "new" / "inception.safetensors")
    assert done.returncode == 0, done.stderr
    assert "is not the published file" in done.stdout
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "new" / "inception.safetensors")
    assert found.keys() == weights.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, weights[name])


def test_the_published_file_is_known(torch_file, tmp_path, monkeypatch):
    monkeypatch.setattr("ppvilg.convert.inception._SHA256", checksum(torch_file)[:8])
    assert "warning" not in convert_inception(torch_file, tmp_path / "inception.safetensors")


def test_other_weights_are_refused(torch_file, tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.load(torch_file, weights_only=True)
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(ValueError, match=r"fc\.weight is \[1000, 2048\], not \[1008, 2048\]"):
        convert_inception(tmp_path / "torchvision.pth", tmp_path / "inception.safetensors")
    assert not (tmp_path / "inception.safetensors").exists()


def import_pytorch_fid(monkeypatch):
    """pytorch-fid's module, with torchvision, of which it needs the Inception network."""
    pytest.importorskip("pytorch_fid")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("pytorch-fid needs torchvision")
    except RuntimeError:
        # Its compiled operators are for another build of torch, CUDA's say; the network does without them, and so without
        # the module that describes them.
        monkeypatch.setitem(sys.modules, "torchvision._meta_registrations", ModuleType("_meta_registrations"))
    import pytorch_fid.inception

    return pytorch_fid.inception


def test_the_same_as_pytorch_fid(network, torch_file, monkeypatch):
    torch = pytest.importorskip("torch")
    original = import_pytorch_fid(monkeypatch)
    state = torch.load(torch_file, weights_only=True)
    monkeypatch.setattr(original, "load_state_dict_from_url", lambda *_, **__: state)
    reference = original.InceptionV3().eval()
    noise = np.random.default_rng(0).integers(0, 256, [299, 299, 3], "uint8")
    images = [noise, image(256, 256, 1), image(100, 300, 2), image(400, 350, 3)]
    with torch.no_grad():
        inputs = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in images]
        expected = torch.cat([reference(x)[0][:, :, 0, 0] for x in inputs])
        expected_logits = expected @ state["fc.weight"].T
    features, logits = network(images)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-4 * features.std())
    np.testing.assert_allclose(logits, expected_logits.numpy(), rtol=1e-3, atol=1e-3 * logits.std())
