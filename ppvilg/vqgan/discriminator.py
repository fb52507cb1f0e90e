"""The patch discriminator of VQGAN's adversarial loss."""

import paddle
from paddle import nn


class PatchDiscriminator(nn.Layer):
    """PatchGAN (Isola et al. 2017, section 3.2): says for each overlapping patch how real it looks.

    `layers` stride-2 convolutions of 4×4, doubling `channels` up to 8 times, then two with stride 1; batch
    normalisation and leaky ReLU between. With 3 layers a patch is 70×70 pixels.
    """

    def __init__(self, channels: int, layers: int):
        super().__init__()
        blocks = [nn.Conv2D(3, channels, 4, 2, 1, weight_attr=_normal(0.0)), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            wider = channels * min(2**i, 8)
            blocks += [
                # Without bias, because the normalisation that follows takes it away again.
                nn.Conv2D(width, wider, 4, 2 if i < layers else 1, 1, weight_attr=_normal(0.0), bias_attr=False),
                nn.BatchNorm2D(wider, weight_attr=_normal(1.0)),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        blocks.append(nn.Conv2D(width, 1, 4, 1, 1, weight_attr=_normal(0.0)))
        self.main = nn.Sequential(*blocks)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Images float32 [B, 3, H, W] in [-1, 1] -> logits float32 [B, 1, H/8 - 2, W/8 - 2] for 3 layers."""
        return self.main(images)


def _normal(mean: float) -> paddle.ParamAttr:
    return paddle.ParamAttr(initializer=nn.initializer.Normal(mean, 0.02))
