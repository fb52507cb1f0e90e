"""Generation, one token of every sequence at a time.

A request joins the running batch before any step and leaves it when it is finished or no longer wanted (continuous batching).
Its tokens do not depend on what else is in the batch. Offline generation is a batch that all requests join at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import paddle

from ppvilg.generate.sampling import Noise, Sampling, guided, sample
from ppvilg.model.batch import image_prompts, pad_prompts
from ppvilg.model.config import ViLGConfig
from ppvilg.model.kv_cache import DecodeInputs, DecodeState, Prefix
from ppvilg.model.mask import Direction
from ppvilg.ops import from_numpy
from ppvilg.text import TextTokenizer


class GenerativeModel(Protocol):
    """What generation needs of a model: a `ViLG`, or an exported one."""

    config: ViLGConfig
    reconstructor: Callable[[paddle.Tensor], paddle.Tensor] | None
    """Hidden states [B, n, hidden] -> pixels [B, 3, H, W], of a model that was trained end to end."""

    def prefill(self, direction: Direction, ids: paddle.Tensor, mask: paddle.Tensor) -> tuple[paddle.Tensor, list[Prefix]]:
        """Read P prompts int64 [P, s], mask bool [P, s] True for real tokens: their last hidden states [P, s, hidden], and what
        each layer keeps of them."""

    def decode_step(self, direction: Direction, inputs: DecodeInputs) -> paddle.Tensor:
        """Read one token of each of B sequences: its last hidden state [B, hidden], which decides the next token."""

    def image_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, image vocabulary]."""

    def text_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """[B, hidden] -> [B, text vocabulary]."""


@dataclass(eq=False)
class GenerationRequest:
    """C sequences that are generated from one prompt, one for each seed."""

    prompt: list[int] | np.ndarray
    """Tokens of a text, begin and end tokens included, or of an image."""
    seeds: list[int]
    sampling: Sampling = Sampling()
    prefix_tokens: np.ndarray | None = None
    """Int64 [k] or [C, k]: the first tokens, which are given."""
    return_states: bool = False
    """Whether to keep `states`; the last token is then read too."""
    question: list[int] | None = None
    """Tokens of a question about the image, begin and end tokens included, for models that have slots for it."""
    tokens: np.ndarray = field(init=False)
    """Int64 [C, target length]; 0 where nothing is generated yet."""
    length: int = field(init=False, default=0)
    """How many tokens each sequence has; the engine counts them."""
    states: list[paddle.Tensor] = field(init=False, default_factory=list)
    """For each token the last hidden state float [C, hidden] that has read it."""

    @property
    def is_guided(self) -> bool:
        """Whether each sequence takes a second one of the batch, with the empty text."""
        return self.sampling.guidance != 1

    @property
    def sequences(self) -> int:
        """How many sequences of the batch the request takes."""
        return len(self.seeds) * (1 + self.is_guided)

    @property
    def prefix_length(self) -> int:
        """The number of tokens that are given."""
        return 0 if self.prefix_tokens is None else np.shape(self.prefix_tokens)[-1]


