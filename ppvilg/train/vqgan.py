"""Training the image tokenizer."""

from collections.abc import Iterator

import numpy as np
import paddle

from ppvilg.config import VQGANExperiment
from ppvilg.data.sources import Source
from ppvilg.data.splits import evenly_spaced, load_images
from ppvilg.pictures import from_model, plain_grid, to_model
from ppvilg.train.logs import Preview
from ppvilg.train.task import Losses, Task
from ppvilg.vqgan.loss import VQGANLoss
from ppvilg.vqgan.model import VQGAN

_ACROSS = 16  # pictures of a preview side by side


class VQGANTask(Task):
    """Images -> reconstructions; the discriminator is a second module with an optimizer of its own."""

    unit = "images"

    def __init__(self, config: VQGANExperiment):
        super().__init__(config)
        paddle.seed(config.train.seed)
        self.model = VQGAN(config.vqgan, config.data.image_size)
        self.objective = VQGANLoss(config.vqgan.loss)
        self.modules = {"model": self.model}
        if self.objective.patch_gan is not None:
            self.modules["discriminator"] = self.objective.patch_gan

    def batch(self, positions: range) -> np.ndarray:
        """Images uint8 [B, H, W, 3]."""
        chosen = [i for _, i in self.stream.places(positions)]
        return load_images(self.training, chosen, self.config.data.image_size)

    def units(self, batch: np.ndarray) -> int:
        """Images of a micro-batch."""
        return len(batch)

    def loss(self, model: VQGAN, batch: np.ndarray, step: int) -> Losses:
        """The tokenizer's loss plus, once it has started, the discriminator's; neither has gradients in the other's weights."""
        images = paddle.to_tensor(to_model(batch))
        reconstruction, quantized = model(images)
        loss, losses = self.objective.generator(images, reconstruction, quantized, self.model.last_layer, step)
        if self.objective.discriminates(step):
            discriminator, values = self.objective.discriminator(images, reconstruction.detach(), step)
            loss, losses = loss + discriminator, losses | values
        return losses | {"loss": loss}

    def validate(self, model: VQGAN, step: int) -> dict[str, float]:
        """Means over validation images, and `codes_used`: the share of the codebook that they and as many training images as
        `train.validation_samples` use together."""
        sums: dict[str, list[float]] = {}
        used: set[int] = set()
        self.objective.eval()
        for images in self._batches(self.validation):
            reconstruction, quantized = model(images)
            _, metrics = self.objective.generator(images, reconstruction, quantized, self.model.last_layer, step)
            used.update(quantized.ids.flatten().tolist())
            for name, value in metrics.items():
                sums.setdefault(name, []).append(value.item())
        for images in self._batches(self.training):
            used.update(self.model.encode(images).flatten().tolist())
        self.objective.train()
        means = {name: float(np.mean(values)) for name, values in sums.items()}
        return means | {"codes_used": len(used) / self.config.vqgan.codebook.size}

    def preview(self) -> Preview:
        """Validation images, each beside its reconstruction."""
        samples = evenly_spaced(len(self.validation), self.config.train.preview_samples)
        originals = load_images(self.validation, samples, self.config.data.image_size)
        reconstruction, _ = self.model(paddle.to_tensor(to_model(originals)))
        made, rows = from_model(reconstruction.numpy()), []
        for first in range(0, len(originals), _ACROSS):
            rows += [list(originals[first : first + _ACROSS]), list(made[first : first + _ACROSS])]
        return Preview({"reconstructions": plain_grid(rows)})

    def _batches(self, source: Source) -> Iterator[paddle.Tensor]:
        """Images spread over a source, in batches of one size, so that means over batches are means over images."""
        chosen = evenly_spaced(len(source), self.config.train.validation_samples)
        size = min(len(chosen), self.config.train.batch_size)
        for first in range(0, len(chosen) - size + 1, size):
            images = load_images(source, chosen[first : first + size], self.config.data.image_size)
            yield paddle.to_tensor(to_model(images))
