"""Exported transformers against the same in memory: equal tokens in both directions, whatever the plan and the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppvilg.config import ViLGExperiment
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import Programs
from ppvilg.export.structure import arrays, with_arrays
from ppvilg.export.tracing import weights_of
from ppvilg.export.write import save_transformer
from ppvilg.generate.decoding import search_texts, write_images, write_texts
from ppvilg.generate.sampling import Sampling
from ppvilg.transformer.cache import LatentCache, State, Step
from ppvilg.transformer.model import ViLG
from ppvilg.transformer.pattern import Direction
from tests.generate.test_decoding import PROMPTS, TEXT, build
from tests.transformer.test_model import CONFIG, PLANS, M, N, with_plan


def exported(model: ViLG, config: ViLGExperiment, folder: Path) -> ExportedViLG:
    save_transformer(model, folder)
    return ExportedViLG(config, Programs(folder, weights_of({"model": model})))


@pytest.fixture(scope="module", params=[*PLANS, "tied", "projected", "reconstructor"])
def both(request, tmp_path_factory) -> tuple[ViLG, ExportedViLG]:
    """A model and its export, for every kind of layer and every option that changes what is computed."""
    paddle.seed(0)
    config = with_plan(request.param) if request.param in PLANS else CONFIG
    if request.param in ("tied", "reconstructor"):
        option = {"tie_embeddings" if request.param == "tied" else "reconstructor": True}
        config = replace(config, transformer=replace(config.transformer, **option))
    elif request.param == "projected":
        config = replace(config, text=replace(config.text, embedding_width=6))
    model = build(config)
    return model, exported(model, config, tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize(
    ("seeds", "sampling"),
    [
        ([0, 0], Sampling(0)),
        ([1, 2, 3, 1, 2, 3], Sampling(0.9, top_k=8, top_p=0.95)),
        ([4, 5, 4, 5], Sampling(guidance=3.0)),
    ],
)
def test_pictures(both, seeds, sampling):
    *_, (expected, states) = write_images(both[0], PROMPTS, TEXT, seeds, sampling, read_last=True)
    *_, (tokens, found) = write_images(both[1], PROMPTS, TEXT, seeds, sampling, read_last=True)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(paddle.stack(found).numpy(), paddle.stack(states).numpy(), atol=1e-5)


def test_one_prompt_with_an_odd_number_of_candidates_and_given_tokens(both):
    given = np.random.default_rng(0).integers(0, 11, [5, 6])
    expected, tokens = (
        list(write_images(model, PROMPTS[:1], TEXT, [1, 2, 3, 4, 5], Sampling(), given))[-1].tokens for model in both
    )
    np.testing.assert_array_equal(tokens, expected)


def test_captions_and_beams(both):
    image = paddle.randint(0, 11, [3, N])
    for sampling, seeds in ((Sampling(0), [0] * 3), (Sampling(), [1, 2] * 3)):
        expected, texts = (write_texts(model, image, TEXT, CONFIG.text.max_length, seeds, sampling) for model in both)
        assert texts == expected
    expected, texts = (search_texts(model, image, TEXT, CONFIG.text.max_length, 3, 1.0) for model in both)
    assert texts == expected


def test_pictures_from_hidden_states(both):
    if both[0].reconstructor is None:
        assert both[1].reconstructor is None
        return
    hidden = paddle.randn([3, N, 16])
    with paddle.no_grad():
        np.testing.assert_allclose(both[1].reconstructor(hidden).numpy(), both[0].reconstructor(hidden).numpy(), atol=1e-5)


def test_sequences_join_and_leave_an_exported_models_batch(both):
    """Each as if it were alone in the model in memory."""
    random = np.random.default_rng(0)
    texts = random.integers(3, 23, [3, M])
    tokens = random.integers(0, 11, [3, N])
    valid = paddle.ones([1, M], "bool")

    def start(model, i: int) -> State:
        return model.start(Direction.TEXT_TO_IMAGE, paddle.to_tensor(texts[i : i + 1]), valid, 1, M)[1]

    alone = []
    for i in range(3):
        state = start(both[0], i)
        alone.append([both[0].step(state, paddle.to_tensor(tokens[i, k : k + 1]), np.array([k])).numpy()[0] for k in range(N)])
    state, running = start(both[1], 0), [(0, 0)]
    for now in range(N + 4):
        if now in (2, 5):
            state = State.joined([state, start(both[1], now // 2)])
            running.append((now // 2, 0))
        ids = paddle.to_tensor([tokens[i, k] for i, k in running])
        hidden = both[1].step(state, ids, np.array([k for _, k in running])).numpy()
        for found, (i, k) in zip(hidden, running, strict=True):
            np.testing.assert_allclose(found, alone[i][k], atol=1e-5)
        going = [row for row, (_, k) in enumerate(running) if k + 1 < N]
        running = [(running[row][0], running[row][1] + 1) for row in going]
        if not running:
            break
        state.select(going)
    assert now == N + 4 - 1 or not running


def test_structures_and_their_arrays():
    step = Step(np.arange(2), None, np.zeros([2, 1, 3]))
    cache = LatentCache(np.ones([4, 2]), 2, 2)
    structure = {"steps": {"row": step}, "caches": [cache]}
    found = arrays(structure, "x")
    assert list(found) == ["x.steps.row.write", "x.steps.row.bias", "x.caches.0.inputs"]
    again = with_arrays(structure, {name: array + 1 for name, array in found.items()}, "x")
    np.testing.assert_array_equal(again["steps"]["row"].write, [1, 2])
    assert again["steps"]["row"].read is None
    assert (again["caches"][0].slots, again["caches"][0].inputs[0, 0]) == (2, 2)


def test_arrays_may_be_changed_between_steps(both):
    """As one does who counts positions up in place."""
    text, valid = paddle.ones([1, M], "int64"), paddle.ones([1, M], "bool")
    hidden = []
    for model in both:
        state = model.start(Direction.TEXT_TO_IMAGE, text, valid, 1, M)[1]
        positions = np.zeros(1, dtype=np.int64)
        for _ in range(4):
            last = model.step(state, paddle.to_tensor([3]), positions)
            positions += 1
        hidden.append(last.numpy())
    np.testing.assert_allclose(hidden[1], hidden[0], atol=1e-5)
