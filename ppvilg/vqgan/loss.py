"""What the image tokenizer is trained on: reconstruction, perceptual and adversarial losses of VQGAN."""

from collections.abc import Iterator
from contextlib import contextmanager

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.config import VQGANLossConfig
from ppvilg.vqgan.discriminator import PatchDiscriminator
from ppvilg.vqgan.metrics import psnr, ssim
from ppvilg.vqgan.quantizer import Quantized

Logs = dict[str, paddle.Tensor]


class VQGANLoss(nn.Layer):
    """The two sides of VQGAN's objective (Esser et al. 2021, equations 5-7).

    A training step is `loss, logs = generator(...)`, backward, a step of the tokenizer's optimizer; then, where
    `discriminates(step)`, `loss, logs = discriminator(...)`, backward, a step of the optimizer of `patch_gan`'s
    parameters. `patch_gan` is None where `config.adversarial` is 0.
    """

    def __init__(self, config: VQGANLossConfig):
        super().__init__()
        self.config = config
        self.perceptual = perceptual_distance(config) if config.perceptual else None
        self.patch_gan = None
        if config.adversarial:
            self.patch_gan = PatchDiscriminator(config.discriminator_channels, config.discriminator_layers)

    def discriminates(self, step: int) -> bool:
        """Whether the adversarial loss is on at this step."""
        return self.patch_gan is not None and step >= self.config.adversarial_start

    def generator(
        self,
        images: paddle.Tensor,
        reconstruction: paddle.Tensor,
        quantized: Quantized,
        last_layer: paddle.Tensor,
        step: int,
    ) -> tuple[paddle.Tensor, Logs]:
        """The tokenizer's loss, float32 [], and what to log, float32 [] each.

        L = L_rec + quantized.loss + λ · adversarial · L_GAN, with L_rec = l1 · mean|x - x̂| + l2 · mean(x - x̂)² +
        perceptual · d(x, x̂), L_GAN = -mean D(x̂) and λ = `adaptive_weight` at `last_layer`. Images and
        reconstruction are float32 [B, 3, H, W] in [-1, 1]. Its backward leaves no gradient in the discriminator.
        The logs also hold PSNR and, in eval mode only because it takes time, SSIM.
        """
        config, logs = self.config, {}
        loss = paddle.zeros([])
        if config.l1:
            logs["l1"] = F.l1_loss(reconstruction, images)
            loss = loss + config.l1 * logs["l1"]
        if config.l2:
            logs["l2"] = F.mse_loss(reconstruction, images)
            loss = loss + config.l2 * logs["l2"]
        if self.perceptual is not None:
            logs["perceptual"] = self.perceptual(reconstruction, images).mean()
            loss = loss + config.perceptual * logs["perceptual"]
        if self.discriminates(step):
            with _frozen(self.patch_gan):
                logs["generator"] = -self.patch_gan(reconstruction).mean()
            logs["lambda"] = adaptive_weight(loss, logs["generator"], last_layer)
            loss = loss + logs["lambda"] * config.adversarial * logs["generator"]
        logs["codebook"] = quantized.loss
        loss = loss + quantized.loss
        logs |= {"perplexity": quantized.perplexity, "used": quantized.used, "psnr": psnr(images, reconstruction)}
        if not self.training:
            logs["ssim"] = ssim(images, reconstruction)
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in logs.items()}

    def discriminator(self, images: paddle.Tensor, reconstruction: paddle.Tensor, step: int) -> tuple[paddle.Tensor, Logs]:
        """The discriminator's hinge loss, float32 [], and what to log.

        ½ · (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))); no gradient reaches the tokenizer. Where not
        `discriminates(step)`, a 0 without gradient and nothing to log.
        """
        if not self.discriminates(step):
            return paddle.zeros([]), {}
        real, fake = self.patch_gan(images), self.patch_gan(reconstruction.detach())
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        logs = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss, {name: value.detach() for name, value in logs.items()}


def perceptual_distance(config: VQGANLossConfig) -> nn.Layer:
    """d: two batches of images float32 [B, 3, H, W] in [-1, 1] -> distances float32 [B]; its weights are constants."""
    if config.perceptual_network == "vgg16":
        from ppvilg.vqgan.lpips import LPIPS

        return LPIPS(config.perceptual_weights)
    from ppvilg.vqgan.efficientnet_distance import EfficientNetDistance

    return EfficientNetDistance()


def adaptive_weight(
    reconstruction_loss: paddle.Tensor, adversarial_loss: paddle.Tensor, last_layer: paddle.Tensor
) -> paddle.Tensor:
    """λ = ||∇ L_rec|| / (||∇ L_GAN|| + 1e-4) at the decoder's last layer, within [0, 1e4] (VQGAN, equation 7).

    float32 [], without gradient; 0 where the losses have no gradient (evaluation).
    """
    if reconstruction_loss.stop_gradient or adversarial_loss.stop_gradient:
        return paddle.zeros([])
    wanted, against = (
        paddle.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction_loss, adversarial_loss)
    )
    return paddle.clip(wanted / (against + 1e-4), 0, 1e4).detach()


@contextmanager
def _frozen(layer: nn.Layer) -> Iterator[None]:
    """Within, the layer's parameters are constants to autograd."""
    trainable = [p for p in layer.parameters() if not p.stop_gradient]
    for parameter in trainable:
        parameter.stop_gradient = True
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.stop_gradient = False
