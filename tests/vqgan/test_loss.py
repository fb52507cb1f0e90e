"""Losses against numpy, the adaptive weight, and who gets gradients."""

import numpy as np
import paddle
import pytest

from ppvilg.config import VQGANLossConfig
from ppvilg.vqgan.discriminator import PatchDiscriminator
from ppvilg.vqgan.loss import VQGANLoss, adaptive_weight
from ppvilg.vqgan.quantizer import Quantized

GAN = VQGANLossConfig(adversarial=0.8, adversarial_start=10, discriminator_channels=4, discriminator_layers=2)


class Toy:
    """A 'decoder' of one weight, so that every gradient can be written down."""

    def __init__(self):
        self.images = paddle.rand([2, 3, 32, 32]) * 2 - 1
        self.weight = paddle.create_parameter([3, 3, 1, 1], "float32")
        self.reconstruction = paddle.nn.functional.conv2d(self.images, self.weight)
        some = paddle.to_tensor(0.25)
        self.quantized = Quantized(self.images, paddle.zeros([2, 1, 1], "int64"), some, some, some)

    def generator(self, loss, step=10):
        return loss.generator(self.images, self.reconstruction, self.quantized, self.weight, step)


def test_reconstruction_losses():
    toy = Toy()
    loss, logs = toy.generator(VQGANLoss(VQGANLossConfig(l1=2.0, l2=3.0)))
    difference = toy.images.numpy() - toy.reconstruction.numpy()
    l1, l2 = np.abs(difference).mean(), (difference**2).mean()
    np.testing.assert_allclose([logs["l1"].item(), logs["l2"].item()], [l1, l2], rtol=1e-5)
    np.testing.assert_allclose(loss.item(), 2 * l1 + 3 * l2 + 0.25, rtol=1e-5)
    assert set(logs) == {"loss", "l1", "l2", "codebook", "perplexity", "used", "psnr"}
    assert all(value.stop_gradient and value.shape == [] for value in logs.values())


def test_a_weight_of_zero_leaves_its_term_out_and_evaluation_adds_ssim():
    layer = VQGANLoss(VQGANLossConfig(l1=0.0, l2=1.0))
    layer.eval()
    logs = Toy().generator(layer)[1]
    assert "l1" not in logs
    assert -1 <= logs["ssim"].item() <= 1


def test_adaptive_weight():
    weight = paddle.create_parameter([4], "float32")
    a, b = paddle.to_tensor([3.0, 0, 4, 0]), paddle.to_tensor([0.0, 2, 0, 0])
    np.testing.assert_allclose(adaptive_weight((weight * a).sum(), (weight * b).sum(), weight).item(), 5 / 2.0001)
    assert adaptive_weight((weight * a).sum(), (weight * b * 1e-9).sum(), weight).item() == 10_000
    assert adaptive_weight((weight * a * 0).sum(), (weight * b).sum(), weight).item() == 0
    with paddle.no_grad():
        assert adaptive_weight((weight * a).sum(), (weight * b).sum(), weight).item() == 0
    assert weight.grad is None


def test_generator_loss_is_weighted_by_lambda():
    toy, layer = Toy(), VQGANLoss(GAN)
    loss, logs = toy.generator(layer)
    loss.backward()
    rec = paddle.grad((toy.images - paddle.nn.functional.conv2d(toy.images, toy.weight)).abs().mean(), toy.weight)
    gan = paddle.grad(-layer.patch_gan(paddle.nn.functional.conv2d(toy.images, toy.weight)).mean(), toy.weight)
    factor = rec[0].norm().item() / (gan[0].norm().item() + 1e-4)
    np.testing.assert_allclose(logs["lambda"].item(), factor, rtol=1e-3)
    np.testing.assert_allclose(loss.item(), logs["l1"].item() + 0.25 + factor * 0.8 * logs["generator"].item(), rtol=1e-3)
    expected = rec[0].numpy() + 0.8 * factor * gan[0].numpy()
    np.testing.assert_allclose(toy.weight.grad.numpy(), expected, rtol=1e-2, atol=1e-4)


def test_generator_leaves_no_gradient_in_the_discriminator():
    toy, layer = Toy(), VQGANLoss(GAN)
    trainable = [not p.stop_gradient for p in layer.patch_gan.parameters()]
    toy.generator(layer)[0].backward()
    assert all(p.grad is None for p in layer.patch_gan.parameters())
    assert [not p.stop_gradient for p in layer.patch_gan.parameters()] == trainable
    assert toy.weight.grad is not None


def test_discriminator_leaves_no_gradient_in_the_tokenizer():
    toy, layer = Toy(), VQGANLoss(GAN)
    loss, logs = layer.discriminator(toy.images, toy.reconstruction, 10)
    loss.backward()
    assert toy.weight.grad is None
    assert all(p.grad is not None for p in layer.patch_gan.parameters() if not p.stop_gradient)
    real, fake = layer.patch_gan(toy.images).numpy(), layer.patch_gan(toy.reconstruction).numpy()
    hinge = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    np.testing.assert_allclose(loss.item(), hinge, rtol=1e-5)
    np.testing.assert_allclose(logs["logits_real"].item(), real.mean(), rtol=1e-4, atol=1e-6)


def test_before_its_start_the_discriminator_is_silent():
    toy, layer = Toy(), VQGANLoss(GAN)
    assert [layer.discriminates(step) for step in (0, 9, 10, 11)] == [False, False, True, True]
    assert "lambda" not in toy.generator(layer, step=9)[1]
    loss, logs = layer.discriminator(toy.images, toy.reconstruction, 9)
    assert (loss.item(), logs) == (0, {})


def test_without_adversarial_weight_there_is_no_discriminator():
    layer = VQGANLoss(VQGANLossConfig())
    assert layer.patch_gan is None
    assert not layer.discriminates(10**9)
    assert not layer.state_dict()


@pytest.mark.parametrize(("layers", "side", "field"), [(3, 6, 70), (2, 14, 34), (1, 30, 16)])
def test_a_logit_sees_its_patch_only(layers, side, field):
    model = PatchDiscriminator(4, layers)
    model.eval()
    images = paddle.rand([1, 3, 64 if layers < 3 else 128, 64 if layers < 3 else 128])
    images.stop_gradient = False
    logits = model(images)
    assert logits.shape[1:] == [1, logits.shape[2], logits.shape[3]]
    if layers < 3:
        assert logits.shape[2] == side
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    seen = images.grad.abs().sum([0, 1]).numpy() > 0
    rows = np.flatnonzero(seen.any(1))
    assert rows[-1] - rows[0] + 1 == field
