"""The unified transformer: one stack of layers that writes image tokens from text and text from image tokens.

A slot of the target part is where one token is decided: slot k is given token k-1 (the first slot a begin token) with the
position of token k, and its last hidden state predicts token k.
"""

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg.config import Config
from ppvilg.transformer.attention import Cache, SelfAttention, attention_bias
from ppvilg.transformer.layers import FeedForward, residual_std
from ppvilg.transformer.pattern import Direction, Pattern

_TEXT_SOURCE, _TEXT_TARGET, _IMAGE_SOURCE, _IMAGE_TARGET = range(4)


class Block(nn.Layer):
    """One pre-LayerNorm transformer layer."""

    def __init__(self, hidden: int, heads: int, multiplier: int, dropout: float, out_std: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = SelfAttention(hidden, heads, out_std)
        self.ffn_norm = nn.LayerNorm(hidden)
        self.ffn = FeedForward(hidden, multiplier, out_std)
        self.dropout = dropout

    def forward(self, x: paddle.Tensor, bias: paddle.Tensor, cache: Cache | None = None, slots: slice | None = None):
        """[B, L, hidden] -> [B, L, hidden]; with a cache, L is the length of `slots`."""
        normed = self.attention_norm(x)
        attended = self.attention(normed, bias) if cache is None else self.attention.cached(normed, cache, slots, bias)
        x = x + self._drop(attended)
        return x + self._drop(self.ffn(self.ffn_norm(x)))

    def _drop(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.dropout(x, self.dropout, training=self.training) if self.dropout else x


class ViLG(nn.Layer):
    """ERNIE-ViLG's generator (paper 3.1)."""

    def __init__(self, config: Config):
        super().__init__()
        model, text = config.transformer, config.text
        self.rows, self.columns = config.grid
        self.heads = model.heads
        self.codebook_size = config.vqgan.codebook.size
        self.begin_image = self.codebook_size  # the image table's extra row
        hidden = model.hidden
        text_width = text.embedding_width or hidden

        self.text_embedding = _table(text.vocabulary_size, text_width)
        self.text_projection = nn.Linear(text_width, hidden, bias_attr=False) if text_width != hidden else None
        self.image_embedding = _table(self.codebook_size + 1, hidden)
        self.text_position = _table(text.max_length, hidden)
        self.row_position = _table(self.rows, hidden)
        self.column_position = _table(self.columns, hidden)
        self.segment = _table(4, hidden)

        out_std = residual_std(model.layers)
        self.blocks = nn.LayerList(
            [Block(hidden, model.heads, model.ffn_multiplier, model.dropout, out_std) for _ in range(model.layers)]
        )
        self.norm = nn.LayerNorm(hidden)
        # One head over the joint vocabulary, kept as its two parts, since only the target's part is ever computed.
        self.text_head = self.image_head = None
        if not model.tie_embeddings:
            self.text_head = self._head(hidden, text.vocabulary_size)
            self.image_head = self._head(hidden, self.codebook_size)

    def loss(
        self,
        text: paddle.Tensor,
        text_valid: paddle.Tensor,
        image: paddle.Tensor,
        image_input: paddle.Tensor | None = None,
    ) -> dict[str, paddle.Tensor]:
        """Both directions of each pair (paper 3.1.2): L = L_txt2img + L_img2txt, sums of target-side -log p.

        `text` int64 [B, m] with begin and end tokens, `text_valid` bool [B, m] (False for padding), `image` int64 [B, n];
        `image_input` is what the model reads in its place, where that differs (noise). Returns scalars: `loss`, which is L
        per pair divided by n; `txt2img` and `img2txt`, nats per target token; and both `_accuracy`, the share of target
        tokens that the model finds likeliest.
        """
        batch, m = text.shape
        bias = self.bias([Direction.TEXT_TO_IMAGE, Direction.IMAGE_TO_TEXT], text_valid)
        read = image if image_input is None else image_input
        to_image = self.embed(Direction.TEXT_TO_IMAGE, text, read)
        to_text = self.embed(Direction.IMAGE_TO_TEXT, text, read)
        hidden = self.hidden(paddle.concat([to_image, to_text]), bias)

        image_loss, image_hits = _token_losses(self.image_logits(hidden[:batch, m:]), image)
        # Slot k of the text holds token k and decides token k+1; the last slot decides nothing.
        real = text_valid[:, 1:].astype(image_loss.dtype)
        text_loss, text_hits = _token_losses(self.text_logits(hidden[batch:, : m - 1]), text[:, 1:])
        text_tokens = real.sum()
        image_sum, text_sum = image_loss.sum(), (text_loss * real).sum()
        return {
            "loss": (image_sum + text_sum) / image.size,
            "txt2img": image_sum / image.size,
            "img2txt": text_sum / text_tokens,
            "txt2img_accuracy": image_hits.mean(),
            "img2txt_accuracy": (text_hits * real).sum() / text_tokens,
        }

    def embed(self, direction: Direction, text: paddle.Tensor, image: paddle.Tensor) -> paddle.Tensor:
        """Input vectors float [B, m+n, hidden] of the whole sequence, its target part moved by one slot."""
        if direction is Direction.TEXT_TO_IMAGE:
            begin = paddle.full([image.shape[0], 1], self.begin_image, dtype=image.dtype)
            image = paddle.concat([begin, image[:, :-1]], axis=1)
        return paddle.concat([self.embed_text(direction, text), self.embed_image(direction, image)], axis=1)

    def embed_text(self, direction: Direction, ids: paddle.Tensor, first: int = 0) -> paddle.Tensor:
        """Ids int64 [B, L], which stand in text slots `first`, `first`+1, ... -> [B, L, hidden]."""
        vectors = self.text_embedding(ids)
        if self.text_projection is not None:
            vectors = self.text_projection(vectors)
        segment = _TEXT_SOURCE if direction is Direction.TEXT_TO_IMAGE else _TEXT_TARGET
        return vectors + self.text_position.weight[first : first + ids.shape[1]] + self.segment.weight[segment]

    def embed_image(self, direction: Direction, ids: paddle.Tensor, first: int = 0) -> paddle.Tensor:
        """Ids int64 [B, L], which stand in image slots `first`, `first`+1, ... -> [B, L, hidden]."""
        slots = paddle.arange(first, first + ids.shape[1])
        position = self.row_position(slots // self.columns) + self.column_position(slots % self.columns)
        segment = _IMAGE_TARGET if direction is Direction.TEXT_TO_IMAGE else _IMAGE_SOURCE
        return self.image_embedding(ids) + (position + self.segment.weight[segment])

    def bias(self, directions: list[Direction], text_valid: paddle.Tensor) -> paddle.Tensor:
        """Attention bias [len(directions) * B, heads, m+n, m+n]."""
        m = text_valid.shape[1]
        patterns = [Pattern(m, self.rows, self.columns, direction) for direction in directions]
        return attention_bias(patterns, text_valid, self.heads)

    def hidden(self, x: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        """Last hidden states [B, m+n, hidden] of a whole sequence."""
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)

    def caches(self, batch: int, text_length: int) -> list[Cache]:
        """Empty caches, one for each layer."""
        length = text_length + self.rows * self.columns
        return [block.attention.new_cache(batch, length) for block in self.blocks]

    def hidden_cached(self, x: paddle.Tensor, caches: list[Cache], slots: slice, bias: paddle.Tensor) -> paddle.Tensor:
        """Last hidden states [B, len(slots), hidden] of some slots, whose keys and values go into the caches."""
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, bias[:, :, slots], cache, slots)
        return self.norm(x)

    def _head(self, hidden: int, vocabulary: int) -> paddle.Tensor:
        return self.create_parameter([hidden, vocabulary], default_initializer=nn.initializer.Normal(std=0.02))

    def image_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., codebook size]."""
        if self.image_head is None:
            return paddle.matmul(hidden, self.image_embedding.weight[:-1], transpose_y=True)
        return paddle.matmul(hidden, self.image_head)

    def text_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., text vocabulary]."""
        if self.text_head is None:
            return paddle.matmul(hidden, self.text_embedding.weight, transpose_y=True)
        return paddle.matmul(hidden, self.text_head)


def _table(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding(rows, width, weight_attr=nn.initializer.Normal(std=0.02))


def _token_losses(logits: paddle.Tensor, targets: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """-log p of each target, and 1.0 where it is the likeliest token; both float [B, L] for logits [B, L, V]."""
    losses = F.cross_entropy(logits, targets.unsqueeze(-1), reduction="none").squeeze(-1)
    hits = (logits.argmax(-1) == targets).astype(losses.dtype)
    return losses, hits
