"""Training the transformer over a frozen image tokenizer."""

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ppvilg.checkpoint import checksum, load_arrays, weights_file
from ppvilg.config import ViLGExperiment
from ppvilg.data.loader import canonical_caption, canonical_question, draw_caption, draw_question
from ppvilg.data.prepared import TokenTable
from ppvilg.data.records import Record
from ppvilg.data.sources import Source
from ppvilg.data.splits import evenly_spaced, load_images
from ppvilg.ernie import encoder_weights, ernie_embeddings
from ppvilg.folder import AdapterConfig, ImageTokenizerConfig, read_config
from ppvilg.generate.engine import generate_images, generate_texts
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Sampling
from ppvilg.lora import ADAPTER, adapter_config, save_adapter
from ppvilg.model.batch import Batch, pad_prompts
from ppvilg.model.config import trained_directions, untrained_parameters, vilg_config
from ppvilg.model.init import built_in, draw_weight, init_weights, set_weights
from ppvilg.model.lora import add_lora
from ppvilg.model.loss import LossWeights, ReconstructionWeights, vilg_accuracy, vilg_loss
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import Outputs, ViLG
from ppvilg.ops import from_numpy
from ppvilg.pictures import from_model, labelled_grid, to_model
from ppvilg.text import encode_cut, load_text_tokenizer, pad_batch
from ppvilg.train.context import ParallelContext
from ppvilg.train.fleet import DistributedModel, built_dtype
from ppvilg.train.frozen import check_frozen
from ppvilg.train.image_tokens import image_tokens
from ppvilg.train.logs import Preview
from ppvilg.train.pipe import ViLGPipe
from ppvilg.train.shards import named_parameters
from ppvilg.train.task import Losses, Task
from ppvilg.vqgan.folder import load_vqgan

_PREVIEW_SAMPLES_PER_PROMPT = 3
_NOISE = 1  # tells the generators of noise from those that draw captions
_TEXT_TABLE = "embedding.text.weight"
_PAD_TO = 4  # text lengths are rounded up to this, so that few shapes occur


Texts = tuple[str | None, str]
"""A caption (and None), or a question and its answer."""


