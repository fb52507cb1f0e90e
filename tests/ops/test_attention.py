"""sparse_attention, in C++ and in paddle's functions, against a dense softmax over the mask, in float64."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.model.mask import AttentionMask, Direction
from ppvilg.ops import attention, extension, sparse_attention

KINDS = ["dense", "row", "column", "convolution"]


def dense(q, k, v, visible):
    """[B, L, heads, width] under visible bool [B, L, L]."""
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
    visible = visible.astype(q.dtype).unsqueeze(1)
    scores = paddle.matmul(q, k, transpose_y=True) * q.shape[-1] ** -0.5
    largest = (scores - 1e9 * (1 - visible)).max(axis=-1, keepdim=True).detach()
    weights = paddle.exp(paddle.minimum(scores - largest, paddle.full([], 50, q.dtype))) * visible
    total = weights.sum(axis=-1, keepdim=True)
    weights = weights / (total + (total == 0).astype(q.dtype))
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])


def results(function, arrays, dtype):
    tensors = [paddle.to_tensor(array.astype(dtype), stop_gradient=False) for array in arrays[:3]]
    result = function(*tensors)
    paddle.autograd.backward([result], [paddle.to_tensor(arrays[3].astype(dtype))])
    return [result.numpy(), *(t.grad.numpy() for t in tensors)]


def equal(ours, theirs, atol=2e-5):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)


@st.composite
def mask_lists(draw):
    m, rows, columns = draw(st.integers(3, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        direction = draw(st.sampled_from(Direction))
        question = 0 if direction is Direction.TEXT_TO_IMAGE else draw(st.integers(0, 2))
        sparsity = draw(st.sampled_from(KINDS)), draw(st.sampled_from([1, 3, 5, 11])), draw(st.booleans())
        made.append(AttentionMask(m - question, rows, columns, direction, *sparsity, draw(st.booleans()), question))
    return made


def drawn(masks, per_mask, heads, width, hidden, seed):
    rng = np.random.default_rng(seed)
    batch, length = per_mask * len(masks), masks[0].length
    arrays = [rng.standard_normal((batch, length, heads, width)).astype("float32") for _ in range(4)]
    arrays[0] *= 3
    key_mask = rng.random((batch, length)) >= hidden
    visible = np.stack([masks[b // per_mask].mask() for b in range(batch)]) & key_mask[:, None, :]
    return arrays, paddle.to_tensor(key_mask), paddle.to_tensor(visible)


@settings(max_examples=50, deadline=None)
@given(
    mask_lists(), st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.sampled_from([0, 0.3, 0.9]), st.integers(0, 99)
)
def test_any_mask(masks, per_mask, heads, width, hidden, seed):
    arrays, key_mask, visible = drawn(masks, per_mask, heads, width, hidden, seed)
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    for dtype in ("float32", "float64"):  # the kernel's, if it could be built, and paddle's functions
        equal(results(lambda q, k, v: sparse_attention(q, k, v, masks, key_mask), arrays, dtype), expected)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", KINDS)
def test_several_tiles(direction, kind):
    """More queries in a block than the kernel takes at once, the convolution's blocks, and threads."""
    question = 0 if direction is Direction.TEXT_TO_IMAGE else 66
    masks = [AttentionMask(70, 14, 13, direction, kind, kernel=5, question_length=question)]
    arrays, key_mask, visible = drawn(masks, 2, 4, 16, 0.1, 0)
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    for dtype in ("float32", "float64"):
        equal(results(lambda q, k, v: sparse_attention(q, k, v, masks, key_mask), arrays, dtype), expected)


@pytest.mark.parametrize("direction", Direction)
def test_dense_attention_of_a_gpu(direction):
    masks = [AttentionMask(5, 3, 4, direction)]
    arrays, key_mask, visible = drawn(masks, 3, 2, 8, 0.5, 0)
    key_mask[1] = False
    visible[1] = False
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    equal(results(lambda q, k, v: attention.dense_attention(q, k, v, key_mask, masks[0]), arrays, "float64"), expected)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_query_without_keys_gets_zeros(direction, kind, dtype):
    masks = [AttentionMask(4, 3, 5, direction, kind)]
    arrays, _, _ = drawn(masks, 2, 2, 8, 0, 0)
    key_mask = paddle.zeros([2, masks[0].length], "bool")
    for result in results(lambda q, k, v: sparse_attention(q, k, v, masks, key_mask), arrays, dtype):
        np.testing.assert_array_equal(result, 0)


