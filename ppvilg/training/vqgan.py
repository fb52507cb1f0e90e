"""Training the image tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import VQGANExperiment
from ppvilg.data import splits
from ppvilg.data.loader import own_places, sample_indices
from ppvilg.data.sources import Source
from ppvilg.parallel.topology import Topology
from ppvilg.pictures import from_model, plain_grid, to_model
from ppvilg.training.logs import Preview
from ppvilg.training.loop import Scalars, means
from ppvilg.vqgan.loss import VQGANLoss
from ppvilg.vqgan.model import VQGAN


class VQGANTask:
    """Pictures -> reconstructions; the discriminator is a second module with an optimizer of its own."""

    unit = "pictures"

    def __init__(self, config: VQGANExperiment, topology: Topology | None = None):
        self.config = config
        self.topology = topology or Topology()
        self.training, self.validation = splits.open_splits(config.data, config.train.seed)
        self.model = VQGAN(config.vqgan, config.data.image_size)
        self.objective = VQGANLoss(config.vqgan.loss)
        self.modules = {"model": self.model}
        if self.objective.patch_gan is not None:
            self.modules["discriminator"] = self.objective.patch_gan

    def prepare(self, run: Path) -> None:
        """Say what the data left out."""
        splits.write_reports(run, self.training, self.validation)

    def batch(self, first: int, part: int) -> np.ndarray:
        """Pictures uint8 [B, H, W, 3]."""
        settings = self.config.train
        places = own_places(first, part, settings.batch_size // settings.gradient_accumulation_steps, self.topology)
        chosen = [i for _, i in sample_indices(len(self.training), settings.seed, places)]
        return splits.load_images(self.training, chosen, self.config.data.image_size)

    def units(self, batch: np.ndarray) -> int:
        """Pictures of a micro-batch."""
        return len(batch)

    def gradients(self, batches: list[np.ndarray], step: int, scale: float) -> tuple[set[str], Scalars]:
        """Backward of each micro-batch's losses one after the other, the discriminator's after the tokenizer's."""
        active, scalars = set(), []
        for batch in batches:
            scalars.append({})
            for name, loss, values in self._losses(batch, step):
                (loss * (scale / len(batches))).backward()
                active.add(name)
                scalars[-1] |= values
        return active, means(scalars)

    def _losses(self, batch: np.ndarray, step: int) -> Iterator[tuple[str, paddle.Tensor, Scalars]]:
        """The tokenizer's loss, then the discriminator's once it has started."""
        pictures = paddle.to_tensor(to_model(batch))
        reconstruction, quantized = self.model(pictures)
        yield ("model", *self.objective.generator(pictures, reconstruction, quantized, self.model.last_layer, step))
        if self.objective.discriminates(step):
            yield ("discriminator", *self.objective.discriminator(pictures, reconstruction.detach(), step))

    def validate(self, step: int) -> dict[str, float]:
        """Means over validation pictures, and `codes_used`: the share of the codebook that they and as many training
        pictures as `train.validation_samples` use together."""
        sums: dict[str, list[float]] = {}
        used: set[int] = set()
        self.objective.eval()
        for pictures in self._batches(self.validation):
            reconstruction, quantized = self.model(pictures)
            _, measures = self.objective.generator(pictures, reconstruction, quantized, self.model.last_layer, step)
            used.update(quantized.ids.flatten().tolist())
            for name, value in measures.items():
                sums.setdefault(name, []).append(value.item())
        for pictures in self._batches(self.training):
            used.update(self.model.encode(pictures).flatten().tolist())
        self.objective.train()
        means = {name: float(np.mean(values)) for name, values in sums.items()}
        return means | {"codes_used": len(used) / self.config.vqgan.codebook.size}

    def _batches(self, source: Source) -> Iterator[paddle.Tensor]:
        """Pictures spread over a source, in batches of one size, so that means over batches are means over pictures."""
        chosen = splits.evenly_spaced(len(source), self.config.train.validation_samples)
        size = min(len(chosen), self.config.train.batch_size)
        for first in range(0, len(chosen) - size + 1, size):
            batch = splits.load_images(source, chosen[first : first + size], self.config.data.image_size)
            yield paddle.to_tensor(to_model(batch))

    def preview(self) -> Preview:
        """Validation pictures, each beside its reconstruction."""
        samples = splits.evenly_spaced(len(self.validation), self.config.train.preview_samples)
        originals = splits.load_images(self.validation, samples, self.config.data.image_size)
        reconstruction, _ = self.model(paddle.to_tensor(to_model(originals)))
        return Preview({"reconstructions": plain_grid([list(originals), list(from_model(reconstruction.numpy()))])})