class GenerationEngine:
    """The running batch of one direction. `max_text_length`: what prompts are padded to, or the longest text to generate; the
    latter also ends with the tokenizer's end token."""

    def __init__(self, model: GenerativeModel, direction: Direction, tokenizer: TextTokenizer, max_text_length: int):
        self._model, self._direction, self._tokenizer = model, direction, tokenizer
        self._to_image = direction is Direction.TEXT_TO_IMAGE
        self._target_length = model.config.image_length if self._to_image else max_text_length
        self._max_text_length = max_text_length
        self._requests: list[GenerationRequest] = []  # in the order of their sequences
        self._noises: dict[GenerationRequest, Noise] = {}
        self._decode_state: DecodeState | None = None
        self._last_states: paddle.Tensor | None = None  # [B, hidden]: decides each sequence's next token

    @property
    def sequences(self) -> int:
        """B, how many sequences the next step reads."""
        return sum(request.sequences for request in self._requests)

    @paddle.no_grad()
    def join(self, requests: list[GenerationRequest]) -> None:
        """Read the prompts of requests whose generation begins with the next step; each request joins once."""
        parts = [(self._decode_state, self._last_states)] if self._requests else []
        by_candidates: dict[int, list[GenerationRequest]] = {}
        for request in requests:
            by_candidates.setdefault(len(request.seeds), []).append(request)
        for candidates, alike in by_candidates.items():
            parts.append(self._prefill(alike, candidates))
            self._requests += alike
        for request in requests:
            request.tokens = np.zeros((len(request.seeds), self._target_length), dtype=np.int64)
            if request.prefix_length:
                request.tokens[:, : request.prefix_length] = request.prefix_tokens
            self._noises[request] = Noise(request.seeds)
        if len(parts) == 1:
            self._decode_state, self._last_states = parts[0]
        elif parts:
            decode_states, last_states = zip(*parts, strict=True)
            self._decode_state, self._last_states = DecodeState.concat(list(decode_states)), paddle.concat(list(last_states))

    def _prefill(self, requests: list[GenerationRequest], candidates: int) -> tuple[DecodeState, paddle.Tensor]:
        """Requests of `candidates` seeds each; all sequences of a prompt share what is kept of it."""
        config = self._model.config
        ids, mask = self._prompts(requests)
        states, prefixes = self._model.prefill(self._direction, from_numpy(ids), from_numpy(mask))
        last_tokens = np.stack([np.arange(len(mask)), mask.sum(1) - 1], axis=1)
        last_states = paddle.repeat_interleave(paddle.gather_nd(states, from_numpy(last_tokens)), candidates, axis=0)
        state = DecodeState.empty(config, self._direction, self._max_text_length, prefixes, mask, candidates)
        return state, last_states

    def _prompts(self, requests: list[GenerationRequest]) -> tuple[np.ndarray, np.ndarray]:
        """What `prefill` reads of the requests' prompts; the empty text follows the text of one that is guided."""
        pad = self._tokenizer.pad
        if not self._to_image:
            questions = [request.question for request in requests]
            return image_prompts(np.stack([r.prompt for r in requests]), questions, self._model.config.question_length, pad)
        prompts = []
        for request in requests:
            prompts += [request.prompt, self._tokenizer.encode("")] if request.is_guided else [request.prompt]
        return pad_prompts(prompts, pad, self._model.config, self._max_text_length)

    def leave(self, requests: list[GenerationRequest]) -> None:
        """Drop requests; their sequences are free at once."""
        if not requests:
            return
        going = set(requests)
        kept = np.repeat([request not in going for request in self._requests], self._sizes()).nonzero()[0]
        self._requests = [request for request in self._requests if request not in going]
        for request in requests:
            del self._noises[request]
        if self._requests:
            self._decode_state.select(kept)
            self._last_states = paddle.gather(self._last_states, from_numpy(kept))
        else:
            self._decode_state = self._last_states = None

    @paddle.no_grad()
    def step(self) -> list[GenerationRequest]:
        """Generate one token of every sequence; returns the requests that are finished, which have left the batch."""
        self._choose_tokens()
        for request in self._requests:
            request.length += 1
        finished = [request for request in self._requests if self._is_finished(request)]
        self.leave([request for request in finished if not request.return_states])
        if self._requests:
            self._read_tokens()
        self.leave([request for request in finished if request.return_states])
        return finished

    def _choose_tokens(self) -> None:
        """Sample the next token of every sequence whose token is not given."""
        by_sampling: dict[Sampling, list[tuple[int, GenerationRequest]]] = {}
        for first, request in self._with_first_rows():
            if request.length >= request.prefix_length:
                by_sampling.setdefault(request.sampling, []).append((first, request))
        if not by_sampling:
            return
        every = self._logits()
        for sampling, members in by_sampling.items():
            rows = np.concatenate([first + np.arange(len(request.seeds)) for first, request in members])
            logits = _rows(every, rows)
            if sampling.guidance != 1:
                empty = np.concatenate([first + len(r.seeds) + np.arange(len(r.seeds)) for first, r in members])
                logits = guided(logits, _rows(every, empty), sampling.guidance)
            noise = Noise.joined([self._noises[request] for _, request in members])
            ends = np.cumsum([len(request.seeds) for _, request in members])
            sampled = np.split(sample(logits, sampling, noise).numpy(), ends[:-1])
            for (_, request), tokens in zip(members, sampled, strict=True):
                request.tokens[:, request.length] = tokens

    def _logits(self) -> paddle.Tensor:
        """[B, V] for the next tokens."""
        if self._to_image:
            return self._model.image_logits(self._last_states)
        # The text table may have more rows than the tokenizer has tokens.
        return self._model.text_logits(self._last_states)[:, : self._tokenizer.size]

    def _is_finished(self, request: GenerationRequest) -> bool:
        if request.length == self._target_length:
            return True
        generated = request.tokens[:, request.prefix_length : request.length]
        return not self._to_image and bool((generated == self._tokenizer.end).any(1).all())

    def _read_tokens(self) -> None:
        """Read the newest token of every sequence."""
        newest = [np.tile(r.tokens[:, r.length - 1], 1 + r.is_guided) for r in self._requests]
        slots = np.repeat([request.length - 1 for request in self._requests], self._sizes())
        inputs = self._decode_state.inputs(np.concatenate(newest), slots)
        self._last_states = self._model.decode_step(self._direction, inputs)
        for first, request in self._with_first_rows():
            if request.return_states:
                request.states.append(self._last_states[first : first + len(request.seeds)])

    def _sizes(self) -> list[int]:
        return [request.sequences for request in self._requests]

    def _with_first_rows(self) -> list[tuple[int, GenerationRequest]]:
        """Each request with the number of its first sequence in the batch."""
        return list(zip(np.cumsum([0, *self._sizes()]).tolist(), self._requests, strict=False))


