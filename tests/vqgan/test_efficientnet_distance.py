"""The perceptual distance over EfficientNet-Lite0: the network that measures, as a loss."""

import numpy as np
import paddle
import pytest

from ppvilg.config import VQGANLossConfig
from ppvilg.evaluation.efficientnet import load_efficientnet, load_feature_maps
from ppvilg.vqgan.efficientnet_distance import EfficientNetDistance
from ppvilg.vqgan.loss import VQGANLoss
from ppvilg.vqgan.quantizer import Quantized


@pytest.fixture(scope="module")
def distance():
    return EfficientNetDistance()


def images(seed):
    return paddle.to_tensor(np.random.default_rng(seed).uniform(-1, 1, [2, 3, 64, 64]).astype("float32"))


def test_all_stages_and_what_follows_them_give_the_features_that_are_measured_with():
    pixels = np.random.default_rng(0).integers(0, 256, [1, 224, 224, 3], np.uint8)
    expected, _ = load_efficientnet()(pixels)
    maps = load_feature_maps(7)
    x = paddle.to_tensor((pixels.transpose(0, 3, 1, 2).astype("float32") - 127) / 128)
    network = maps.network
    features = paddle.nn.functional.relu6(network._bn1(network._conv_head(maps(x)[-1]))).mean([2, 3])
    np.testing.assert_allclose(features.numpy(), expected, atol=2e-4)


def test_a_picture_is_at_no_distance_from_itself_and_further_the_more_it_is_changed(distance):
    x, noise = images(0), images(1)
    assert distance(x, x).abs().max().item() == 0
    near, far = distance(x + 0.05 * noise, x), distance(x + 0.5 * noise, x)
    assert (near > 0).all()
    assert (near < far).all()
    assert (far < 4).all()


def test_its_gradient_lessens_it_and_its_weights_are_constants(distance):
    x, y = images(0), images(1)
    y.stop_gradient = False
    before = distance(y, x).mean()
    before.backward()
    after = distance(y - 300 * y.grad, x).mean()
    assert after < before
    assert not distance.parameters()
    assert not distance.state_dict()


def test_its_place_in_the_loss(distance):
    x, y = images(0), images(1)
    zero = paddle.zeros([])
    quantized = Quantized(x, x, zero, zero, zero)
    objective = VQGANLoss(VQGANLossConfig(l1=0.0, perceptual=2.0, perceptual_network="efficientnet-lite0"))
    loss, logs = objective.generator(x, y, quantized, x, 0)
    np.testing.assert_allclose(logs["perceptual"].item(), distance(y, x).mean().item(), rtol=1e-5)
    np.testing.assert_allclose(loss.item(), 2 * logs["perceptual"].item(), rtol=1e-5)
