"""Beam search for the likeliest text of an image."""

from collections.abc import Sequence

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg.generate.engine import GenerativeModel
from ppvilg.model.batch import image_prompts
from ppvilg.model.kv_cache import DecodeState
from ppvilg.model.mask import Direction
from ppvilg.ops import from_numpy
from ppvilg.text import TextTokenizer

_DIRECTION = Direction.IMAGE_TO_TEXT


class _Beams:
    """The beams of one image: the live ones, which are extended, and the best finished ones."""

    def __init__(self, num_beams: int, end: int, longest: int, length_penalty: float):
        self._num_beams, self._end, self._longest, self._length_penalty = num_beams, end, longest, length_penalty
        # All beams start equal: only the first counts.
        self._totals = np.where(np.arange(num_beams) == 0, 0.0, -np.inf)
        self._texts: list[list[int]] = [[] for _ in range(num_beams)]
        self._finished: list[tuple[float, list[int]]] = []  # score and text, the best first

    def extend(self, log_p: np.ndarray) -> tuple[list[int], list[int]]:
        """Keep the likeliest extensions under log p [beams, V] of the next token; returns each new beam's parent and token."""
        totals = self._totals[:, None] + log_p
        likeliest = np.argsort(-totals.ravel(), kind="stable")[: 2 * self._num_beams]  # at most half of them end
        live: list[tuple[int, int]] = []
        for rank, (beam, token) in enumerate(zip(*np.unravel_index(likeliest, totals.shape), strict=True)):
            if token != self._end:
                live.append((int(beam), int(token)))
            elif rank < self._num_beams:  # so that a single beam is greedy
                self._finish(totals[beam, token], len(self._texts[beam]) + 1, self._texts[beam])
        live = live[: self._num_beams]
        missing = self._num_beams - len(live)
        self._texts = [[*self._texts[beam], token] for beam, token in live] + [[]] * missing
        self._totals = np.array([totals[beam, token] for beam, token in live] + [-np.inf] * missing)
        live += [(beam, self._end) for beam in range(len(live), self._num_beams)]
        return [beam for beam, _ in live], [token for _, token in live]

    def is_settled(self) -> bool:
        """Whether no live beam can still beat the finished ones; its total only falls, so this is the best it can score."""
        if len(self._finished) < self._num_beams:
            return False
        return self._finished[-1][0] >= self._totals.max() / self._longest**self._length_penalty

    def best(self) -> list[int]:
        """The best text; live beams of the longest length count as they are."""
        for total, text in zip(self._totals, self._texts, strict=True):
            if len(text) == self._longest:
                self._finish(total, self._longest, text)
        return self._finished[0][1]

    def _finish(self, total: float, length: int, text: list[int]) -> None:
        self._finished.append((total / length**self._length_penalty, text))
        self._finished = sorted(self._finished, key=lambda scored: -scored[0])[: self._num_beams]


@paddle.no_grad()
def beam_search(
    model: GenerativeModel,
    images: np.ndarray,
    tokenizer: TextTokenizer,
    max_length: int,
    num_beams: int,
    length_penalty: float,
    questions: Sequence[list[int] | None] | None = None,
) -> list[list[int]]:
    """The best text found for each image int64 [P, n], or the best answer to each image's question (token ids): token ids
    without begin and end tokens.

    A text of L tokens, the end token included, scores log p / L^length_penalty: 0 prefers short texts, 1 takes the mean.
    `max_length` counts the begin and end tokens.
    """
    asked = [None] * len(images) if questions is None else questions
    ids, mask = image_prompts(images, asked, model.config.question_length, tokenizer.pad)
    _, prefixes = model.prefill(_DIRECTION, from_numpy(ids), from_numpy(mask))
    state = DecodeState.empty(model.config, _DIRECTION, max_length, prefixes, mask, num_beams)
    searches = [_Beams(num_beams, tokenizer.end, max_length - 1, length_penalty) for _ in images]
    tokens = np.full(len(images) * num_beams, tokenizer.begin)
    for k in range(max_length - 1):
        states = model.decode_step(_DIRECTION, state.inputs(tokens, np.full(len(tokens), k)))
        # The text table may have more rows than the tokenizer has tokens.
        log_p = F.log_softmax(model.text_logits(states)[:, : tokenizer.size].astype("float32")).numpy().astype(np.float64)
        log_p = log_p.reshape(len(images), num_beams, -1)
        parents, chosen = zip(*(beams.extend(own) for beams, own in zip(searches, log_p, strict=True)), strict=True)
        if all(beams.is_settled() for beams in searches):
            break
        state.select((np.array(parents) + np.arange(len(images))[:, None] * num_beams).ravel())
        tokens = np.array(chosen).ravel()
    return [beams.best() for beams in searches]
