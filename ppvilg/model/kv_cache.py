"""What decoding remembers: the prefix's keys and values, once for all sequences of a prompt, and of the target no more than its
mask can still show, in buffers that are allocated once. Arrays only: the weights come with each step."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import paddle
from paddle import nn

from ppvilg.model.config import ViLGConfig
from ppvilg.model.layers import sizes
from ppvilg.model.mask import AttentionMask, Direction
from ppvilg.ops import from_numpy

MASK_VALUE = -1e9  # added to the scores of keys that a query does not see
Array = np.ndarray | paddle.Tensor


@dataclass(frozen=True)
class StepInputs:
    """Where the sequences of a batch stand, as the caches of one kind of layer need it."""

    write: paddle.Tensor
    """Int64 [rows]: the rows of the buffer that the new token goes to."""
    read: paddle.Tensor | None
    """Int64 [B · capacity]: the rows to read; None where they are all there are."""
    bias: paddle.Tensor
    """Float [B, 1, s + capacity]: added to the scores of the prefix's keys and of those that are read."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P prompts, each read by C consecutive sequences of the batch."""

    keys: paddle.Tensor
    """Float [P, heads, s, width]."""
    values: paddle.Tensor
    """Float [P, heads, s, width]."""

    @cached_property  # an exported program works it out once for each layer
    def _sizes(self) -> list:
        return sizes(self.keys)

    def scores(self, q: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, width] -> [P·C, heads, s]."""
        return _by_sequence(paddle.matmul(self._by_prompt(q, q.shape[2]), self.keys, transpose_y=True))

    def context(self, weights: paddle.Tensor) -> paddle.Tensor:
        """[P·C, heads, s] -> [P·C, heads, width]."""
        return _by_sequence(paddle.matmul(self._by_prompt(weights, self._sizes[2]), self.values))

    def _by_prompt(self, x: paddle.Tensor, last: int) -> paddle.Tensor:
        """[P·C, heads, last] -> [P, heads, C, last]."""
        prompts, heads, _, _ = self._sizes
        return x.reshape([prompts, -1, heads, last]).transpose([0, 2, 1, 3])

    def select(self, prompts: np.ndarray) -> "Prefix":
        """Of each of the prompts int [N], which may repeat."""
        chosen = from_numpy(prompts)
        return Prefix(paddle.gather(self.keys, chosen), paddle.gather(self.values, chosen))

    @classmethod
    def concat(cls, prefixes: list["Prefix"]) -> "Prefix":
        """The prompts of several prefixes of one length, one after another."""
        return cls(paddle.concat([p.keys for p in prefixes]), paddle.concat([p.values for p in prefixes]))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.keys.element_size() * (self.keys.size + self.values.size)


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
class KVCache:
    """Keys and values of the target's slots, for layers that read most of them at every step."""

    keys: paddle.Tensor
    """Float [B · heads · slots, width]."""
    values: paddle.Tensor
    """Float [B · heads · slots, width]."""
    heads: int
    slots: int

    def update(self, attention: Projections, x: paddle.Tensor, step: StepInputs) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Add the tokens whose layer inputs are x [B, hidden]; returns the keys and values [B, heads, slots, width] that the
        step reads: all there are."""
        width = self.keys.shape[1]
        keys = _write(self.keys, step.write, attention.key(x).reshape([-1, width]))
        values = _write(self.values, step.write, attention.value(x).reshape([-1, width]))
        return keys.reshape(self._shape), values.reshape(self._shape)

    def scores(self, attention: Projections, q: paddle.Tensor, local: tuple) -> paddle.Tensor:
        """[B, heads, width] -> [B, heads, slots]; `local` is what `update` returned."""
        return paddle.matmul(q.unsqueeze(2), local[0], transpose_y=True).squeeze(2)

    def context(self, attention: Projections, weights: paddle.Tensor, local: tuple) -> paddle.Tensor:
        """[B, heads, slots] -> [B, heads, width]."""
        return paddle.matmul(weights.unsqueeze(2), local[1]).squeeze(2)

    def select(self, sequences: paddle.Tensor) -> "KVCache":
        """Of sequences int64 [N], which may repeat."""
        keys, values = (_select(x, self._shape, sequences) for x in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    @classmethod
    def concat(cls, caches: list["KVCache"]) -> "KVCache":
        """The sequences of several caches of one mask, one after another."""
        keys, values = paddle.concat([c.keys for c in caches]), paddle.concat([c.values for c in caches])
        return replace(caches[0], keys=keys, values=values)

    @property
    def _shape(self) -> list[int]:
        return [-1, self.heads, self.slots, self.keys.shape[1]]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.keys.element_size() * (self.keys.size + self.values.size)


@dataclass(frozen=True)
class AbsorbedCache:
    """The layer's inputs at the target's slots, with the projections absorbed into query and output: half the size of keys and
    values, for layers that read few slots a step.

    With key_j = W_k x_j and value_j = W_v x_j the scores are q · W_k x_j = (W_kᵀ q) · x_j and the context is W_v (Σ_j p_j x_j):
    one product with each matrix per query, exactly as many as it takes to compute one key and one value.
    """

    inputs: paddle.Tensor
    """Float [B · slots, hidden]."""
    slots: int
    capacity: int
    """How many of them a token reads."""

    def update(self, attention: Projections, x: paddle.Tensor, step: StepInputs) -> paddle.Tensor:
        """Add the tokens whose layer inputs are x [B, hidden]; returns the inputs [B, capacity, hidden] that the step reads."""
        inputs = _write(self.inputs, step.write, x)
        rows = inputs if step.read is None else paddle.gather(inputs, step.read)
        return rows.reshape([-1, self.capacity, self.inputs.shape[1]])

    def scores(self, attention: Projections, q: paddle.Tensor, local: paddle.Tensor) -> paddle.Tensor:
        """[B, heads, width] -> [B, heads, capacity]; `local` is what `update` returned."""
        absorbed = paddle.matmul(q.transpose([1, 0, 2]), attention.key_by_head).transpose([1, 0, 2])
        return paddle.matmul(absorbed, local, transpose_y=True)

    def context(self, attention: Projections, weights: paddle.Tensor, local: paddle.Tensor) -> paddle.Tensor:
        """[B, heads, capacity] -> [B, heads, width]."""
        mixed = paddle.matmul(weights, local).transpose([1, 0, 2])
        return paddle.matmul(mixed, attention.value_by_head).transpose([1, 0, 2])

    def select(self, sequences: paddle.Tensor) -> "AbsorbedCache":
        """Of sequences int64 [N], which may repeat."""
        return replace(self, inputs=_select(self.inputs, [-1, self.slots, self.inputs.shape[1]], sequences))

    @classmethod
    def concat(cls, caches: list["AbsorbedCache"]) -> "AbsorbedCache":
        """The sequences of several caches of one mask, one after another."""
        return replace(caches[0], inputs=paddle.concat([c.inputs for c in caches]))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.inputs.element_size() * self.inputs.size


Cache = KVCache | AbsorbedCache


def keeps_inputs(mask: AttentionMask) -> bool:
    """Whether layers of this mask read so few slots a step that they keep an `AbsorbedCache`."""
    return mask.kind != "dense" and mask.to_image


def empty_cache(mask: AttentionMask, batch: int, heads: int, width: int, hidden: int, dtype: paddle.dtype) -> Cache:
    """The cache of a layer of `heads` heads before the first of `batch` sequences' tokens."""
    ring = mask.cache_slots()
    slots = ring.groups * ring.capacity
    if keeps_inputs(mask):
        return AbsorbedCache(paddle.zeros([batch * slots, hidden], dtype), slots, ring.capacity)
    keys, values = (paddle.zeros([batch * heads * slots, width], dtype) for _ in range(2))
    return KVCache(keys, values, heads, slots)


