"""ERNIE-ViLG's transformer (paper 3.1): one stack of layers that writes image tokens from text and text from image tokens.

    text, image tokens -> Embedding -> x [2B, m+n, hidden] -> Block, Block, ... -> Head -> logits of both directions

Both directions of a pair are two sequences of one batch: the first half of x writes images, the second half texts. A slot holds
its own token, and its last hidden state decides the next one: the last real text token decides the first image token, the
first text token is the begin token and given. For visual question answering (paper 4.4) a model has slots for a question
between text and image, and the text is the answer.
"""

from dataclasses import dataclass

import paddle
from paddle import nn

from ppvilg.model.attention import Attention
from ppvilg.model.batch import Batch
from ppvilg.model.config import ViLGConfig
from ppvilg.model.kv_cache import DecodeInputs, Prefix, keeps_inputs
from ppvilg.model.layers import (
    MLP,
    LayerNorm,
    column_linear,
    dropout,
    embedding,
    gather_sequences,
    scatter_sequences,
    sizes,
    tied_logits,
)
from ppvilg.model.mask import Direction
from ppvilg.model.reconstructor import Reconstructor
from ppvilg.model.text_encoder import TextEncoder

BOTH = (Direction.TEXT_TO_IMAGE, Direction.IMAGE_TO_TEXT)
_TEXT_PREFIX, _TEXT_TARGET, _IMAGE_PREFIX, _IMAGE_TARGET = range(4)  # segments


@dataclass(frozen=True)
class Outputs:
    """What the head makes of B pairs; tensor parallel processes have their share of the vocabularies."""

    image_logits: paddle.Tensor | None
    """Float [B, n, image vocabulary]; None where no images are generated."""
    text_logits: paddle.Tensor | None
    """Float [B, m-1, text vocabulary], for text tokens 1 .. m-1; None where no texts are generated."""
    pixels: paddle.Tensor | None = None
    """Float [B, 3, H, W], drawn from the hidden states by a model with a reconstructor."""


