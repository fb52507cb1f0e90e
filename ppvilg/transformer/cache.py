"""What decoding remembers: the source's keys and values, once for all candidates of a prompt, and of the target no more than
its pattern can still show, in buffers that are allocated once. Arrays only: the weights come with each step."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import paddle

from ppvilg.transformer.layers import dims
from ppvilg.transformer.pattern import HIDDEN, Direction, Pattern

Array = np.ndarray | paddle.Tensor


@dataclass(frozen=True)
class Step:
    """Where the sequences of a batch stand, as the caches of one layer kind need it; numpy arrays as `State` works them out,
    tensors as they are computed with."""

    write: Array
    """Int64 [rows]: the rows of the buffer that the new token goes to."""
    read: Array | None
    """Int64 [B · capacity]: the rows to read; None where they are all there are."""
    bias: Array
    """Float32 [B, 1, s + capacity]: what is added to the scores of the source's keys and of those that are read."""

    def tensors(self) -> "Step":
        """The same as tensors."""
        read = None if self.read is None else paddle.to_tensor(self.read)
        return Step(paddle.to_tensor(self.write), read, paddle.to_tensor(self.bias))


@dataclass(frozen=True)
class Source:
    """Keys and values of P prompts, each read by C consecutive sequences of the batch."""

    keys: paddle.Tensor
    """Float [P, heads, s, width]."""
    values: paddle.Tensor
    """Float [P, heads, s, width]."""
    shape: list
    """[P, heads, s, width], as `dims` gives it."""

    @classmethod
    def of(cls, keys: paddle.Tensor, values: paddle.Tensor) -> "Source":
        """With the shape that they have."""
        return cls(keys, values, dims(keys))

    def scores(self, queries: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, width] -> [P·C, heads, s]."""
        return _by_sequence(paddle.matmul(self._by_prompt(queries, self.shape[3]), self.keys, transpose_y=True))

    def context(self, weights: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, s] -> [P·C, heads, width]."""
        return _by_sequence(paddle.matmul(self._by_prompt(weights, self.shape[2]), self.values))

    def _by_prompt(self, x: paddle.Tensor, last: int) -> paddle.Tensor:
        """[P·C, heads, last] -> [P, heads, C, last]."""
        return x.reshape([self.shape[0], -1, self.shape[1], last]).transpose([0, 2, 1, 3])

    def select(self, prompts: np.ndarray) -> "Source":
        """Of each of the prompts int [N], which may repeat."""
        chosen = paddle.to_tensor(prompts)
        return self.of(paddle.gather(self.keys, chosen), paddle.gather(self.values, chosen))

    @classmethod
    def joined(cls, sources: list["Source"]) -> "Source":
        """The prompts of several sources of one length, one after another."""
        return cls.of(paddle.concat([s.keys for s in sources]), paddle.concat([s.values for s in sources]))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return 4 * (self.keys.size + self.values.size)


def _by_sequence(x: paddle.Tensor) -> paddle.Tensor:
    """[P, heads, C, k] -> [P·C, heads, k]."""
    return x.transpose([0, 2, 1, 3]).flatten(0, 1)


