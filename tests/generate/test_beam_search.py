"""Beam search against exhaustive search, and against greedy decoding."""

import itertools

import pytest

from ppvilg.generate.beam_search import beam_search
from ppvilg.generate.engine import generate_texts
from ppvilg.generate.sampling import Sampling
from tests.generate.test_engine import QUESTIONS, TEXT, build, images, text_log_probabilities, with_question_length


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_search_finds_the_best_of_all_texts(length_penalty):
    """Against scoring every text of up to three tokens; those that reach the length without an end count as well."""
    model = build()
    head = model.head.text.weight
    head.set_value(head * 3)  # farther apart, so that the best is not always the shortest
    read, longest = images(3), 3
    found = beam_search(model, read, TEXT, longest + 1, 64, length_penalty)
    words = [v for v in range(TEXT.size) if v != TEXT.end]
    for image, ids in zip(read, found, strict=True):
        best = None
        for length in range(1, longest + 1):
            for start in itertools.product(words, repeat=length - 1):
                lasts = [TEXT.end, *words] if length == longest else [TEXT.end]
                for last in lasts:
                    total = text_log_probabilities(model, image, [*start, last]).sum()
                    kept = [*start] if last == TEXT.end else [*start, last]
                    scored = (total / length**length_penalty, kept)
                    best = scored if best is None else max(best, scored)
        assert ids == best[1]


def test_a_beam_of_one_is_greedy():
    model, read = build(), images(6)
    assert beam_search(model, read, TEXT, 8, 1, 0.0) == generate_texts(model, read, TEXT, 8, [0] * 6, Sampling(0))


def test_a_beam_of_one_is_greedy_for_answers():
    model, read = with_question_length(build(), 5), images(3)
    answers = generate_texts(model, read, TEXT, 8, [0] * 3, Sampling(0), QUESTIONS)
    assert beam_search(model, read, TEXT, 8, 1, 0.0, QUESTIONS) == answers
