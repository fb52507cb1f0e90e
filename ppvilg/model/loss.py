"""The training loss of both directions, and how often the model is right."""

from dataclasses import dataclass

import paddle
import paddle.distributed as dist
from paddle.nn import functional as F

from ppvilg import ops
from ppvilg.model.batch import Batch
from ppvilg.model.vilg import Outputs


@dataclass(frozen=True)
class ReconstructionWeights:
    """Weights of the pixel losses of end-to-end training (paper 3.1.3)."""

    l1: float = 1.0
    l2: float = 0.0


@dataclass(frozen=True)
class LossWeights:
    """What the losses are multiplied by before they are added up."""

    txt2img: float = 1.0
    img2txt: float = 1.0


def vilg_loss(
    outputs: Outputs,
    batch: Batch,
    reconstruction: ReconstructionWeights | None = None,
    mp_group=None,
    weights: LossWeights = LossWeights(),
) -> dict[str, paddle.Tensor]:
    """The directions of each pair that the outputs have (paper 3.1.2): L = L_txt2img + L_img2txt, sums of target-side -log p,
    each times its weight.

    Returns scalars: `loss`, the one to minimise, L per pair divided by n, plus the weighted pixel losses where the outputs have
    pixels; `txt2img` and `img2txt`, nats per target token; `l1` and `l2`, means over pixel values.
    """
    losses, weighted = {}, []
    if outputs.image_logits is not None:
        image_sum = token_losses(outputs.image_logits, batch.image, mp_group).sum()
        losses["txt2img"] = image_sum / batch.image.size
        weighted.append(weights.txt2img * image_sum)
    if outputs.text_logits is not None:
        nats = token_losses(outputs.text_logits, batch.text[:, 1:], mp_group)
        real = batch.text_mask[:, 1:].astype(nats.dtype)
        text_sum = (nats * real).sum()
        losses["img2txt"] = text_sum / real.sum()
        weighted.append(weights.img2txt * text_sum)
    losses = {"loss": sum(weighted) / batch.image.size} | losses
    if reconstruction is not None:
        pixels = ops.at_least_float32(outputs.pixels)
        real = batch.pixel_values.astype(pixels.dtype)
        l1, l2 = F.l1_loss(pixels, real), F.mse_loss(pixels, real)
        losses["loss"] = losses["loss"] + reconstruction.l1 * l1 + reconstruction.l2 * l2
        losses |= {"l1": l1, "l2": l2}
    return losses


def vilg_accuracy(outputs: Outputs, batch: Batch, mp_group=None) -> dict[str, paddle.Tensor]:
    """Top-1 accuracy on the target tokens: scalars `txt2img_accuracy` and `img2txt_accuracy`, where the outputs have them."""
    found = {}
    if outputs.image_logits is not None:
        found["txt2img_accuracy"] = token_hits(outputs.image_logits, batch.image, mp_group).mean()
    if outputs.text_logits is not None:
        hits = token_hits(outputs.text_logits, batch.text[:, 1:], mp_group)
        real = batch.text_mask[:, 1:].astype(hits.dtype)
        found["img2txt_accuracy"] = (hits * real).sum() / real.sum()
    return found


def token_losses(logits: paddle.Tensor, labels: paddle.Tensor, mp_group=None) -> paddle.Tensor:
    """-log p of each label int64 [B, L], float [B, L], for logits [B, L, V] or the tensor parallel process's share of V."""
    if mp_group is None or mp_group.nranks == 1:
        return ops.cross_entropy(logits, labels)
    from paddle.distributed.fleet.meta_parallel import ParallelCrossEntropy

    return ParallelCrossEntropy(mp_group=mp_group)(logits, labels.unsqueeze(-1)).squeeze(-1)


@paddle.no_grad()
def token_hits(logits: paddle.Tensor, labels: paddle.Tensor, mp_group=None) -> paddle.Tensor:
    """1 where the label is the likeliest token, else 0: float [B, L]; arguments as of `token_losses`."""
    if mp_group is not None and mp_group.nranks > 1:
        parts: list[paddle.Tensor] = []
        dist.all_gather(parts, logits.contiguous(), group=mp_group)
        logits = paddle.concat(parts, axis=-1)
    return (logits.argmax(-1) == labels).astype("float32")
