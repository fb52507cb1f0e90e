"""What decoding remembers: the source's keys and values, once for all candidates of a prompt, and of the target no more than
its pattern can still show, in buffers that are allocated once."""

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn

from ppvilg.transformer.pattern import HIDDEN, Pattern


@dataclass(frozen=True)
class Step:
    """Where the sequences of a batch stand, as the caches of one layer kind need it."""

    write: paddle.Tensor
    """Int64 [rows]: the rows of the buffer that the new token goes to."""
    read: paddle.Tensor | None
    """Int64 [B · capacity]: the rows to read; None where they are all there are."""
    bias: paddle.Tensor
    """Float32 [B, 1, s + capacity]: what is added to the scores of the source's keys and of those that are read."""


class Source:
    """Keys and values [P, heads, s, width] of P prompts, each read by C consecutive sequences of the batch."""

    def __init__(self, keys: paddle.Tensor, values: paddle.Tensor):
        self.keys = keys
        self.values = values
        self.length = keys.shape[2]

    def scores(self, queries: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, width] -> [P·C, heads, s]."""
        return _by_sequence(paddle.matmul(self._by_prompt(queries), self.keys, transpose_y=True))

    def context(self, weights: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, s] -> [P·C, heads, width]."""
        return _by_sequence(paddle.matmul(self._by_prompt(weights), self.values))

    def _by_prompt(self, x: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, k] -> [P, heads, C, k]."""
        batch, heads, last = x.shape
        prompts = self.keys.shape[0]
        return x.reshape([prompts, batch // prompts, heads, last]).transpose([0, 2, 1, 3])

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return 4 * (self.keys.size + self.values.size)


def _by_sequence(x: paddle.Tensor) -> paddle.Tensor:
    """[P, heads, C, k] -> [P·C, heads, k]."""
    prompts, heads, candidates, last = x.shape
    return x.transpose([0, 2, 1, 3]).reshape([prompts * candidates, heads, last])


class KeyValueCache:
    """Keys and values of the target's slots, for layers that read most of them at every step."""

    def __init__(self, attention: nn.Layer, batch: int, pattern: Pattern):
        slots = pattern.cache_slots()
        self._attention = attention
        self._shape = [batch, attention.heads, slots.groups * slots.capacity, -1]
        rows = batch * attention.heads * slots.groups * slots.capacity
        width = attention.out.weight.shape[0] // attention.heads
        self.keys, self.values = paddle.zeros([rows, width]), paddle.zeros([rows, width])

    def write(self, x: paddle.Tensor, step: Step) -> None:
        """Add the tokens whose layer inputs are x [B, hidden]."""
        width = self.keys.shape[1]
        paddle.scatter_(self.keys, step.write, self._attention.key(x).reshape([-1, width]))
        paddle.scatter_(self.values, step.write, self._attention.value(x).reshape([-1, width]))

    def read(self, step: Step) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The keys and values [B, heads, capacity, width] of the tokens that the step's scores are about: all there are."""
        return self.keys.reshape(self._shape), self.values.reshape(self._shape)

    def scores(self, queries: paddle.Tensor, read: tuple[paddle.Tensor, paddle.Tensor]) -> paddle.Tensor:
        """[B, heads, width] -> [B, heads, capacity]."""
        return paddle.matmul(queries.unsqueeze(2), read[0], transpose_y=True).squeeze(2)

    def context(self, weights: paddle.Tensor, read: tuple[paddle.Tensor, paddle.Tensor]) -> paddle.Tensor:
        """[B, heads, capacity] -> [B, heads, width]."""
        return paddle.matmul(weights.unsqueeze(2), read[1]).squeeze(2)

    def select(self, sequences: paddle.Tensor) -> None:
        """Let sequence i go on from what sequence sequences[i] has written; int64 [B]."""
        self.keys = paddle.gather(self.keys.reshape(self._shape), sequences).reshape(self.keys.shape)
        self.values = paddle.gather(self.values.reshape(self._shape), sequences).reshape(self.values.shape)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return 4 * (self.keys.size + self.values.size)


