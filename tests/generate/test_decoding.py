"""What is written: against the full forward, against exhaustive search, and independent of the batch around it."""

import itertools
from dataclasses import replace

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg.config import ViLGExperiment
from ppvilg.generate.decoding import search_texts, write_images, write_texts
from ppvilg.generate.sampling import Sampling
from ppvilg.text import pad_batch
from ppvilg.transformer.model import ViLG, last_real
from ppvilg.transformer.pattern import Direction
from tests.transformer.test_model import CONFIG, N
from tests.transformer.test_model import build as build_random


class Text:
    """Token 1 begins, 2 ends, 0 pads; 3 and 4 are words."""

    pad, begin, end, size = 0, 1, 2, 5

    def encode(self, text: str) -> list[int]:
        return [self.begin, *(3 + "ab".index(letter) for letter in text), self.end]


TEXT = Text()


def build(config: ViLGExperiment = CONFIG) -> ViLG:
    """A model with random weights that is swayed more by what it reads than by the token it stands at."""
    model = build_random(config)
    for block in model.blocks:
        block.attention.norm.weight.set_value(block.attention.norm.weight * 4)
        block.attention.value.weight.set_value(block.attention.value.weight * 6)
    return model


PROMPTS = [TEXT.encode("abba"), TEXT.encode("b")]


def write(model: ViLG, texts: list[list[int]], seeds: list[int], sampling: Sampling, **options) -> np.ndarray:
    *_, written = write_images(model, texts, TEXT, seeds, sampling, **options)
    return written.tokens


def likeliest(model: ViLG, texts: list[list[int]], tokens: np.ndarray, guidance: float = 1.0) -> np.ndarray:
    """The likeliest token at every slot, each by a full forward pass over the tokens before it."""

    def logits(texts):
        text, valid = map(paddle.to_tensor, pad_batch(texts, TEXT.pad))
        text_states, states = model.hidden({Direction.TEXT_TO_IMAGE: (text, valid)}, paddle.to_tensor(tokens))
        first = last_real(text_states, valid).unsqueeze(1)
        return model.image_logits(paddle.concat([first, states[:, :-1]], 1)).numpy()

    empty = logits([TEXT.encode("")] * len(texts))
    return (empty + guidance * (logits(texts) - empty)).argmax(-1)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_greedy_pictures_are_the_full_forwards_choice(guidance):
    model = build()
    tokens = write(model, PROMPTS, [0, 0], Sampling(0, guidance=guidance))
    np.testing.assert_array_equal(tokens, likeliest(model, PROMPTS, tokens, guidance))


def test_guidance_zero_ignores_the_text():
    model = build()
    one, other = write(model, PROMPTS, [*range(8)] * 2, Sampling(guidance=0.0)).reshape([2, 8, N])
    np.testing.assert_array_equal(one, other)
    one, other = write(model, PROMPTS, [*range(8)] * 2, Sampling(guidance=1.0)).reshape([2, 8, N])
    assert (one != other).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_does_not_depend_on_its_batch(guidance):
    """Several prompts and candidates at once, or each alone."""
    model, sampling = build(), Sampling(0.9, top_k=8, top_p=0.95, guidance=guidance)
    together = write(model, PROMPTS, [5, 6, 7, 5, 6, 7], sampling)
    alone = [write(model, [prompt], [seed], sampling)[0] for prompt in PROMPTS for seed in (5, 6, 7)]
    np.testing.assert_array_equal(together, alone)
    assert len({tuple(row) for row in together.tolist()}) > 3, "the prompt makes a difference, not only the seed"


def test_the_growing_picture_only_grows():
    model = build()
    partial = [written.tokens.copy() for written in write_images(model, PROMPTS, TEXT, [1, 2], Sampling())]
    assert [tokens.shape for tokens in partial] == [(2, k) for k in range(1, N + 1)]
    for tokens in partial:
        np.testing.assert_array_equal(tokens, partial[-1][:, : tokens.shape[1]])


