"""The Python API: a trained model, ready to draw images from texts and to write captions of images.

from ppvilg import ViLGPipeline
pipe = ViLGPipeline.from_pretrained("runs/vilg_emoji")
images = pipe("Noto风格的红苹果", num_images_per_prompt=4, guidance_scale=2.0).images    # PIL images
captions = pipe.caption(images)                                                         # for each image a list of strings
"""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ppvilg.config import Precision
from ppvilg.data.images import load_image
from ppvilg.dual_encoder import DualEncoderScorer, Scorer, load_scorer, rerank, scores
from ppvilg.export.folder import Engine, is_export, load_export
from ppvilg.folder import PipelineConfig, base_file, new_folder, read_config, read_model, write_model
from ppvilg.generate.beam_search import beam_search
from ppvilg.generate.engine import GenerativeModel, generate_images, generate_texts
from ppvilg.generate.images import ImageDecoder, decode_images
from ppvilg.generate.sampling import Sampling
from ppvilg.lora import AdaptedModel, apply_adapter
from ppvilg.model.vilg import ViLG
from ppvilg.ops import from_numpy
from ppvilg.options import CaptionOptions, ImageOptions, check_count, check_number, check_texts
from ppvilg.pictures import to_model
from ppvilg.text import TextTokenizer, check_known, encode_prompt, saved_text_tokenizer
from ppvilg.vqgan.folder import load_vqgan, save_vqgan
from ppvilg.vqgan.model import VQGAN

_BATCH = 64  # sequences that are generated together

ImageInput = Image.Image | np.ndarray | bytes | str | Path
"""A PIL image, an array uint8 [H, W, 3] (RGB), or an image file's bytes or path."""
Images = ImageInput | Sequence[ImageInput]
"""One image or several; an array uint8 [N, H, W, 3] is several."""


@dataclass(frozen=True)
class PipelineOutput:
    """What `ViLGPipeline` returns."""

    images: list[Image.Image] | list[np.ndarray]
    """Prompt by prompt, `num_images_per_prompt` of each; as arrays uint8 [H, W, 3]."""