class LatentCache:
    """The layer's inputs at the target's slots: half the size of keys and values, for layers that read few slots a step.

    With key_j = W_k x_j and value_j = W_v x_j the scores are q · W_k x_j = (W_kᵀ q) · x_j and the context is W_v (Σ_j p_j x_j):
    one product with each matrix per query, exactly as many as it takes to compute one key and one value.
    """

    def __init__(self, attention: nn.Layer, batch: int, pattern: Pattern):
        slots = pattern.cache_slots()
        hidden = attention.out.weight.shape[0]
        self._shape = [batch, slots.groups * slots.capacity, hidden]
        self._read_shape = [batch, slots.capacity, hidden]
        self.inputs = paddle.zeros([batch * slots.groups * slots.capacity, hidden])
        by_head = [hidden, attention.heads, hidden // attention.heads]
        self._key = attention.key.weight.reshape(by_head).transpose([1, 2, 0])  # [heads, width, hidden]
        self._value = attention.value.weight.reshape(by_head).transpose([1, 0, 2])  # [heads, hidden, width]

    def write(self, x: paddle.Tensor, step: Step) -> None:
        """Add the tokens whose layer inputs are x [B, hidden]."""
        paddle.scatter_(self.inputs, step.write, x)

    def read(self, step: Step) -> paddle.Tensor:
        """The inputs [B, capacity, hidden] of the tokens that the step's scores are about."""
        rows = self.inputs if step.read is None else paddle.gather(self.inputs, step.read)
        return rows.reshape(self._read_shape)

    def scores(self, queries: paddle.Tensor, read: paddle.Tensor) -> paddle.Tensor:
        """[B, heads, width] -> [B, heads, capacity]."""
        latent = paddle.matmul(queries.transpose([1, 0, 2]), self._key).transpose([1, 0, 2])
        return paddle.matmul(latent, read, transpose_y=True)

    def context(self, weights: paddle.Tensor, read: paddle.Tensor) -> paddle.Tensor:
        """[B, heads, capacity] -> [B, heads, width]."""
        latent = paddle.matmul(weights, read).transpose([1, 0, 2])
        return paddle.matmul(latent, self._value).transpose([1, 0, 2])

    def select(self, sequences: paddle.Tensor) -> None:
        """Let sequence i go on from what sequence sequences[i] has written; int64 [B]."""
        self.inputs = paddle.gather(self.inputs.reshape(self._shape), sequences).reshape(self.inputs.shape)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return 4 * self.inputs.size


class State:
    """The memory of all layers for a batch of B = P · C sequences; each may stand at a position of its own.

    `kinds` names the kind of each layer, `patterns` has the pattern of each kind, `source_valid` bool [P, s] tells the source's
    tokens from padding.
    """

    def __init__(
        self,
        kinds: list[str],
        patterns: dict[str, Pattern],
        attentions: list[nn.Layer],
        sources: list[Source],
        source_valid: np.ndarray,
        candidates: int,
    ):
        self.sources = sources
        self.direction = patterns[kinds[0]].direction
        self._patterns = patterns
        self._heads = attentions[0].heads
        self._source_valid = np.repeat(source_valid, candidates, axis=0)
        batch = len(self._source_valid)
        self.caches = [
            (KeyValueCache if _reads_most(patterns[kind]) else LatentCache)(attention, batch, patterns[kind])
            for kind, attention in zip(kinds, attentions, strict=True)
        ]

    def steps(self, positions: np.ndarray) -> dict[str, Step]:
        """For each layer kind, where sequences stand that are about to read their target tokens int [B]."""
        return {kind: self._step(pattern, positions) for kind, pattern in self._patterns.items()}

    def _step(self, pattern: Pattern, positions: np.ndarray) -> Step:
        slots = pattern.cache_slots()
        total = slots.groups * slots.capacity
        copies = self._heads if _reads_most(pattern) else 1
        firsts = np.arange(len(positions) * copies) * total
        write = firsts + np.repeat(slots.write(positions), copies)
        read = None
        if slots.groups > 1:
            read = paddle.to_tensor((firsts[:, None] + slots.ring(positions)).ravel())
        held = slots.held(positions)
        seen = pattern.target_sees(positions[:, None], held) & (held >= 0)
        bias = np.where(np.concatenate([self._source_valid, seen], axis=1), 0, HIDDEN).astype(np.float32)
        return Step(paddle.to_tensor(write), read, paddle.to_tensor(bias[:, None]))

    def select(self, sequences: paddle.Tensor) -> None:
        """Let sequence i go on from what sequence sequences[i], of the same prompt, has written; int64 [B]."""
        for cache in self.caches:
            cache.select(sequences)

    @property
    def bytes(self) -> int:
        """Size of all layers' keys, values and inputs."""
        return sum(part.bytes for part in (*self.sources, *self.caches))


def _reads_most(pattern: Pattern) -> bool:
    return pattern.kind == "dense" or not pattern.to_image
