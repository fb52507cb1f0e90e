"""The Python API: a trained run, ready to write pictures from texts and captions from pictures.

from ppvilg.pipeline import Pipeline
model = Pipeline.load("runs/vilg_emoji")
pictures = model.generate(["Noto风格的红苹果"], samples=4)[0]    # four uint8 arrays [64, 64, 3]
caption = model.caption([pictures[0]])[0][0]                    # a string
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle

from ppvilg import checkpoint
from ppvilg.config import Config
from ppvilg.data.pictures import decode_picture
from ppvilg.errors import UserError
from ppvilg.generate.decoding import write_images, write_texts
from ppvilg.generate.sampling import Sampling
from ppvilg.pictures import from_model, to_model
from ppvilg.text import TextTokenizer, encode_prompt, load_text_tokenizer, pad_batch
from ppvilg.transformer.model import ViLG
from ppvilg.vqgan.folder import load_vqgan
from ppvilg.vqgan.model import VQGAN

_BATCH = 32  # sequences decoded together


class Pipeline:
    """A transformer with its image tokenizer and its text tokenizer."""

    def __init__(self, config: Config, model: ViLG, vqgan: VQGAN, text: TextTokenizer):
        self.config = config
        self.model = model
        self.vqgan = vqgan
        self.text = text
        model.eval()
        vqgan.eval()

    @classmethod
    def load(cls, folder: str | Path) -> "Pipeline":
        """Read the newest checkpoint of a transformer run.

        Raises `UserError` for a folder that is missing, incomplete, damaged, of another task, or does not fit its config.
        """
        folder = Path(folder)
        weights = checkpoint.weights_file(folder)
        config = checkpoint.model_config(folder, "vilg")
        vqgan = load_vqgan(folder / "tokenizer")
        vocabulary = next((folder / "text").glob("*"), None)
        if vocabulary is None:
            raise UserError(f"{folder / 'text'} holds no vocabulary: the run folder is incomplete")
        text = load_text_tokenizer(replace(config.text, vocabulary=str(vocabulary)))
        model = ViLG(config)
        checkpoint.load_weights(model, weights)
        return cls(config, model, vqgan, text)

    def generate(
        self, prompts: list[str], samples: int = 1, seed: int = 0, sampling: Sampling = Sampling()
    ) -> list[list[np.ndarray]]:
        """For each prompt, `samples` pictures uint8 [H, W, 3].

        Sample i of any prompt is drawn with seed + i, whatever else is in the call.
        """
        *_, last = self.generate_partial(prompts, samples, seed, sampling)
        return last

    def generate_partial(
        self, prompts: list[str], samples: int = 1, seed: int = 0, sampling: Sampling = Sampling(), every: int = 0
    ) -> Iterator[list[list[np.ndarray]]]:
        """As `generate`, but yields the growing pictures after each `every` tokens (0: only when done).

        Tokens that are not written yet stand as code 0. Raises `UserError` for an empty or overlong prompt.
        """
        ids = [encode_prompt(self.text, prompt, self.config.text.max_length) for prompt in prompts]
        rows = [(text, seed + i) for text in ids for i in range(samples)]
        done: list[np.ndarray] = []
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            text, valid = pad_batch([text for text, _ in part], self.text.pad)
            seeds = [seed for _, seed in part]
            steps = write_images(self.model, paddle.to_tensor(text), paddle.to_tensor(valid), seeds, sampling)
            for k, tokens in enumerate(steps, start=1):
                complete = k == self.config.image_tokens
                if complete or (every and k % every == 0):
                    pictures = [*done, *self._paint(tokens)]
                    if complete:
                        done = pictures
                    if first + _BATCH >= len(rows) or not complete:
                        yield self._by_prompt(pictures, len(prompts), samples)

    def caption(
        self, pictures: list[np.ndarray | bytes], samples: int = 1, seed: int = 0, sampling: Sampling = Sampling(0)
    ) -> list[list[str]]:
        """For each picture (uint8 RGB [H, W, 3], or the bytes of a picture file), `samples` captions; greedy by default.

        Raises `UserError` for bytes that are not a picture.
        """
        size = self.config.data.image_size
        arrays = [decode_picture(p, size) if isinstance(p, bytes) else _fitted(p, size) for p in pictures]
        captions = []
        for first in range(0, len(arrays), _BATCH):
            batch = paddle.to_tensor(to_model(np.stack(arrays[first : first + _BATCH])))
            tokens = self.vqgan.encode(batch).flatten(1)
            tokens = paddle.repeat_interleave(tokens, samples, axis=0)
            seeds = [seed + i % samples for i in range(len(tokens))]
            texts = write_texts(self.model, tokens, self.text, self.config.text.max_length, seeds, sampling)
            captions += [self.text.decode(ids) for ids in texts]
        return [captions[i : i + samples] for i in range(0, len(captions), samples)]

    def _paint(self, tokens: paddle.Tensor) -> list[np.ndarray]:
        """Token grids int64 [B, k], filled up with code 0 -> pictures uint8 [H, W, 3]."""
        missing = self.config.image_tokens - tokens.shape[1]
        tokens = paddle.concat([tokens, paddle.zeros([tokens.shape[0], missing], dtype=tokens.dtype)], axis=1)
        with paddle.no_grad():
            return list(from_model(self.vqgan.decode(tokens.reshape([-1, *self.config.grid])).numpy()))

    def _by_prompt(self, pictures: list[np.ndarray], prompts: int, samples: int) -> list[list[np.ndarray]]:
        return [pictures[i * samples : (i + 1) * samples] for i in range(prompts)]


def _fitted(picture: np.ndarray, size: int) -> np.ndarray:
    import cv2

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UserError(f"expected a picture uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    return decode_picture(cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), size)
