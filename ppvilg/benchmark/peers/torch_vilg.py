"""The same transformer and the same training step in PyTorch, written plainly and to be fast there. Paddle is not imported.

Sequences are as in `ppvilg.model.vilg`: m text slots, then n image slots in raster order, each holding its own token; both
directions of each pair stand on the batch axis, all text->image sequences before all image->text ones.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvilg.benchmark.random_pairs import random_pairs
from ppvilg.config import TrainConfig, ViLGExperiment
from ppvilg.model.config import ViLGConfig, vilg_config
from ppvilg.model.mask import Direction
from ppvilg.runtime import threads

_TEXT_PREFIX, _TEXT_TARGET, _IMAGE_PREFIX, _IMAGE_TARGET = range(4)  # segments

Batch = tuple[Tensor, Tensor, Tensor]
"""Text int64 [B, m], its mask bool [B, m] (True for real tokens), image int64 [B, n]."""


class Attention(nn.Module):
    """Multi-head self-attention under a mask; keys and values have no bias.

    Measured at the emoji config's sizes, forward and backward: `scaled_dot_product_attention` 6.1 ms, softmax and products
    written out 6.6 ms. Queries, keys and values as one product or as three make no difference (20.9 ms the whole layer).
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[S, L, hidden] with what is added to the scores, float [S, 1, L, L] -> [S, L, hidden]."""
        parts = self.query(x), self.key(x), self.value(x)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.out(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, hidden: int, multiplier: int):
        super().__init__()
        self.up = nn.Linear(hidden, multiplier * hidden)
        self.down = nn.Linear(multiplier * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """One pre-LayerNorm transformer layer."""

    def __init__(self, hidden: int, heads: int, multiplier: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden, multiplier)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[S, L, hidden] with what is added to the scores, float [S, 1, L, L] -> [S, L, hidden]."""
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Tokens, their positions, and a segment that says which modality they are and whether prefix or target."""

    def __init__(self, config: ViLGConfig):
        super().__init__()
        hidden, self.columns = config.hidden, config.columns
        self.text = nn.Embedding(config.text_vocab_size, hidden)
        self.image = nn.Embedding(config.image_vocab_size, hidden)
        self.text_position = nn.Embedding(config.max_text_length, hidden)
        self.row_position = nn.Embedding(config.rows, hidden)
        self.column_position = nn.Embedding(config.columns, hidden)
        self.segment = nn.Embedding(4, hidden)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Text int64 [B, m], image int64 [B, n] -> both directions [2B, m+n, hidden]."""
        slots = torch.arange(image.shape[1])
        words = self.text(text) + self.text_position.weight[: text.shape[1]]
        patches = self.image(image) + (self.row_position(slots // self.columns) + self.column_position(slots % self.columns))
        segment = self.segment.weight
        to_image = torch.cat([words + segment[_TEXT_PREFIX], patches + segment[_IMAGE_TARGET]], dim=1)
        to_text = torch.cat([words + segment[_TEXT_TARGET], patches + segment[_IMAGE_PREFIX]], dim=1)
        return torch.cat([to_image, to_text])


class Head(nn.Module):
    """The last norm and the logits of the next token."""

    def __init__(self, config: ViLGConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden)
        self.text = nn.Linear(config.hidden, config.text_vocab_size, bias=False)
        self.image = nn.Linear(config.hidden, config.image_vocab_size, bias=False)


class TorchViLG(nn.Module):
    """ppvilg's transformer, with its parameter names.

    Raises `ValueError` for what it does not have: dropout, tied tables, a text table of another width, a reconstructor.
    """

    def __init__(self, config: ViLGConfig):
        super().__init__()
        text_width = config.text_embedding_width or config.hidden
        if config.dropout or config.tie_embeddings or config.reconstructor or text_width != config.hidden:
            raise ValueError(
                "the model in PyTorch has no dropout, tied embeddings, text.embedding_width or reconstructor: "
                "compare a config without them"
            )
        self.kinds = config.kinds
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList([Block(config.hidden, config.heads, config.ffn_multiplier) for _ in self.kinds])
        self.head = Head(config)

    def loss(self, text: Tensor, text_mask: Tensor, image: Tensor, biases: dict[str, Tensor]) -> Tensor:
        """-log p of both directions' targets, summed, per image token; `biases` as `attention_biases` gives them."""
        batch, m = text.shape
        x = self.embedding(text, image)
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            x = block(x, biases[kind])
        x = self.head.norm(x)
        last_text = x[torch.arange(batch), text_mask.sum(1) - 1].unsqueeze(1)
        image_logits = self.head.image(torch.cat([last_text, x[:batch, m:-1]], dim=1))
        image_sum = F.cross_entropy(image_logits.flatten(0, 1), image.flatten(), reduction="sum")
        # Padded targets are left out before the head, which saves their logits.
        real = text_mask[:, 1:]
        text_sum = F.cross_entropy(self.head.text(x[batch:, : m - 1][real]), text[:, 1:][real], reduction="sum")
        return (image_sum + text_sum) / image.numel()


def attention_masks(config: ViLGConfig, text_length: int) -> dict[str, Tensor]:
    """For each kind of layer who sees whom, bool [2, m+n, m+n], text->image first."""
    of_kind = {kind: [config.mask(kind, direction, text_length).mask() for direction in Direction] for kind in config.kinds}
    return {kind: torch.from_numpy(np.stack(found)) for kind, found in of_kind.items()}


def attention_biases(masks: dict[str, Tensor], text_mask: Tensor) -> dict[str, Tensor]:
    """For each kind of layer what is added to the scores, float32 [2B, 1, m+n, m+n]: 0 where a query sees a key, else -inf.

    `masks` bool [2, m+n, m+n] as `attention_masks` gives them, `text_mask` bool [B, m]. (Given a bool mask,
    `scaled_dot_product_attention` would make the same of it again in each layer.)
    """
    batch, m = text_mask.shape
    length = next(iter(masks.values())).shape[-1]
    keys = torch.cat([text_mask, text_mask.new_ones(batch, length - m)], dim=1)[:, None, :]
    # A padded slot sees itself, so that its (unused) softmax is not empty.
    itself = torch.eye(length, dtype=torch.bool)
    biases = {}
    for kind, mask in masks.items():
        visible = (mask[:, None] & keys) | itself
        biases[kind] = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf).view(2 * batch, 1, length, length)
    return biases


def copy_weights(model: TorchViLG, arrays: dict[str, np.ndarray]) -> None:
    """Take up the weights of ppvilg's transformer, given under its parameter names."""
    model.load_state_dict({name: torch.from_numpy(transposed(model, name, arrays[name])) for name in model.state_dict()})


def transposed(model: TorchViLG, name: str, array: np.ndarray) -> np.ndarray:
    """A parameter of one framework as the other keeps it: weights of linear layers are [in, out] in paddle, [out, in] here."""
    module = model.get_submodule(name.rpartition(".")[0])
    return array.T.copy() if isinstance(module, nn.Linear) and array.ndim == 2 else array


def training_step(model: TorchViLG, settings: TrainConfig) -> Callable[[list[Batch], dict[str, Tensor]], Tensor]:
    """A function that makes one step with micro-batches of equal size and the masks of `attention_masks`, and returns the mean
    loss.

    A step is what ppvilg's is: gradients clipped by their global norm, AdamW, and the moving average of the weights.
    """
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    # Measured at the emoji config's sizes: 3.8 ms fused, 11.8 ms as a loop, 14.1 ms as foreach.
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    average = [p.detach().clone() for p in parameters]

    def step(batches: list[Batch], masks: dict[str, Tensor]) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for text, text_mask, image in batches:
            loss = model.loss(text, text_mask, image, attention_biases(masks, text_mask)) / len(batches)
            loss.backward()
            total += loss.detach()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm, foreach=True)
        optimizer.step()
        if settings.ema_decay:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - settings.ema_decay)
        return total

    return step


def build_step(config: ViLGExperiment) -> Callable[[], Tensor]:
    """A training step of an experiment's transformer on random pairs; raises `ValueError` as `TorchViLG`."""
    torch.set_num_threads(threads())
    sizes = vilg_config(config)
    step = training_step(TorchViLG(sizes), config.train)
    batches = [tuple(map(torch.from_numpy, random_pairs(config, config.micro_batch)))]
    batches *= config.train.gradient_accumulation_steps
    masks = attention_masks(sizes, config.text.max_length)
    return lambda: step(batches, masks)
