"""What is generated: against the full forward, and independent of the batch around it."""

import itertools
from dataclasses import replace

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppvilg.generate.engine import GenerationEngine, GenerationRequest, generate_images, generate_texts
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import pad_prompts
from ppvilg.model.config import ViLGConfig
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG, last_real_token
from ppvilg.text import pad_batch
from tests.model.test_vilg import CONFIG, OPTIONS, PLANS, N, with_plan
from tests.model.test_vilg import build as build_random

SAMPLINGS = [Sampling(0), Sampling(0.9, top_k=8, top_p=0.95), Sampling(guidance=2.0), Sampling(0, guidance=3.0)]
MAX_LENGTH = 8


class Text:
    """Token 1 begins, 2 ends, 0 pads; 3 and 4 are words."""

    pad, begin, end, size = 0, 1, 2, 5

    def encode(self, text: str) -> list[int]:
        return [self.begin, *(3 + "ab".index(letter) for letter in text), self.end]


TEXT = Text()
PROMPTS = [TEXT.encode("abba"), TEXT.encode("b")]


def build(config: ViLGConfig = CONFIG) -> ViLG:
    """A model with random weights that is swayed more by what it reads than by the token it stands at."""
    model = build_random(config)
    for block in model.blocks:
        block.norm1.weight.set_value(block.norm1.weight * 4)
        block.attention.value.weight.set_value(block.attention.value.weight * 6)
    return model


def generate(model: ViLG, texts: list[list[int]], seeds: list[int], sampling: Sampling, **options) -> np.ndarray:
    *_, output = generate_images(model, texts, TEXT, seeds, sampling, **options)
    return output.tokens


def likeliest(model: ViLG, texts: list[list[int]], tokens: np.ndarray, guidance: float = 1.0) -> np.ndarray:
    """The likeliest token at every slot, each by a full forward pass over the tokens before it."""

    def logits(texts):
        text, mask = map(paddle.to_tensor, pad_prompts(texts, TEXT.pad, model.config))
        text_states, states = model.hidden_states(text, mask, paddle.to_tensor(tokens), Direction.TEXT_TO_IMAGE)
        first = last_real_token(text_states, mask).unsqueeze(1)
        return model.image_logits(paddle.concat([first, states[:, :-1]], 1)).numpy()

    empty = logits([TEXT.encode("")] * len(texts))
    return (empty + guidance * (logits(texts) - empty)).argmax(-1)


@pytest.mark.parametrize("option", [*PLANS, "all of them", "visible", "positional"])
@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_greedy_images_are_the_full_forwards_choice(option, guidance):
    """For each plan, the options of other projects' models, and what may follow a text."""
    model = build(OPTIONS[option] if option in OPTIONS else replace(OPTIONS["all of them"], text_padding=option))
    tokens = generate(model, PROMPTS, [0, 0], Sampling(0, guidance=guidance))
    np.testing.assert_array_equal(tokens, likeliest(model, PROMPTS, tokens, guidance))


def test_guidance_zero_ignores_the_text():
    model = build()
    one, other = generate(model, PROMPTS, [*range(8)] * 2, Sampling(guidance=0.0)).reshape([2, 8, N])
    np.testing.assert_array_equal(one, other)
    one, other = generate(model, PROMPTS, [*range(8)] * 2, Sampling(guidance=1.0)).reshape([2, 8, N])
    assert (one != other).any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_does_not_depend_on_its_batch(guidance):
    """Several prompts and candidates at once, or each alone."""
    model, sampling = build(), Sampling(0.9, top_k=8, top_p=0.95, guidance=guidance)
    together = generate(model, PROMPTS, [5, 6, 7, 5, 6, 7], sampling)
    alone = [generate(model, [prompt], [seed], sampling)[0] for prompt in PROMPTS for seed in (5, 6, 7)]
    np.testing.assert_array_equal(together, alone)
    assert len({tuple(row) for row in together.tolist()}) > 3, "the prompt makes a difference, not only the seed"


def test_the_growing_image_only_grows():
    model = build()
    partial = [output.tokens for output in generate_images(model, PROMPTS, TEXT, [1, 2], Sampling())]
    assert [tokens.shape for tokens in partial] == [(2, k) for k in range(1, N + 1)]
    for tokens in partial:
        np.testing.assert_array_equal(tokens, partial[-1][:, : tokens.shape[1]])


