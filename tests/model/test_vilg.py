"""The transformer against numpy, against itself with other padding, and its cached decode against the full forward."""

from dataclasses import replace

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.config import AttentionConfig, CodebookConfig, VQGANConfig
from ppvilg.model.batch import Batch
from ppvilg.model.config import ViLGConfig
from ppvilg.model.kv_cache import DecodeState
from ppvilg.model.loss import ReconstructionWeights, vilg_accuracy, vilg_loss
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG, last_real_token

M, SIDE, Q = 7, 4, 5
N = SIDE**2
CONFIG = ViLGConfig(
    text_vocab_size=23,
    max_text_length=9,
    image_vocab_size=11,
    rows=SIDE,
    columns=SIDE,
    layers=4,
    hidden=16,
    heads=2,
    attention=AttentionConfig(kernel=3),
)
VQGAN = VQGANConfig(
    channels=8,
    channel_multipliers=[1, 1],
    res_blocks=1,
    attention_resolutions=[],
    latent_channels=8,
    codebook=CodebookConfig(size=11, dim=4),
)
PLANS = {
    "paper": AttentionConfig(kernel=3),
    "strict rows": AttentionConfig(kernel=3, strict_row=True),
    "dense": AttentionConfig(plan=["dense"], last=None),
    "mixed": AttentionConfig(plan=["convolution", "dense"], last="column", kernel=5),
}
ELSEWHERE = {
    "causal text": {"causal_text": True},
    "sandwich norm": {"sandwich_norm": True},
    "head norm": {"head_norm": True},
    "head bias": {"head_bias": True},
    "flat positions": {"image_positions": "flat"},
}
"""What the models of other projects have."""
OPTIONS = {name: replace(CONFIG, attention=plan) for name, plan in PLANS.items()}
OPTIONS |= {name: replace(CONFIG, **option) for name, option in ELSEWHERE.items()}
OPTIONS["all of them"] = replace(CONFIG, **{key: value for option in ELSEWHERE.values() for key, value in option.items()})


def build(config: ViLGConfig = CONFIG) -> ViLG:
    model = ViLG(config)
    for parameter in model.parameters():  # biases and norms too, so that a forgotten one shows
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    model.eval()
    return model


def with_plan(plan: str) -> ViLGConfig:
    return replace(CONFIG, attention=PLANS[plan])


def loss(model: ViLG, batch: Batch) -> dict[str, paddle.Tensor]:
    return vilg_loss(model(batch), batch)


def start(
    model: ViLG, direction: Direction, source: paddle.Tensor, mask: paddle.Tensor, candidates: int
) -> tuple[paddle.Tensor, DecodeState]:
    states, prefixes = model.prefill(direction, source, mask)
    return states, DecodeState.empty(model.config, direction, M, prefixes, mask.numpy(), candidates)


def step(model: ViLG, state: DecodeState, ids: paddle.Tensor, positions: np.ndarray) -> paddle.Tensor:
    return model.decode_step(state.direction, state.inputs(ids, positions))


