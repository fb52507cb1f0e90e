"""Continuous batching: pictures join the batch at any step and leave it when they are finished or no longer wanted.

Texts are padded to one length, so that the states of all sequences fit together. A picture's tokens do not depend on what else
is in the batch: they are those that `write_images` draws with the same seeds.
"""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import paddle

from ppvilg.generate.sampling import Noise, Sampling, guided, sample
from ppvilg.text import TextTokenizer, pad_batch
from ppvilg.transformer.cache import State
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.model import last_real
from ppvilg.transformer.pattern import Direction


@dataclass(eq=False)
class Writing:
    """C pictures of one text that are written together, one for each seed."""

    text: list[int]
    """Token ids, begin and end tokens included."""
    seeds: list[int]
    sampling: Sampling = Sampling()
    given: np.ndarray | None = None
    """Int64 [k]: first tokens that stand already."""
    tokens: np.ndarray = field(init=False)
    """Int64 [C, n], in raster order; 0 where nothing is written yet."""
    written: int = field(init=False, default=0)
    """How many tokens of each picture stand; the batch counts them."""

    @property
    def guided(self) -> bool:
        """Whether every picture takes a second sequence, with the empty text."""
        return self.sampling.guidance != 1

    @property
    def sequences(self) -> int:
        """How many sequences of the batch the pictures take."""
        return len(self.seeds) * (1 + self.guided)


class ImageBatch:
    """The sequences that are being written; written by a model or an exported one."""

    def __init__(self, model: Decoder, tokenizer: TextTokenizer, max_length: int):
        self._model, self._tokenizer, self._max_length = model, tokenizer, max_length
        self._image_tokens = model.rows * model.columns
        self._writings: list[Writing] = []  # in the order of their sequences
        self._noises: dict[Writing, Noise] = {}
        self._state: State | None = None
        self._hidden: paddle.Tensor | None = None  # [B, hidden]: decides each sequence's next token

    @property
    def sequences(self) -> int:
        """How many sequences the next step reads."""
        return sum(writing.sequences for writing in self._writings)

    @paddle.no_grad()
    def join(self, writings: list[Writing]) -> None:
        """Read the texts of pictures that begin with the next step; each joins once."""
        parts = [(self._state, self._hidden)] if self._writings else []
        for count, group in groupby(sorted(writings, key=_pictures), key=_pictures):
            alike = list(group)
            parts.append(self._start(alike, count))
            for writing in alike:
                writing.tokens = np.zeros((count, self._image_tokens), dtype=np.int64)
                self._noises[writing] = Noise(writing.seeds)
            self._writings += alike
        if len(parts) == 1:
            self._state, self._hidden = parts[0]
        elif parts:
            states, hiddens = zip(*parts, strict=True)
            self._state, self._hidden = State.joined(list(states)), paddle.concat(list(hiddens))

    def _start(self, writings: list[Writing], count: int) -> tuple[State, paddle.Tensor]:
        empty = self._tokenizer.encode("")
        texts = [text for w in writings for text in ([w.text, empty] if w.guided else [w.text])]
        ids, valid = (paddle.to_tensor(array) for array in pad_batch(texts, self._tokenizer.pad, self._max_length))
        source, state = self._model.start(Direction.TEXT_TO_IMAGE, ids, valid, count, self._max_length)
        return state, paddle.repeat_interleave(last_real(source, valid), count, axis=0)

    def leave(self, writings: list[Writing]) -> None:
        """Give up pictures that are being written; their sequences are free at once."""
        going = set(writings)
        kept = np.repeat([writing not in going for writing in self._writings], self._sizes()).nonzero()[0]
        self._writings = [writing for writing in self._writings if writing not in going]
        for writing in writings:
            del self._noises[writing]
        if not self._writings:
            self._state = self._hidden = None
        elif going:
            self._state.select(kept)
            self._hidden = paddle.gather(self._hidden, paddle.to_tensor(kept))

    @paddle.no_grad()
    def step(self) -> list[Writing]:
        """Write one token of every picture; returns those that are finished, which have left the batch."""
        self._choose()
        for writing in self._writings:
            writing.written += 1
        finished = [writing for writing in self._writings if writing.written == self._image_tokens]
        if finished:
            self.leave(finished)
        if self._writings:
            last = [np.tile(w.tokens[:, w.written - 1], 1 + w.guided) for w in self._writings]
            positions = np.repeat([w.written - 1 for w in self._writings], self._sizes())
            self._hidden = self._model.step(self._state, paddle.to_tensor(np.concatenate(last)), positions)
        return finished

    def _choose(self) -> None:
        """Put the next token of every picture into its `tokens`: the given one, or one that is drawn."""
        firsts = np.cumsum([0, *self._sizes()])
        alike: dict[Sampling, list[tuple[int, Writing]]] = {}
        for first, writing in zip(firsts, self._writings, strict=False):
            if writing.given is not None and writing.written < len(writing.given):
                writing.tokens[:, writing.written] = writing.given[writing.written]
            else:
                alike.setdefault(writing.sampling, []).append((first, writing))
        if not alike:
            return
        logits = self._model.image_logits(self._hidden)
        for sampling, members in alike.items():
            rows = np.concatenate([first + np.arange(len(writing.seeds)) for first, writing in members])
            chosen = _rows(logits, rows)
            if sampling.guidance != 1:
                empty = np.concatenate([first + len(w.seeds) + np.arange(len(w.seeds)) for first, w in members])
                chosen = guided(chosen, _rows(logits, empty), sampling.guidance)
            noise = Noise.joined([self._noises[writing] for _, writing in members])
            drawn = np.split(sample(chosen, sampling, noise).numpy(), np.cumsum([len(w.seeds) for _, w in members])[:-1])
            for (_, writing), tokens in zip(members, drawn, strict=True):
                writing.tokens[:, writing.written] = tokens

    def _sizes(self) -> list[int]:
        return [writing.sequences for writing in self._writings]


def _pictures(writing: Writing) -> int:
    return len(writing.seeds)


def _rows(logits: paddle.Tensor, rows: np.ndarray) -> paddle.Tensor:
    """Rows int [R] of logits [B, V]."""
    return logits if len(rows) == len(logits) else paddle.gather(logits, paddle.to_tensor(rows))
