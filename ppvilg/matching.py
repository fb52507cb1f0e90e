"""How well a picture and a text fit: a dual encoder (CLIP, Radford et al. 2021), and what ranks and filters with it.

The paper ranks its candidates by such a model and filters its data by its similarity (section 4.1); it does not say which.
"""

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg import checkpoint
from ppvilg.config import DualEncoderExperiment
from ppvilg.errors import UserError
from ppvilg.export.folder import is_export, load_matching
from ppvilg.export.model import ExportedMatching
from ppvilg.parallel.collectives import gathered
from ppvilg.parallel.topology import Topology
from ppvilg.pictures import to_model
from ppvilg.text import TextTokenizer, cut, pad_batch, saved_text_tokenizer
from ppvilg.transformer.layers import FeedForward, LayerNorm, Linear, Table, dims, normed_projections, parameter, residual_std
from ppvilg.transformer.pattern import HIDDEN

_LARGEST_SCALE = 100.0  # of the similarities (CLIP)
_BATCH = 64


class Scorer(Protocol):
    """What ranking and evaluation know of a matching model."""

    def embed_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 [N, H, W, 3] -> float32 [N, E] of length 1."""

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """N texts -> float32 [N, E] of length 1."""


def scores(scorer: Scorer, pictures: np.ndarray, texts: list[str]) -> np.ndarray:
    """Of N pictures uint8 [N, H, W, 3] each with its text: float32 [N] in [0, 1], (1 + cosine) / 2."""
    return (1 + (scorer.embed_pictures(pictures) * scorer.embed_texts(texts)).sum(1)) / 2


def best_first(scorer: Scorer, pictures: list[np.ndarray], text: str) -> list[int]:
    """The order of pictures uint8 [H, W, 3] in which they fit a text, the best first."""
    fits = scores(scorer, np.stack(pictures), [text] * len(pictures))
    return [int(i) for i in np.argsort(-fits, kind="stable")]


class Matching(nn.Layer):
    """Two transformer encoders; the mean of each one's last states is projected to the common space."""

    def __init__(self, config: DualEncoderExperiment):
        super().__init__()
        model, text = config.dual_encoder, config.text
        self.patch_size = model.patch_size
        patches = (config.data.image_size // model.patch_size) ** 2
        self.patch_embedding = Linear(3 * model.patch_size**2, model.hidden)
        self.patch_position = Table(patches, model.hidden)
        self.text_embedding = Table(text.vocabulary_size, model.hidden)
        self.text_position = Table(text.max_length, model.hidden)
        self.image_encoder = Encoder(model.hidden, model.heads, model.image_layers, model.dropout)
        self.text_encoder = Encoder(model.hidden, model.heads, model.text_layers, model.dropout)
        self.image_projection = parameter(self, [model.hidden, model.embedding], model.hidden**-0.5)
        self.text_projection = parameter(self, [model.hidden, model.embedding], model.hidden**-0.5)
        first = nn.initializer.Constant(math.log(1 / model.temperature))
        self.log_scale = self.create_parameter([1], default_initializer=first)

    def embed_image(self, pictures: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, 3, H, W] in [-1, 1] -> float32 [B, E] of length 1."""
        _, _, height, width = pictures.shape
        p = self.patch_size
        patches = pictures.reshape([-1, 3, height // p, p, width // p, p]).transpose([0, 2, 4, 1, 3, 5])
        count = (height // p) * (width // p)
        rows = self.patch_embedding(patches.reshape([-1, 3 * p * p]))
        rows = rows.reshape([-1, count, rows.shape[1]])
        states = self.image_encoder(rows + self.patch_position(paddle.arange(count)), None)
        return F.normalize(paddle.matmul(states.mean(1), self.image_projection))

    def embed_text(self, ids: paddle.Tensor, valid: paddle.Tensor) -> paddle.Tensor:
        """Int64 [B, m] with bool [B, m], True for real tokens, -> float32 [B, E] of length 1."""
        batch, m = dims(ids)
        rows = self.text_embedding(ids.flatten()).reshape([batch, m, -1]) + self.text_position(paddle.arange(m))
        bias = paddle.where(valid, paddle.zeros([]), paddle.full([], HIDDEN)).unsqueeze([1, 2])
        states = self.text_encoder(rows, bias)
        real = valid.astype(states.dtype).unsqueeze(-1)
        return F.normalize(paddle.matmul((states * real).sum(1) / real.sum(1), self.text_projection))

    def loss(
        self, pictures: paddle.Tensor, ids: paddle.Tensor, valid: paddle.Tensor, topology: Topology | None = None
    ) -> dict[str, paddle.Tensor]:
        """Symmetric InfoNCE over the pairs of all data ranks: each picture has to find its text among all texts, each text its
        picture (Radford et al. 2021, figure 3).

        Returns scalars: `loss`, the mean of both; `picture_to_text` and `text_to_picture`, the shares that are found.
        """
        topology = topology or Topology()
        image, text = self.embed_image(pictures), self.embed_text(ids, valid)
        all_images, all_texts = (gathered(gathered(x, topology.sharding), topology.dp) for x in (image, text))
        scale = paddle.exp(paddle.clip(self.log_scale, max=math.log(_LARGEST_SCALE)))
        targets = paddle.arange(len(image)) + topology.data_rank * len(image)
        to_text = paddle.matmul(image * scale, all_texts, transpose_y=True)
        to_picture = paddle.matmul(text * scale, all_images, transpose_y=True)
        return {
            "loss": (F.cross_entropy(to_text, targets) + F.cross_entropy(to_picture, targets)) / 2,
            "picture_to_text": (to_text.argmax(1) == targets).astype(image.dtype).mean(),
            "text_to_picture": (to_picture.argmax(1) == targets).astype(image.dtype).mean(),
        }


class Encoder(nn.Layer):
    """Pre-LayerNorm transformer layers in which everything sees everything."""

    def __init__(self, hidden: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.LayerList([_EncoderLayer(hidden, heads, residual_std(layers), dropout) for _ in range(layers)])
        self.norm = LayerNorm(hidden)

    def forward(self, x: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        """[B, L, hidden] -> [B, L, hidden]; `bias` [B, 1, 1, L] is added to the scores of the keys."""
        shape = dims(x)
        rows = x.flatten(0, 1)
        for layer in self.layers:
            rows = layer(rows, shape[0], bias)
        return self.norm(rows).reshape(shape)


class _EncoderLayer(nn.Layer):
    def __init__(self, hidden: int, heads: int, out_std: float, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = LayerNorm(hidden)
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden, bias=False)
        self.value = Linear(hidden, hidden, bias=False)
        self.out = Linear(hidden, hidden, std=out_std)
        self.ffn = FeedForward(hidden, 4, out_std)

    def forward(self, x: paddle.Tensor, batch: int, bias: paddle.Tensor | None) -> paddle.Tensor:
        projected = normed_projections(x, self.norm, self.query, self.key, self.value)
        width = x.shape[1] // self.heads
        queries, keys, values = (t.reshape([batch, -1, self.heads, width]).transpose([0, 2, 1, 3]) for t in projected)
        seen = paddle.matmul(queries * width**-0.5, keys, transpose_y=True)
        mixed = paddle.matmul(F.softmax(seen if bias is None else seen + bias), values)
        x = x + self._drop(self.out(mixed.transpose([0, 2, 1, 3]).reshape([-1, x.shape[1]])))
        return x + self._drop(self.ffn(x))

    def _drop(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.dropout(x, self.dropout, training=self.training) if self.dropout else x


class MatchingModel:
    """A trained `Matching` with its tokenizer: a `Scorer`."""

    def __init__(self, config: DualEncoderExperiment, model: Matching | ExportedMatching, text: TextTokenizer):
        self.config, self.model, self.text = config, model, text

    @classmethod
    def load(cls, folder: str | Path) -> "MatchingModel":
        """Read the newest checkpoint of a run of task `dual_encoder`, or an exported one; raises `UserError` for a folder that
        is neither, or damaged."""
        folder = Path(folder)
        if is_export(folder):
            return cls(*load_matching(folder))
        weights = checkpoint.weights_file(folder)
        config = checkpoint.model_config(folder, "dual_encoder")
        text = saved_text_tokenizer(folder, config.text)
        model = Matching(config)
        checkpoint.load_weights(model, weights)
        model.eval()
        return cls(config, model, text)

    @paddle.no_grad()
    def embed_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """As a `Scorer`; raises `UserError` for pictures of another size than the model's."""
        size = self.config.data.image_size
        if pictures.shape[1:] != (size, size, 3):
            raise UserError(f"the matching model reads pictures of {size}x{size} pixels, not {list(pictures.shape[1:])}")
        parts = (pictures[first : first + _BATCH] for first in range(0, len(pictures), _BATCH))
        return np.concatenate([self.model.embed_image(paddle.to_tensor(to_model(part))).numpy() for part in parts])

    @paddle.no_grad()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """As a `Scorer`; longer texts are cut."""
        parts = (texts[first : first + _BATCH] for first in range(0, len(texts), _BATCH))
        return np.concatenate([self._embed_texts(part) for part in parts])

    def _embed_texts(self, texts: list[str]) -> np.ndarray:
        ids = [cut(self.text.encode(text), self.config.text.max_length) for text in texts]
        return self.model.embed_text(*map(paddle.to_tensor, pad_batch(ids, self.text.pad))).numpy()


class ErnieViL:
    """PaddleNLP's ErnieViL 2.0, a Chinese dual encoder: a `Scorer` whose weights are downloaded or in a local folder."""

    def __init__(self, name: str = "ernie_vil-2.0-base-zh"):
        from paddlenlp.transformers import ErnieViLModel, ErnieViLProcessor

        try:
            self._processor = ErnieViLProcessor.from_pretrained(name)
            self._model = ErnieViLModel.from_pretrained(name)
        except Exception as error:  # whatever the download or the file raises
            raise UserError(f"cannot get ErnieViL {name}: {' '.join(str(error).split())[:200]}") from None
        self._model.eval()

    @paddle.no_grad()
    def embed_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """As a `Scorer`, pictures of any size."""
        from PIL import Image

        inputs = self._processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pd")
        return F.normalize(self._model.get_image_features(**inputs)).numpy()

    @paddle.no_grad()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """As a `Scorer`."""
        inputs = self._processor(text=texts, return_tensors="pd", padding=True)
        return F.normalize(self._model.get_text_features(**inputs)).numpy()


def load_scorer(name: str) -> Scorer:
    """The matching model of a run or an export, or an ErnieViL of PaddleNLP by name (ernie_vil-...) or local folder."""
    folder = Path(name)
    if name.startswith("ernie_vil") or (folder / "preprocessor_config.json").is_file():
        return ErnieViL(name)
    return MatchingModel.load(folder)
