"""The codebook: latents -> the nearest of K learned codes, and three ways to learn them."""

from typing import NamedTuple

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import nn

from ppvilg.config import CodebookConfig
from ppvilg.vqgan.layers import Conv2D

_EPSILON = 1e-5  # Laplace smoothing of the code counts (VQ-VAE, appendix A.1)


class Quantized(NamedTuple):
    """What a codebook made of a batch of latents. A tuple, because DataParallel finds outputs in tuples only."""

    latents: paddle.Tensor
    """float32 [B, dim, h, w]: the chosen codes; gradients pass straight through to the encoder."""
    ids: paddle.Tensor
    """int64 [B, h, w]: the chosen codes' numbers."""
    loss: paddle.Tensor
    """float32 []: what the codebook adds to the training loss."""
    perplexity: paddle.Tensor
    """float32 []: exp of the entropy of code use in this batch, 1 .. K."""
    used: paddle.Tensor
    """float32 []: share of the codes used in this batch, 0 .. 1."""


def build_codebook(config: CodebookConfig) -> "NearestCodebook | GumbelCodebook":
    """The codebook a config asks for."""
    return GumbelCodebook(config) if config.learning == "gumbel" else NearestCodebook(config)


class NearestCodebook(nn.Layer):
    """Chooses the nearest code (VQ-VAE, van den Oord et al. 2017), learned by gradient or by moving averages.

    With `normalize`, latents and codes are l2-normalised first (ViT-VQGAN, Yu et al. 2022, section 3.2). The loss is
    the commitment term of VQ-VAE's equation 3, plus its codebook term where codes learn by gradient; both are means
    over all elements, as in VQGAN. In training mode, codes that no latent of the last `revive_after` batches chose
    are replaced by random latents of the batch; the counters are buffers, saved with the state_dict.
    """

    def __init__(self, config: CodebookConfig):
        super().__init__()
        self.config = config
        size, dim = config.size, config.dim
        start = nn.initializer.Normal() if config.normalize else nn.initializer.Uniform(-1 / size, 1 / size)
        self.embedding = nn.Embedding(size, dim, weight_attr=paddle.ParamAttr(initializer=start))
        if config.learning == "ema":
            self.embedding.weight.stop_gradient = True
            self.register_buffer("ema_counts", paddle.ones([size]))
            self.register_buffer("ema_sums", self.embedding.weight.detach().clone())
        if config.revive_after:
            self.register_buffer("idle", paddle.zeros([size], "int64"))

    def forward(self, latents: paddle.Tensor) -> Quantized:
        """Latents float32 [B, dim, h, w] -> `Quantized`."""
        z = self._normalize(_to_rows(latents))
        ids = self._nearest(z)
        codes = self._codes(ids)
        loss = self.config.commitment * F.mse_loss(z, codes.detach())
        if self.config.learning == "gradient":
            loss = loss + F.mse_loss(codes, z.detach())
        counts = _count(ids, self.config.size)
        if self.training:
            self._learn(z.detach(), ids, counts)
        rows = z + (codes - z).detach()
        perplexity, used = _usage(counts)
        return Quantized(_to_grid(rows, latents.shape), _to_id_grid(ids, latents.shape), loss, perplexity, used)

    def encode(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Latents [B, dim, h, w] -> ids int64 [B, h, w]."""
        return _to_id_grid(self._nearest(self._normalize(_to_rows(latents))), latents.shape)

    def embed(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [B, h, w] -> codes float32 [B, dim, h, w]."""
        return self._codes(ids).transpose([0, 3, 1, 2])

    def _normalize(self, rows: paddle.Tensor) -> paddle.Tensor:
        return F.normalize(rows, axis=-1) if self.config.normalize else rows

    def _codes(self, ids: paddle.Tensor) -> paddle.Tensor:
        return self._normalize(self.embedding(ids))

    @paddle.no_grad()
    def _nearest(self, z: paddle.Tensor) -> paddle.Tensor:
        """argmin over e of ||z - e||² = ||z||² - 2 z·e + ||e||², without ||z||², which is the same for all codes."""
        codes = self._normalize(self.embedding.weight)
        return paddle.argmin((codes * codes).sum(1) - 2 * paddle.matmul(z, codes, transpose_y=True), axis=1)

    @paddle.no_grad()
    def _learn(self, z: paddle.Tensor, ids: paddle.Tensor, counts: paddle.Tensor) -> None:
        counts = _sum_over_ranks(counts)
        if self.config.learning == "ema":
            self._average(z, ids, counts)
        if self.config.revive_after:
            self._revive(z, counts)

    def _average(self, z: paddle.Tensor, ids: paddle.Tensor, counts: paddle.Tensor) -> None:
        """Codes = moving sums of their latents over moving counts with Laplace smoothing (VQ-VAE, appendix A.1)."""
        decay, size = self.config.ema_decay, self.config.size
        sums = _sum_over_ranks(paddle.index_add(paddle.zeros([size, self.config.dim]), ids, 0, z))
        self.ema_counts.set_value(decay * self.ema_counts + (1 - decay) * counts)
        self.ema_sums.set_value(decay * self.ema_sums + (1 - decay) * sums)
        total = self.ema_counts.sum()
        smoothed = (self.ema_counts + _EPSILON) / (total + size * _EPSILON) * total
        self.embedding.weight.set_value(self.ema_sums / smoothed.unsqueeze(1))

    def _revive(self, z: paddle.Tensor, counts: paddle.Tensor) -> None:
        """Count the steps each code went unused and replace those that reach `revive_after`."""
        idle = paddle.where(counts > 0, paddle.zeros_like(self.idle), self.idle + 1)
        dead = idle >= self.config.revive_after
        # Latents are drawn for every code, dead or not, so that nothing here waits for the device.
        picks = paddle.gather(z, paddle.randint(0, z.shape[0], [self.config.size]))
        if dist.get_world_size() > 1:
            dist.broadcast(picks, src=0)
        dead_rows = dead.unsqueeze(1)
        self.idle.set_value(paddle.where(dead, paddle.zeros_like(idle), idle))
        self.embedding.weight.set_value(paddle.where(dead_rows, picks, self.embedding.weight))
        if self.config.learning == "ema":
            self.ema_counts.set_value(paddle.where(dead, paddle.ones_like(self.ema_counts), self.ema_counts))
            self.ema_sums.set_value(paddle.where(dead_rows, picks, self.ema_sums))


class GumbelCodebook(nn.Layer):
    """Samples codes with the Gumbel-softmax (the dVAE of DALL·E; Jang et al. 2017), in taming's form.

    A 1×1 convolution gives each position a logit per code; in training the hard sample is used forwards and the
    softmax at `temperature` backwards, in evaluation the largest logit. The loss is `kl_weight` times
    KL(softmax(logits) || uniform), summed over codes, averaged over positions.
    """

    def __init__(self, config: CodebookConfig):
        super().__init__()
        self.config = config
        self.proj = Conv2D(config.dim, config.size, 1)
        self.embedding = nn.Embedding(config.size, config.dim, weight_attr=nn.initializer.Normal())

    def forward(self, latents: paddle.Tensor) -> Quantized:
        """Latents float32 [B, dim, h, w] -> `Quantized`."""
        logits = _to_rows(self.proj(latents))
        if self.training:
            # Not hard=True: paddle 3.3's gradient of it is zero.
            soft = F.gumbel_softmax(logits, self.config.temperature)
            ids = paddle.argmax(soft, axis=1)
            choice = soft + (F.one_hot(ids, self.config.size) - soft).detach()
            rows = paddle.matmul(choice, self.embedding.weight)
        else:
            ids = paddle.argmax(logits, axis=1)
            rows = self.embedding(ids)
        share = F.softmax(logits)
        kl = (share * paddle.log(share * self.config.size + 1e-10)).sum(1).mean()
        perplexity, used = _usage(_count(ids, self.config.size))
        loss = self.config.kl_weight * kl
        return Quantized(_to_grid(rows, latents.shape), _to_id_grid(ids, latents.shape), loss, perplexity, used)

    def encode(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Latents [B, dim, h, w] -> ids int64 [B, h, w]: the largest logit, no sampling."""
        return paddle.argmax(self.proj(latents), axis=1)

    def embed(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [B, h, w] -> codes float32 [B, dim, h, w]."""
        return self.embedding(ids).transpose([0, 3, 1, 2])


def _to_rows(grid: paddle.Tensor) -> paddle.Tensor:
    """[B, C, h, w] -> [B·h·w, C]."""
    return grid.transpose([0, 2, 3, 1]).reshape([-1, grid.shape[1]])


def _to_grid(rows: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
    """[B·h·w, C] -> [B, C, h, w]; `shape` is any [B, _, h, w]."""
    batch, _, height, width = shape
    return rows.reshape([batch, height, width, -1]).transpose([0, 3, 1, 2])


def _to_id_grid(ids: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
    batch, _, height, width = shape
    return ids.reshape([batch, height, width])


def _count(ids: paddle.Tensor, size: int) -> paddle.Tensor:
    """How often each code was chosen, float32 [size]."""
    return paddle.bincount(ids, minlength=size).astype("float32")


def _usage(counts: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Perplexity and share of used codes, float32 []."""
    share = counts / counts.sum()
    return paddle.exp(-(share * paddle.log(share + 1e-10)).sum()), (counts > 0).astype("float32").mean()


def _sum_over_ranks(x: paddle.Tensor) -> paddle.Tensor:
    # Every rank must move its copy of the codebook alike.
    if dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x