def test_without_masks_every_real_key_is_seen():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 70, 2, 8)).astype("float32") for _ in range(4)]
    key_mask = paddle.to_tensor(rng.random((3, 70)) > 0.3)
    visible = key_mask.unsqueeze(1).expand([3, 70, 70])
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    for dtype in ("float32", "float64"):
        equal(results(lambda q, k, v: sparse_attention(q, k, v, None, key_mask), arrays, dtype), expected)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_without_text(direction, kind, dtype):
    masks = [AttentionMask(0, 6, 4, direction, kind, kernel=3)]
    arrays, key_mask, visible = drawn(masks, 2, 2, 8, 0.2, 0)
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    equal(results(lambda q, k, v: sparse_attention(q, k, v, masks, key_mask), arrays, dtype), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_with_a_question_alone(kind, dtype):
    masks = [AttentionMask(0, 6, 4, Direction.IMAGE_TO_TEXT, kind, 3, question_length=5)]
    arrays, key_mask, visible = drawn(masks, 2, 2, 8, 0.2, 0)
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    equal(results(lambda q, k, v: sparse_attention(q, k, v, masks, key_mask), arrays, dtype), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_text_alone(causal, dtype):
    arrays, key_mask, _ = drawn([AttentionMask(70, 0, 4, Direction.TEXT_TO_IMAGE)], 2, 2, 8, 0.2, 0)
    seen = np.ones((70, 70), bool)
    visible = key_mask.unsqueeze(1) & paddle.to_tensor(np.tril(seen) if causal else seen)
    expected = results(lambda q, k, v: dense(q, k, v, visible), arrays, "float64")
    equal(results(lambda q, k, v: sparse_attention(q, k, v, None, key_mask, causal), arrays, dtype), expected)


@pytest.mark.parametrize("kind", [None, "causal", *KINDS])
def test_in_a_program_with_an_open_batch(kind):
    """Without masks with an open length, too."""
    causal, kind = kind == "causal", None if kind == "causal" else kind
    masks = None if kind is None else [AttentionMask(0, 6, 4, Direction.IMAGE_TO_TEXT, kind, kernel=3)]
    x = np.random.default_rng(0).standard_normal([2, 24, 2, 8]).astype("float32")
    key_mask = np.random.default_rng(1).random([2, 24]) > 0.2
    expected = sparse_attention(*[paddle.to_tensor(x)] * 3, masks, paddle.to_tensor(key_mask), causal).numpy()
    paddle.enable_static()
    try:
        program = paddle.static.Program()
        with paddle.static.program_guard(program):
            length = -1 if kind is None else 24
            given_x = paddle.static.data("x", [-1, length, 2, 8], "float32")
            given_mask = paddle.static.data("key_mask", [-1, length], "bool")
            found = sparse_attention(given_x, given_x, given_x, masks, given_mask, causal)
            executor = paddle.static.Executor(paddle.CPUPlace())
            (traced,) = executor.run(program, feed={"x": x, "key_mask": key_mask}, fetch_list=[found])
    finally:
        paddle.disable_static()
    np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-6)


def test_tiles_show_the_mask():
    """Each query is in one tile, with just the keys that it sees."""
    for direction in Direction:
        for kind in KINDS:
            mask = AttentionMask(9, 12, 11, direction, kind, kernel=5)
            shown = np.zeros((mask.length, mask.length), dtype=int)
            for queries, keys, visible in attention._tiles(mask):
                assert visible.any(axis=0).all()
                shown[np.ix_(queries, keys)] += visible
            np.testing.assert_array_equal(shown, mask.mask())


def test_masks_that_do_not_fit():
    x, mask = paddle.zeros([3, 16, 1, 4]), AttentionMask(4, 3, 4, Direction.TEXT_TO_IMAGE)
    with pytest.raises(ValueError, match="3 sequences cannot be divided evenly among 2"):
        sparse_attention(x, x, x, [mask, mask], paddle.ones([3, 16], "bool"))
    with pytest.raises(ValueError, match="the sequences have 15 slots"):
        sparse_attention(x[:, 1:], x[:, 1:], x[:, 1:], [mask], paddle.ones([3, 15], "bool"))


def test_kernel_is_used():
    if not extension.available():
        pytest.skip("the C++ kernels cannot be built here")
    mask = AttentionMask(4, 3, 4, Direction.TEXT_TO_IMAGE)
    x = paddle.ones([1, 16, 1, 4])
    x.stop_gradient = False
    assert "attention" in sparse_attention(x, x, x, [mask], paddle.ones([1, 16], "bool")).grad_fn.name()
