"""VQGAN's encoder and decoder (Esser et al. 2021, appendix A; layer for layer those of taming-transformers).

Attribute names follow taming-transformers, so a checkpoint converts without renaming a single weight in here.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

from ppvilg.config import VQGANConfig
from ppvilg.vqgan.layers import Conv2D, UpsampleConv2D, group_norm


class ResBlock(nn.Layer):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1×1 convolution of x where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = Conv2D(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2D(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = Conv2D(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Layer):
    """x + single-head self-attention over all pixels of norm(x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = Conv2D(channels, channels, 1)
        self.k = Conv2D(channels, channels, 1)
        self.v = Conv2D(channels, channels, 1)
        self.proj_out = Conv2D(channels, channels, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        h = self.norm(x)
        q, k, v = self.q(h).flatten(2), self.k(h).flatten(2), self.v(h).flatten(2)  # [B, C, HW]
        scores = paddle.matmul(q, k, transpose_x=True) * q.shape[1] ** -0.5  # [B, HW, HW]
        h = paddle.matmul(v, F.softmax(scores), transpose_y=True)
        return x + self.proj_out(h.reshape(x.shape))


class Middle(nn.Layer):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResBlock(channels, channels, dropout)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Stage(nn.Layer):
    """The blocks of one resolution, each followed by attention if `attend`; then half or double size, but for the innermost."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attend: bool, dropout: float):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.LayerList([ResBlock(widths[i], widths[i + 1], dropout) for i in range(blocks)])
        self.attn = nn.LayerList([AttentionBlock(out_channels) for _ in range(blocks if attend else 0)])
        self.downsample: nn.Layer | None = None
        self.upsample: nn.Layer | None = None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W']; H' is H/2, 2H or H."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Encoder(nn.Layer):
    """Images -> latents, f = 2^(number of resolutions - 1) · patch_size."""

    def __init__(self, config: VQGANConfig, image_size: int):
        super().__init__()
        self.patch_size = config.patch_size
        widths, attends = _plan(config, image_size)
        last = len(widths) - 1
        self.conv_in = Conv2D(3 * config.patch_size**2, config.channels, 3, padding=1)
        self.down = nn.LayerList()
        channels = config.channels
        for i, width in enumerate(widths):
            stage = Stage(channels, width, config.res_blocks, attends[i], config.dropout)
            if i != last:
                # Padded at the right and the bottom only.
                stage.downsample = nn.Sequential(("conv", Conv2D(width, width, 3, stride=2, padding=[0, 1, 0, 1])))
            self.down.append(stage)
            channels = width
        self.mid = Middle(channels, config.dropout)
        self.norm_out = group_norm(channels)
        self.conv_out = Conv2D(channels, config.latent_channels, 3, padding=1)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, 3, H, W] -> float32 [B, latent_channels, H/f, W/f]."""
        x = images if self.patch_size == 1 else F.pixel_unshuffle(images, self.patch_size)
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Layer):
    """Latents -> images, the encoder's mirror image with one residual block more per resolution."""

    def __init__(self, config: VQGANConfig, image_size: int):
        super().__init__()
        self.patch_size = config.patch_size
        widths, attends = _plan(config, image_size)
        channels = widths[-1]
        self.conv_in = Conv2D(config.latent_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config.dropout)
        stages = [None] * len(widths)  # numbered by resolution as in the encoder: 0 is the largest and runs last
        for i in reversed(range(len(widths))):
            stages[i] = Stage(channels, widths[i], config.res_blocks + 1, attends[i], config.dropout)
            if i != 0:
                stages[i].upsample = nn.Sequential(("conv", UpsampleConv2D(widths[i], widths[i])))
            channels = widths[i]
        self.up = nn.LayerList(stages)
        self.norm_out = group_norm(channels)
        self.conv_out = Conv2D(channels, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, latent_channels, h, w] -> float32 [B, 3, h·f, w·f], not clipped."""
        x = self.mid(self.conv_in(latents))
        for stage in reversed(list(self.up)):
            x = stage(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x if self.patch_size == 1 else F.pixel_shuffle(x, self.patch_size)


def _plan(config: VQGANConfig, image_size: int) -> tuple[list[int], list[bool]]:
    """For each resolution, largest first: its channels, and whether its residual blocks are followed by attention."""
    widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
    sides = [image_size // config.patch_size // 2**i for i in range(len(widths))]
    return widths, [side in config.attention_resolutions for side in sides]