class ViLGTask(Task):
    """Pairs of text and image tokens; in every step both directions of each pair, or the one that has a weight."""

    unit = "tokens"

    def __init__(self, config: ViLGExperiment, context: ParallelContext):
        self.context = context
        self.image_tokenizer = tokenizer_folder(config)
        self.vqgan = load_vqgan(self.image_tokenizer)
        self.text_tokenizer = load_text_tokenizer(config.text)
        super().__init__(config)
        self.directions = trained_directions(config.train)
        self.weights = LossWeights(config.train.txt2img_weight, config.train.img2txt_weight)
        with built_in(built_dtype(config.parallel.precision)):
            if context.pp_group is None:
                self.model = ViLG(vilg_config(config), context.mp_group, self.directions)
            else:
                self.model = ViLGPipe(vilg_config(config), context, config.parallel.recompute == "full", self.directions)
        self.modules = {"model": self.model}
        self._init_weights()
        check_frozen(config)
        self._freeze()
        self.reconstruction = None
        if config.transformer.reconstructor:
            weight, loss = config.train.reconstruction_weight, config.vqgan.loss
            self.reconstruction = ReconstructionWeights(weight * loss.l1, weight * loss.l2)

    def begin(self) -> None:
        """Freeze the model and give it updates to train, if the config says so."""
        if self.config.lora is not None:
            self.base = add_lora(self.model, self.config.lora, self.config.train.seed)
            self._freeze()

    def _freeze(self) -> None:
        untrained = untrained_parameters(self.config)
        for name, parameter in named_parameters(self.model).items():
            if name.startswith(untrained):
                parameter.stop_gradient = True

    def saved(self, run: Path) -> None:
        """The adapter as a folder of its own."""
        if self.base is not None:
            save_adapter(self._adapter_config, load_arrays(weights_file(run)), run / ADAPTER)

    @cached_property
    def _adapter_config(self) -> AdapterConfig:
        return adapter_config(self.config.lora, self.base)

    def prepare(self) -> None:
        """The image tokens of both splits, kept beside the image tokenizer, or in the run where that cannot be written to."""
        kept = self.image_tokenizer if os.access(self.image_tokenizer, os.W_OK) else Path(self.config.train.output)
        size, cache = self.config.data.image_size, kept / "tokens"
        version = checksum(weights_file(self.image_tokenizer))
        if self.reconstruction is not None and self.training.records[0].place is None:
            raise ValueError(
                f"transformer.reconstructor learns from images, but {self.config.data.path} was prepared without them"
            )
        self.tokens, self.validation_tokens = (
            image_tokens(source, self.vqgan, version, size, cache, self.context) for source in (self.training, self.validation)
        )

    def batch(self, positions: range) -> Batch:
        """Each image with one of its captions drawn, or one of its questions and an answer; noise and dropped texts as the
        config asks for them."""
        settings = self.config.train
        chosen = self.stream.places(positions)
        texts = [self._draw(self.training.records[i], e, i) for e, i in chosen]
        batch = self._batch(texts, self.training, self.tokens, [i for _, i in chosen])
        # Each pair's own, so that the noise does not depend on the pairs around it.
        generators = [np.random.default_rng([settings.seed, e, i, _NOISE]) for e, i in chosen]
        if settings.token_noise:
            noisy = with_noise(batch.image, settings.token_noise, self.config.vqgan.codebook.size, generators)
            batch = replace(batch, image_input=noisy)
        if settings.text_drop:
            pad, length = self.text_tokenizer.pad, batch.prompt.shape[1]
            empty = pad_prompts([self.text_tokenizer.encode("")], pad, self.model.config, length)
            batch = drop_prompts(batch, settings.text_drop, empty, generators)
        return batch

    def units(self, batch: Batch) -> int:
        """Tokens of all directions, padding left out."""
        return len(self.directions) * int(batch.text_mask.sum() + batch.image.size)

    def loss(self, model: ViLG, batch: Batch, step: int) -> Losses:
        """The directions of each pair."""
        batch = batch.to_tensors()
        return self.criterion(model(batch), batch)

    def criterion(self, outputs: Outputs, batch: Batch) -> Losses:
        """The losses of the model's outputs for a batch of tensors."""
        return vilg_loss(outputs, batch, self.reconstruction, self.context.mp_group, self.weights)

    def validate(self, model: DistributedModel, step: int) -> dict[str, float]:
        """Losses and accuracies over validation pairs, and those of a unigram model of the training split."""
        batches = self._validation_batches()
        results = model.evaluate([batch.to_tensors() for batch in batches], self._metrics)
        # The text's metrics are means over text tokens, the others over pairs or image tokens.
        text_tokens, pairs = [batch.text_mask[:, 1:].sum() for batch in batches], [len(batch.text) for batch in batches]
        means = {}
        for name in results[0] if results else ():
            weights = text_tokens if name.startswith("img2txt") else pairs
            means[name] = float(np.average([metrics[name].item() for metrics in results], weights=weights))
        return means | self._unigram(batches)

    def _metrics(self, outputs: Outputs, batch: Batch) -> Losses:
        return self.criterion(outputs, batch) | vilg_accuracy(outputs, batch, self.context.mp_group)

    def preview(self) -> Preview:
        """Fixed prompts, each with its real image and generated ones (end to end: by the codebook, then the same by the
        reconstructor), and fixed images with their captions, of the directions that are trained."""
        half = (self.config.train.preview_samples + 1) // 2
        images, texts = {}, {}
        for name, source, tokens in (
            ("train", self.training, self.tokens),
            ("validation", self.validation, self.validation_tokens),
        ):
            chosen = evenly_spaced(len(source), half)
            if Direction.TEXT_TO_IMAGE in self.directions:
                images[f"{name}_images"] = self._generated(source, chosen, tokens)
            if Direction.IMAGE_TO_TEXT in self.directions:
                texts[f"{name}_captions"] = self._captioned(source, chosen, tokens)
        return Preview(images, texts)

    def _init_weights(self) -> None:
        """Drawn from the seed; the reconstructor starts from the image tokenizer's decoder, text table and encoder from
        ERNIE's, the table not where the whole model starts from another."""
        config, parameters = self.config, named_parameters(self.model)
        init_weights(parameters, config.train.seed, config.transformer.layers, self.context.mp_group)
        given = {}
        if config.transformer.reconstructor:
            decoder = self.vqgan.state_dict()
            names = [name for name in decoder if name.startswith(("decoder.", "post_quant_conv."))]
            given |= {f"head.reconstructor.{name}": decoder[name].numpy() for name in names}
        if config.text.embeddings and not config.train.init_from and _TEXT_TABLE in parameters:
            given[_TEXT_TABLE] = text_table(ernie_embeddings(config.text.embeddings, self.text_tokenizer), config)
        weights = encoder_weights(config, self.text_tokenizer)
        given |= {f"embedding.text_encoder.{name}": array for name, array in weights.items()}
        set_weights(parameters, given, self.context.mp_group)

    def _generated(self, source: Source, chosen: list[int], tokens: TokenTable) -> np.ndarray:
        prompts = [self._canonical(source, i)[1] for i in chosen]
        each = _PREVIEW_SAMPLES_PER_PROMPT
        texts = [self._encode(prompt) for prompt in prompts]
        decoders = ["codebook"] if self.reconstruction is None else ["codebook", "hidden"]
        *_, output = generate_images(
            self.model,
            texts,
            self.text_tokenizer,
            seeds=list(range(each * len(texts))),
            sampling=Sampling(),
            return_states="hidden" in decoders,
        )
        if source.records[chosen[0]].place is None:  # prepared without images: as the tokenizer paints them
            real = list(from_model(self.vqgan.decode(from_numpy(tokens[chosen])).numpy()))
        else:
            real = load_images(source, chosen, self.config.data.image_size)
        rows = [[image] for image in real]
        for decoder in decoders:
            made = decode_images(self.model, self.vqgan, output, decoder)
            for k, row in enumerate(rows):
                row += made[each * k : each * (k + 1)]
        return labelled_grid(list(zip(rows, prompts, strict=True)), columns=2)

    def _captioned(self, source: Source, chosen: list[int], tokens: TokenTable) -> str:
        images, length = tokens[chosen], self.config.text.max_length
        own = [self._canonical(source, i) for i in chosen]
        asked = [self._encode_question(question) for question, _ in own] if self.config.reads_questions else None
        texts = generate_texts(self.model, images, self.text_tokenizer, length, [0] * len(chosen), Sampling(0), asked)
        decoded = [self.text_tokenizer.decode(ids) for ids in texts]
        expected = [text if question is None else f"{question} {text}" for question, text in own]
        return "\n".join(f"{one} → {text}" for one, text in zip(expected, decoded, strict=True))

    def _validation_batches(self) -> list[Batch]:
        count = min(self.config.train.validation_samples, len(self.validation))
        size, parallel = self.config.micro_batch, self.config.parallel
        if parallel.sequence_parallel:  # the last batch, too, has to be shared out
            count -= count % size % parallel.mp_degree
        chosen = evenly_spaced(len(self.validation), count)
        return [
            self._batch([self._canonical(self.validation, i) for i in part], self.validation, self.validation_tokens, part)
            for part in (chosen[first : first + size] for first in range(0, count, size))
        ]

    def _batch(self, texts: list[Texts], source: Source, tokens: TokenTable, chosen: list[int]) -> Batch:
        image, pad = tokens[chosen], self.text_tokenizer.pad
        batch = Batch.of([self._encode(text) for _, text in texts], image, pad, self.model.config, _PAD_TO)
        if self.config.reads_questions:
            asked = [self._encode_question(question) for question, _ in texts]
            question, mask = pad_batch(asked, pad, self.config.text.question_length)
            batch = replace(batch, question=question, question_mask=mask)
        if self.reconstruction is None:
            return batch
        return replace(batch, pixel_values=to_model(load_images(source, chosen, self.config.data.image_size)))

    def _encode(self, caption: str) -> list[int]:
        return encode_cut(self.text_tokenizer, caption, self.config.text.max_length)

    def _encode_question(self, question: str) -> list[int]:
        return encode_cut(self.text_tokenizer, question, self.config.text.question_length)

    def _draw(self, record: Record, epoch: int, index: int) -> Texts:
        languages, seed = self.config.data.languages, self.config.train.seed
        if self.config.reads_questions:
            return draw_question(record.questions, languages, seed, epoch, index)
        return None, draw_caption(record.captions, languages, seed, epoch, index)

    def _canonical(self, source: Source, index: int) -> Texts:
        record = source.records[index]
        if self.config.reads_questions:
            return canonical_question(record.questions, index)
        return None, canonical_caption(record.captions, self.config.data.languages, index)

    def _unigram(self, batches: list[Batch]) -> dict[str, float]:
        """What a model scores that knows only how often each token occurs in the training split."""
        texts = [self._encode(self._canonical(self.training, i)[1]) for i in evenly_spaced(len(self.training), 2000)]
        of_text = self.config.text.vocabulary_size
        seen_text = np.bincount(np.concatenate([ids[1:] for ids in texts]), minlength=of_text)
        image = np.concatenate([batch.image.ravel() for batch in batches])
        text = np.concatenate([batch.text[:, 1:][batch.text_mask[:, 1:]] for batch in batches])
        metrics = {}
        for direction, name, seen, targets in (
            (Direction.TEXT_TO_IMAGE, "txt2img", self.tokens.unigram, image),
            (Direction.IMAGE_TO_TEXT, "img2txt", seen_text, text),
        ):
            if direction not in self.directions:
                continue
            counts = seen + 1.0  # add-one smoothing
            metrics[f"{name}_unigram"] = float(-np.log(counts / counts.sum())[targets].mean())
            metrics[f"{name}_unigram_accuracy"] = float((targets == counts.argmax()).mean())
        return metrics


