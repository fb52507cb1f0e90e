"""The transformer against numpy, against itself with other padding, and its cached decode against the full forward."""

from dataclasses import replace

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.config import (
    AttentionConfig,
    CodebookConfig,
    DataConfig,
    TextConfig,
    TransformerConfig,
    ViLGExperiment,
    VQGANConfig,
)
from ppvilg.transformer.cache import State
from ppvilg.transformer.model import Pairs, ViLG, last_real
from ppvilg.transformer.pattern import Direction

M, SIDE = 7, 4
N = SIDE**2
CONFIG = ViLGExperiment(
    data=DataConfig(image_size=16),
    vqgan=VQGANConfig(channel_multipliers=[1, 1, 1], attention_resolutions=[], codebook=CodebookConfig(size=11, dim=4)),
    text=TextConfig(vocabulary_size=23, max_length=9),
    transformer=TransformerConfig(layers=4, hidden=16, heads=2, attention=AttentionConfig(kernel=3)),
)
PLANS = {
    "paper": AttentionConfig(kernel=3),
    "strict rows": AttentionConfig(kernel=3, strict_row=True),
    "dense": AttentionConfig(plan=["dense"], last=None),
    "mixed": AttentionConfig(plan=["convolution", "dense"], last="column", kernel=5),
}


def build(config: ViLGExperiment = CONFIG) -> ViLG:
    model = ViLG(config)
    for parameter in model.parameters():  # biases and norms too, so that a forgotten one shows
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    model.eval()
    return model


def with_plan(plan: str) -> ViLGExperiment:
    return replace(CONFIG, transformer=replace(CONFIG.transformer, attention=PLANS[plan]))


def pairs(batch: int = 3, m: int = M) -> Pairs:
    """Pairs whose prompts and read tokens differ from texts and targets."""
    text, prompt = paddle.randint(1, 23, [batch, m]), paddle.randint(1, 23, [batch, m])
    slots = paddle.arange(m).unsqueeze(0)
    valid = slots < paddle.to_tensor([m, m - 2, 3][:batch]).unsqueeze(1)
    prompt_valid = slots < paddle.to_tensor([2, m, m - 3][:batch]).unsqueeze(1)
    image, read = paddle.randint(0, 11, [batch, N]), paddle.randint(0, 11, [batch, N])
    return Pairs(text, valid, image, prompt, prompt_valid, read)