def _rows(logits: paddle.Tensor, rows: np.ndarray) -> paddle.Tensor:
    """Rows int [R] of logits [B, V], in ascending order."""
    return logits if len(rows) == len(logits) else paddle.gather(logits, from_numpy(rows))


class ImageTokens(NamedTuple):
    """The first k tokens of B images."""

    tokens: np.ndarray
    """Int64 [B, k], in raster order."""
    states: list[paddle.Tensor] | None = None
    """For each token the last hidden state float [B, hidden] that has read it, if asked for."""


def generate_images(
    model: GenerativeModel,
    texts: list[list[int]],
    tokenizer: TextTokenizer,
    seeds: list[int],
    sampling: Sampling,
    prefix_tokens: np.ndarray | None = None,
    return_states: bool = False,
) -> Iterator[ImageTokens]:
    """Image tokens of P texts (token ids), C = len(seeds) / P candidates of each, candidates of one text one after another.

    Yields after each token that is generated. `prefix_tokens` int64 [k] or [B, k] are first tokens that are given;
    `return_states` also gives the hidden states, which the reconstructor reads.
    """
    empty = [tokenizer.encode("")] if sampling.guidance != 1 else []
    engine = GenerationEngine(model, Direction.TEXT_TO_IMAGE, tokenizer, max(map(len, [*texts, *empty])))
    requests = []
    for text, own in _candidates(texts, seeds):
        given = prefix_tokens if np.ndim(prefix_tokens) < 2 else prefix_tokens[own]
        requests.append(GenerationRequest(text, seeds[own], sampling, given, return_states))
    engine.join(requests)
    states: list[paddle.Tensor] | None = [] if return_states else None
    while engine.sequences:
        engine.step()
        if states is not None:
            states.append(paddle.concat([request.states[-1] for request in requests]))
        length = requests[0].length
        if length > requests[0].prefix_length:
            yield ImageTokens(np.concatenate([request.tokens[:, :length] for request in requests]), states)


def generate_texts(
    model: GenerativeModel,
    images: np.ndarray,
    tokenizer: TextTokenizer,
    max_length: int,
    seeds: list[int],
    sampling: Sampling,
    questions: Sequence[list[int] | None] | None = None,
) -> list[list[int]]:
    """Texts for P images int64 [P, n], C = len(seeds) / P of each one after another: token ids without begin and end tokens.

    They are captions, or answers where each image has a question (token ids). `max_length` counts the begin and end tokens.
    Raises `ValueError` for guidance, since there is no empty image.
    """
    if sampling.guidance != 1:
        raise ValueError(f"guidance is {sampling.guidance}, but only images have guidance: give 1 for texts")
    engine = GenerationEngine(model, Direction.IMAGE_TO_TEXT, tokenizer, max_length)
    begin = np.array([tokenizer.begin])
    asked = [None] * len(images) if questions is None else questions
    requests = [
        GenerationRequest(image, seeds[own], sampling, begin, question=question)
        for (image, own), question in zip(_candidates(images, seeds), asked, strict=True)
    ]
    engine.join(requests)
    while engine.sequences:
        engine.step()
    rows = [row for request in requests for row in request.tokens[:, 1 : request.length].tolist()]
    return [row[: row.index(tokenizer.end)] if tokenizer.end in row else row for row in rows]


def _candidates(prompts, seeds: list[int]) -> list[tuple]:
    """Each prompt with the slice of the seeds that are its own."""
    count = len(seeds) // len(prompts)
    return [(prompt, slice(i * count, (i + 1) * count)) for i, prompt in enumerate(prompts)]
