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

from ppvilg.config import TransformerConfig, ViLGExperiment
from ppvilg.parallel.collectives import shared
from ppvilg.parallel.pipeline import stages
from ppvilg.parallel.recompute import recomputed
from ppvilg.parallel.topology import ALONE, Axis, Topology
from ppvilg.transformer.attention import Part, SelfAttention, View, view
from ppvilg.transformer.cache import Cache, Source, State, Step, keeps_latents
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.layers import (
    FeedForward,
    LayerNorm,
    Linear,
    Table,
    dims,
    parameter,
    residual_std,
    spread_row,
    token_hits,
    token_losses,
)
from ppvilg.transformer.pattern import Direction
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

    def source(self, x: paddle.Tensor, part: Part, prompts: int) -> tuple[paddle.Tensor, Source]:
        """The source part alone, rows [P·s, hidden] of P prompts -> the same shape, and what its targets read of it."""
        attended, keys, values = self.attention.source(x, part, prompts)
        return self._feed_forward(x + self._drop(attended)), Source.of(keys, values)

    def step(self, x: paddle.Tensor, source: Source, cache: Cache, step: Step) -> paddle.Tensor:
        """The next target slot of each sequence [B, hidden] -> [B, hidden]."""
        return self._feed_forward(x + self._drop(self.attention.step(x, source, cache, step)))

    def _feed_forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self._drop(self.ffn(x))

    def _drop(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.dropout(x, self.dropout, training=self.training) if self.dropout else x


class ViLG(nn.Layer, Decoder):
    """ERNIE-ViLG's generator (paper 3.1) and, where the config asks for it, its reconstructor (paper 3.1.3).

    In a pipeline each process has the blocks of its stage, the first also the embeddings, the last also the head; names and
    first weights are those of the whole model.
    """

    def __init__(self, config: ViLGExperiment, topology: Topology | None = None):
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
            self.blocks.add_sublayer(str(i), Block(model, False, mp))
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

    def embed_text(self, direction: Direction, ids: paddle.Tensor, slots: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [..., L] that stand in text slots int64 [L] -> rows [... · L, hidden]."""
        vectors = self.text_embedding(ids.flatten())
        if self.text_projection is not None:
            vectors = self.text_projection(vectors)
        segment = _TEXT_SOURCE if direction is Direction.TEXT_TO_IMAGE else _TEXT_TARGET
        return self._placed(vectors, self.text_position(slots), segment)

    def embed_image(self, direction: Direction, ids: paddle.Tensor, slots: paddle.Tensor) -> paddle.Tensor:
        """Ids int64 [..., L] that stand in image slots int64 [L] -> rows [... · L, hidden]."""
        positions = self.row_position(slots // self.columns) + self.column_position(slots % self.columns)
        segment = _IMAGE_TARGET if direction is Direction.TEXT_TO_IMAGE else _IMAGE_SOURCE
        return self._placed(self.image_embedding(ids.flatten()), positions, segment)

    def _placed(self, vectors: paddle.Tensor, positions: paddle.Tensor, segment: int) -> paddle.Tensor:
        """Rows [k · L, hidden] plus positions [L, hidden] and their segment's vector."""
        place = positions + self.segment.weight[segment]
        if vectors.shape == place.shape:
            return vectors + place
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
        parts = [self.embed_text(direction, text, paddle.arange(m)) for direction, (text, _) in texts.items()]
        parts += [self.embed_image(direction, image, paddle.arange(n)) for direction in texts]
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

    def start(
        self, direction: Direction, source: paddle.Tensor, valid: paddle.Tensor, candidates: int, text_length: int
    ) -> tuple[paddle.Tensor, State]:
        """As a `Decoder`."""
        self.lay_out_heads(direction)
        return super().start(direction, source, valid, candidates, text_length)

    def lay_out_heads(self, direction: Direction) -> None:
        """Have the weights ready for the caches of a direction."""
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            if keeps_latents(self.pattern(kind, direction, 1)):
                block.attention.lay_out_heads()

    @paddle.no_grad()
    def read_source(
        self, direction: Direction, ids: paddle.Tensor, slots: paddle.Tensor, parts: dict[str, Part]
    ) -> tuple[paddle.Tensor, list[Source]]:
        """As a `Decoder`."""
        x = (self.embed_text if direction is Direction.TEXT_TO_IMAGE else self.embed_image)(direction, ids, slots)
        prompts = dims(ids)[0]
        sources = []
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            x, read = block.source(x, parts[kind], prompts)
            sources.append(read)
        return self.norm(x), sources

    @paddle.no_grad()
    def read_target(
        self,
        direction: Direction,
        ids: paddle.Tensor,
        slots: np.ndarray,
        steps: dict[str, Step],
        sources: list[Source],
        caches: list[Cache],
    ) -> paddle.Tensor:
        """As a `Decoder`."""
        tensors = {kind: step.tensors() for kind, step in steps.items()}
        return self.target_states(direction, ids, paddle.to_tensor(slots), tensors, sources, caches)

    def target_states(
        self,
        direction: Direction,
        ids: paddle.Tensor,
        slots: paddle.Tensor,
        steps: dict[str, Step],
        sources: list[Source],
        caches: list[Cache],
    ) -> paddle.Tensor:
        """What `read_target` computes, from tensors."""
        x = (self.embed_image if direction is Direction.TEXT_TO_IMAGE else self.embed_text)(direction, ids, slots)
        for block, kind, source, cache in zip(self.blocks, self.kinds, sources, caches, strict=True):
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