class ViLGPipeline:
    """A transformer with its image tokenizer, its text tokenizer and, if given, a dual encoder that ranks and scores.

    Invalid arguments raise `ValueError`, files that cannot be read `OSError`.
    """

    def __init__(
        self,
        model: GenerativeModel,
        vqgan: VQGAN,
        text_tokenizer: TextTokenizer,
        config: PipelineConfig,
        dual_encoder: Scorer | None = None,
    ):
        self.model, self.vqgan, self.text_tokenizer = model, vqgan, text_tokenizer
        self.config, self.dual_encoder = config, dual_encoder
        if isinstance(dual_encoder, DualEncoderScorer):
            size = dual_encoder.config.dual_encoder.image_size
            if size != config.image_size:
                raise ValueError(f"the dual encoder reads images of {size}x{size} pixels, the model draws {config.image_size}")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dual_encoder: str | Path | Scorer | None = None,
        precision: Precision | Literal["auto", "int8"] = "auto",
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
        engine: Engine = "auto",
    ) -> "ViLGPipeline":
        """Read a model folder, a training run (the averaged weights of its newest checkpoint) or an export.

        `dual_encoder` is a folder too, the name of an ErnieViL, or a scorer. `precision` is the transformer's: auto is what its
        file has, on a CPU fp32, since Paddle computes with nothing else there; the image tokenizer always has fp32. `lora` is
        an adapter's folder, whose updates are added to the weights with the strength `lora_scale`: 0 leaves the model as it is,
        1 is what was trained. A run that has trained an adapter is read with it. `engine` runs an export; auto is what was
        fastest when it was exported. Exports for ONNX Runtime also have the precision int8.

        Raises `ValueError` for a folder that is missing, incomplete, damaged, or of another kind of model, for a precision that
        the device does not compute with, and for an adapter that belongs to another model.
        """
        folder = Path(folder)
        check_number("lora_scale", lora_scale)
        _check_lora(folder, lora, lora_scale)
        if isinstance(dual_encoder, str | Path):
            dual_encoder = load_scorer(dual_encoder)
        if is_export(folder):
            return cls(*load_export(folder, engine, precision), dual_encoder)
        if engine != "auto" or precision == "int8":
            asked = "precision is int8" if engine == "auto" else f"engine is {engine}"
            raise ValueError(f"{asked}, but {folder} is no export: export it first with deploy/export.py")
        config = read_config(folder, PipelineConfig)
        vqgan = load_vqgan(folder / "tokenizer")
        text_tokenizer = saved_text_tokenizer(folder, config.text_tokenizer, config.transformer.text_vocab_size)
        model = read_model(lambda: ViLG(config.transformer), folder, precision, lora_scale)
        if lora is not None:
            apply_adapter(model, lora, lora_scale)
        return cls(model, vqgan, text_tokenizer, config, dual_encoder)

    def with_adapter(self, folder: str | Path, scale: float = 1.0) -> "ViLGPipeline":
        """The same pipeline with an adapter's updates, for generation only. It shares all weights with this one, so only one of
        the two may generate at a time. Raises `ValueError` for an export, and for an adapter that belongs to another model."""
        if not isinstance(self.model, ViLG):
            raise ValueError("an export's weights are final: give the run that it was made from, or export with --lora")
        check_number("lora_scale", scale)
        return ViLGPipeline(
            AdaptedModel(self.model, folder, scale), self.vqgan, self.text_tokenizer, self.config, self.dual_encoder
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder, without the dual encoder; raises `ValueError` where it exists already, for an export, and for
        `with_adapter`."""
        if not isinstance(self.model, ViLG):
            raise ValueError("only a model itself can be saved, not an export or an adapter on it: save what it was made from")
        with new_folder(folder) as temporary:
            save_vqgan(self.vqgan, temporary / "tokenizer")
            write_model(temporary, self.config, self.model, self.text_tokenizer)

    def __call__(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        generator: np.random.Generator | None = None,
        output_type: Literal["pil", "np"] = "pil",
        decoder: ImageDecoder = "codebook",
        num_candidates: int | None = None,
        callback: Callable[[int, list], Any] | None = None,
        callback_steps: int = 1,
    ) -> PipelineOutput:
        """Draw images of one or more prompts; for the options see `ImageOptions`.

        `callback` is called with the number of tokens and the images so far (of all candidates) after every `callback_steps`
        tokens, and with the result. What is not generated yet is decoded as code 0.
        """
        if callback is not None:
            check_count("callback_steps", callback_steps, 1)
        options = ImageOptions(
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            generator=generator,
            output_type=output_type,
            decoder=decoder,
            num_candidates=num_candidates,
        )
        for step, images in self._generate(prompt, options, 0 if callback is None else callback_steps):
            if callback is not None:
                callback(step, images)
        return PipelineOutput(images)

    def stream(self, prompt: str | Sequence[str], every: int = 1, **options: Any) -> Iterator[tuple[int, list]]:
        """Yield the number of tokens and the images so far after every `every` tokens; the last images are the result.

        `options`: as of a call.
        """
        check_count("every", every, 1)
        return self._generate(prompt, ImageOptions(**options), every)

    def complete(self, image: ImageInput, keep_rows: int, prompt: str | Sequence[str], **options: Any) -> PipelineOutput:
        """Draw images that start with the upper `keep_rows` rows of tokens of an image; `options`: as of a call."""
        rows, columns = self.config.transformer.rows, self.config.transformer.columns
        check_count("keep_rows", keep_rows, 1)
        if keep_rows >= rows:
            raise ValueError(f"keep_rows is {keep_rows}: the image has {rows} rows of tokens, keep 1 to {rows - 1}")
        options = ImageOptions(**options)
        tokens = self.encode_images([image])[0, : keep_rows * columns]
        *_, (_, images) = self._generate(prompt, options, 0, tokens)
        return PipelineOutput(images)

    def caption(
        self,
        images: Images,
        num_captions: int = 1,
        num_beams: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        length_penalty: float = 1.0,
        seed: int = 0,
        generator: np.random.Generator | None = None,
    ) -> list[list[str]]:
        """For each image `num_captions` captions; for the options see `CaptionOptions`."""
        options = CaptionOptions(
            num_captions=num_captions,
            num_beams=num_beams,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            length_penalty=length_penalty,
            seed=seed,
            generator=generator,
        )
        return self._write_texts(self.encode_images(images), None, options)

    def answer(self, images: Images, questions: str | Sequence[str], num_answers: int = 1, **options: Any) -> list[list[str]]:
        """For each image `num_answers` answers to its question, by a model that was trained on questions.

        One image may have several questions, or several images one. `options`: as of `caption`.
        """
        self.check_answers()
        checked = CaptionOptions(num_captions=num_answers, **options)
        tokens, asked = self.encode_images(images), self.encode_questions(questions)
        count = max(len(tokens), len(asked))
        if {len(tokens), len(asked)} - {1, count}:
            how = "give each image its question, one question for all, or one image"
            raise ValueError(f"questions has {len(asked)} questions for {len(tokens)} images: {how}")
        tokens, asked = np.repeat(tokens, count // len(tokens), axis=0), asked * (count // len(asked))
        return self._write_texts(tokens, asked, checked)

    def _write_texts(self, tokens: np.ndarray, questions: list[list[int]] | None, options: CaptionOptions) -> list[list[str]]:
        """Captions of images int64 [N, n], or answers to their questions."""
        self.check_captions()
        tokenizer, longest = self.text_tokenizer, self.config.transformer.max_text_length
        count, beams = options.num_captions, options.num_beams
        prompts = list(zip(tokens, [None] * len(tokens) if questions is None else questions, strict=True))
        texts: list[list[int]] = []
        if beams > 1:
            size = max(1, _BATCH // beams)
            for some in (prompts[first : first + size] for first in range(0, len(prompts), size)):
                images, asked = zip(*some, strict=True)
                texts += beam_search(self.model, np.stack(images), tokenizer, longest, beams, options.length_penalty, asked)
        else:
            sampling = Sampling(options.temperature, options.top_k, options.top_p)
            for some, seeds in _batches(prompts, options.seeds(count)):
                images, asked = zip(*some, strict=True)
                texts += generate_texts(self.model, np.stack(images), tokenizer, longest, seeds, sampling, asked)
        written = [tokenizer.decode(ids) for ids in texts]
        return [written[i : i + count] for i in range(0, len(written), count)]

    def score(self, images: Images, texts: str | Sequence[str]) -> np.ndarray:
        """How well each image fits its text, or all the one text: float32 [N] in [0, 1]. Needs a dual encoder."""
        arrays, texts = self._load_images(images), check_texts("texts", texts)
        texts = texts * len(arrays) if len(texts) == 1 else texts
        if len(texts) != len(arrays):
            raise ValueError(f"texts has {len(texts)} texts for {len(arrays)} images: give each image its text")
        return scores(self._scorer(), np.stack(arrays), texts)

    def encode_prompts(self, prompts: str | Sequence[str]) -> list[list[int]]:
        """Token ids; raises `ValueError` for an empty or overlong prompt."""
        longest = self.config.transformer.max_text_length
        return [encode_prompt(self.text_tokenizer, text, longest) for text in check_texts("prompt", prompts)]

    def check_known(self, prompts: str | Sequence[str]) -> list[str]:
        """Raise `ValueError` for a prompt of which nothing is in the vocabulary; returns warnings of those that are in part."""
        checked = [check_known(self.text_tokenizer, text) for text in check_texts("prompt", prompts)]
        return [warning for warning in checked if warning]

    def encode_questions(self, questions: str | Sequence[str]) -> list[list[int]]:
        """Token ids; raises `ValueError` for an empty or overlong question, and for one of unknown words only."""
        texts, longest = check_texts("questions", questions), self.config.transformer.question_length
        ids = [encode_prompt(self.text_tokenizer, text, longest) for text in texts]
        self.check_known(texts)
        return ids

    def encode_images(self, images: Images) -> np.ndarray:
        """Image tokens int64 [N, n]."""
        arrays, tokens = self._load_images(images), []
        for first in range(0, len(arrays), _BATCH):
            pixels = from_numpy(to_model(np.stack(arrays[first : first + _BATCH])))
            tokens.append(self.vqgan.encode(pixels).flatten(1).numpy())
        return np.concatenate(tokens)

    def check_answers(self) -> None:
        """Raise `ValueError` for a model that was not trained on questions."""
        if not self.config.transformer.question_length:
            raise ValueError("this model answers no questions: fine-tune it on some, e.g. with configs/vqa_emoji.yml")

    def check_supported(self, guidance_scale: float, decoder: ImageDecoder) -> None:
        """Raise `ValueError` for images, a guidance or a decoder that the model was not trained for."""
        if not self.config.draws_images:
            raise ValueError("this model was trained to write texts of images only: it draws none")
        if decoder == "hidden" and self.model.reconstructor is None:
            raise ValueError("decoder is 'hidden', but this model has no reconstructor: use 'codebook'")
        if guidance_scale != 1 and not self.config.classifier_free_guidance:
            why = "this model was trained without text_drop and knows no empty text"
            raise ValueError(f"guidance_scale is {guidance_scale}, but {why}: use 1")

    def check_captions(self) -> None:
        """Raise `ValueError` for a model that was not trained to write texts."""
        if not self.config.writes_texts:
            raise ValueError("this model was trained to draw images of texts only: it writes no captions")

    def _generate(
        self, prompt: str | Sequence[str], options: ImageOptions, every: int, prefix_tokens: np.ndarray | None = None
    ) -> Iterator[tuple[int, list]]:
        """The number of tokens and the images so far, after each `every` tokens (0: never) and at the end."""
        self.check_supported(options.guidance_scale, options.decoder)
        scorer = None if options.num_candidates is None else self._scorer()
        prompts = check_texts("prompt", prompt)
        self.check_known(prompts)
        texts, n = self.encode_prompts(prompts), self.config.transformer.image_length
        count = options.num_candidates or options.num_images_per_prompt
        seeds = options.seeds(count)
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.guidance_scale)
        images: list[np.ndarray] = []
        for some, own_seeds in _batches(texts, seeds):
            returns_states = options.decoder == "hidden"
            outputs = generate_images(self.model, some, self.text_tokenizer, own_seeds, sampling, prefix_tokens, returns_states)
            for output in outputs:
                step = output.tokens.shape[1]
                if step == n:
                    images += decode_images(self.model, self.vqgan, output, options.decoder)
                elif every and step % every == 0:
                    partial = decode_images(self.model, self.vqgan, output, options.decoder)
                    yield step, _converted([*images, *partial], options.output_type)
        if scorer is not None:
            images = self._best(scorer, images, prompts, options.num_images_per_prompt)
        yield n, _converted(images, options.output_type)

    def _best(self, scorer: Scorer, images: list[np.ndarray], prompts: list[str], kept: int) -> list[np.ndarray]:
        """Of each prompt's candidates the `kept` best."""
        count, best = len(images) // len(prompts), []
        for i, text in enumerate(prompts):
            own = images[i * count : (i + 1) * count]
            best += [own[j] for j in rerank(scorer, own, text)[:kept]]
        return best

    def _scorer(self) -> Scorer:
        if self.dual_encoder is None:
            raise ValueError("there is no dual encoder to rank or score with: give from_pretrained a dual_encoder")
        return self.dual_encoder

    def _load_images(self, images: Images) -> list[np.ndarray]:
        """Uint8 [H, W, 3] each, of the model's size."""
        if isinstance(images, ImageInput) and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]
        if not isinstance(images, Sequence | np.ndarray) or not len(images):
            raise ValueError(f"images is {reprlib.repr(images)}: give an image, or a list of at least one")
        return [load_image(image, self.config.image_size) for image in images]