def with_noise(tokens: np.ndarray, most: float, codes: int, generators: list[np.random.Generator]) -> np.ndarray:
    """Tokens int64 [B, n], of each row a share drawn from 0 to `most` replaced by random codes; one generator for each row."""
    noisy = tokens.copy()
    for row, generator in zip(noisy, generators, strict=True):
        replaced = generator.random(len(row)) < generator.uniform(0, most)
        row[replaced] = generator.integers(0, codes, replaced.sum())
    return noisy


def drop_prompts(
    batch: Batch, share: float, empty: tuple[np.ndarray, np.ndarray], generators: list[np.random.Generator]
) -> Batch:
    """The batch with a share of its prompts replaced by the empty text, ids and mask [1, m]; one generator for each pair."""
    dropped = np.array([generator.random() < share for generator in generators])
    prompt, prompt_mask = batch.prompt.copy(), batch.prompt_mask.copy()
    prompt[dropped], prompt_mask[dropped] = empty
    return replace(batch, prompt=prompt, prompt_mask=prompt_mask)


def tokenizer_folder(config: ViLGExperiment) -> Path:
    """The folder of the frozen image tokenizer; raises `ValueError` if there is none or it is not the one that the config
    describes."""
    folder = config.train.tokenizer
    if folder is None:
        raise ValueError("train.tokenizer is not set: give the run folder of a trained image tokenizer")
    own = read_config(folder, ImageTokenizerConfig)
    # It may have been trained on pictures of another size. A reconstructor starts as its decoder, so it needs the same.
    side = own.grid[0] if config.transformer.reconstructor else config.data.image_size // own.vqgan.downsampling
    if own.vqgan.codebook.size != config.vqgan.codebook.size or (side, side) != config.grid:
        raise ValueError(
            f"the tokenizer in {folder} has {own.vqgan.codebook.size} codes on a grid of {side}x{side}, but the "
            f"config asks for {config.vqgan.codebook.size} on {config.grid[0]}x{config.grid[1]}: use the same vqgan section"
        )
    return Path(folder)


def text_table(embeddings: np.ndarray, config: ViLGExperiment) -> np.ndarray:
    """The first text table float32 [rows, width] with ERNIE's token embeddings float32 [V, width] as its first rows."""
    rows, width = config.text.vocabulary_size, config.text.embedding_width or config.transformer.hidden
    if embeddings.shape[1] != width:
        raise ValueError(
            f"text.embeddings: those of {config.text.embeddings} are {embeddings.shape[1]} wide, the text table {width}: set "
            f"text.embedding_width={embeddings.shape[1]}"
        )
    if len(embeddings) > rows:
        raise ValueError(
            f"text.embeddings: {config.text.embeddings} has {len(embeddings)} tokens, the text table {rows} rows: set "
            f"text.vocabulary_size={len(embeddings)}"
        )
    table = draw_weight(_TEXT_TABLE, [rows, width], config.train.seed, config.transformer.layers)
    table[: len(embeddings)] = embeddings
    return table