def _write(buffer: paddle.Tensor, rows: paddle.Tensor, values: paddle.Tensor) -> paddle.Tensor:
    # Not paddle.scatter_, which in a program that is exported copies the whole buffer.
    return paddle._C_ops.scatter_(buffer, rows, values, True)


def _select(buffer: paddle.Tensor, shape: list[int], sequences: paddle.Tensor) -> paddle.Tensor:
    return paddle.gather(buffer.reshape(shape), sequences).reshape([-1, shape[-1]])


class SlotTables(nn.Layer):
    """What `StepInputs` are made of, for every one of a mask's t target tokens: buffers, which an exported program keeps."""

    def __init__(self, mask: AttentionMask, heads: int, dtype: paddle.dtype):
        super().__init__()
        ring, targets = mask.cache_slots(), np.arange(mask.target_length)
        held = ring.held(targets)
        seen = mask.target_sees(targets[:, None], held) & (held >= 0)
        bias = np.where(seen, np.float32(0), np.float32(MASK_VALUE))
        self.count = ring.groups * ring.capacity
        """How many slots a sequence has."""
        self.copies = 1 if keeps_inputs(mask) else heads
        """How many times a sequence has them in the buffer: once for each head, or once."""
        read = paddle.to_tensor(ring.read(targets)) if ring.groups > 1 else None
        self.register_buffer("write", paddle.to_tensor(ring.write(targets)))  # int64 [t]: the slot that each token goes to
        self.register_buffer("read", read)  # int64 [t, capacity]: the slots that it reads; None where they are all there are
        self.register_buffer("bias", paddle.to_tensor(bias).astype(dtype))  # float [t, capacity]: added to their scores

    def forward(self, slots: paddle.Tensor, prefix_bias: paddle.Tensor) -> StepInputs:
        """For tokens at target slots int64 [B], whose prefixes add float [B, 1, s] to their keys' scores."""
        batch = sizes(slots)[0]
        firsts = (paddle.arange(batch * self.copies) * self.count).reshape([-1, self.copies])
        write = (firsts + paddle.gather(self.write, slots).unsqueeze(1)).flatten()
        read = None if self.read is None else (firsts + paddle.gather(self.read, slots)).flatten()
        return StepInputs(write, read, paddle.concat([prefix_bias, paddle.gather(self.bias, slots).unsqueeze(1)], axis=-1))