def pairs(batch: int = 3, m: int = M) -> Batch:
    """Pairs whose prompts and read tokens differ from texts and targets."""
    text, prompt = paddle.randint(1, 23, [batch, m]), paddle.randint(1, 23, [batch, m])
    slots = paddle.arange(m).unsqueeze(0)
    valid = slots < paddle.to_tensor([m, m - 2, 3][:batch]).unsqueeze(1)
    prompt_valid = slots < paddle.to_tensor([2, m, m - 3][:batch]).unsqueeze(1)
    image, read = paddle.randint(0, 11, [batch, N]), paddle.randint(0, 11, [batch, N])
    return Batch(text, valid, image, prompt, prompt_valid, read)


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
        normed = norm(x, f"blocks.{i}.norm1")
        queries, keys, values = (linear(normed, f"blocks.{i}.attention.{name}") for name in ("query", "key", "value"))
        heads = []
        for part in np.split(np.arange(16), 2):
            scores = np.where(mask, queries[:, part] @ keys[:, part].T / np.sqrt(8), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ values[:, part])
        attended = linear(np.concatenate(heads, -1), f"blocks.{i}.attention.out")
        x = x + (norm(attended, f"blocks.{i}.attention_norm") if model.config.sandwich_norm else attended)
        hidden = gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.up"))
        made = linear(hidden, f"blocks.{i}.mlp.down")
        x = x + (norm(made, f"blocks.{i}.mlp_norm") if model.config.sandwich_norm else made)
    x = norm(x, "head.norm")
    return norm(x, "head.logits_norm") if model.config.head_norm else x


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("option", OPTIONS)
def test_loss_against_numpy(option):
    """Each sequence by itself, without its padding and under a dense mask, through a model written in numpy."""
    model, batch = build(OPTIONS[option]), pairs()
    measured = loss(model, batch)
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    slots = np.arange(N)
    if model.config.image_positions == "flat":
        position = w["embedding.image_position.weight"]
    else:
        position = w["embedding.row_position.weight"][slots // SIDE] + w["embedding.column_position.weight"][slots % SIDE]
    bias = {name: w.get(f"head.{name}.bias", 0) for name in ("image", "text")}

    def hidden(direction, ids, codes, segments):
        words = (
            w["embedding.text.weight"][ids]
            + w["embedding.text_position.weight"][: len(ids)]
            + w["embedding.segment.weight"][segments[0]]
        )
        picture = w["embedding.image.weight"][codes] + position + w["embedding.segment.weight"][segments[1]]
        masks = [model.config.mask(kind, direction, len(ids)).mask() for kind in model.config.kinds]
        return numpy_forward(model, np.concatenate([words, picture]), masks)

    image_losses, text_losses = [], []
    for i in range(3):
        prompt = batch.prompt[i].numpy()[: batch.prompt_mask[i].numpy().sum()]
        states = hidden(Direction.TEXT_TO_IMAGE, prompt, batch.image_input[i].numpy(), (0, 3))
        log_p = log_softmax(states[len(prompt) - 1 : -1] @ w["head.image.weight"] + bias["image"])
        image_losses.append(-log_p[slots, batch.image[i].numpy()])
        text = batch.text[i].numpy()[: batch.text_mask[i].numpy().sum()]
        states = hidden(Direction.IMAGE_TO_TEXT, text, batch.image_input[i].numpy(), (1, 2))
        log_p = log_softmax(states[: len(text) - 1] @ w["head.text.weight"] + bias["text"])
        text_losses.append(-log_p[np.arange(len(text) - 1), text[1:]])
    image_losses, text_losses = np.concatenate(image_losses), np.concatenate(text_losses)
    np.testing.assert_allclose(measured["txt2img"].item(), image_losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["img2txt"].item(), text_losses.mean(), rtol=1e-5)
    expected = (image_losses.sum() + text_losses.sum()) / (3 * N)
    np.testing.assert_allclose(measured["loss"].item(), expected, rtol=1e-5)


def test_accuracies_count_likeliest_targets():
    model, batch = build(), pairs()
    texts, images = model.hidden_states(batch.prompt, batch.prompt_mask, batch.image_input, Direction.TEXT_TO_IMAGE)
    first = last_real_token(texts, batch.prompt_mask).unsqueeze(1)
    likeliest = model.image_logits(paddle.concat([first, images[:, :-1]], 1)).argmax(-1)
    expected = (likeliest == batch.image).astype("float32").mean().item()
    assert vilg_accuracy(model(batch), batch)["txt2img_accuracy"].item() == pytest.approx(expected)


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
        text=padded(batch.text, batch.text_mask),
        text_mask=paddle.concat([batch.text_mask, more], 1),
        prompt=padded(batch.prompt, batch.prompt_mask),
        prompt_mask=paddle.concat([batch.prompt_mask, more], 1),
    )
    results = []
    for read in (batch, longer):
        losses = loss(model, read)
        losses["loss"].backward()
        results.append(([v.item() for v in losses.values()], model.blocks[0].attention.key.weight.grad.numpy()))
        model.clear_gradients()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("direction", Direction)
def test_decoding_equals_the_full_forward_at_every_step(option, direction):
    """Two candidates for each of three sources of different lengths; every hidden state of the target."""
    model, batch = build(OPTIONS[option]), pairs()
    to_image = direction is Direction.TEXT_TO_IMAGE
    source, valid = (batch.prompt, batch.prompt_mask) if to_image else (batch.image, paddle.ones([3, N], "bool"))
    targets = paddle.randint(0, 11, [6, N if to_image else M])
    twice = paddle.repeat_interleave(source, 2, 0)
    text, image = (twice, targets) if to_image else (targets, twice)
    text_valid = paddle.to_tensor(valid.numpy().repeat(2, 0)) if to_image else paddle.ones([6, M], "bool")
    texts, images = (states.numpy() for states in model.hidden_states(text, text_valid, image, direction))
    source_states, target_states = (texts, images) if to_image else (images, texts)

    read, state = start(model, direction, source, valid, 2)
    own = valid.numpy()
    np.testing.assert_allclose(read.numpy()[own], source_states[::2][own], atol=1e-5)
    for k in range(targets.shape[1]):
        found = step(model, state, targets[:, k], np.full(6, k))
        np.testing.assert_allclose(found.numpy(), target_states[:, k], atol=1e-5)


