"""Writing the target part one token at a time, each step reading what the caches keep of the slots before it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import paddle
from paddle.nn import functional as F

from ppvilg.generate.sampling import Noise, Sampling, guided, sample
from ppvilg.text import TextTokenizer, pad_batch
from ppvilg.transformer.decoder import Decoder
from ppvilg.transformer.model import last_real
from ppvilg.transformer.pattern import Direction


class Written(NamedTuple):
    """The first k image tokens of B pictures."""

    tokens: np.ndarray
    """Int64 [B, k], in raster order."""
    states: list[paddle.Tensor]
    """For each token the last hidden state float [B, hidden] that has read it; for the last token only if asked for."""


@paddle.no_grad()
def write_images(
    model: Decoder,
    texts: list[list[int]],
    tokenizer: TextTokenizer,
    seeds: list[int],
    sampling: Sampling,
    given: np.ndarray | None = None,
    read_last: bool = False,
) -> Iterator[Written]:
    """Image tokens for P texts, C = len(seeds) / P candidates of each, candidates of one text one after another.

    Yields after each token that is drawn. `given` int64 [B, k] are first tokens that stand already; `read_last` has the model
    read the last token too, for the reconstructor.
    """
    batch, n = len(seeds), model.rows * model.columns
    candidates = batch // len(texts)
    guide = sampling.guidance != 1
    if guide:  # each text a second time as the empty one
        texts = [*texts, *[tokenizer.encode("")] * len(texts)]
    text, valid = (paddle.to_tensor(array) for array in pad_batch(texts, tokenizer.pad))
    source, state = model.start(Direction.TEXT_TO_IMAGE, text, valid, candidates, text.shape[1])
    hidden = paddle.repeat_interleave(last_real(source, valid), candidates, axis=0)

    noise = Noise(seeds)
    tokens = np.zeros((batch, n), dtype=np.int64)
    standing = 0 if given is None else given.shape[1]
    tokens[:, :standing] = given if standing else 0
    states: list[paddle.Tensor] = []
    for k in range(n):
        if k >= standing:
            logits = model.image_logits(hidden)
            logits = guided(*logits.split(2), sampling.guidance) if guide else logits
            tokens[:, k] = sample(logits, sampling, noise).numpy()
        if k < n - 1 or read_last:
            ids = np.concatenate([tokens[:, k]] * 2) if guide else tokens[:, k]
            hidden = model.step(state, paddle.to_tensor(ids), np.full(len(ids), k))
            states.append(hidden[:batch])
        if k >= standing:
            yield Written(tokens[:, : k + 1], states)


@paddle.no_grad()
def write_texts(
    model: Decoder, image: paddle.Tensor, tokenizer: TextTokenizer, max_length: int, seeds: list[int], sampling: Sampling
) -> list[list[int]]:
    """Captions of P pictures int64 [P, n], C = len(seeds) / P of each: token ids without the begin and end tokens."""
    batch = len(seeds)
    state = _start_texts(model, image, batch // len(image), max_length)
    noise = Noise(seeds)
    token = paddle.full([batch], tokenizer.begin, dtype="int64")
    texts: list[list[int]] = [[] for _ in range(batch)]
    ended = [False] * batch
    for k in range(max_length - 1):
        token = sample(_text_logits(model, state, token, k, tokenizer), sampling, noise)
        for i, drawn in enumerate(token.tolist()):
            ended[i] = ended[i] or drawn == tokenizer.end
            if not ended[i]:
                texts[i].append(drawn)
        if all(ended):
            break
    return texts


@paddle.no_grad()
def search_texts(
    model: Decoder, image: paddle.Tensor, tokenizer: TextTokenizer, max_length: int, beams: int, length_penalty: float
) -> list[list[int]]:
    """The best caption that beam search finds for each picture int64 [P, n]: token ids without the begin and end tokens.

    A caption of L tokens, the end token included, scores log p / L^length_penalty; 0 prefers short ones, 1 takes the mean.
    """
    pictures = len(image)
    state = _start_texts(model, image, beams, max_length)
    token = paddle.full([pictures * beams], tokenizer.begin, dtype="int64")
    # All beams of a picture start equal: only the first counts.
    totals = np.tile(np.where(np.arange(beams) == 0, 0.0, -np.inf), (pictures, 1))
    texts: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(pictures)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(pictures)]
    for k in range(max_length - 1):
        logits = _text_logits(model, state, token, k, tokenizer)
        scores = F.log_softmax(logits).numpy().astype(np.float64).reshape([pictures, beams, -1]) + totals[:, :, None]
        parents = np.tile(np.arange(beams), (pictures, 1))
        drawn = np.full((pictures, beams), tokenizer.end)
        for i in range(pictures):
            likeliest = np.argsort(-scores[i].ravel(), kind="stable")[: 2 * beams]  # at most half of them end
            live = []
            for rank, (beam, token_id) in enumerate(zip(*np.unravel_index(likeliest, scores[i].shape), strict=True)):
                total = scores[i, beam, token_id]
                if token_id == tokenizer.end:
                    if rank < beams:  # so that one beam is greedy
                        ended[i].append((total / (k + 1) ** length_penalty, texts[i][beam]))
                elif len(live) < beams:
                    live.append((total, beam, token_id))
            ended[i] = sorted(ended[i], key=lambda scored: -scored[0])[:beams]
            texts[i] = [[*texts[i][beam], int(token_id)] for _, beam, token_id in live]
            texts[i] += [[]] * (beams - len(live))
            totals[i] = [total for total, _, _ in live] + [-np.inf] * (beams - len(live))
            for j, (_, beam, token_id) in enumerate(live):
                parents[i, j], drawn[i, j] = beam, token_id
        if all(_settled(ended[i], totals[i], beams, max_length - 1, length_penalty) for i in range(pictures)):
            break
        state.select((parents + np.arange(pictures)[:, None] * beams).ravel())
        token = paddle.to_tensor(drawn.ravel())
    else:  # captions that reached the longest length count as they are
        for i in range(pictures):
            cut = zip(totals[i] / (max_length - 1) ** length_penalty, texts[i], strict=True)
            ended[i] = sorted([*ended[i], *cut], key=lambda scored: -scored[0])
    return [scored[0][1] for scored in ended]


def _settled(ended: list, totals: np.ndarray, beams: int, longest: int, length_penalty: float) -> bool:
    """Whether no living beam can still beat those that ended; a total only falls, so this is the best it could score."""
    return len(ended) == beams and ended[-1][0] >= totals.max() / longest**length_penalty


def _start_texts(model: Decoder, image: paddle.Tensor, candidates: int, max_length: int):
    valid = paddle.ones(image.shape, dtype="bool")
    return model.start(Direction.IMAGE_TO_TEXT, image, valid, candidates, max_length)[1]


def _text_logits(model: Decoder, state, token: paddle.Tensor, k: int, tokenizer: TextTokenizer) -> paddle.Tensor:
    """Logits [B, tokens] after reading token k; the text table may have more rows than the tokenizer has tokens."""
    return model.text_logits(model.step(state, token, np.full(len(token), k)))[:, : tokenizer.size]
