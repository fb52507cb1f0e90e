"""Training the transformer over a frozen image tokenizer."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle

from ppvilg import checkpoint
from ppvilg.config import ViLGExperiment, save_config
from ppvilg.data import splits
from ppvilg.data.loader import canonical_caption, draw_caption, own_places, sample_indices
from ppvilg.data.sources import Source
from ppvilg.errors import UserError
from ppvilg.generate.decoding import write_images, write_texts
from ppvilg.generate.painting import paint
from ppvilg.generate.sampling import Sampling
from ppvilg.parallel import pipeline
from ppvilg.parallel.topology import Topology
from ppvilg.pictures import labelled_grid, to_model
from ppvilg.text import cut, ernie_embeddings, load_text_tokenizer, pad_batch
from ppvilg.training.logs import Preview
from ppvilg.training.loop import Scalars, means
from ppvilg.training.tokens import picture_tokens
from ppvilg.transformer.model import Pairs, ViLG
from ppvilg.vqgan.folder import load_vqgan
from ppvilg.vqgan.model import VQGAN

_PREVIEW_SAMPLES_PER_PROMPT = 3
_NOISE = 1  # tells the generators of noise from those that draw captions
_PAD_TO = 4  # text lengths are rounded up to this, so that few shapes occur


class ViLGTask:
    """Pairs of text and image tokens; both directions of each pair in every step."""

    unit = "tokens"

    def __init__(self, config: ViLGExperiment, topology: Topology | None = None):
        self.config = config
        self.topology = topology or Topology()
        folder = config.train.tokenizer
        if folder is None:
            raise UserError("train.tokenizer is not set: give the run folder of a trained image tokenizer")
        self.vqgan, tokenizer_checksum = load_tokenizer(config, folder)
        self.text = load_text_tokenizer(config.text)
        self.training, self.validation = splits.open_splits(config.data, config.train.seed)
        self.tokens, self.validation_tokens = (
            picture_tokens(
                source, self.vqgan, tokenizer_checksum, config.data.image_size, Path(folder) / "tokens", self.topology
            )
            for source in (self.training, self.validation)
        )
        self.model = ViLG(config, self.topology)
        if self.model.reconstructor is not None:
            self.model.reconstructor.start_from(self.vqgan)
        if config.text.embeddings:
            start_from(self.model, ernie_embeddings(config.text.embeddings), config)
        in_precision(self.model, config.parallel.precision)
        self.modules = {"model": self.model}

    def prepare(self, run: Path) -> None:
        """Put the frozen tokenizer and the vocabulary beside the checkpoints."""
        splits.write_reports(run, self.training, self.validation)
        source = Path(self.config.train.tokenizer)
        (run / "tokenizer").mkdir(exist_ok=True)
        save_config(checkpoint.model_config(source, "vqgan"), run / "tokenizer" / "config.yml")
        temporary = run / "tokenizer" / "model.safetensors.tmp"
        shutil.copyfile(checkpoint.weights_file(source), temporary)
        temporary.replace(run / "tokenizer" / "model.safetensors")
        (run / "text").mkdir(exist_ok=True)
        self.text.save(run / "text")

    def batch(self, first: int, part: int) -> Pairs:
        """This process's share of a micro-batch, each pair with one of its captions drawn."""
        settings = self.config.train
        places = own_places(first, part, settings.batch_size // settings.gradient_accumulation_steps, self.topology)
        chosen = sample_indices(len(self.training), settings.seed, places)
        languages = self.config.data.languages
        captions = [draw_caption(self.training.records[i].captions, languages, settings.seed, e, i) for e, i in chosen]
        pairs = self._pairs(captions, self.training, self.tokens, [i for _, i in chosen])
        # Each pair's own, so that the noise does not depend on the pairs around it.
        generators = [np.random.default_rng([settings.seed, e, i, _NOISE]) for e, i in chosen]
        if settings.token_noise:
            noisy = with_noise(pairs.image, settings.token_noise, self.config.vqgan.codebook.size, generators)
            pairs = replace(pairs, image_read=noisy)
        if settings.text_drop:
            prompt, valid = without_some_texts(pairs, settings.text_drop, self.text.encode(""), generators)
            pairs = replace(pairs, prompt=prompt, prompt_valid=valid)
        return pairs

    def units(self, batch: Pairs) -> int:
        """Tokens of both directions, padding left out."""
        return 2 * int(batch.valid.sum() + batch.image.size)

    def gradients(self, batches: list[Pairs], step: int, scale: float) -> tuple[set[str], Scalars]:
        """Both directions of all pairs, through the pipeline's stages."""
        return pairs_gradients(self.model, self.config, batches, scale)

    def validate(self, step: int) -> dict[str, float]:
        """Losses and accuracies over validation pairs, and those of a unigram model of the training split."""
        count = min(self.config.train.validation_samples, len(self.validation))
        chosen = splits.evenly_spaced(len(self.validation), count)
        sums: dict[str, float] = {}
        size = self.config.micro_batch
        batches = [
            self._pairs([self._canonical(self.validation, i) for i in part], self.validation, self.validation_tokens, part)
            for part in (chosen[first : first + size] for first in range(0, count, size))
        ]
        for batch in batches:
            for name, value in pipeline.forward(self.model, self.topology, batch.tensors()).items():
                # The text's measures are means over text tokens, the others over pairs or image tokens.
                weight = batch.valid[:, 1:].sum() / sum(b.valid[:, 1:].sum() for b in batches)
                weight = weight if name.startswith("img2txt") else len(batch.text) / count
                sums[name] = sums.get(name, 0.0) + value.item() * weight
        return sums | self._unigram(batches)

    def preview(self) -> Preview:
        """Fixed prompts, each with its real picture and drawn ones (end to end: by the codebook, then the same by the
        reconstructor), and fixed pictures with their captions; nothing where no process has all weights."""
        if self.config.parallel.cuts_model:
            return Preview()
        half = (self.config.train.preview_samples + 1) // 2
        pictures, texts = {}, {}
        for name, source, tokens in (
            ("train", self.training, self.tokens),
            ("validation", self.validation, self.validation_tokens),
        ):
            chosen = splits.evenly_spaced(len(source), half)
            pictures[f"{name}_pictures"] = self._drawn(source, chosen)
            texts[f"{name}_captions"] = self._captioned(source, chosen, tokens)
        return Preview(pictures, texts)

    def _drawn(self, source: Source, chosen: list[int]) -> np.ndarray:
        prompts = [self._canonical(source, i) for i in chosen]
        each = _PREVIEW_SAMPLES_PER_PROMPT
        texts = [self._encode(prompt) for prompt in prompts]
        seeds = list(range(each * len(texts)))
        decoders = ["codebook"] if self.model.reconstructor is None else ["codebook", "hidden"]
        *_, written = write_images(self.model, texts, self.text, seeds, Sampling(), read_last=len(decoders) > 1)
        real = splits.load_images(source, chosen, self.config.data.image_size)
        rows = [[picture] for picture in real]
        for decoder in decoders:
            drawn = paint(self.model, self.vqgan, written, decoder)
            for k, row in enumerate(rows):
                row += drawn[each * k : each * (k + 1)]
        return labelled_grid(list(zip(rows, prompts, strict=True)), columns=2)

    def _captioned(self, source: Source, chosen: list[int], tokens: np.ndarray) -> str:
        image = paddle.to_tensor(tokens[chosen].astype(np.int64))
        length = self.config.text.max_length
        ids = write_texts(self.model, image, self.text, length, [0] * len(chosen), Sampling(0))
        lines = [f"{self._canonical(source, i)} → {self.text.decode(written)}" for i, written in zip(chosen, ids, strict=True)]
        return "\n".join(lines)

    def _pairs(self, captions: list[str], source: Source, tokens: np.ndarray, chosen: list[int]) -> Pairs:
        text, valid = pad_batch([self._encode(caption) for caption in captions], self.text.pad, _PAD_TO)
        pairs = Pairs.plain(text, valid, tokens[chosen].astype(np.int64))
        if self.model.reconstructor is None:
            return pairs
        return replace(pairs, pictures=to_model(splits.load_images(source, chosen, self.config.data.image_size)))

    def _encode(self, caption: str) -> list[int]:
        return cut(self.text.encode(caption), self.config.text.max_length)

    def _canonical(self, source: Source, index: int) -> str:
        return canonical_caption(source.records[index].captions, self.config.data.languages, index)

    def _unigram(self, batches: list[Pairs]) -> dict[str, float]:
        """What a model scores that knows only how often each token occurs in the training split."""
        texts = [self._encode(self._canonical(self.training, i)) for i in splits.evenly_spaced(len(self.training), 2000)]
        seen_text = np.concatenate([ids[1:] for ids in texts])
        image = np.concatenate([batch.image.ravel() for batch in batches])
        text = np.concatenate([batch.text[:, 1:][batch.valid[:, 1:]] for batch in batches])
        measures = {}
        for name, seen, targets, size in (
            ("txt2img", self.tokens.ravel(), image, self.config.vqgan.codebook.size),
            ("img2txt", seen_text, text, self.config.text.vocabulary_size),
        ):
            counts = np.bincount(seen, minlength=size) + 1.0  # add-one smoothing
            measures[f"{name}_unigram"] = float(-np.log(counts / counts.sum())[targets].mean())
            measures[f"{name}_unigram_accuracy"] = float((targets == counts.argmax()).mean())
        return measures


def pairs_gradients(model: ViLG, config: ViLGExperiment, batches: list[Pairs], scale: float = 1.0) -> tuple[set[str], Scalars]:
    """Gradients of `pairs_loss`, times `scale`, as a task gives them."""
    tensors = [batch.tensors() for batch in batches]
    scalars = pipeline.forward_backward(model, model.topology, tensors, lambda values: pairs_loss(values, config) * scale)
    return {"model"}, means(scalars)


def pairs_loss(scalars: Scalars, config: ViLGExperiment) -> paddle.Tensor:
    """Of both directions and, end to end, of the pictures drawn from the hidden states (paper 3.1.3)."""
    if "l1" not in scalars:
        return scalars["loss"]
    drawn = config.vqgan.loss.l1 * scalars["l1"] + config.vqgan.loss.l2 * scalars["l2"]
    return scalars["loss"] + config.train.reconstruction_weight * drawn


def in_precision(model: ViLG, precision: str) -> None:
    """Let a model's weights, and so all it computes, have a precision other than float32; raises `UserError` on a CPU."""
    if precision == "fp32":
        return
    if paddle.get_device() == "cpu":
        raise UserError(f"parallel.precision: {precision} needs a GPU: paddle's matrix product on a CPU takes fp32 alone")
    model.to(dtype={"bf16": "bfloat16", "fp16": "float16"}[precision])


def with_noise(tokens: np.ndarray, most: float, codes: int, generators: list[np.random.Generator]) -> np.ndarray:
    """Tokens int64 [B, n], of each row a share drawn from 0 to `most` replaced by random codes; one generator for each row."""
    noisy = tokens.copy()
    for row, generator in zip(noisy, generators, strict=True):
        replaced = generator.random(len(row)) < generator.uniform(0, most)
        row[replaced] = generator.integers(0, codes, replaced.sum())
    return noisy


def without_some_texts(
    pairs: Pairs, share: float, empty: list[int], generators: list[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """The prompts and their validity, a share of them replaced by the empty text; one generator for each pair."""
    dropped = np.array([generator.random() < share for generator in generators])
    prompt, valid = pairs.prompt.copy(), pairs.prompt_valid.copy()
    prompt[dropped, : len(empty)] = empty
    valid[dropped] = np.arange(prompt.shape[1]) < len(empty)
    return prompt, valid


def load_tokenizer(config: ViLGExperiment, folder: str | Path) -> tuple[VQGAN, str]:
    """The frozen image tokenizer of a folder, which must be the one that the config describes, and its checksum."""
    own = checkpoint.model_config(folder, "vqgan")
    if own.vqgan.codebook.size != config.vqgan.codebook.size or own.grid != config.grid:
        raise UserError(
            f"the tokenizer in {folder} has {own.vqgan.codebook.size} codes on a grid of {own.grid[0]}x{own.grid[1]}, but the "
            f"config asks for {config.vqgan.codebook.size} on {config.grid[0]}x{config.grid[1]}: use the same vqgan section"
        )
    return load_vqgan(folder), checkpoint.checksum(checkpoint.weights_file(folder))


def start_from(model: ViLG, embeddings: np.ndarray, config: ViLGExperiment) -> None:
    """Copy ERNIE's token embeddings float32 [V, width] into the first rows of the text table."""
    rows, width = config.text.vocabulary_size, model.text_width
    if embeddings.shape[1] != width:
        raise UserError(
            f"text.embeddings: those of {config.text.embeddings} are {embeddings.shape[1]} wide, the text table {width}: set "
            f"text.embedding_width={embeddings.shape[1]}"
        )
    if len(embeddings) > rows:
        raise UserError(
            f"text.embeddings: {config.text.embeddings} has {len(embeddings)} tokens, the text table {rows} rows: set "
            f"text.vocabulary_size={len(embeddings)}"
        )
    if hasattr(model, "text_embedding"):  # not on a pipeline's middle stages
        model.text_embedding.start_from(embeddings)
