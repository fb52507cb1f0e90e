"""The Python API: a trained run or an exported model, ready to write pictures from texts and captions from pictures.

from ppvilg.pipeline import Pipeline
model = Pipeline.load("runs/vilg_emoji")
pictures = model.generate(["Noto风格的红苹果"], samples=4)[0]    # four uint8 arrays [64, 64, 3]
caption = model.caption([pictures[0]])[0][0]                    # a string
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from ppvilg import checkpoint
from ppvilg.config import ViLGExperiment
from ppvilg.data.images import decode_image
from ppvilg.errors import UserError
from ppvilg.export.folder import is_export, load_parts
from ppvilg.export.model import ExportedViLG, ExportedVQGAN
from ppvilg.generate.decoding import Written, search_texts, write_images, write_texts
from ppvilg.generate.painting import PictureDecoder, paint
from ppvilg.generate.sampling import Sampling
from ppvilg.matching import Scorer, best_first
from ppvilg.pictures import to_model
from ppvilg.text import TextTokenizer, encode_prompt, saved_text_tokenizer
from ppvilg.transformer.model import ViLG
from ppvilg.vqgan.folder import load_vqgan
from ppvilg.vqgan.model import VQGAN

_BATCH = 64  # sequences decoded together

Picture = np.ndarray | bytes
"""Uint8 RGB [H, W, 3], or the bytes of a picture file."""


class Pipeline:
    """A transformer with its image tokenizer and its text tokenizer."""

    def __init__(self, config: ViLGExperiment, model: ViLG | ExportedViLG, vqgan: VQGAN | ExportedVQGAN, text: TextTokenizer):
        self.config = config
        self.model = model
        self.vqgan = vqgan
        self.text = text

    @classmethod
    def load(cls, folder: str | Path) -> "Pipeline":
        """Read the newest checkpoint of a transformer run, or an exported model.

        Raises `UserError` for a folder that is missing, incomplete, damaged, of another task, or does not fit its config.
        """
        folder = Path(folder)
        if is_export(folder):
            return cls(*load_parts(folder))
        weights = checkpoint.weights_file(folder)
        config = checkpoint.model_config(folder, "vilg")
        vqgan = load_vqgan(folder / "tokenizer")
        text = saved_text_tokenizer(folder, config.text)
        model = ViLG(config)
        checkpoint.load_weights(model, weights)
        model.eval()
        return cls(config, model, vqgan, text)

    def generate(
        self,
        prompts: list[str],
        samples: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        decoder: PictureDecoder = "codebook",
    ) -> list[list[np.ndarray]]:
        """For each prompt, `samples` pictures uint8 [H, W, 3].

        Sample i of any prompt is drawn with seed + i, whatever else is in the call. `decoder` says what paints the tokens: the
        image tokenizer, or the reconstructor from the hidden states (end-to-end models).
        """
        *_, last = self.generate_partial(prompts, samples, seed, sampling, decoder)
        return last

    def generate_best(
        self,
        prompts: list[str],
        scorer: Scorer,
        candidates: int,
        samples: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        decoder: PictureDecoder = "codebook",
    ) -> list[list[np.ndarray]]:
        """As `generate`, but of `candidates` pictures for each prompt those `samples` that fit it best, the best first (the
        paper takes the best of 60). Raises `UserError` for fewer candidates than samples."""
        if candidates < samples:
            raise UserError(f"the best of {candidates} candidates cannot be {samples} pictures: give more candidates")
        drawn = self.generate(prompts, candidates, seed, sampling, decoder)
        pairs = zip(drawn, prompts, strict=True)
        return [[pictures[i] for i in best_first(scorer, pictures, prompt)[:samples]] for pictures, prompt in pairs]

    def generate_partial(
        self,
        prompts: list[str],
        samples: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        decoder: PictureDecoder = "codebook",
        every: int = 0,
    ) -> Iterator[list[list[np.ndarray]]]:
        """As `generate`, but yields the growing pictures after each `every` tokens (0: only when done).

        What is not written yet stands as code 0. Raises `UserError` for an empty or overlong prompt, and for a decoder or a
        guidance that the model was not trained for.
        """
        yield from self._written(prompts, samples, seed, sampling, decoder, every, None)

    def complete(
        self,
        picture: Picture,
        keep_rows: int,
        prompt: str,
        samples: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        decoder: PictureDecoder = "codebook",
    ) -> list[np.ndarray]:
        """`samples` pictures uint8 [H, W, 3] that start with the upper `keep_rows` rows of tokens of a picture.

        Raises `UserError` as `generate_partial` does, for bytes that are not a picture, and for rows that are not there.
        """
        rows, columns = self.config.grid
        if not 0 < keep_rows < rows:
            raise UserError(f"keep_rows is {keep_rows}: the picture has {rows} rows of tokens, keep 1 to {rows - 1}")
        given = self.tokens([picture])[0, : keep_rows * columns]
        *_, last = self._written([prompt], samples, seed, sampling, decoder, 0, given)
        return last[0]

    def caption(
        self,
        pictures: list[Picture],
        samples: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(0),
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[list[str]]:
        """For each picture `samples` captions; greedy by default, the best of a beam search with `beams` above 1.

        `length_penalty`: beam search divides log p by the caption's length to this power. Raises `UserError` for bytes that
        are not a picture, and for beams together with samples.
        """
        if beams < 1:
            raise UserError(f"beams is {beams}: give 1 (no search) or more")
        if beams > 1 and (samples > 1 or sampling.temperature):
            raise UserError("a beam search finds one caption and draws nothing: give beams, or samples and temperature")
        if sampling.guidance != 1:
            raise UserError("guidance is for pictures: captions have none")
        tokens = self.tokens(pictures)
        longest = self.config.text.max_length
        at_once = max(1, _BATCH // max(samples, beams))
        captions = []
        for first in range(0, len(tokens), at_once):
            part = paddle.to_tensor(tokens[first : first + at_once])
            if beams > 1:
                texts = search_texts(self.model, part, self.text, longest, beams, length_penalty)
            else:
                seeds = [seed + i for i in range(samples)] * len(part)
                texts = write_texts(self.model, part, self.text, longest, seeds, sampling)
            captions += [self.text.decode(ids) for ids in texts]
        return [captions[i : i + samples] for i in range(0, len(captions), samples)]

    def write(self, prompts: list[str], seeds: list[int], sampling: Sampling, read_last: bool = False) -> Written:
        """All image tokens for each prompt, len(seeds) / len(prompts) candidates of each, not painted yet; `read_last` for the
        decoder `hidden`. Raises `UserError` as `generate_partial` does."""
        self._check(sampling, "hidden" if read_last else "codebook")
        *_, written = write_images(self.model, self.encode_prompts(prompts), self.text, seeds, sampling, None, read_last)
        return written

    def encode_prompts(self, prompts: list[str]) -> list[list[int]]:
        """Token ids; raises `UserError` for an empty or overlong prompt."""
        return [encode_prompt(self.text, prompt, self.config.text.max_length) for prompt in prompts]

    def tokens(self, pictures: list[Picture]) -> np.ndarray:
        """Image tokens int64 [B, n] of pictures."""
        size = self.config.data.image_size
        arrays = [decode_image(p, size) if isinstance(p, bytes) else _fitted(p, size) for p in pictures]
        parts = (arrays[first : first + _BATCH] for first in range(0, len(arrays), _BATCH))
        return np.concatenate([self.vqgan.encode(paddle.to_tensor(to_model(np.stack(p)))).flatten(1).numpy() for p in parts])

    def _written(
        self,
        prompts: list[str],
        samples: int,
        seed: int,
        sampling: Sampling,
        decoder: PictureDecoder,
        every: int,
        given: np.ndarray | None,
    ) -> Iterator[list[list[np.ndarray]]]:
        self._check(sampling, decoder)
        texts = self.encode_prompts(prompts)
        done: list[np.ndarray] = []
        for part, first, last in _batches(len(texts), samples):
            seeds = [seed + i for i in range(first, last)] * len(part)
            start = None if given is None else np.tile(given, (len(seeds), 1))
            chosen = [texts[i] for i in part]
            steps = write_images(self.model, chosen, self.text, seeds, sampling, start, decoder == "hidden")
            for written in steps:
                k = written.tokens.shape[1]
                complete = k == self.config.image_tokens
                if complete or (every and k % every == 0):
                    pictures = [*done, *paint(self.model, self.vqgan, written, decoder)]
                    if complete:
                        done = pictures
                    if len(pictures) == len(texts) * samples or not complete:
                        yield [pictures[i * samples : (i + 1) * samples] for i in range(len(texts))]

    def _check(self, sampling: Sampling, decoder: PictureDecoder) -> None:
        if decoder == "hidden" and self.model.reconstructor is None:
            raise UserError("this model has no reconstructor (transformer.reconstructor): use the decoder `codebook`")
        if sampling.guidance != 1 and not self.config.train.text_drop:
            raise UserError("this model was trained without text_drop, so it knows no empty text: use guidance 1")


def _batches(prompts: int, samples: int) -> Iterator[tuple[range, int, int]]:
    """Prompts and their samples first .. last-1 that are decoded together, at most `_BATCH` sequences, in order."""
    if samples >= _BATCH:
        for prompt in range(prompts):
            for first in range(0, samples, _BATCH):
                yield range(prompt, prompt + 1), first, min(first + _BATCH, samples)
    else:
        at_once = _BATCH // samples
        for first in range(0, prompts, at_once):
            yield range(first, min(first + at_once, prompts)), 0, samples


def _fitted(picture: np.ndarray, size: int) -> np.ndarray:
    import cv2

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UserError(f"expected a picture uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    return decode_image(cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), size)