@lru_cache(maxsize=64)  # computed at every step they would take as long as a small model's layers
def slot_tables(mask: AttentionMask, heads: int, dtype: paddle.dtype) -> SlotTables:
    """Of the layers of a mask, in a model of a dtype."""
    return SlotTables(mask, heads, dtype)


@dataclass(frozen=True)
class DecodeInputs:
    """What a model reads to decode one target token of each of B sequences."""

    ids: Array
    """Int64 [B]: the tokens to read."""
    slots: Array
    """Int64 [B]: where in the target they stand."""
    prefix_mask: Array
    """Bool [P, s]: True for the real tokens of the prefixes."""
    tables: dict[str, SlotTables]
    """By kind of layer."""
    prefixes: list[Prefix]
    """Of each layer."""
    caches: list[Cache]
    """Of each layer; written to."""

    def to_tensors(self) -> "DecodeInputs":
        """The same as tensors."""
        ids, slots, mask = (from_numpy(x) if isinstance(x, np.ndarray) else x for x in (self.ids, self.slots, self.prefix_mask))
        return replace(self, ids=ids, slots=slots, prefix_mask=mask)

    def steps(self, dtype: paddle.dtype) -> dict[str, StepInputs]:
        """By kind of layer, of a model of a dtype; for inputs that are tensors."""
        batch, (prompts, length) = sizes(self.slots)[0], sizes(self.prefix_mask)
        hidden = paddle.where(self.prefix_mask, paddle.zeros([], dtype), paddle.full([], MASK_VALUE, dtype))
        bias = hidden.unsqueeze(1).expand([prompts, batch // prompts, length]).reshape([batch, 1, length])
        return {kind: tables(self.slots, bias) for kind, tables in self.tables.items()}


class DecodeState:
    """Prefixes and caches of all layers for a batch of B = P · C sequences; each may stand at a position of its own.

    `kinds` names the kind of each layer, `masks` has the mask of each kind, `prefix_mask` bool [P, s] tells the prefix's tokens
    from padding, `candidates` is C, how many consecutive sequences read the same prefix.
    """

    def __init__(
        self,
        kinds: list[str],
        masks: dict[str, AttentionMask],
        prefixes: list[Prefix],
        prefix_mask: np.ndarray,
        caches: list[Cache],
        candidates: int,
    ):
        self.kinds, self.masks = kinds, masks
        self.prefixes, self.prefix_mask = prefixes, prefix_mask
        self.caches = caches
        self.candidates = candidates

    @classmethod
    def empty(
        cls,
        config: ViLGConfig,
        direction: Direction,
        text_length: int,
        prefixes: list[Prefix],
        prefix_mask: np.ndarray,
        candidates: int = 1,
    ) -> "DecodeState":
        """Of `candidates` sequences for each prefix, before their first token; `text_length` is m, for captions the longest."""
        masks = {kind: config.mask(kind, direction, text_length) for kind in config.kinds}
        _, heads, _, width = prefixes[0].keys.shape
        batch, dtype = len(prefix_mask) * candidates, prefixes[0].keys.dtype
        caches = [empty_cache(masks[kind], batch, heads, width, config.hidden, dtype) for kind in config.kinds]
        return cls(config.kinds, masks, prefixes, prefix_mask, caches, candidates)

    @classmethod
    def concat(cls, states: list["DecodeState"]) -> "DecodeState":
        """The sequences of several states of one model, direction and text length, one after another; each then has a prefix of
        its own."""
        alone = [state._with_own_prefixes() for state in states]
        first = alone[0]
        layers = range(len(first.kinds))
        return cls(
            first.kinds,
            first.masks,
            [Prefix.concat([state.prefixes[i] for state in alone]) for i in layers],
            np.concatenate([state.prefix_mask for state in alone]),
            [type(first.caches[i]).concat([state.caches[i] for state in alone]) for i in layers],
            candidates=1,
        )

    @property
    def direction(self) -> Direction:
        """What is generated from what."""
        return self.masks[self.kinds[0]].direction

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return len(self.prefix_mask) * self.candidates

    def inputs(self, ids: Array, slots: Array) -> DecodeInputs:
        """What a model reads to decode tokens int64 [B] that stand at their sequences' target slots int64 [B]."""
        return DecodeInputs(ids, slots, self.prefix_mask, self.tables, self.prefixes, self.caches)

    @property
    def tables(self) -> dict[str, SlotTables]:
        """By kind of layer."""
        keys = self.prefixes[0].keys
        return {kind: slot_tables(mask, keys.shape[1], keys.dtype) for kind, mask in self.masks.items()}

    def select(self, sequences: np.ndarray) -> None:
        """Go on with sequences int [N] of the batch, in this order: others are dropped, one may go on several times.

        Prefixes stay as they are where each place's sequence still reads the same one, as in a beam search.
        """
        sequences = np.asarray(sequences)
        prompts = sequences // self.candidates
        firsts = prompts[:: self.candidates]
        if np.array_equal(prompts, np.repeat(firsts, self.candidates)):
            prompts = firsts
        else:
            self.candidates = 1
        if not np.array_equal(prompts, np.arange(len(self.prefix_mask))):
            self.prefixes = [prefix.select(prompts) for prefix in self.prefixes]
            self.prefix_mask = self.prefix_mask[prompts]
        chosen = from_numpy(sequences)
        self.caches = [cache.select(chosen) for cache in self.caches]

    def _with_own_prefixes(self) -> "DecodeState":
        """The same sequences, each with a prefix of its own."""
        if self.candidates == 1:
            return self
        prompts = np.repeat(np.arange(len(self.prefix_mask)), self.candidates)
        prefixes = [prefix.select(prompts) for prefix in self.prefixes]
        return DecodeState(self.kinds, self.masks, prefixes, self.prefix_mask[prompts], self.caches, 1)

    @property
    def bytes(self) -> int:
        """Size of all layers' keys, values and inputs."""
        return sum(part.bytes for part in (*self.prefixes, *self.caches))
