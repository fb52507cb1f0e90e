"""The unified transformer: one stack of layers that writes image tokens from text and text from image tokens.

Every slot holds its own token. The last hidden state of a target slot, which has read its token, decides the next one; the
first image token is decided by the last real token of the text, the first text token is the begin token and given.
"""

from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from ppvilg.config import Config, TransformerConfig
from ppvilg.parallel.collectives import shared
from ppvilg.parallel.pipeline import stages
from ppvilg.parallel.recompute import recomputed
from ppvilg.parallel.topology import ALONE, Axis, Topology
from ppvilg.transformer.attention import SelfAttention, View, view
from ppvilg.transformer.cache import Cache, Source, State, Step, keeps_latents
from ppvilg.transformer.layers import (
    FeedForward,
    LayerNorm,
    Linear,
    Table,
    parameter,
    residual_std,
    spread_row,
    token_hits,
    token_losses,
)
from ppvilg.transformer.pattern import Direction, Pattern
from ppvilg.transformer.reconstructor import Reconstructor

_TEXT_SOURCE, _TEXT_TARGET, _IMAGE_SOURCE, _IMAGE_TARGET = range(4)


Array = np.ndarray | paddle.Tensor
Texts = dict[Direction, tuple[paddle.Tensor, paddle.Tensor]]
"""For each direction its texts int64 [B, m] and their validity bool [B, m]."""