def numpy_forward(model: ViLG, x: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Last hidden states of one sequence [m+n, hidden], written out plainly; for each layer a mask bool [m+n, m+n]."""
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    for i, mask in enumerate(masks):
        normed = norm(x, f"blocks.{i}.attention.norm")
        queries, keys, values = (linear(normed, f"blocks.{i}.attention.{name}") for name in ("query", "key", "value"))
        heads = []
        for part in np.split(np.arange(16), 2):
            scores = np.where(mask, queries[:, part] @ keys[:, part].T / np.sqrt(8), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ values[:, part])
        x = x + linear(np.concatenate(heads, -1), f"blocks.{i}.attention.out")
        hidden = gelu(linear(norm(x, f"blocks.{i}.ffn.norm"), f"blocks.{i}.ffn.up"))
        x = x + linear(hidden, f"blocks.{i}.ffn.down")
    return norm(x, "norm")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("plan", PLANS)
def test_loss_against_numpy(plan):
    """Each sequence by itself, without its padding and under a dense mask, through a model written in numpy."""
    model, batch = build(with_plan(plan)), pairs()
    measured = model.loss(batch)
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    slots = np.arange(N)
    position = w["row_position.weight"][slots // SIDE] + w["column_position.weight"][slots % SIDE]

    def hidden(direction, ids, codes, segments):
        words = w["text_embedding.weight"][ids] + w["text_position.weight"][: len(ids)] + w["segment.weight"][segments[0]]
        picture = w["image_embedding.weight"][codes] + position + w["segment.weight"][segments[1]]
        masks = [model.pattern(kind, direction, len(ids)).mask() for kind in model.kinds]
        return numpy_forward(model, np.concatenate([words, picture]), masks)

    image_losses, text_losses = [], []
    for i in range(3):
        prompt = batch.prompt[i].numpy()[: batch.prompt_valid[i].numpy().sum()]
        states = hidden(Direction.TEXT_TO_IMAGE, prompt, batch.image_read[i].numpy(), (0, 3))
        log_p = log_softmax(states[len(prompt) - 1 : -1] @ w["image_head"])
        image_losses.append(-log_p[slots, batch.image[i].numpy()])
        text = batch.text[i].numpy()[: batch.valid[i].numpy().sum()]
        states = hidden(Direction.IMAGE_TO_TEXT, text, batch.image_read[i].numpy(), (1, 2))
        log_p = log_softmax(states[: len(text) - 1] @ w["text_head"])
        text_losses.append(-log_p[np.arange(len(text) - 1), text[1:]])
    image_losses, text_losses = np.concatenate(image_losses), np.concatenate(text_losses)
    np.testing.assert_allclose(measured["txt2img"].item(), image_losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["img2txt"].item(), text_losses.mean(), rtol=1e-5)
    expected = (image_losses.sum() + text_losses.sum()) / (3 * N)
    np.testing.assert_allclose(measured["loss"].item(), expected, rtol=1e-5)


def test_accuracies_count_likeliest_targets():
    model, batch = build(), pairs()
    texts, images = model.hidden({Direction.TEXT_TO_IMAGE: (batch.prompt, batch.prompt_valid)}, batch.image_read)
    first = last_real(texts, batch.prompt_valid).unsqueeze(1)
    likeliest = model.image_logits(paddle.concat([first, images[:, :-1]], 1)).argmax(-1)
    expected = (likeliest == batch.image).astype("float32").mean().item()
    assert model.loss(batch)["txt2img_accuracy"].item() == pytest.approx(expected)


@pytest.mark.parametrize("extra", [1, 2])
def test_padding_changes_nothing(extra):
    """Neither how much padding there is nor what stands in it changes losses or gradients."""
    model, batch = build(), pairs()

    def padded(ids, valid):
        changed = paddle.where(valid, ids, paddle.full_like(ids, 5))
        return paddle.concat([changed, paddle.full([3, extra], 9, "int64")], 1)

    more = paddle.zeros([3, extra], "bool")
    longer = replace(
        batch,
        text=padded(batch.text, batch.valid),
        valid=paddle.concat([batch.valid, more], 1),
        prompt=padded(batch.prompt, batch.prompt_valid),
        prompt_valid=paddle.concat([batch.prompt_valid, more], 1),
    )
    results = []
    for read in (batch, longer):
        losses = model.loss(read)
        losses["loss"].backward()
        results.append(([v.item() for v in losses.values()], model.blocks[0].attention.key.weight.grad.numpy()))
        model.clear_gradients()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("direction", Direction)
def test_decoding_equals_the_full_forward_at_every_step(plan, direction):
    """Two candidates for each of three sources of different lengths; every hidden state of the target."""
    model, batch = build(with_plan(plan)), pairs()
    to_image = direction is Direction.TEXT_TO_IMAGE
    source, valid = (batch.prompt, batch.prompt_valid) if to_image else (batch.image, paddle.ones([3, N], "bool"))
    targets = paddle.randint(0, 11, [6, N if to_image else M])
    twice = paddle.repeat_interleave(source, 2, 0)
    text, image = (twice, targets) if to_image else (targets, twice)
    text_valid = paddle.to_tensor(valid.numpy().repeat(2, 0)) if to_image else paddle.ones([6, M], "bool")
    texts, images = (states.numpy() for states in model.hidden({direction: (text, text_valid)}, image))
    source_states, target_states = (texts, images) if to_image else (images, texts)

    read, state = model.start(direction, source, valid, 2, M)
    own = valid.numpy()
    np.testing.assert_allclose(read.numpy()[own], source_states[::2][own], atol=1e-5)
    for k in range(targets.shape[1]):
        step = model.step(state, targets[:, k], np.full(6, k))
        np.testing.assert_allclose(step.numpy(), target_states[:, k], atol=1e-5)


def test_sequences_of_a_batch_may_stand_at_different_positions():
    model, batch = build(), pairs()
    tokens = paddle.randint(0, 11, [3, N])
    together = model.start(Direction.TEXT_TO_IMAGE, batch.prompt, batch.prompt_valid, 1, M)[1]
    late = model.start(Direction.TEXT_TO_IMAGE, batch.prompt, batch.prompt_valid, 1, M)[1]
    behind = np.array([0, 2, 5])  # sequence i starts that many steps later, and until then rewrites its first slot
    states = {}
    for k in range(N):
        states[k] = model.step(together, tokens[:, k], np.full(3, k)).numpy()
    for now in range(N + 5):
        positions = np.clip(now - behind, 0, N - 1)
        step = model.step(late, paddle.to_tensor(tokens.numpy()[np.arange(3), positions]), positions).numpy()
        for i in range(3):
            np.testing.assert_allclose(step[i], states[positions[i]][i], atol=1e-5)


def test_a_selected_sequence_goes_on_as_the_one_it_was_taken_from():
    model = build()
    image, valid = paddle.randint(0, 11, [1, N]), paddle.ones([1, N], "bool")
    written = paddle.randint(0, 11, [3, 5])
    state = model.start(Direction.IMAGE_TO_TEXT, image, valid, 3, M)[1]
    for k in range(4):
        expected = model.step(state, written[:, k], np.full(3, k))
    expected = model.step(state, written[:, 4], np.full(3, 4))
    state.select([2, 2, 0])
    again = model.step(state, paddle.gather(written[:, 4], paddle.to_tensor([2, 2, 0])), np.full(3, 4))
    np.testing.assert_allclose(again.numpy(), expected.numpy()[[2, 2, 0]], atol=1e-6)


class Alone:
    """A sequence decoded by itself, and where it stands."""

    def __init__(self, model: ViLG, direction: Direction, source: paddle.Tensor, valid: paddle.Tensor, tokens: np.ndarray):
        state = model.start(direction, source, valid, 1, M)[1]
        self.tokens = tokens
        self.hidden = [
            model.step(state, paddle.to_tensor(tokens[k : k + 1]), np.array([k])).numpy()[0] for k in range(len(tokens))
        ]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sequences_join_and_leave_as_if_each_were_alone(data):
    """Random arrivals with one or more candidates, random departures, orders and duplicates, in both directions."""
    paddle.seed(0)
    direction = data.draw(st.sampled_from(list(Direction)))
    to_image = direction is Direction.TEXT_TO_IMAGE
    model, batch = build(with_plan(data.draw(st.sampled_from(list(PLANS))))), pairs()
    source, valid = (batch.prompt, batch.prompt_valid) if to_image else (batch.image, paddle.ones([3, N], "bool"))
    length = N if to_image else M
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    every = [  # two different targets for each source
        [Alone(model, direction, source[i : i + 1], valid[i : i + 1], random.integers(0, 11, length)) for _ in range(2)]
        for i in range(3)
    ]
    state, running = None, []  # what each sequence of the batch is, and its position
    for _ in range(8):
        i, candidates = random.integers(3), random.integers(1, 3)
        arrived = model.start(direction, source[i : i + 1], valid[i : i + 1], int(candidates), M)[1]
        state = arrived if state is None else State.joined([state, arrived])
        running += [(every[i][c], 0) for c in range(candidates)]
        for _ in range(random.integers(1, 4)):
            tokens = np.array([alone.tokens[k] for alone, k in running])
            hidden = model.step(state, paddle.to_tensor(tokens), np.array([k for _, k in running])).numpy()
            for found, (alone, k) in zip(hidden, running, strict=True):
                np.testing.assert_allclose(found, alone.hidden[k], atol=1e-5)
            running = [(alone, k + 1) for alone, k in running]
            going = [row for row, (_, k) in enumerate(running) if k < length]
            if not going:
                state, running = None, []
                break
            kept = random.choice(going, random.integers(1, len(going) + 1), replace=bool(random.integers(2)))
            assert state.batch == len(state.source_valid) * state.candidates
            state.select(kept)
            running = [running[row] for row in kept]


def test_selecting_within_prompts_leaves_the_sources_alone():
    model, batch = build(), pairs()
    state = model.start(Direction.TEXT_TO_IMAGE, batch.prompt, batch.prompt_valid, 2, M)[1]
    sources = state.sources
    state.select([1, 1, 3, 2, 4, 4])
    assert state.sources is sources
    state.select([4, 5, 0, 1])  # whole prompts
    assert (state.candidates, state.sources[0].keys.shape[0]) == (2, 2)
    state.select([0, 2])
    assert (state.candidates, state.sources[0].keys.shape[0]) == (1, 2)


def test_a_sparse_plan_remembers_less_and_shares_the_prompt():
    def size(plan, prompts, candidates):
        model = ViLG(with_plan(plan))
        text = paddle.ones([prompts, M], "int64")
        return model.start(Direction.TEXT_TO_IMAGE, text, text > 0, candidates, M)[1].bytes

    # In floats of one width (hidden 16): keys and values of the text, then of the target or its layer inputs.
    text, dense, row, column, convolution = 2 * M, 2 * N, SIDE + 1, N, SIDE + 2
    assert size("dense", 2, 3) == 4 * 16 * 4 * (2 * text + 6 * dense)
    assert size("paper", 2, 3) == 4 * 16 * (4 * 2 * text + 6 * (row + column + row + convolution))


def test_tied_embeddings_are_the_head():
    model = build(replace(CONFIG, transformer=replace(CONFIG.transformer, tie_embeddings=True)))
    hidden = paddle.randn([2, 16])
    for logits, table in ((model.image_logits, model.image_embedding), (model.text_logits, model.text_embedding)):
        np.testing.assert_allclose(logits(hidden).numpy(), hidden.numpy() @ table.weight.numpy().T, atol=1e-5)
    model.loss(pairs())["loss"].backward()
    assert model.image_embedding.weight.grad is not None


def test_text_table_of_another_width_is_projected():
    model = build(replace(CONFIG, text=replace(CONFIG.text, embedding_width=6)))
    assert model.text_embedding.weight.shape == [23, 6]
    assert np.isfinite(model.loss(pairs())["loss"].item())


def test_no_dtype_is_fixed():
    """In float64 the loss and its gradients are those of float32: what a GPU needs for bfloat16 too."""
    results = []
    for dtype in ("float32", "float64"):
        paddle.seed(1)
        model = build()
        model.train()
        model.to(dtype=dtype)
        model.loss(pairs())["loss"].backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(str(grad.dtype) == f"paddle.{dtype}" for grad in grads.values())
        results.append({name: grad.numpy() for name, grad in grads.items()})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        np.testing.assert_allclose(gradient, results[1][name], rtol=1e-3, atol=1e-4 * np.abs(gradient).max(), err_msg=name)