def questions(batch: int = 3) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Questions in `Q` slots, and their mask; the last one is empty."""
    lengths = paddle.to_tensor([Q, 2, 0][:batch]).unsqueeze(1)
    return paddle.randint(1, 23, [batch, Q]), paddle.arange(Q).unsqueeze(0) < lengths


@pytest.mark.parametrize("plan", PLANS)
def test_an_answer_reads_image_and_question(plan):
    """The last hidden states of answers, with every slot's own tables and a dense mask, through a model written in numpy."""
    model, batch = build(replace(with_plan(plan), question_length=Q)), pairs()
    question, mask = questions()
    found, _ = model.hidden_states(batch.text, batch.text_mask, batch.image, Direction.IMAGE_TO_TEXT, question, mask)
    w = {name.removeprefix("embedding."): tensor.numpy() for name, tensor in model.state_dict().items()}
    slots = np.arange(N)
    positions = w["row_position.weight"][slots // SIDE] + w["column_position.weight"][slots % SIDE]
    for i in range(3):
        own = question[i].numpy()[mask[i].numpy()]
        texts = []
        for ids, segment in ((batch.text[i].numpy()[: batch.text_mask[i].sum().item()], 1), (own, 0)):
            texts.append(w["text.weight"][ids] + w["text_position.weight"][: len(ids)] + w["segment.weight"][segment])
        image = w["image.weight"][batch.image[i].numpy()] + positions + w["segment.weight"][2]
        config = replace(model.config, question_length=len(own))
        masks = [config.mask(kind, Direction.IMAGE_TO_TEXT, len(texts[0])).mask() for kind in config.kinds]
        expected = numpy_forward(model, np.concatenate([*texts, image]), masks)[: len(texts[0])]
        np.testing.assert_allclose(found[i, : len(expected)].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
def test_without_a_question_an_answer_is_a_caption(plan):
    """So that fine-tuning starts from what a model knows: slots for a question that hold none change nothing."""
    model, batch = build(with_plan(plan)), pairs()
    answering = ViLG(replace(model.config, question_length=Q))
    answering.set_state_dict(model.state_dict())
    expected = model.hidden_states(batch.text, batch.text_mask, batch.image, Direction.IMAGE_TO_TEXT)
    none = paddle.zeros([3, Q], "bool")
    found = answering.hidden_states(batch.text, batch.text_mask, batch.image, Direction.IMAGE_TO_TEXT, questions()[0], none)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_decoding_an_answer_equals_the_full_forward_at_every_step(plan):
    """Two answers to each of three questions of different lengths."""
    model, images = build(replace(with_plan(plan), question_length=Q)), paddle.randint(0, 11, [3, N])
    (question, mask), answers = questions(), paddle.randint(1, 23, [6, M])
    twice = [paddle.repeat_interleave(x.astype("int64"), 2, 0) for x in (images, question, mask)]
    real = paddle.ones([6, M], "bool")
    expected, _ = model.hidden_states(answers, real, twice[0], Direction.IMAGE_TO_TEXT, twice[1], twice[2].astype("bool"))
    prefix, valid = paddle.concat([question, images], 1), paddle.concat([mask, paddle.ones([3, N], "bool")], 1)
    _, state = start(model, Direction.IMAGE_TO_TEXT, prefix, valid, 2)
    for k in range(M):
        found = step(model, state, answers[:, k], np.full(6, k))
        np.testing.assert_allclose(found.numpy(), expected[:, k].numpy(), atol=1e-5)


def test_sequences_of_a_batch_may_stand_at_different_positions():
    model, batch = build(), pairs()
    tokens = paddle.randint(0, 11, [3, N])
    together = start(model, Direction.TEXT_TO_IMAGE, batch.prompt, batch.prompt_mask, 1)[1]
    late = start(model, Direction.TEXT_TO_IMAGE, batch.prompt, batch.prompt_mask, 1)[1]
    behind = np.array([0, 2, 5])  # sequence i starts that many steps later, and until then rewrites its first slot
    states = {}
    for k in range(N):
        states[k] = step(model, together, tokens[:, k], np.full(3, k)).numpy()
    for now in range(N + 5):
        positions = np.clip(now - behind, 0, N - 1)
        now_at = step(model, late, paddle.to_tensor(tokens.numpy()[np.arange(3), positions]), positions).numpy()
        for i in range(3):
            np.testing.assert_allclose(now_at[i], states[positions[i]][i], atol=1e-5)


def test_a_selected_sequence_goes_on_as_the_one_it_was_taken_from():
    model = build()
    image, valid = paddle.randint(0, 11, [1, N]), paddle.ones([1, N], "bool")
    written = paddle.randint(0, 11, [3, 5])
    state = start(model, Direction.IMAGE_TO_TEXT, image, valid, 3)[1]
    for k in range(4):
        expected = step(model, state, written[:, k], np.full(3, k))
    expected = step(model, state, written[:, 4], np.full(3, 4))
    state.select([2, 2, 0])
    again = step(model, state, paddle.gather(written[:, 4], paddle.to_tensor([2, 2, 0])), np.full(3, 4))
    np.testing.assert_allclose(again.numpy(), expected.numpy()[[2, 2, 0]], atol=1e-6)


class Alone:
    """A sequence decoded by itself, and where it stands."""

    def __init__(self, model: ViLG, direction: Direction, source: paddle.Tensor, valid: paddle.Tensor, tokens: np.ndarray):
        state = start(model, direction, source, valid, 1)[1]
        self.tokens = tokens
        self.hidden = [
            step(model, state, paddle.to_tensor(tokens[k : k + 1]), np.array([k])).numpy()[0] for k in range(len(tokens))
        ]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sequences_join_and_leave_as_if_each_were_alone(data):
    """Random arrivals with one or more candidates, random departures, orders and duplicates, in both directions."""
    paddle.seed(0)
    direction = data.draw(st.sampled_from(list(Direction)))
    to_image = direction is Direction.TEXT_TO_IMAGE
    model, batch = build(OPTIONS[data.draw(st.sampled_from(list(OPTIONS)))]), pairs()
    source, valid = (batch.prompt, batch.prompt_mask) if to_image else (batch.image, paddle.ones([3, N], "bool"))
    length = N if to_image else M
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    every = [  # two different targets for each source
        [Alone(model, direction, source[i : i + 1], valid[i : i + 1], random.integers(0, 11, length)) for _ in range(2)]
        for i in range(3)
    ]
    state, running = None, []  # what each sequence of the batch is, and its position
    for _ in range(8):
        i, candidates = random.integers(3), random.integers(1, 3)
        arrived = start(model, direction, source[i : i + 1], valid[i : i + 1], int(candidates))[1]
        state = arrived if state is None else DecodeState.concat([state, arrived])
        running += [(every[i][c], 0) for c in range(candidates)]
        for _ in range(random.integers(1, 4)):
            tokens = np.array([alone.tokens[k] for alone, k in running])
            hidden = step(model, state, paddle.to_tensor(tokens), np.array([k for _, k in running])).numpy()
            for found, (alone, k) in zip(hidden, running, strict=True):
                np.testing.assert_allclose(found, alone.hidden[k], atol=1e-5)
            running = [(alone, k + 1) for alone, k in running]
            going = [row for row, (_, k) in enumerate(running) if k < length]
            if not going:
                state, running = None, []
                break
            kept = random.choice(going, random.integers(1, len(going) + 1), replace=bool(random.integers(2)))
            assert state.batch == len(state.prefix_mask) * state.candidates
            state.select(kept)
            running = [running[row] for row in kept]


def test_selecting_within_prompts_leaves_the_sources_alone():
    model, batch = build(), pairs()
    state = start(model, Direction.TEXT_TO_IMAGE, batch.prompt, batch.prompt_mask, 2)[1]
    prefixes = state.prefixes
    state.select([1, 1, 3, 2, 4, 4])
    assert state.prefixes is prefixes
    state.select([4, 5, 0, 1])  # whole prompts
    assert (state.candidates, state.prefixes[0].keys.shape[0]) == (2, 2)
    state.select([0, 2])
    assert (state.candidates, state.prefixes[0].keys.shape[0]) == (1, 2)


def test_a_sparse_plan_remembers_less_and_shares_the_prompt():
    def size(plan, prompts, candidates):
        model = ViLG(with_plan(plan))
        text = paddle.ones([prompts, M], "int64")
        return start(model, Direction.TEXT_TO_IMAGE, text, text > 0, candidates)[1].bytes

    # In floats of one width (hidden 16): keys and values of the text, then of the target or its layer inputs.
    text, dense, row, column, convolution = 2 * M, 2 * N, SIDE + 1, N, SIDE + 2
    assert size("dense", 2, 3) == 4 * 16 * 4 * (2 * text + 6 * dense)
    assert size("paper", 2, 3) == 4 * 16 * (4 * 2 * text + 6 * (row + column + row + convolution))


def test_tied_embeddings_are_the_head():
    model = build(replace(CONFIG, tie_embeddings=True))
    hidden = paddle.randn([2, 16])
    for logits, table in ((model.image_logits, model.embedding.image), (model.text_logits, model.embedding.text)):
        np.testing.assert_allclose(logits(hidden).numpy(), hidden.numpy() @ table.weight.numpy().T, atol=1e-5)
    loss(model, pairs())["loss"].backward()
    assert model.embedding.image.weight.grad is not None


def test_text_table_of_another_width_is_projected():
    model = build(replace(CONFIG, text_embedding_width=6))
    assert model.embedding.text.weight.shape == [23, 6]
    assert np.isfinite(loss(model, pairs())["loss"].item())


def test_no_dtype_is_fixed():
    """In float64 the loss and its gradients are those of float32: what a GPU needs for bfloat16 too."""
    results = []
    for dtype in ("float32", "float64"):
        paddle.seed(1)
        model = build()
        model.train()
        model.to(dtype=dtype)
        loss(model, pairs())["loss"].backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(str(grad.dtype) == f"paddle.{dtype}" for grad in grads.values())
        results.append({name: grad.numpy() for name, grad in grads.items()})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        np.testing.assert_allclose(gradient, results[1][name], rtol=1e-3, atol=1e-4 * np.abs(gradient).max(), err_msg=name)


def test_end_to_end_loss_is_the_one_that_is_minimised():
    model, batch = build(replace(CONFIG, reconstructor=VQGAN)), pairs()
    batch = replace(batch, pixel_values=paddle.rand([3, 3, 8, 8]) * 2 - 1)
    outputs = model(batch)
    plain = vilg_loss(outputs, batch)
    both = vilg_loss(outputs, batch, ReconstructionWeights(l1=2.0, l2=3.0))
    error = outputs.pixels.numpy() - batch.pixel_values.numpy()
    expected = plain["loss"].item() + 2 * np.abs(error).mean() + 3 * (error**2).mean()
    np.testing.assert_allclose(both["loss"].item(), expected, rtol=1e-5)


def test_a_tied_head_has_no_bias():
    with pytest.raises(ValueError, match="head_bias"):
        replace(CONFIG, tie_embeddings=True, head_bias=True)


@pytest.mark.parametrize(
    ("padding", "prompt", "seen"),
    [
        ("hidden", [[2, 7, 3, 0], [2, 7, 8, 3]], [3, 4]),
        ("visible", [[2, 7, 3, 0, 0, 0, 0, 0, 0], [2, 7, 8, 3, 0, 0, 0, 0, 0]], [9, 9]),
        ("positional", [[2, 7, 3, 17, 18, 19, 20, 21, 22], [2, 7, 8, 3, 18, 19, 20, 21, 22]], [9, 9]),
    ],
)
def test_padding_of_prompts(padding, prompt, seen):
    """Of the 23 rows of the text table the last 9 belong to the places of positional padding."""
    batch = Batch.of([[2, 7, 3], [2, 7, 8, 3]], np.zeros((2, N), int), 0, replace(CONFIG, text_padding=padding))
    np.testing.assert_array_equal(batch.prompt, prompt)
    np.testing.assert_array_equal(batch.prompt_mask, np.arange(batch.prompt.shape[1]) < np.array(seen)[:, None])
    np.testing.assert_array_equal(batch.text_mask.sum(1), [3, 4])
    assert batch.text.shape == batch.prompt.shape
    assert batch.text[0, :3].tolist() == [2, 7, 3]