@dataclass(frozen=True)
class Pairs:
    """A batch of pairs; numpy arrays as it is loaded, tensors as it is computed with."""

    text: Array
    """Int64 [B, m], begin and end tokens included."""
    valid: Array
    """Bool [B, m], False for padding."""
    image: Array
    """Int64 [B, n], in raster order."""
    prompt: Array
    """Int64 [B, m]: the text that the picture is written from; `text`, or an empty one."""
    prompt_valid: Array
    """Bool [B, m]."""
    image_read: Array
    """Int64 [B, n]: the image tokens that the model reads; `image`, or noisy ones."""
    pictures: Array | None = None
    """Float32 [B, 3, H, W] in [-1, 1], for a model with a reconstructor."""

    @classmethod
    def plain(cls, text: Array, valid: Array, image: Array) -> "Pairs":
        """Pairs that are read as they are."""
        return cls(text, valid, image, text, valid, image)

    def tensors(self) -> "Pairs":
        """The same as tensors."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Pairs(*(None if array is None else paddle.to_tensor(array) for array in arrays))


class Block(nn.Layer):
    """One pre-LayerNorm transformer layer."""

    def __init__(self, model: TransformerConfig, recompute_attention: bool = False, mp: Axis = ALONE):
        super().__init__()
        out_std = residual_std(model.layers)
        self.attention = SelfAttention(model.hidden, model.heads, out_std, mp)
        self.ffn = FeedForward(model.hidden, model.ffn_multiplier, out_std, mp)
        self.dropout = model.dropout
        self.recompute_attention = recompute_attention

    def forward(self, x: paddle.Tensor, views: list[View]) -> paddle.Tensor:
        """Rows [V·B·m + V·B·n, hidden], the texts of V views and then their images, -> the same shape."""
        attend = partial(self.attention, views=views)
        attended = recomputed(attend, x) if self.recompute_attention else attend(x)
        return self._feed_forward(x + self._drop(attended))

    def source(self, x: paddle.Tensor, view: View) -> tuple[paddle.Tensor, Source]:
        """The source part alone, rows [P·s, hidden] -> the same shape, and what its targets read of it."""
        attended, keys, values = self.attention.source(x, view)
        return self._feed_forward(x + self._drop(attended)), Source(keys, values)

    def step(self, x: paddle.Tensor, source: Source, cache: Cache, step: Step) -> paddle.Tensor:
        """The next target slot of each sequence [B, hidden] -> [B, hidden]."""
        return self._feed_forward(x + self._drop(self.attention.step(x, source, cache, step)))

    def _feed_forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self._drop(self.ffn(x))

    def _drop(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.dropout(x, self.dropout, training=self.training) if self.dropout else x


class ViLG(nn.Layer):
    """ERNIE-ViLG's generator (paper 3.1) and, where the config asks for it, its reconstructor (paper 3.1.3).

    In a pipeline each process has the blocks of its stage, the first also the embeddings, the last also the head; names and
    first weights are those of the whole model.
    """

    def __init__(self, config: Config, topology: Topology | None = None):
        super().__init__()
        self.topology = topology or Topology()
        mp, pp = self.topology.mp, self.topology.pp
        model, text = config.transformer, config.text
        self.rows, self.columns = config.grid
        self.heads = model.heads // mp.size
        self.attention = model.attention
        self.codebook_size = config.vqgan.codebook.size
        hidden = model.hidden
        self.hidden_width, self.text_width = hidden, text.embedding_width or hidden
        self.tied = model.tie_embeddings
        self.recompute_layers = config.parallel.recompute == "full"
        self.stage = stages(config, pp.size)[pp.rank]
        self.kinds = [model.attention.kinds(model.layers)[i] for i in self.stage]
        base = int(paddle.randint(0, 2**30, [1]).item())

        self.text_projection = self.reconstructor = None
        if self.topology.first_stage or (self.topology.last_stage and self.tied):
            paddle.seed(base)
            self.text_embedding = Table(text.vocabulary_size, self.text_width, mp)
            self.image_embedding = Table(self.codebook_size, hidden, mp)
        if self.topology.first_stage:
            paddle.seed(base + 1)
            self.text_projection = Linear(self.text_width, hidden, bias=False) if self.text_width != hidden else None
            self.text_position = Table(text.max_length, hidden)
            self.row_position = Table(self.rows, hidden)
            self.column_position = Table(self.columns, hidden)
            self.segment = Table(4, hidden)
        self.blocks = nn.LayerList()
        for i in self.stage:
            paddle.seed(base + 3 + i)
            self.blocks.add_sublayer(str(i), Block(model, config.parallel.recompute == "selective", mp))
        self.text_head = self.image_head = None
        if self.topology.last_stage:
            paddle.seed(base + 2)
            self.norm = LayerNorm(hidden)
            # One head over the joint vocabulary, kept as its two parts, since only the target's part is ever computed.
            if not self.tied:
                self.text_head = parameter(self, [hidden, text.vocabulary_size], 0.02, 1, mp)
                self.image_head = parameter(self, [hidden, self.codebook_size], 0.02, 1, mp)
            self.reconstructor = Reconstructor(config) if model.reconstructor else None
        paddle.seed(base)

    def loss(self, pairs: Pairs) -> dict[str, paddle.Tensor]:
        """Both directions of each pair (paper 3.1.2): L = L_txt2img + L_img2txt, sums of target-side -log p.

        Returns scalars: `loss`, which is L per pair divided by n; `txt2img` and `img2txt`, nats per target token; in eval mode
        both with `_accuracy`, the share of target tokens than which the model finds none likelier; with pictures and a
        reconstructor `l1` and `l2`, means over the values of the pictures drawn from the hidden states.
        """
        return self.leave(self.through(self.enter(pairs), pairs), pairs)

    def enter(self, pairs: Pairs) -> paddle.Tensor:
        """What the first block reads: rows [2·B·m + 2·B·n, hidden] of both directions' texts and then of their images."""
        return self._embedded(_texts_of(pairs), pairs.image_read)

    def empty_rows(self, pairs: Pairs) -> paddle.Tensor:
        """Of the shape and dtype of what `enter` and `through` give, without values."""
        rows = 2 * pairs.text.shape[0] * (pairs.text.shape[1] + pairs.image.shape[1])
        return paddle.empty([rows, self.hidden_width], next(iter(self.blocks)).attention.norm.weight.dtype)

    def through(self, x: paddle.Tensor, pairs: Pairs) -> paddle.Tensor:
        """The blocks that are here: rows as `enter` gives them -> the same shape."""
        return self._through(x, _texts_of(pairs))

    def leave(self, x: paddle.Tensor, pairs: Pairs) -> dict[str, paddle.Tensor]:
        """From the last block's rows what `loss` returns."""
        texts_states, images_states = self._leave(x, 2, *pairs.image.shape, pairs.text.shape[1])
        (prompt_states, text_states), image_states = texts_states.split(2), images_states.split(2)[0]

        mp = self.topology.mp
        first = last_real(prompt_states, pairs.prompt_valid).unsqueeze(1)
        deciding = paddle.concat([first, image_states[:, :-1]], axis=1)
        image_logits, text_logits = self.image_logits(deciding), self.text_logits(text_states[:, :-1])
        image_sum = token_losses(image_logits, pairs.image, mp).sum()
        real = pairs.valid[:, 1:].astype(image_sum.dtype)
        text_tokens = real.sum()
        text_sum = (token_losses(text_logits, pairs.text[:, 1:], mp) * real).sum()
        measures = {
            "loss": (image_sum + text_sum) / pairs.image.size,
            "txt2img": image_sum / pairs.image.size,
            "img2txt": text_sum / text_tokens,
        }
        if not self.training:
            measures["txt2img_accuracy"] = token_hits(image_logits, pairs.image, mp).mean()
            measures["img2txt_accuracy"] = (
                token_hits(text_logits, pairs.text[:, 1:], mp).astype(real.dtype) * real
            ).sum() / text_tokens
        if self.reconstructor is not None and pairs.pictures is not None:
            drawn = self.reconstructor(image_states)
            measures |= {"l1": F.l1_loss(drawn, pairs.pictures), "l2": F.mse_loss(drawn, pairs.pictures)}
        return measures

    def embed_text(self, direction: Direction, ids: paddle.Tensor, slots: np.ndarray) -> paddle.Tensor:
        """Ids int64 [..., L] that stand in text slots int [L] -> rows [... · L, hidden]."""
        vectors = self.text_embedding(ids.flatten())
        if self.text_projection is not None:
            vectors = self.text_projection(vectors)
        segment = _TEXT_SOURCE if direction is Direction.TEXT_TO_IMAGE else _TEXT_TARGET
        return self._placed(vectors, self.text_position(paddle.to_tensor(slots)), segment)

    def embed_image(self, direction: Direction, ids: paddle.Tensor, slots: np.ndarray) -> paddle.Tensor:
        """Ids int64 [..., L] that stand in image slots int [L] -> rows [... · L, hidden]."""
        row, column = paddle.to_tensor(slots // self.columns), paddle.to_tensor(slots % self.columns)
        segment = _IMAGE_TARGET if direction is Direction.TEXT_TO_IMAGE else _IMAGE_SOURCE
        return self._placed(self.image_embedding(ids.flatten()), self.row_position(row) + self.column_position(column), segment)

    def _placed(self, vectors: paddle.Tensor, positions: paddle.Tensor, segment: int) -> paddle.Tensor:
        """Rows [k · L, hidden] plus positions [L, hidden] and their segment's vector."""
        place = positions + self.segment.weight[segment]
        return vectors + spread_row(place.flatten(), vectors.shape[0] // place.shape[0]).reshape(vectors.shape)

    def hidden(self, texts: Texts, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Last hidden states of whole sequences, the image tokens int64 [B, n] once for each of V directions, each with its
        text int64 [B, m] and validity bool [B, m].

        Returns those of the text slots float [V·B, m, hidden] and of the image slots float [V·B, n, hidden].
        """
        x = self._through(self._embedded(texts, image), texts)
        return self._leave(x, len(texts), *image.shape, next(iter(texts.values()))[0].shape[1])

    def _embedded(self, texts: Texts, image: paddle.Tensor) -> paddle.Tensor:
        m, n = next(iter(texts.values()))[0].shape[1], image.shape[1]
        parts = [self.embed_text(direction, text, np.arange(m)) for direction, (text, _) in texts.items()]
        parts += [self.embed_image(direction, image, np.arange(n)) for direction in texts]
        return paddle.concat(parts)

    def _through(self, x: paddle.Tensor, texts: Texts) -> paddle.Tensor:
        views = {
            kind: [
                view(self.pattern(kind, direction, text.shape[1]), valid, self.heads, x.dtype)
                for direction, (text, valid) in texts.items()
            ]
            for kind in set(self.kinds)
        }
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            run = partial(block, views=views[kind])
            x = recomputed(run, x) if self.recompute_layers else run(x)
        return x

    def _leave(self, x: paddle.Tensor, directions: int, batch: int, n: int, m: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        count = directions * batch
        text_rows, image_rows = self.norm(x).split([count * m, count * n])
        return text_rows.reshape([count, m, -1]), image_rows.reshape([count, n, -1])

    def pattern(self, kind: str, direction: Direction, text_length: int) -> Pattern:
        """The pattern of a layer kind."""
        config = self.attention
        return Pattern(text_length, self.rows, self.columns, direction, kind, config.kernel, config.strict_row)

    @paddle.no_grad()
    def start(
        self, direction: Direction, source: paddle.Tensor, valid: paddle.Tensor, candidates: int, text_length: int
    ) -> tuple[paddle.Tensor, State]:
        """Read P sources, each for `candidates` C sequences: what `step` needs to write their targets.

        Source tokens int64 [P, s] with `valid` bool [P, s]; `text_length` is m, for captions the longest. Returns the last
        hidden states float [P, s, hidden] of the source and the state of P·C sequences.
        """
        to_image = direction is Direction.TEXT_TO_IMAGE
        patterns = {kind: self.pattern(kind, direction, text_length) for kind in self.kinds}
        text_valid = valid if to_image else paddle.ones([len(valid), text_length], dtype="bool")
        views = {kind: view(pattern, text_valid, self.heads) for kind, pattern in patterns.items()}
        x = (self.embed_text if to_image else self.embed_image)(direction, source, np.arange(source.shape[1]))
        sources = []
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            x, read = block.source(x, views[kind])
            sources.append(read)
            if keeps_latents(patterns[kind]):
                block.attention.lay_out_heads()
        states = self.norm(x).reshape([*source.shape, -1])
        return states, State.start(self.kinds, patterns, sources, valid.numpy(), candidates)

    @paddle.no_grad()
    def step(self, state: State, ids: paddle.Tensor, positions: np.ndarray) -> paddle.Tensor:
        """Read one target token of each sequence, int64 [B], that stands at its target slot int [B] -> its last hidden state
        float [B, hidden], which decides the token after it."""
        embed = self.embed_image if state.direction is Direction.TEXT_TO_IMAGE else self.embed_text
        x = embed(state.direction, ids, positions)
        steps = {kind: step.tensors() for kind, step in state.steps(positions).items()}
        for block, kind, source, cache in zip(self.blocks, self.kinds, state.sources, state.caches, strict=True):
            x = block.step(x, source, cache, steps[kind])
        return self.norm(x)

    def image_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., codebook size], or the tensor parallel process's part of it."""
        return self._logits(hidden, self.image_head, "image_embedding")

    def text_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., text vocabulary], or the tensor parallel process's part of it."""
        return self._logits(hidden, self.text_head, "text_embedding")

    def _logits(self, hidden: paddle.Tensor, head: paddle.Tensor | None, table: str) -> paddle.Tensor:
        hidden = shared(hidden, self.topology.mp)
        if head is None:
            return paddle.matmul(hidden, getattr(self, table).weight, transpose_y=True)
        return paddle.matmul(hidden, head)


def _texts_of(pairs: Pairs) -> Texts:
    return {
        Direction.TEXT_TO_IMAGE: (pairs.prompt, pairs.prompt_valid),
        Direction.IMAGE_TO_TEXT: (pairs.text, pairs.valid),
    }


def last_real(hidden: paddle.Tensor, valid: paddle.Tensor) -> paddle.Tensor:
    """The hidden state float [B, hidden] of each text's last real token; `hidden` [B, m, hidden], `valid` bool [B, m]."""
    batch, m = valid.shape
    rows = valid.astype("int64").sum(1) - 1 + paddle.arange(batch) * m
    return paddle.gather(hidden.reshape([batch * m, -1]), rows)