def _check_lora(folder: Path, lora: str | Path | None, scale: float) -> None:
    """Raise `ValueError` for a model that takes no adapter, and for the strength of none."""
    if lora is not None and is_export(folder):
        raise ValueError(f"{folder} is an export, whose weights are final: export the model with --lora")
    if lora is not None and base_file(folder) is not None:
        how = "give the model that it started from, or merge the run with tools/merge_checkpoint.py"
        raise ValueError(f"{folder} is a run that has trained an adapter of its own: {how}")
    if scale != 1 and lora is None and base_file(folder) is None:
        raise ValueError(f"lora_scale is {scale}, but {folder} has no adapter: give one, lora")


def _batches(prompts: list, seeds: list[int]) -> Iterator[tuple[list, list[int]]]:
    """The prompts and seeds that are generated together, at most `_BATCH` sequences, in the order of the prompts; every prompt
    has all the seeds."""
    if len(seeds) >= _BATCH:
        for prompt in prompts:
            for first in range(0, len(seeds), _BATCH):
                yield [prompt], seeds[first : first + _BATCH]
    else:
        size = _BATCH // len(seeds)
        for first in range(0, len(prompts), size):
            some = prompts[first : first + size]
            yield some, seeds * len(some)


def _converted(images: list[np.ndarray], output_type: str) -> list:
    return [Image.fromarray(image) for image in images] if output_type == "pil" else list(images)
