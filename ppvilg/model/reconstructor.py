"""From the transformer's hidden states straight to an image (paper 3.1.3)."""

import paddle
from paddle import nn

from ppvilg import ops
from ppvilg.config import VQGANConfig
from ppvilg.model.layers import Linear
from ppvilg.vqgan.layers import Conv2D
from ppvilg.vqgan.network import Decoder


class Reconstructor(nn.Layer):
    """Hidden states of the image slots -> a non-linear map to latents -> the image tokenizer's decoder.

    The state that stands for token k is that of slot k, which has read token k: the state that predicts token k cannot know
    which token was drawn, so its image would be a blur of all that could have been. The ids are not looked up in the codebook,
    so gradients of the image reach the transformer.
    """

    def __init__(self, hidden: int, grid: tuple[int, int], vqgan: VQGANConfig):
        super().__init__()
        dim = vqgan.codebook.dim
        self.grid = grid
        self.map_in = Linear(hidden, hidden)
        self.map_out = Linear(hidden, dim)
        self.post_quant_conv = Conv2D(dim, vqgan.latent_channels, 1)
        self.decoder = Decoder(vqgan, grid[0] * vqgan.downsampling)

    def forward(self, states: paddle.Tensor) -> paddle.Tensor:
        """Float [B, n, hidden] -> pixels float [B, 3, H, W], about [-1, 1] but not clipped."""
        latents = self.map_out(ops.gelu(self.map_in(states)))
        latents = latents.reshape([-1, *self.grid, latents.shape[-1]]).transpose([0, 3, 1, 2])
        return self.decoder(self.post_quant_conv(latents))