class Embedding(nn.Layer):
    """Tokens, their positions, and a segment that says which modality they are and whether prefix or target.

    With a text encoder its states stand in for the table's vectors of the texts that images are generated from.
    """

    def __init__(self, config: ViLGConfig, mp_group=None):
        super().__init__()
        hidden, text_width = config.hidden, config.text_embedding_width or config.hidden
        self.columns, self.question_length, self.mp_group = config.columns, config.question_length, mp_group
        self.text = embedding(config.text_vocab_size, text_width, mp_group)
        self.text_projection = nn.Linear(text_width, hidden, bias_attr=False) if text_width != hidden else None
        self.text_encoder = None
        if config.text_encoder is not None:
            self.text_encoder = TextEncoder(config.text_encoder, hidden, config.dropout)
        self.image = embedding(config.image_vocab_size, hidden, mp_group)
        self.text_position = nn.Embedding(config.max_text_length, hidden)
        self.image_position = self.row_position = self.column_position = None
        if config.image_positions == "flat":
            self.image_position = nn.Embedding(config.image_length, hidden)
        else:
            self.row_position = nn.Embedding(config.rows, hidden)
            self.column_position = nn.Embedding(config.columns, hidden)
        self.segment = nn.Embedding(4, hidden)

    def forward(self, batch: Batch, directions: tuple[Direction, ...] = BOTH) -> tuple[paddle.Tensor, paddle.Tensor]:
        """D directions of B pairs, one after another -> x [DB, m+n, hidden] and the key mask bool [DB, m+n], False for
        padding; [B, m+q+n, hidden] of answers to questions, which come without the other direction."""
        texts = {Direction.TEXT_TO_IMAGE: batch.prompt, Direction.IMAGE_TO_TEXT: batch.text}
        masks = {Direction.TEXT_TO_IMAGE: batch.prompt_mask, Direction.IMAGE_TO_TEXT: batch.text_mask}
        image, image_length = batch.image_input, batch.image.shape[1]
        if batch.question is not None:
            image = paddle.concat([batch.question, image], axis=1)
            masks[Direction.IMAGE_TO_TEXT] = paddle.concat([batch.text_mask, batch.question_mask], axis=1)
        key_masks = [key_mask(masks[direction], image_length) for direction in directions]
        sequences = [self.sequence(texts[d], image, mask, d) for d, mask in zip(directions, key_masks, strict=True)]
        return scatter_sequences(paddle.concat(sequences), self.mp_group), paddle.concat(key_masks)

    def sequence(self, text: paddle.Tensor, image: paddle.Tensor, mask: paddle.Tensor, direction: Direction) -> paddle.Tensor:
        """One direction of texts int64 [B, m] with images int64 [B, n] -> [B, m+n, hidden]; before an image that is the prefix
        stands its question, [B, q+n]. Mask bool [B, m+n], True for what may be seen."""
        m = text.shape[1]
        if direction is Direction.TEXT_TO_IMAGE:
            parts = self.embed_prefix(text, mask[:, :m], direction), self.embed_target(image, direction)
        else:
            parts = self.embed_target(text, direction), self.embed_prefix(image, mask[:, m:], direction)
        return paddle.concat(parts, axis=1)

    def embed_prefix(self, ids: paddle.Tensor, mask: paddle.Tensor, direction: Direction) -> paddle.Tensor:
        """A text int64 [B, m], or an image [B, q+n] with its question before it, mask bool of its shape, True for real tokens
        -> the same shape with [..., hidden]."""
        if direction is Direction.TEXT_TO_IMAGE:
            return self.embed_text(ids, direction, mask=mask)
        q = self.question_length
        image = self.embed_image(ids[:, q:], direction)
        if not q:
            return image
        # A question is embedded like the other kind of text that is a prefix, the one that images are generated from.
        question = self.embed_text(ids[:, :q], Direction.TEXT_TO_IMAGE, mask=mask[:, :q])
        return paddle.concat([question, image], axis=1)

    def embed_target(self, ids: paddle.Tensor, direction: Direction, slots: paddle.Tensor | None = None) -> paddle.Tensor:
        """Target tokens, as `embed_text` and `embed_image`."""
        return (self.embed_image if direction is Direction.TEXT_TO_IMAGE else self.embed_text)(ids, direction, slots)

    def embed_text(
        self,
        ids: paddle.Tensor,
        direction: Direction,
        slots: paddle.Tensor | None = None,
        mask: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """Ids int64 [B, L] in slots int64 [L] or [B, L] of the text (None: 0 .. L-1) -> [B, L, hidden]; of a prefix also the
        mask bool [B, L], True for real tokens."""
        slots = paddle.arange(sizes(ids)[1]) if slots is None else slots
        is_prefix = direction is Direction.TEXT_TO_IMAGE
        if is_prefix and self.text_encoder is not None:
            vectors = self.text_encoder(ids, mask)
        else:
            vectors = self.text(ids)
            if self.text_projection is not None:
                vectors = self.text_projection(vectors)
        segment = _TEXT_PREFIX if is_prefix else _TEXT_TARGET
        return vectors + (self.text_position(slots) + self.segment.weight[segment])

    def embed_image(self, ids: paddle.Tensor, direction: Direction, slots: paddle.Tensor | None = None) -> paddle.Tensor:
        """Ids int64 [B, L] in slots int64 [L] or [B, L] of the image (None: 0 .. L-1) -> [B, L, hidden]."""
        slots = paddle.arange(sizes(ids)[1]) if slots is None else slots
        if self.image_position is not None:
            position = self.image_position(slots)
        else:
            position = self.row_position(slots // self.columns) + self.column_position(slots % self.columns)
        segment = _IMAGE_TARGET if direction is Direction.TEXT_TO_IMAGE else _IMAGE_PREFIX
        return self.image(ids) + (position + self.segment.weight[segment])


def key_mask(text_mask: paddle.Tensor, image_length: int) -> paddle.Tensor:
    """Bool [S, m], True for real text tokens -> bool [S, m+n], True for whatever may be seen."""
    return paddle.concat([text_mask, paddle.ones([text_mask.shape[0], image_length], "bool")], axis=1)


class Block(nn.Layer):
    """One pre-LayerNorm transformer layer; `kind` says which image tokens see which (paper 3.1.4)."""

    def __init__(self, config: ViLGConfig, kind: str, mp_group=None):
        super().__init__()
        self.config, self.kind = config, kind
        self.norm1 = LayerNorm(config.hidden)
        self.attention = Attention(config.hidden, config.heads, mp_group)
        self.norm2 = LayerNorm(config.hidden)
        self.mlp = MLP(config.hidden, config.ffn_multiplier, mp_group)
        self.attention_norm = LayerNorm(config.hidden) if config.sandwich_norm else None
        self.mlp_norm = LayerNorm(config.hidden) if config.sandwich_norm else None

    def forward(self, x: paddle.Tensor, key_mask: paddle.Tensor, directions: tuple[Direction, ...] = BOTH) -> paddle.Tensor:
        """Sequences [S, m+n, hidden], shared evenly among the directions, key_mask bool [S, m+n] -> [S, m+n, hidden]."""
        masks = [self.mask(direction, self.config.text_length(direction, x.shape[1])) for direction in directions]
        return self._feed_forward(self._add(x, self.attention(self.norm1(x), masks, key_mask), self.attention_norm))

    def prefill(self, x: paddle.Tensor, key_mask: paddle.Tensor, direction: Direction) -> tuple[paddle.Tensor, Prefix]:
        """Prefixes alone [P, s, hidden], key_mask bool [P, s] -> [P, s, hidden] and what their targets read of them."""
        # A text is of any length; an image, with its question, is a sequence without text slots.
        masks = None if direction is Direction.TEXT_TO_IMAGE else [self.mask(direction, 0)]
        attention, prefix = self.attention.prefill(self.norm1(x), masks, key_mask, self.config.causal_text)
        return self._feed_forward(self._add(x, attention, self.attention_norm)), prefix

    def decode_step(self, x: paddle.Tensor, prefix: Prefix, cache, step) -> paddle.Tensor:
        """The next target token of each sequence: [B, hidden] -> [B, hidden]; arguments as of `Attention.decode_step`."""
        attention = self.attention.decode_step(self.norm1(x), prefix, cache, step)
        return self._feed_forward(self._add(x, attention, self.attention_norm))

    def mask(self, direction: Direction, text_length: int):
        """Who sees whom in this layer."""
        return self.config.mask(self.kind, direction, text_length)

    def _feed_forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._add(x, self.mlp(self.norm2(x)), self.mlp_norm)

    def _add(self, x: paddle.Tensor, branch: paddle.Tensor, norm: LayerNorm | None) -> paddle.Tensor:
        branch = branch if norm is None else norm(branch)
        return x + dropout(branch, self.config.dropout, self.training)


class Head(nn.Layer):
    """The last norm, logits of the next token, and where the config asks for it the reconstructor (paper 3.1.3).

    It is one head over the joint vocabulary, kept as its two parts, since only the target's part is ever needed.
    """

    def __init__(self, config: ViLGConfig, mp_group=None):
        super().__init__()
        self.config, self.mp_group = config, mp_group
        self.norm = LayerNorm(config.hidden)
        self.logits_norm = LayerNorm(config.hidden) if config.head_norm else None
        self.text = self.image = None
        if not config.tie_embeddings:
            self.text, self.image = (
                column_linear(config.hidden, size, bias=config.head_bias, mp_group=mp_group)
                for size in (config.text_vocab_size, config.image_vocab_size)
            )
        self.reconstructor = None
        if config.reconstructor is not None:
            self.reconstructor = Reconstructor(config.hidden, (config.rows, config.columns), config.reconstructor)

    def forward(
        self,
        x: paddle.Tensor,
        key_mask: paddle.Tensor,
        tables: Embedding | None = None,
        directions: tuple[Direction, ...] = BOTH,
    ) -> Outputs:
        """Last block's x [DB, m+n, hidden] of D directions, key_mask bool [DB, m+n]; `tables`: the embedding of a model that
        ties its head to it."""
        states = dict(zip(directions, self.norm(gather_sequences(x, self.mp_group)).split(len(directions)), strict=True))
        m = self.config.text_length(directions[-1], x.shape[1])
        image_logits = text_logits = pixels = None
        if (to_image := states.get(Direction.TEXT_TO_IMAGE)) is not None:
            last = last_real_token(to_image[:, :m], key_mask[: len(to_image), :m]).unsqueeze(1)
            image_states = to_image[:, m:]
            image_logits = self.image_logits(paddle.concat([last, image_states[:, :-1]], axis=1), tables)
            pixels = None if self.reconstructor is None else self.reconstructor(image_states)
        if (to_text := states.get(Direction.IMAGE_TO_TEXT)) is not None:
            text_logits = self.text_logits(to_text[:, : m - 1], tables)
        return Outputs(image_logits, text_logits, pixels)

    def image_logits(self, states: paddle.Tensor, tables: Embedding | None = None) -> paddle.Tensor:
        """[..., hidden] -> [..., image vocabulary], or the tensor parallel process's share."""
        states = self._normed(states)
        return tied_logits(states, tables.image.weight, self.mp_group) if self.image is None else self.image(states)

    def text_logits(self, states: paddle.Tensor, tables: Embedding | None = None) -> paddle.Tensor:
        """[..., hidden] -> [..., text vocabulary], or the tensor parallel process's share."""
        states = self._normed(states)
        return tied_logits(states, tables.text.weight, self.mp_group) if self.text is None else self.text(states)

    def _normed(self, states: paddle.Tensor) -> paddle.Tensor:
        return states if self.logits_norm is None else self.logits_norm(states)


class ViLG(nn.Layer):
    """The whole model; tensor parallel processes hold their share of it. `directions`: those that `forward` computes."""

    def __init__(self, config: ViLGConfig, mp_group=None, directions: tuple[Direction, ...] = BOTH):
        super().__init__()
        self.config, self.directions = config, directions
        self.embedding = Embedding(config, mp_group)
        self.blocks = nn.LayerList([Block(config, kind, mp_group) for kind in config.kinds])
        self.head = Head(config, mp_group)

    @property
    def reconstructor(self) -> Reconstructor | None:
        """What draws pixels from hidden states, if the model has it."""
        return self.head.reconstructor

    def forward(self, batch: Batch) -> Outputs:
        """Logits of the directions of each pair."""
        x, mask = self.embedding(batch, self.directions)
        for block in self.blocks:
            x = block(x, mask, self.directions)
        return self.head(x, mask, self.embedding, self.directions)

    def hidden_states(
        self,
        text: paddle.Tensor,
        text_mask: paddle.Tensor,
        image: paddle.Tensor,
        direction: Direction,
        question: paddle.Tensor | None = None,
        question_mask: paddle.Tensor | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Last hidden states of one direction of texts int64 [B, m], text_mask bool [B, m], with images int64 [B, n]:
        of the text slots [B, m, hidden] and of the image slots [B, n, hidden].

        A model with slots for a question needs one for image -> text: int64 [B, q], with its mask bool [B, q].
        """
        n, mask = image.shape[1], text_mask
        if question is not None:
            image, mask = paddle.concat([question, image], axis=1), paddle.concat([text_mask, question_mask], axis=1)
        mask = key_mask(mask, n)
        x = self.embedding.sequence(text, image, mask, direction)
        for block in self.blocks:
            x = block(x, mask, (direction,))
        x = self.head.norm(x)
        return x[:, : text.shape[1]], x[:, -n:]

    def image_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., image vocabulary]."""
        return self.head.image_logits(states, self.embedding)

    def text_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., text vocabulary]."""
        return self.head.text_logits(states, self.embedding)

    @paddle.no_grad()
    def prefill(self, direction: Direction, ids: paddle.Tensor, mask: paddle.Tensor) -> tuple[paddle.Tensor, list[Prefix]]:
        """Read P prefixes int64 [P, s], mask bool [P, s] True for real tokens: texts, or images, each after the q slots for its
        question if the model has such.

        Returns the last hidden states [P, s, hidden] and for each layer what its targets read.
        """
        if paddle.in_dynamic_mode():  # the weights may have changed
            self.absorb_projections(direction)
        x = self.embedding.embed_prefix(ids, mask, direction)
        prefixes = []
        for block in self.blocks:
            x, prefix = block.prefill(x, mask, direction)
            prefixes.append(prefix)
        return self.head.norm(x), prefixes

    @paddle.no_grad()
    def decode_step(self, direction: Direction, inputs: DecodeInputs) -> paddle.Tensor:
        """Read one target token of each of B sequences -> its last hidden state [B, hidden], which decides the token after it.
        What later steps need of it is written into the caches."""
        inputs = inputs.to_tensors()
        x = self.embedding.embed_target(inputs.ids.unsqueeze(1), direction, inputs.slots.unsqueeze(1)).squeeze(1)
        steps = inputs.steps(x.dtype)
        for block, prefix, cache in zip(self.blocks, inputs.prefixes, inputs.caches, strict=True):
            x = block.decode_step(x, prefix, cache, steps[block.kind])
        return self.head.norm(x)

    def absorb_projections(self, direction: Direction) -> None:
        """Have the weights ready that the caches of a direction need."""
        for block in self.blocks:
            if keeps_inputs(block.mask(direction, 1)):
                block.attention.absorb_projections()


def last_real_token(states: paddle.Tensor, text_mask: paddle.Tensor) -> paddle.Tensor:
    """The state [B, hidden] of each text's last real token; states [B, m, hidden], text_mask bool [B, m]."""
    batch, m = sizes(text_mask)
    rows = text_mask.astype("int64").sum(1) - 1 + paddle.arange(batch) * m
    return paddle.gather(states.reshape([batch * m, -1]), rows)
