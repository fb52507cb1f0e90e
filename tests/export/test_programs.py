"""Exported transformers against the same in memory: equal tokens in both directions, whatever the plan and the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import Programs
from ppvilg.export.structure import arrays, with_arrays
from ppvilg.export.write import save_transformer
from ppvilg.generate.beam_search import beam_search
from ppvilg.generate.engine import GenerationRequest, generate_images, generate_texts
from ppvilg.generate.sampling import Sampling
from ppvilg.model.batch import image_prompts
from ppvilg.model.kv_cache import AbsorbedCache, DecodeState, StepInputs
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from tests.generate.test_engine import PROMPTS, QUESTIONS, SAMPLINGS, TEXT, build, finish, image_engine, images
from tests.model.test_text_encoder import ENCODED
from tests.model.test_vilg import CONFIG, PLANS, VQGAN, M, N, with_plan
from tests.model.test_vilg import OPTIONS as MODELS

OPTIONS = {
    "tied": replace(CONFIG, tie_embeddings=True),
    "reconstructor": replace(CONFIG, reconstructor=VQGAN),
    "projected": replace(CONFIG, text_embedding_width=6),
    "questions": replace(CONFIG, question_length=5),
    "text encoder": ENCODED,
    "questions to the text encoder": replace(ENCODED, question_length=5),
    "elsewhere": replace(MODELS["all of them"], text_padding="positional"),
}


def exported(model: ViLG, folder: Path) -> ExportedViLG:
    save_transformer(model, folder)
    return ExportedViLG(model.config, Programs(folder))


@pytest.fixture(scope="module", params=[*PLANS, *OPTIONS])
def both(request, tmp_path_factory) -> tuple[ViLG, ExportedViLG]:
    """A model and its export, for every kind of layer and every option that changes what is computed."""
    paddle.seed(0)
    model = build(OPTIONS[request.param] if request.param in OPTIONS else with_plan(request.param))
    return model, exported(model, tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize(
    ("seeds", "sampling"),
    [
        ([0, 0], Sampling(0)),
        ([1, 2, 3, 1, 2, 3], Sampling(0.9, top_k=8, top_p=0.95)),
        ([4, 5, 4, 5], Sampling(guidance=3.0)),
    ],
)
def test_images(both, seeds, sampling):
    *_, (expected, states) = generate_images(both[0], PROMPTS, TEXT, seeds, sampling, return_states=True)
    *_, (tokens, found) = generate_images(both[1], PROMPTS, TEXT, seeds, sampling, return_states=True)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(paddle.stack(found).numpy(), paddle.stack(states).numpy(), rtol=1e-5, atol=1e-5)


def test_one_prompt_with_an_odd_number_of_candidates_and_prefix_tokens(both):
    given = np.random.default_rng(0).integers(0, 11, [5, 6])
    expected, tokens = (
        list(generate_images(model, PROMPTS[:1], TEXT, [1, 2, 3, 4, 5], Sampling(), given))[-1].tokens for model in both
    )
    np.testing.assert_array_equal(tokens, expected)


def test_texts_and_beams(both):
    read = images(3)
    for sampling, seeds in ((Sampling(0), [0] * 3), (Sampling(), [1, 2] * 3)):
        expected, texts = (generate_texts(model, read, TEXT, CONFIG.max_text_length, seeds, sampling) for model in both)
        assert texts == expected
    expected, texts = (beam_search(model, read, TEXT, CONFIG.max_text_length, 3, 1.0) for model in both)
    assert texts == expected
    if both[0].config.question_length:
        asked = [read, TEXT, CONFIG.max_text_length, [0] * 3, Sampling(0), QUESTIONS]
        expected, answers = (generate_texts(model, *asked) for model in both)
        assert answers == expected


def test_pixels_of_hidden_states(both):
    if both[0].reconstructor is None:
        assert both[1].reconstructor is None
        return
    states = paddle.randn([3, N, 16])
    with paddle.no_grad():
        np.testing.assert_allclose(both[1].reconstructor(states).numpy(), both[0].reconstructor(states).numpy(), atol=1e-5)


def test_prefill(both):
    """States and what targets read of them, for prompts with padding."""
    ids = paddle.randint(0, 11, [3, M])
    mask = paddle.arange(M).unsqueeze(0) < paddle.to_tensor([[M], [2], [3]])
    slots = both[0].config.question_length
    pictures = map(paddle.to_tensor, image_prompts(images(3), QUESTIONS if slots else [None] * 3, slots, TEXT.pad))
    for direction, read, real in ((Direction.TEXT_TO_IMAGE, ids, mask), (Direction.IMAGE_TO_TEXT, *pictures)):
        (expected, prefixes), (states, found) = (model.prefill(direction, read, real) for model in both)
        pairs = [(expected.unsqueeze(1), states.unsqueeze(1))]
        for one, other in zip(prefixes, found, strict=True):
            pairs += [(one.keys, other.keys), (one.values, other.values)]
        for pair in pairs:
            one, other = (x.transpose([0, 2, 1, 3]).numpy()[real.numpy()] for x in pair)
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_sequences_join_and_leave_an_exported_models_batch(both):
    """Each gets the tokens that it gets alone from the model in memory."""
    engine = image_engine(both[1])
    requests = [GenerationRequest(PROMPTS[i % 2], [i] * (1 + i % 2), SAMPLINGS[i % 4]) for i in range(6)]
    for request in requests:
        engine.join([request])
        engine.step()
        engine.step()
    engine.leave(requests[3:4])
    finish(engine)
    for request in [*requests[:3], *requests[4:]]:
        *_, alone = generate_images(both[0], [request.prompt], TEXT, request.seeds, request.sampling)
        np.testing.assert_array_equal(request.tokens, alone.tokens)


def test_structures_and_their_arrays():
    step = StepInputs(np.arange(2), None, np.zeros([2, 1, 3]))
    cache = AbsorbedCache(np.ones([4, 2]), 2, 2)
    structure = {"steps": {"row": step}, "caches": [cache]}
    found = arrays(structure, "x")
    assert list(found) == ["x.steps.row.write", "x.steps.row.bias", "x.caches.0.inputs"]
    again = with_arrays(structure, {name: array + 1 for name, array in found.items()}, "x")
    np.testing.assert_array_equal(again["steps"]["row"].write, [1, 2])
    assert again["steps"]["row"].read is None
    assert (again["caches"][0].slots, again["caches"][0].inputs[0, 0]) == (2, 2)


def test_arrays_may_be_changed_between_steps(both):
    """As one does who counts positions up in place."""
    text, mask = paddle.ones([1, M], "int64"), paddle.ones([1, M], "bool")
    hidden = []
    for model in both:
        _, prefixes = model.prefill(Direction.TEXT_TO_IMAGE, text, mask)
        state = DecodeState.empty(model.config, Direction.TEXT_TO_IMAGE, M, prefixes, mask.numpy())
        ids, slots = np.full(1, 3), np.zeros(1, dtype=np.int64)
        for _ in range(4):
            last = model.decode_step(Direction.TEXT_TO_IMAGE, state.inputs(ids, slots))
            slots += 1
        hidden.append(last.numpy())
    np.testing.assert_allclose(hidden[1], hidden[0], atol=1e-5)
