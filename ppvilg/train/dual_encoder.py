"""Training the dual encoder: images and captions that belong together, against all others of the batch."""

import numpy as np
import paddle

from ppvilg.config import DualEncoderExperiment
from ppvilg.data.loader import canonical_caption, draw_caption
from ppvilg.data.sources import Source
from ppvilg.data.splits import evenly_spaced, load_images
from ppvilg.model.dual_encoder import DualEncoder, contrastive_loss, dual_encoder_sizes
from ppvilg.model.init import init_weights
from ppvilg.pictures import to_model
from ppvilg.text import encode_cut, load_text_tokenizer, pad_batch
from ppvilg.train.context import ParallelContext
from ppvilg.train.shards import named_parameters
from ppvilg.train.task import Losses, Task

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images uint8 [B, H, W, 3], text int64 [B, m], text mask bool [B, m]."""


class DualEncoderTask(Task):
    """Pairs of images and captions; the negatives of a pair are all other pairs of a micro-batch, in all processes."""

    unit = "pairs"

    def __init__(self, config: DualEncoderExperiment, context: ParallelContext):
        self.context = context
        self.text_tokenizer = load_text_tokenizer(config.text)
        super().__init__(config)
        self.model = DualEncoder(dual_encoder_sizes(config))
        parameters = named_parameters(self.model)
        text = {name: p for name, p in parameters.items() if name.startswith("text_encoder.")}
        image = {name: p for name, p in parameters.items() if name not in text}
        init_weights(image, config.train.seed, config.dual_encoder.image_layers)
        init_weights(text, config.train.seed, config.dual_encoder.text_layers)
        self.modules = {"model": self.model}

    def batch(self, positions: range) -> Batch:
        """Each image with one of its captions drawn."""
        seed, languages = self.config.train.seed, self.config.data.languages
        chosen = self.stream.places(positions)
        captions = [draw_caption(self.training.records[i].captions, languages, seed, epoch, i) for epoch, i in chosen]
        return self._batch(self.training, [i for _, i in chosen], captions)

    def units(self, batch: Batch) -> int:
        """Pairs of a micro-batch."""
        return len(batch[0])

    def loss(self, model: DualEncoder, batch: Batch, step: int) -> Losses:
        """Contrastive loss against the pairs of all data ranks."""
        image, text = self._embed(batch)
        all_images, all_texts = self.context.all_gather(image), self.context.all_gather(text)
        return contrastive_loss(
            image, text, self.model.scale(), all_images, all_texts, first=self.context.data_rank * len(image)
        )

    def validate(self, model: DualEncoder, step: int) -> dict[str, float]:
        """Loss and shares found over validation pairs, in batches as large as in training (a smaller rest is left out)."""
        count = min(self.config.train.validation_samples, len(self.validation))
        together = self.config.train.batch_size // self.config.train.gradient_accumulation_steps
        chosen, size = evenly_spaced(len(self.validation), count), min(together, count)
        results = []
        for first in range(0, count - size + 1, size):
            part = chosen[first : first + size]
            languages = self.config.data.languages
            captions = [canonical_caption(self.validation.records[i].captions, languages, i) for i in part]
            image, text = self._embed(self._batch(self.validation, part, captions))
            results.append(contrastive_loss(image, text, self.model.scale(), image, text))
        return {name: float(np.mean([result[name].item() for result in results])) for name in results[0]}

    def _batch(self, source: Source, chosen: list[int], captions: list[str]) -> Batch:
        ids = [encode_cut(self.text_tokenizer, caption, self.config.text.max_length) for caption in captions]
        return load_images(source, chosen, self.config.data.image_size), *pad_batch(ids, self.text_tokenizer.pad)

    def _embed(self, batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor]:
        images, text, text_mask = batch
        image = self.model.embed_image(paddle.to_tensor(to_model(images)))
        return image, self.model.embed_text(paddle.to_tensor(text), paddle.to_tensor(text_mask))
