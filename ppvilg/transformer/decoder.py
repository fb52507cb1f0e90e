"""Writing the target slot by slot: what a model in memory and an exported one have in common."""

from typing import Protocol

import numpy as np
import paddle

from ppvilg.config import AttentionConfig, AttentionKind
from ppvilg.transformer.attention import Part, source_part
from ppvilg.transformer.cache import Cache, Source, State, Step
from ppvilg.transformer.pattern import Direction, Pattern


class Decoder(Protocol):
    """Reads sources and then targets token by token. Patterns and memory are worked out here, what is computed with weights in
    `read_source`, `read_target`, `image_logits` and `text_logits`."""

    rows: int
    columns: int
    heads: int
    attention: AttentionConfig
    kinds: list[AttentionKind]
    """The kind of each layer."""

    def read_source(
        self, direction: Direction, ids: paddle.Tensor, slots: paddle.Tensor, parts: dict[str, Part]
    ) -> tuple[paddle.Tensor, list[Source]]:
        """P sources int64 [P, s], each token in a slot int64 [P · s]; `parts` has each layer kind's pattern.

        Returns the last hidden states, rows [P · s, hidden], and what each layer's targets read.
        """

    def read_target(
        self,
        direction: Direction,
        ids: paddle.Tensor,
        slots: np.ndarray,
        steps: dict[str, Step],
        sources: list[Source],
        caches: list[Cache],
    ) -> paddle.Tensor:
        """One target token of each sequence, int64 [B], in a slot int64 [B], whose keys, values or inputs are added to the
        caches -> last hidden states [B, hidden]. The steps' arrays are numpy's."""

    def image_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., codebook size]."""

    def text_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., hidden] -> [..., text vocabulary]."""

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
        patterns = {kind: self.pattern(kind, direction, text_length) for kind in self.kinds}
        prompts, length = source.shape
        text_valid = valid if direction is Direction.TEXT_TO_IMAGE else paddle.ones([prompts, text_length], dtype="bool")
        parts = {kind: source_part(pattern, text_valid, self.heads) for kind, pattern in patterns.items()}
        slots = paddle.arange(length).tile([prompts])
        rows, sources = self.read_source(direction, source, slots, parts)
        state = State.start(self.kinds, patterns, sources, valid.numpy(), candidates)
        return rows.reshape([prompts, length, rows.shape[1]]), state

    @paddle.no_grad()
    def step(self, state: State, ids: paddle.Tensor, positions: np.ndarray) -> paddle.Tensor:
        """Read one target token of each sequence, int64 [B], that stands at its target slot int [B] -> its last hidden state
        float [B, hidden], which decides the token after it."""
        return self.read_target(state.direction, ids, positions, state.steps(positions), state.sources, state.caches)
