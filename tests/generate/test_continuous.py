"""What is written in a batch that others join and leave: token for token what each request gets alone."""

import numpy as np
import pytest

from ppvilg.generate.continuous import ImageBatch, Writing
from ppvilg.generate.sampling import Sampling
from tests.generate.test_decoding import PROMPTS, TEXT, build, write
from tests.transformer.test_model import CONFIG, N

SAMPLINGS = [Sampling(0), Sampling(0.9, top_k=8, top_p=0.95), Sampling(guidance=2.0), Sampling(0, guidance=3.0)]


def batch(model) -> ImageBatch:
    return ImageBatch(model, TEXT, CONFIG.text.max_length)


def finish(running: ImageBatch) -> list[Writing]:
    finished = []
    while running.sequences:
        finished += running.step()
    return finished


def expected(model, writing: Writing) -> np.ndarray:
    given = None if writing.given is None else np.tile(writing.given, (len(writing.seeds), 1))
    return write(model, [writing.text], writing.seeds, writing.sampling, given=given)


@pytest.mark.parametrize("seed", range(3))
def test_random_joins_and_leaves_change_no_token(seed):
    model, random = build(), np.random.default_rng(seed)
    running, finished, started, left = batch(model), [], [], []
    for i in range(5 * N):
        joining = []
        while i < 3 * N and random.random() < 0.3:
            seeds = random.integers(100, size=random.integers(1, 4)).tolist()
            given = random.integers(11, size=random.integers(1, N)) if random.random() < 0.3 else None
            joining.append(Writing(PROMPTS[random.integers(2)], seeds, SAMPLINGS[random.integers(4)], given))
        running.join(joining)
        started += joining
        done = running.step()
        finished += done
        alive = [w for w in started if w not in finished and w not in left]
        if alive and random.random() < 0.1:
            going = [alive[random.integers(len(alive))]]
            running.leave(going)
            left += going
        assert running.sequences == sum(w.sequences for w in started if w not in finished and w not in left)
    finished += finish(running)
    assert len(finished) + len(left) == len(started)
    assert len(finished) > 7
    assert left
    for writing in finished:
        np.testing.assert_array_equal(writing.tokens, expected(model, writing))


def test_tokens_stand_as_soon_as_they_are_counted():
    model = build()
    running, writing = batch(model), Writing(PROMPTS[0], [3, 4], SAMPLINGS[1])
    running.join([writing])
    for k in range(1, N + 1):
        done = running.step()
        assert writing.written == k
        np.testing.assert_array_equal(writing.tokens[:, :k], expected(model, writing)[:, :k])
    assert done == [writing]
    assert running.step() == []


def test_a_batch_that_emptied_starts_again():
    model = build()
    running = batch(model)
    for text in PROMPTS:
        writing = Writing(text, [1], SAMPLINGS[2])
        running.join([writing])
        running.step()
        running.leave([writing])
        assert running.sequences == 0
        again = Writing(text, [1], SAMPLINGS[2])
        running.join([again])
        assert finish(running) == [again]
        np.testing.assert_array_equal(again.tokens, expected(model, again))