def test_given_tokens_stay_and_the_rest_follows_them():
    model = build()
    whole = write(model, PROMPTS, [0, 0], Sampling(0))
    again = write(model, PROMPTS, [0, 0], Sampling(0), given=whole[:, :7])
    np.testing.assert_array_equal(again, whole)
    other = (whole[:, :7] + 1) % 11
    completed = write(model, PROMPTS, [0, 0], Sampling(0), given=other)
    np.testing.assert_array_equal(completed[:, :7], other)
    np.testing.assert_array_equal(completed[:, 7:], likeliest(model, PROMPTS, completed)[:, 7:])


def test_hidden_states_are_those_that_have_read_the_token():
    model = build()
    *_, written = write_images(model, PROMPTS, TEXT, [1, 2], Sampling(), read_last=True)
    text, valid = map(paddle.to_tensor, pad_batch(PROMPTS, TEXT.pad))
    _, expected = model.hidden({Direction.TEXT_TO_IMAGE: (text, valid)}, paddle.to_tensor(written.tokens))
    np.testing.assert_allclose(paddle.stack(written.states, 1).numpy(), expected.numpy(), atol=1e-5)


def text_log_probabilities(model: ViLG, image: paddle.Tensor, ids: list[int]) -> np.ndarray:
    """log p of each of the ids [L] after those before it, by one full forward pass."""
    read = paddle.to_tensor([[TEXT.begin, *ids]])
    states, _ = model.hidden({Direction.IMAGE_TO_TEXT: (read, paddle.ones(read.shape, "bool"))}, image)
    logits = model.text_logits(states[:, :-1])[0, :, : TEXT.size]
    return F.log_softmax(logits).numpy()[np.arange(len(ids)), ids]


def test_greedy_captions_are_the_full_forwards_choice():
    model = build()
    image = paddle.randint(0, 11, [2, N])
    for i, ids in enumerate(write_texts(model, image, TEXT, 8, [0, 0], Sampling(0))):
        for k in range(len(ids)):
            every = [text_log_probabilities(model, image[i : i + 1], [*ids[:k], v])[-1] for v in range(TEXT.size)]
            assert int(np.argmax(every)) == ids[k]


def test_captions_of_candidates_do_not_depend_on_the_batch():
    model = build()
    image = paddle.randint(0, 11, [2, N])
    together = write_texts(model, image, TEXT, 8, [1, 2, 1, 2], Sampling())
    alone = [write_texts(model, image[i : i + 1], TEXT, 8, [seed], Sampling())[0] for i in (0, 1) for seed in (1, 2)]
    assert together == alone


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_search_finds_the_best_of_all_captions(length_penalty):
    """Against scoring every caption of up to three tokens; those that reach the length without an end count as well."""
    model = build()
    model.text_head.set_value(model.text_head * 3)  # farther apart, so that the best is not always the shortest
    image = paddle.randint(0, 11, [3, N])
    longest = 3
    found = search_texts(model, image, TEXT, longest + 1, 64, length_penalty)
    words = [v for v in range(TEXT.size) if v != TEXT.end]
    for i, ids in enumerate(found):
        best = None
        for length in range(1, longest + 1):
            for start in itertools.product(words, repeat=length - 1):
                lasts = [TEXT.end, *words] if length == longest else [TEXT.end]
                for last in lasts:
                    total = text_log_probabilities(model, image[i : i + 1], [*start, last]).sum()
                    kept = [*start] if last == TEXT.end else [*start, last]
                    scored = (total / length**length_penalty, kept)
                    best = scored if best is None else max(best, scored)
        assert ids == best[1]


def test_a_beam_of_one_is_greedy():
    model = build()
    image = paddle.randint(0, 11, [3, N])
    greedy = write_texts(model, image, TEXT, 8, [0] * 3, Sampling(0))
    assert search_texts(model, image, TEXT, 8, 1, 0.0) == greedy


def test_strict_rows_and_dense_plans_write_too():
    for attention in (
        replace(CONFIG.transformer.attention, strict_row=True),
        replace(CONFIG.transformer.attention, plan=["dense"]),
    ):
        model = build(replace(CONFIG, transformer=replace(CONFIG.transformer, attention=attention)))
        tokens = write(model, PROMPTS, [0, 0], Sampling(0))
        np.testing.assert_array_equal(tokens, likeliest(model, PROMPTS, tokens))
