"""From the transformer's hidden states straight to a picture (paper 3.1.3)."""

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg.config import ViLGExperiment
from ppvilg.transformer.layers import Linear
from ppvilg.vqgan.layers import Conv2D
from ppvilg.vqgan.model import VQGAN
from ppvilg.vqgan.network import Decoder


class Reconstructor(nn.Layer):
    """Hidden states of the image slots -> a non-linear map to latents -> the image tokenizer's decoder.

    The state that stands for token k is that of slot k, which has read token k: the state that predicts token k cannot know
    which token was drawn, so its picture would be a blur of all that could have been. The ids are not looked up in the
    codebook, so gradients of the picture reach the transformer.
    """

    def __init__(self, config: ViLGExperiment):
        super().__init__()
        hidden, dim = config.transformer.hidden, config.vqgan.codebook.dim
        self.grid = config.grid
        self.map_in = Linear(hidden, hidden)
        self.map_out = Linear(hidden, dim)
        self.post_quant_conv = Conv2D(dim, config.vqgan.latent_channels, 1)
        self.decoder = Decoder(config.vqgan, config.data.image_size)

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, n, hidden] -> pictures float32 [B, 3, H, W], about [-1, 1] but not clipped."""
        latents = self.map_out(F.gelu(self.map_in(hidden.flatten(0, 1)), approximate=True))
        latents = latents.reshape([-1, *self.grid, latents.shape[1]]).transpose([0, 3, 1, 2])
        return self.decoder(self.post_quant_conv(latents))

    def start_from(self, vqgan: VQGAN) -> None:
        """Take over the weights of a trained tokenizer's decoder."""
        self.post_quant_conv.set_state_dict(vqgan.post_quant_conv.state_dict())
        self.decoder.set_state_dict(vqgan.decoder.state_dict())
