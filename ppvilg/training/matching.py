"""Training the matching model: pictures and captions that belong together, against all others of the batch."""

from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import DualEncoderExperiment
from ppvilg.data import splits
from ppvilg.data.loader import canonical_caption, draw_caption, own_places, sample_indices
from ppvilg.data.sources import Source
from ppvilg.matching import Matching
from ppvilg.parallel.topology import Topology
from ppvilg.pictures import to_model
from ppvilg.text import cut, load_text_tokenizer, pad_batch
from ppvilg.training.logs import Preview
from ppvilg.training.loop import Scalars, means

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Pictures uint8 [B, H, W, 3], text int64 [B, m], its validity bool [B, m]."""


class MatchingTask:
    """Pairs of pictures and captions; the negatives of a pair are all other pairs of a micro-batch, in all processes."""

    unit = "pairs"

    def __init__(self, config: DualEncoderExperiment, topology: Topology | None = None):
        self.config = config
        self.topology = topology or Topology()
        self.text = load_text_tokenizer(config.text)
        self.training, self.validation = splits.open_splits(config.data, config.train.seed)
        self.model = Matching(config)
        self.modules = {"model": self.model}

    def prepare(self, run: Path) -> None:
        """Say what the data left out, and put the vocabulary beside the checkpoints."""
        splits.write_reports(run, self.training, self.validation)
        (run / "text").mkdir(exist_ok=True)
        self.text.save(run / "text")

    def batch(self, first: int, part: int) -> Batch:
        """This process's share of a micro-batch, each picture with one of its captions drawn."""
        settings = self.config.train
        places = own_places(first, part, settings.batch_size // settings.gradient_accumulation_steps, self.topology)
        chosen = sample_indices(len(self.training), settings.seed, places)
        records, languages = self.training.records, self.config.data.languages
        captions = [draw_caption(records[i].captions, languages, settings.seed, e, i) for e, i in chosen]
        return self._batch(self.training, [i for _, i in chosen], captions)

    def units(self, batch: Batch) -> int:
        """Pairs of a micro-batch."""
        return len(batch[0])

    def gradients(self, batches: list[Batch], step: int, scale: float) -> tuple[set[str], Scalars]:
        """Backward of each micro-batch's loss."""
        scalars = []
        for batch in batches:
            values = self.model.loss(*_tensors(batch), self.topology)
            (values["loss"] * (scale / len(batches))).backward()
            scalars.append({name: value.detach() for name, value in values.items()})
        return {"model"}, means(scalars)

    def validate(self, step: int) -> dict[str, float]:
        """Loss and shares found over validation pairs, in batches of the training's size (a smaller rest is left out)."""
        count = min(self.config.train.validation_samples, len(self.validation))
        chosen, size = splits.evenly_spaced(len(self.validation), count), min(self.config.micro_batch, count)
        results = []
        for first in range(0, count - size + 1, size):
            part = chosen[first : first + size]
            languages = self.config.data.languages
            captions = [canonical_caption(self.validation.records[i].captions, languages, i) for i in part]
            results.append(self.model.loss(*_tensors(self._batch(self.validation, part, captions))))
        return {name: float(np.mean([result[name].item() for result in results])) for name in results[0]}

    def preview(self) -> Preview:
        """Nothing to look at."""
        return Preview()

    def _batch(self, source: Source, chosen: list[int], captions: list[str]) -> Batch:
        ids = [cut(self.text.encode(caption), self.config.text.max_length) for caption in captions]
        return splits.load_images(source, chosen, self.config.data.image_size), *pad_batch(ids, self.text.pad)


def _tensors(batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    pictures, text, valid = batch
    return paddle.to_tensor(to_model(pictures)), paddle.to_tensor(text), paddle.to_tensor(valid)