def test_prefix_tokens_stay_and_the_rest_follows_them():
    model = build()
    whole = generate(model, PROMPTS, [0, 0], Sampling(0))
    again = generate(model, PROMPTS, [0, 0], Sampling(0), prefix_tokens=whole[:, :7])
    np.testing.assert_array_equal(again, whole)
    other = (whole[:, :7] + 1) % 11
    completed = generate(model, PROMPTS, [0, 0], Sampling(0), prefix_tokens=other)
    np.testing.assert_array_equal(completed[:, :7], other)
    np.testing.assert_array_equal(completed[:, 7:], likeliest(model, PROMPTS, completed)[:, 7:])
    same = generate(model, PROMPTS, [0, 0], Sampling(0), prefix_tokens=other[0])
    np.testing.assert_array_equal(same[0], completed[0])
    np.testing.assert_array_equal(same[1, :7], other[0])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("given", [0, 5])
def test_states_are_those_that_have_read_the_token(guidance, given):
    model = build()
    prefix_tokens = np.arange(given) if given else None
    outputs = list(generate_images(model, PROMPTS, TEXT, [1, 2], Sampling(guidance=guidance), prefix_tokens, True))
    text, mask = map(paddle.to_tensor, pad_batch(PROMPTS, TEXT.pad))
    tokens, states = outputs[-1]
    _, expected = model.hidden_states(text, mask, paddle.to_tensor(tokens), Direction.TEXT_TO_IMAGE)
    np.testing.assert_allclose(paddle.stack(states, 1).numpy(), expected.numpy(), atol=1e-5)


QUESTIONS = [TEXT.encode("ab"), TEXT.encode("b"), None]


def text_log_probabilities(model: ViLG, image: np.ndarray, ids: list[int], question: list[int] | None = None) -> np.ndarray:
    """log p of each of the ids [L] after those before it, by one full forward pass."""
    read = paddle.to_tensor([[TEXT.begin, *ids]])
    mask = paddle.ones(read.shape, "bool")
    asked = []
    if question is not None:
        asked = [paddle.to_tensor([question]), paddle.ones([1, len(question)], "bool")]
        model = with_question_length(model, len(question))
    states, _ = model.hidden_states(read, mask, paddle.to_tensor(image[None]), Direction.IMAGE_TO_TEXT, *asked)
    logits = model.text_logits(states[:, :-1])[0, :, : TEXT.size]
    return F.log_softmax(logits).numpy()[np.arange(len(ids)), ids]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 11, [count, N])


def with_question_length(model: ViLG, length: int) -> ViLG:
    """A model of the same weights with slots for a question."""
    other = ViLG(replace(model.config, question_length=length))
    other.set_state_dict(model.state_dict())
    other.eval()
    return other


@pytest.mark.parametrize("plan", ["paper", "dense"])
def test_greedy_answers_are_the_full_forwards_choice(plan):
    """Of questions of different lengths, and of none."""
    model, read = build(with_plan(plan)), images(3)
    answers = generate_texts(with_question_length(model, 6), read, TEXT, MAX_LENGTH, [0] * 3, Sampling(0), QUESTIONS)
    for image, question, ids in zip(read, QUESTIONS, answers, strict=True):
        ended = [*ids, TEXT.end] if len(ids) < MAX_LENGTH - 1 else ids
        for k, token in enumerate(ended):
            every = [text_log_probabilities(model, image, [*ids[:k], v], question)[-1] for v in range(TEXT.size)]
            assert int(np.argmax(every)) == token


def test_answers_join_and_leave_as_if_each_were_alone():
    """Each image with three questions, which join one after another."""
    model = with_question_length(build(), 6)
    engine, begin = GenerationEngine(model, Direction.IMAGE_TO_TEXT, TEXT, MAX_LENGTH), np.array([TEXT.begin])
    requests = [
        GenerationRequest(image, [i, i + 1], Sampling(), begin, question=question)
        for i, (image, question) in enumerate(itertools.product(images(2), QUESTIONS))
    ]
    for request in requests:
        engine.join([request])
        engine.step()
    finish(engine)
    made = []
    for request in requests:
        one, seeds = [request.prompt[None], TEXT, MAX_LENGTH], request.seeds
        alone = generate_texts(model, *one, seeds, request.sampling, [request.question])
        for tokens, ids in zip(request.tokens[:, 1 : request.length].tolist(), alone, strict=True):
            assert tokens[: len(ids)] == ids
        made.append(alone)
    assert made[0] != made[1], "the question makes a difference"


