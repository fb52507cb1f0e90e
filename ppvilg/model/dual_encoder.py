"""A dual encoder (CLIP, Radford et al. 2021): how well an image and a text fit.

The paper ranks its candidates by such a model and filters its data by its similarity (section 4.1); it does not say which.
"""

import math
from dataclasses import asdict, dataclass

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg.config import DualEncoderExperiment
from ppvilg.model.attention import Attention
from ppvilg.model.layers import MLP, LayerNorm, Linear, dropout, sizes

_MAX_SCALE = 100.0  # of the similarities (CLIP)


@dataclass(frozen=True)
class DualEncoderSizes:
    """What the two encoders are made of."""

    image_size: int
    text_vocab_size: int
    max_text_length: int
    hidden: int
    heads: int
    image_layers: int
    text_layers: int
    patch_size: int
    embedding: int
    """Width of the common space."""
    temperature: float
    """What similarities are divided by at first; it is learned."""
    dropout: float = 0.0


def dual_encoder_sizes(experiment: DualEncoderExperiment) -> DualEncoderSizes:
    """The model that an experiment trains."""
    text = experiment.text
    return DualEncoderSizes(
        image_size=experiment.data.image_size,
        text_vocab_size=text.vocabulary_size,
        max_text_length=text.max_length,
        **asdict(experiment.dual_encoder),
    )


class DualEncoder(nn.Layer):
    """Two transformer encoders; the mean of each one's last states is projected to the common space."""

    def __init__(self, config: DualEncoderSizes):
        super().__init__()
        hidden = config.hidden
        self.config = config
        self.patch_size = config.patch_size
        patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = Linear(3 * config.patch_size**2, hidden)
        self.patch_position = nn.Embedding(patches, hidden)
        self.text_embedding = nn.Embedding(config.text_vocab_size, hidden)
        self.text_position = nn.Embedding(config.max_text_length, hidden)
        self.image_encoder = Encoder(hidden, config.heads, config.image_layers, config.dropout)
        self.text_encoder = Encoder(hidden, config.heads, config.text_layers, config.dropout)
        self.image_projection = Linear(hidden, config.embedding, bias=False)
        self.text_projection = Linear(hidden, config.embedding, bias=False)
        self.log_scale = self.create_parameter(
            [1], default_initializer=nn.initializer.Constant(math.log(1 / config.temperature))
        )

    def embed_image(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Float32 [B, 3, H, W] in [-1, 1] -> float32 [B, E] of length 1."""
        _, _, height, width = pixels.shape
        p = self.patch_size
        rows, columns = height // p, width // p
        patches = pixels.reshape([-1, 3, rows, p, columns, p]).transpose([0, 2, 4, 1, 3, 5])
        x = self.patch_embedding(patches.reshape([-1, rows * columns, 3 * p * p]))
        x = x + self.patch_position(paddle.arange(rows * columns))
        states = self.image_encoder(x, paddle.ones([sizes(x)[0], rows * columns], "bool"))
        return F.normalize(self.image_projection(states.mean(1)))

    def embed_text(self, ids: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """Int64 [B, m], mask bool [B, m] True for real tokens -> float32 [B, E] of length 1."""
        x = self.text_embedding(ids) + self.text_position(paddle.arange(sizes(ids)[1]))
        states = self.text_encoder(x, mask)
        real = mask.astype(states.dtype).unsqueeze(-1)
        return F.normalize(self.text_projection((states * real).sum(1) / real.sum(1)))

    def scale(self) -> paddle.Tensor:
        """What similarities are multiplied by: [1], at most 100."""
        return paddle.exp(paddle.clip(self.log_scale, max=math.log(_MAX_SCALE)))


def contrastive_loss(
    image: paddle.Tensor,
    text: paddle.Tensor,
    scale: paddle.Tensor,
    all_images: paddle.Tensor,
    all_texts: paddle.Tensor,
    first: int = 0,
) -> dict[str, paddle.Tensor]:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): each image has to find its text among all texts, each text its image.

    `image` and `text` float [B, E] are pairs first .. first+B-1 of `all_images` and `all_texts` float [N, E]. Returns scalars:
    `loss`, the mean of both; `image_to_text` and `text_to_image`, the shares that are found.
    """
    labels = paddle.arange(len(image)) + first
    to_text = paddle.matmul(image * scale, all_texts, transpose_y=True)
    to_image = paddle.matmul(text * scale, all_images, transpose_y=True)
    return {
        "loss": (F.cross_entropy(to_text, labels) + F.cross_entropy(to_image, labels)) / 2,
        "image_to_text": (to_text.argmax(1) == labels).astype(image.dtype).mean(),
        "text_to_image": (to_image.argmax(1) == labels).astype(image.dtype).mean(),
    }


class Encoder(nn.Layer):
    """Pre-LayerNorm transformer layers in which every token sees every real one."""

    def __init__(self, hidden: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.LayerList([EncoderLayer(hidden, heads, dropout) for _ in range(layers)])
        self.norm = LayerNorm(hidden)

    def forward(self, x: paddle.Tensor, key_mask: paddle.Tensor) -> paddle.Tensor:
        """[B, L, hidden], key_mask bool [B, L] -> [B, L, hidden]."""
        for layer in self.layers:
            x = layer(x, key_mask)
        return self.norm(x)


class EncoderLayer(nn.Layer):
    """One layer."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm1 = LayerNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.norm2 = LayerNorm(hidden)
        self.mlp = MLP(hidden, 4)

    def forward(self, x: paddle.Tensor, key_mask: paddle.Tensor) -> paddle.Tensor:
        """[B, L, hidden], key_mask bool [B, L] -> [B, L, hidden]."""
        x = x + dropout(self.attention(self.norm1(x), None, key_mask), self.dropout, self.training)
        return x + dropout(self.mlp(self.norm2(x)), self.dropout, self.training)
