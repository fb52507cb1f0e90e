"""How well images and texts fit: dual encoders (CLIP) as scorers, and reranking by their scores."""

from pathlib import Path
from typing import Protocol

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg.folder import ScorerConfig, new_folder, read_config, read_weights, write_model
from ppvilg.model.dual_encoder import DualEncoder
from ppvilg.ops import from_numpy
from ppvilg.options import check_texts
from ppvilg.pictures import to_model
from ppvilg.text import TextTokenizer, encode_cut, pad_batch, saved_text_tokenizer

_BATCH = 64


class Scorer(Protocol):
    """What reranking and evaluation need of a dual encoder."""

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, 3] -> float32 [N, E] of length 1."""

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """N texts -> float32 [N, E] of length 1."""


def scores(scorer: Scorer, images: np.ndarray, texts: list[str]) -> np.ndarray:
    """Of N images uint8 [N, H, W, 3] each with its text: float32 [N] in [0, 1], (1 + cosine) / 2."""
    return (1 + (scorer.embed_images(images) * scorer.embed_texts(texts)).sum(1)) / 2


def rerank(scorer: Scorer, images: list[np.ndarray], text: str) -> list[int]:
    """The order of images uint8 [H, W, 3], at least one, by how well they fit a text, the best first."""
    if not images:
        raise ValueError("there is no image to rank: give at least one")
    fits = scores(scorer, np.stack(images), [text] * len(images))
    return [int(i) for i in np.argsort(-fits, kind="stable")]


class DualEncoderScorer:
    """A trained dual encoder with its text tokenizer: a `Scorer`."""

    def __init__(self, model, text_tokenizer: TextTokenizer, config: ScorerConfig):
        """`model`: a `DualEncoder`, or an exported one."""
        self.model, self.text_tokenizer, self.config = model, text_tokenizer, config

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DualEncoderScorer":
        """Read a model folder, a training run's newest checkpoint or an export; raises `ValueError` for a folder that is none
        of them, or damaged."""
        from ppvilg.export.folder import is_export, load_dual_encoder_export

        folder = Path(folder)
        if is_export(folder):
            return cls(*load_dual_encoder_export(folder))
        config = read_config(folder, ScorerConfig)
        model = DualEncoder(config.dual_encoder)
        read_weights(model, folder)
        vocab_size = config.dual_encoder.text_vocab_size
        return cls(model, saved_text_tokenizer(folder, config.text_tokenizer, vocab_size), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder; raises `ValueError` where it exists already."""
        with new_folder(folder) as temporary:
            write_model(temporary, self.config, self.model, self.text_tokenizer)

    @paddle.no_grad()
    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """As a `Scorer`; raises `ValueError` for no images, and for images of another size than the model's."""
        size = self.config.dual_encoder.image_size
        if np.shape(images)[1:] != (size, size, 3) or not len(images):
            shape = list(np.shape(images))
            raise ValueError(f"the dual encoder reads images [N, {size}, {size}, 3], at least one, not {shape}")
        batches = (images[first : first + _BATCH] for first in range(0, len(images), _BATCH))
        return np.concatenate([self.model.embed_image(from_numpy(to_model(batch))).numpy() for batch in batches])

    @paddle.no_grad()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """As a `Scorer`; longer texts are truncated. Raises `ValueError` for no texts, and for empty ones."""
        texts = check_texts("texts", texts)
        longest, pad = self.config.dual_encoder.max_text_length, self.text_tokenizer.pad
        embeddings = []
        for first in range(0, len(texts), _BATCH):
            ids = [encode_cut(self.text_tokenizer, text, longest) for text in texts[first : first + _BATCH]]
            embeddings.append(self.model.embed_text(*map(from_numpy, pad_batch(ids, pad))).numpy())
        return np.concatenate(embeddings)


class ErnieViL:
    """PaddleNLP's ErnieViL 2.0, a Chinese dual encoder: a `Scorer` whose weights are downloaded or in a local folder."""

    def __init__(self, name: str = "ernie_vil-2.0-base-zh"):
        from paddlenlp.transformers import ErnieViLModel, ErnieViLProcessor

        try:
            self._processor = ErnieViLProcessor.from_pretrained(name)
            self._model = ErnieViLModel.from_pretrained(name)
        except Exception as error:  # whatever the download or the file raises
            raise ValueError(f"cannot get ErnieViL {name}: {' '.join(str(error).split())[:200]}") from None
        self._model.eval()

    @paddle.no_grad()
    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """As a `Scorer`, images of any size."""
        from PIL import Image

        inputs = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pd")
        return F.normalize(self._model.get_image_features(**inputs)).numpy()

    @paddle.no_grad()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """As a `Scorer`."""
        inputs = self._processor(text=texts, return_tensors="pd", padding=True)
        return F.normalize(self._model.get_text_features(**inputs)).numpy()


def load_scorer(name: str | Path) -> Scorer:
    """The dual encoder in a folder, or an ErnieViL of PaddleNLP by name (ernie_vil-...) or local folder."""
    if str(name).startswith("ernie_vil") or (Path(name) / "preprocessor_config.json").is_file():
        return ErnieViL(str(name))
    return DualEncoderScorer.from_pretrained(name)
