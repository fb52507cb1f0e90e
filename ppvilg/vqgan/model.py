"""The image tokenizer: images <-> grids of tokens."""

import paddle
from paddle import nn

from ppvilg.config import VQGANConfig
from ppvilg.vqgan.layers import Conv2D
from ppvilg.vqgan.network import Decoder, Encoder
from ppvilg.vqgan.quantizer import Quantized, build_codebook


class VQGAN(nn.Layer):
    """VQGAN (Esser et al. 2021) with f = `config.downsampling` and K = `config.codebook.size` codes.

    `image_size` (pixels per side) decides which resolutions have attention; images of any multiple of f then serve.
    """

    def __init__(self, config: VQGANConfig, image_size: int):
        super().__init__()
        self.config, self.image_size = config, image_size
        self.encoder = Encoder(config, image_size)
        self.decoder = Decoder(config, image_size)
        self.quantize = build_codebook(config.codebook)
        self.quant_conv = Conv2D(config.latent_channels, config.codebook.dim, 1)
        self.post_quant_conv = Conv2D(config.codebook.dim, config.latent_channels, 1)

    def forward(self, images: paddle.Tensor) -> tuple[paddle.Tensor, Quantized]:
        """Images float32 [B, 3, H, W] in [-1, 1] -> (reconstruction, not clipped, of that shape; the codes).

        Raises `ValueError` as `encode` does.
        """
        quantized = self.quantize(self._latents(images))
        return self.decode_latents(quantized.latents), quantized

    @paddle.no_grad()
    def encode(self, images: paddle.Tensor) -> paddle.Tensor:
        """Images float32 [B, 3, H, W] in [-1, 1] -> ids int64 [B, H/f, W/f] in 0 .. K-1; no gradient.

        Raises `ValueError` if the images have another shape or H, W are no multiples of f.
        """
        return self.quantize.encode(self._latents(images))

    def decode(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [B, h, w] -> images float32 [B, 3, h·f, w·f], about [-1, 1] but not clipped."""
        return self.decode_latents(self.quantize.embed(ids))

    def decode_latents(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Codes, or predictions of them, float32 [B, codebook.dim, h, w] -> images float32 [B, 3, h·f, w·f]."""
        return self.decoder(self.post_quant_conv(latents))

    @property
    def last_layer(self) -> paddle.Tensor:
        """The decoder's last weight, where the adaptive weight of the adversarial loss is measured."""
        return self.decoder.conv_out.weight

    def _latents(self, images: paddle.Tensor) -> paddle.Tensor:
        """Latents before quantization, float32 [B, codebook.dim, h, w]."""
        f, shape = self.config.downsampling, images.shape
        if len(shape) != 4 or shape[1] != 3 or shape[2] % f or shape[3] % f:
            raise ValueError(f"expected images [B, 3, H, W] with H and W multiples of f = {f}, got {list(shape)}")
        return self.quant_conv(self.encoder(images))