class Projections(Protocol):
    """What a cache needs of its attention layer at each step."""

    heads: int

    def key(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, heads · width]."""

    def value(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, heads · width]."""

    key_by_head: paddle.Tensor
    """[heads, width, hidden]: the key's matrix."""
    value_by_head: paddle.Tensor
    """[heads, hidden, width]: the value's matrix."""


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the target's slots, for layers that read most of them at every step."""

    keys: paddle.Tensor
    """Float [B · heads · slots, width]."""
    values: paddle.Tensor
    """Float [B · heads · slots, width]."""
    heads: int
    slots: int

    def write(self, attention: Projections, x: paddle.Tensor, step: Step) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Add the tokens whose layer inputs are x [B, hidden]; returns the keys and values [B, heads, capacity, width] of the
        tokens that the step's scores are about: all there are."""
        width = self.keys.shape[1]
        keys = _write(self.keys, step.write, attention.key(x).reshape([-1, width]))
        values = _write(self.values, step.write, attention.value(x).reshape([-1, width]))
        return keys.reshape(self._shape), values.reshape(self._shape)

    def scores(self, attention: Projections, queries: paddle.Tensor, near: tuple) -> paddle.Tensor:
        """[B, heads, width] -> [B, heads, capacity]; `near` is what `write` returned."""
        return paddle.matmul(queries.unsqueeze(2), near[0], transpose_y=True).squeeze(2)

    def context(self, attention: Projections, weights: paddle.Tensor, near: tuple) -> paddle.Tensor:
        """[B, heads, capacity] -> [B, heads, width]."""
        return paddle.matmul(weights.unsqueeze(2), near[1]).squeeze(2)

    def select(self, sequences: paddle.Tensor) -> "KeyValueCache":
        """What sequences int64 [N] have written, which may repeat."""
        keys, values = (_selected(x, self._shape, sequences) for x in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    @classmethod
    def joined(cls, caches: list["KeyValueCache"]) -> "KeyValueCache":
        """The sequences of several caches of one pattern, one after another."""
        keys, values = paddle.concat([c.keys for c in caches]), paddle.concat([c.values for c in caches])
        return replace(caches[0], keys=keys, values=values)

    @property
    def _shape(self) -> list[int]:
        return [-1, self.heads, self.slots, self.keys.shape[1]]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return 4 * (self.keys.size + self.values.size)


@dataclass(frozen=True)
class LatentCache:
    """The layer's inputs at the target's slots: half the size of keys and values, for layers that read few slots a step.

    With key_j = W_k x_j and value_j = W_v x_j the scores are q · W_k x_j = (W_kᵀ q) · x_j and the context is W_v (Σ_j p_j x_j):
    one product with each matrix per query, exactly as many as it takes to compute one key and one value.
    """

    inputs: paddle.Tensor
    """Float [B · slots, hidden]."""
    slots: int
    capacity: int
    """How many of them a token reads."""

    def write(self, attention: Projections, x: paddle.Tensor, step: Step) -> paddle.Tensor:
        """Add the tokens whose layer inputs are x [B, hidden]; returns the inputs [B, capacity, hidden] of the tokens that the
        step's scores are about."""
        inputs = _write(self.inputs, step.write, x)
        rows = inputs if step.read is None else paddle.gather(inputs, step.read)
        return rows.reshape([-1, self.capacity, self.inputs.shape[1]])

    def scores(self, attention: Projections, queries: paddle.Tensor, near: paddle.Tensor) -> paddle.Tensor:
        """[B, heads, width] -> [B, heads, capacity]; `near` is what `write` returned."""
        latent = paddle.matmul(queries.transpose([1, 0, 2]), attention.key_by_head).transpose([1, 0, 2])
        return paddle.matmul(latent, near, transpose_y=True)

    def context(self, attention: Projections, weights: paddle.Tensor, near: paddle.Tensor) -> paddle.Tensor:
        """[B, heads, capacity] -> [B, heads, width]."""
        latent = paddle.matmul(weights, near).transpose([1, 0, 2])
        return paddle.matmul(latent, attention.value_by_head).transpose([1, 0, 2])

    def select(self, sequences: paddle.Tensor) -> "LatentCache":
        """What sequences int64 [N] have written, which may repeat."""
        return replace(self, inputs=_selected(self.inputs, [-1, self.slots, self.inputs.shape[1]], sequences))

    @classmethod
    def joined(cls, caches: list["LatentCache"]) -> "LatentCache":
        """The sequences of several caches of one pattern, one after another."""
        return replace(caches[0], inputs=paddle.concat([c.inputs for c in caches]))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return 4 * self.inputs.size


Cache = KeyValueCache | LatentCache


def empty_cache(pattern: Pattern, batch: int, heads: int, width: int, dtype: paddle.dtype) -> Cache:
    """The cache of a layer before the first of B sequences' tokens."""
    slots = pattern.cache_slots()
    total = slots.groups * slots.capacity
    if keeps_latents(pattern):
        return LatentCache(paddle.zeros([batch * total, heads * width], dtype), total, slots.capacity)
    keys, values = (paddle.zeros([batch * heads * total, width], dtype) for _ in range(2))
    return KeyValueCache(keys, values, heads, total)


def keeps_latents(pattern: Pattern) -> bool:
    """Whether layers of this pattern read so few slots a step that they keep a `LatentCache`."""
    return pattern.kind != "dense" and pattern.to_image


def _write(buffer: paddle.Tensor, rows: paddle.Tensor, values: paddle.Tensor) -> paddle.Tensor:
    # Not paddle.scatter_, which in a program that is exported copies the whole buffer.
    return paddle._C_ops.scatter_(buffer, rows, values, True)


def _selected(buffer: paddle.Tensor, shape: list[int], sequences: paddle.Tensor) -> paddle.Tensor:
    return paddle.gather(buffer.reshape(shape), sequences).reshape([-1, shape[-1]])


@dataclass(frozen=True)
class _Places:
    """What a `Step` needs, for every one of a pattern's t target tokens."""

    slots: int
    write: np.ndarray
    """Int64 [t]: the slot of each token."""
    ring: np.ndarray | None
    """Int64 [t, capacity]: the slots that it reads; None where they are all there are."""
    bias: np.ndarray
    """Float32 [t, capacity]: what is added to their scores."""


@lru_cache(maxsize=64)  # worked out at every step it takes as long as a small model's layers
def _places(pattern: Pattern) -> _Places:
    slots = pattern.cache_slots()
    targets = np.arange(pattern.image_length if pattern.to_image else pattern.text_length)
    held = slots.held(targets)
    seen = pattern.target_sees(targets[:, None], held) & (held >= 0)
    bias = np.where(seen, np.float32(0), np.float32(HIDDEN))
    ring = slots.ring(targets) if slots.groups > 1 else None
    return _Places(slots.groups * slots.capacity, slots.write(targets), ring, bias)


class State:
    """The memory of all layers for a batch of B = P · C sequences; each may stand at a position of its own.

    `kinds` names the kind of each layer, `patterns` has the pattern of each kind, `source_valid` bool [P, s] tells the source's
    tokens from padding.
    """

    def __init__(
        self,
        kinds: list[str],
        patterns: dict[str, Pattern],
        sources: list[Source],
        source_valid: np.ndarray,
        caches: list[Cache],
        candidates: int,
    ):
        self.kinds, self.patterns = kinds, patterns
        self.sources, self.source_valid = sources, source_valid
        self.caches = caches
        self.candidates = candidates
        """C: how many consecutive sequences read the same source."""

    @classmethod
    def start(
        cls, kinds: list[str], patterns: dict[str, Pattern], sources: list[Source], source_valid: np.ndarray, candidates: int
    ) -> "State":
        """Of `candidates` C sequences for each source, before their first token."""
        _, heads, _, width = sources[0].keys.shape
        batch, dtype = len(source_valid) * candidates, sources[0].keys.dtype
        caches = [empty_cache(patterns[kind], batch, heads, width, dtype) for kind in kinds]
        return cls(kinds, patterns, sources, source_valid, caches, candidates)

    @classmethod
    def joined(cls, states: list["State"]) -> "State":
        """The sequences of several states of one model, direction and text length, one after another; each then has a source
        of its own."""
        alone = [state._alone() for state in states]
        first = alone[0]
        layers = range(len(first.kinds))
        return cls(
            first.kinds,
            first.patterns,
            [Source.joined([state.sources[i] for state in alone]) for i in layers],
            np.concatenate([state.source_valid for state in alone]),
            [type(first.caches[i]).joined([state.caches[i] for state in alone]) for i in layers],
            candidates=1,
        )

    @property
    def direction(self) -> Direction:
        """What is written from what."""
        return self.patterns[self.kinds[0]].direction

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return len(self.source_valid) * self.candidates

    def steps(self, positions: np.ndarray) -> dict[str, Step]:
        """For each layer kind, where sequences stand that are about to read their target tokens int [B]; numpy arrays."""
        return {kind: self._step(pattern, positions) for kind, pattern in self.patterns.items()}

    def _step(self, pattern: Pattern, positions: np.ndarray) -> Step:
        places = _places(pattern)
        copies = 1 if keeps_latents(pattern) else self.sources[0].keys.shape[1]
        firsts = np.arange(len(positions) * copies) * places.slots
        write = firsts + np.repeat(places.write[positions], copies)
        read = None if places.ring is None else (firsts[:, None] + places.ring[positions]).ravel()
        source_bias = np.repeat(np.where(self.source_valid, np.float32(0), np.float32(HIDDEN)), self.candidates, axis=0)
        return Step(write, read, np.concatenate([source_bias, places.bias[positions]], axis=1)[:, None])

    def select(self, sequences: np.ndarray) -> None:
        """Go on with sequences int [N] of the batch, in this order: others are dropped, one may go on several times.

        Sources stay as they are where each place's sequence still reads the same one, as in a beam search.
        """
        sequences = np.asarray(sequences)
        prompts = sequences // self.candidates
        firsts = prompts[:: self.candidates]
        if np.array_equal(prompts, np.repeat(firsts, self.candidates)):
            prompts = firsts
        else:
            self.candidates = 1
        if not np.array_equal(prompts, np.arange(len(self.source_valid))):
            self.sources = [source.select(prompts) for source in self.sources]
            self.source_valid = self.source_valid[prompts]
        chosen = paddle.to_tensor(sequences)
        self.caches = [cache.select(chosen) for cache in self.caches]

    def _alone(self) -> "State":
        """The same sequences, each with a source of its own."""
        if self.candidates == 1:
            return self
        prompts = np.repeat(np.arange(len(self.source_valid)), self.candidates)
        sources = [source.select(prompts) for source in self.sources]
        return State(self.kinds, self.patterns, sources, self.source_valid[prompts], self.caches, 1)

    @property
    def bytes(self) -> int:
        """Size of all layers' keys, values and inputs."""
        return sum(part.bytes for part in (*self.sources, *self.caches))