@pytest.mark.parametrize("seed", [0, 1])  # a model that ends its texts at once, and one that never does
def test_greedy_texts_are_the_full_forwards_choice(seed):
    paddle.seed(seed)
    model, read = build(), images(3)
    texts = generate_texts(model, read, TEXT, MAX_LENGTH, [0] * 3, Sampling(0))
    for image, ids in zip(read, texts, strict=True):
        ended = [*ids, TEXT.end] if len(ids) < MAX_LENGTH - 1 else ids
        for k, token in enumerate(ended):
            every = [text_log_probabilities(model, image, [*ids[:k], v])[-1] for v in range(TEXT.size)]
            assert int(np.argmax(every)) == token


def test_texts_of_candidates_do_not_depend_on_the_batch():
    model, read = build(), images(4)
    together = generate_texts(model, read, TEXT, MAX_LENGTH, [0, 3] * 4, Sampling())
    alone = [generate_texts(model, image[None], TEXT, MAX_LENGTH, [seed], Sampling())[0] for image in read for seed in (0, 3)]
    assert together == alone
    assert len({len(ids) for ids in together}) > 1, "some end before others"


def test_texts_have_no_guidance():
    with pytest.raises(ValueError, match="guidance"):
        generate_texts(build(), images(1), TEXT, MAX_LENGTH, [0], Sampling(guidance=2.0))


def image_engine(model) -> GenerationEngine:
    return GenerationEngine(model, Direction.TEXT_TO_IMAGE, TEXT, CONFIG.max_text_length)


def finish(engine: GenerationEngine) -> list[GenerationRequest]:
    finished = []
    while engine.sequences:
        finished += engine.step()
    return finished


def expected(model, request: GenerationRequest) -> np.ndarray:
    return generate(model, [request.prompt], request.seeds, request.sampling, prefix_tokens=request.prefix_tokens)


@pytest.mark.parametrize("seed", range(3))
def test_random_joins_and_leaves_change_no_token(seed):
    model, random = build(), np.random.default_rng(seed)
    engine, finished, started, left = image_engine(model), [], [], []
    for i in range(5 * N):
        joining = []
        while i < 3 * N and random.random() < 0.3:
            seeds = random.integers(100, size=random.integers(1, 4)).tolist()
            given = random.integers(11, size=random.integers(1, N)) if random.random() < 0.3 else None
            prompt, sampling = PROMPTS[random.integers(2)], SAMPLINGS[random.integers(4)]
            joining.append(GenerationRequest(prompt, seeds, sampling, given, return_states=bool(random.integers(2))))
        engine.join(joining)
        started += joining
        finished += engine.step()
        alive = [r for r in started if r not in finished and r not in left]
        if alive and random.random() < 0.1:
            going = [alive[random.integers(len(alive))]]
            engine.leave(going)
            left += going
        assert engine.sequences == sum(r.sequences for r in started if r not in finished and r not in left)
    finished += finish(engine)
    assert len(finished) + len(left) == len(started)
    assert len(finished) > 7
    assert left
    for request in finished:
        np.testing.assert_array_equal(request.tokens, expected(model, request))
        assert len(request.states) == N * request.return_states


def test_texts_join_and_leave_too():
    model, read = build(), images(6)
    engine = GenerationEngine(model, Direction.IMAGE_TO_TEXT, TEXT, MAX_LENGTH)
    begin = np.array([TEXT.begin])
    requests = [GenerationRequest(image, [i], Sampling(), begin) for i, image in enumerate(read)]
    for request in requests:
        engine.join([request])
        engine.step()
    finish(engine)
    for request in requests:
        alone = generate_texts(model, request.prompt[None], TEXT, MAX_LENGTH, request.seeds, request.sampling)[0]
        made = request.tokens[0, 1 : request.length].tolist()
        assert made in (alone, [*alone, TEXT.end])


def test_tokens_are_there_as_soon_as_they_are_counted():
    model = build()
    engine, request = image_engine(model), GenerationRequest(PROMPTS[0], [3, 4], SAMPLINGS[1])
    engine.join([request])
    for k in range(1, N + 1):
        done = engine.step()
        assert request.length == k
        np.testing.assert_array_equal(request.tokens[:, :k], expected(model, request)[:, :k])
    assert done == [request]
    assert engine.step() == []


def test_an_engine_that_emptied_starts_again():
    model = build()
    engine = image_engine(model)
    for prompt in PROMPTS:
        request = GenerationRequest(prompt, [1], SAMPLINGS[2])
        engine.join([request])
        engine.step()
        engine.leave([request])
        assert engine.sequences == 0
        again = replace(request)
        engine.join([again])
        assert finish(engine) == [again]
        np.testing.assert_array_equal(again.tokens, expected(model, again))
