"""The codebook against brute force, numpy and its own promises."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.config import CodebookConfig
from ppvilg.vqgan.quantizer import build_codebook


def rows(grid):
    """[B, C, h, w] -> numpy [B·h·w, C]."""
    return grid.transpose([0, 2, 3, 1]).reshape([-1, grid.shape[1]]).numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 40),
    dim=st.integers(1, 9),
    normalize=st.booleans(),
    scale=st.sampled_from([0.01, 1.0, 10.0]),
    seed=st.integers(0, 10_000),
)
def test_chooses_the_nearest_code(size, dim, normalize, scale, seed):
    paddle.seed(seed)
    codebook = build_codebook(CodebookConfig(size, dim, normalize=normalize))
    codebook.embedding.weight.set_value(paddle.randn([size, dim]) * scale)
    latents = paddle.randn([2, dim, 3, 2]) * scale
    z, codes = rows(latents).astype("float64"), codebook.embedding.weight.numpy().astype("float64")
    if normalize:
        z, codes = unit(z), unit(codes)
    distances = ((z[:, None] - codes[None]) ** 2).sum(-1)
    result = codebook(latents)
    ids = result.ids.numpy().reshape(-1)
    chosen, best = distances[np.arange(len(z)), ids], distances.min(1)
    np.testing.assert_allclose(chosen, best, rtol=1e-4, atol=1e-5 * distances.max())
    np.testing.assert_allclose(rows(result.latents), codes[ids], rtol=1e-4, atol=1e-5 * np.abs(codes).max())
    np.testing.assert_array_equal(codebook.encode(latents).numpy(), result.ids.numpy())
    np.testing.assert_allclose(rows(codebook.embed(result.ids)), codes[ids], rtol=1e-4, atol=1e-6)


def test_shapes_and_dtypes():
    for learning in ("gradient", "ema", "gumbel"):
        result = build_codebook(CodebookConfig(7, 4, learning=learning))(paddle.randn([2, 4, 3, 5]))
        assert (result.latents.shape, result.latents.dtype) == ([2, 4, 3, 5], paddle.float32)
        assert (result.ids.shape, result.ids.dtype) == ([2, 3, 5], paddle.int64)
        assert result.loss.shape == result.perplexity.shape == result.used.shape == []


def test_gradient_passes_straight_through():
    codebook = build_codebook(CodebookConfig(8, 4, commitment=0.0))
    latents = paddle.randn([2, 4, 3, 3])
    latents.stop_gradient = False
    weighting = paddle.randn([2, 4, 3, 3])
    (codebook(latents).latents * weighting).sum().backward()
    np.testing.assert_allclose(latents.grad.numpy(), weighting.numpy(), rtol=1e-6)
    assert codebook.embedding.weight.grad is None or not codebook.embedding.weight.grad.any()


def test_loss_and_its_gradients():
    codebook = build_codebook(CodebookConfig(8, 4, commitment=0.5))
    codebook.embedding.weight.set_value(paddle.randn([8, 4]))
    latents = paddle.randn([2, 4, 3, 3])
    latents.stop_gradient = False
    result = codebook(latents)
    result.loss.backward()
    z, ids, codes = rows(latents), result.ids.numpy().reshape(-1), codebook.embedding.weight.numpy()
    difference = z - codes[ids]
    np.testing.assert_allclose(result.loss.item(), 1.5 * (difference**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(rows(latents.grad), 0.5 * 2 * difference / difference.size, rtol=1e-4, atol=1e-7)
    expected = np.zeros_like(codes)
    np.add.at(expected, ids, -2 * difference / difference.size)
    np.testing.assert_allclose(codebook.embedding.weight.grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_perplexity_and_share_of_used_codes():
    codebook = build_codebook(CodebookConfig(4, 1))
    codebook.embedding.weight.set_value(paddle.to_tensor([[0.0], [1.0], [2.0], [3.0]]))
    result = codebook(paddle.to_tensor([[[[0.1, 0.9], [1.1, 3.2]]]]))
    np.testing.assert_array_equal(result.ids.numpy(), [[[0, 1], [1, 3]]])
    share = np.array([0.25, 0.5, 0.25])
    np.testing.assert_allclose(result.perplexity.item(), np.exp(-(share * np.log(share)).sum()), rtol=1e-5)
    assert result.used.item() == 0.75


def test_moving_averages_follow_vq_vae():
    decay, size, epsilon = 0.9, 6, 1e-5
    codebook = build_codebook(CodebookConfig(size, 3, learning="ema", ema_decay=decay))
    codebook.embedding.weight.set_value(paddle.randn([size, 3]))
    codebook.ema_sums.set_value(codebook.embedding.weight)
    counts, sums = np.ones(size), codebook.embedding.weight.numpy().astype("float64")
    for _ in range(3):
        latents = paddle.randn([2, 3, 4, 4])
        before = codebook.embedding.weight.numpy()
        result = codebook(latents)
        ids, z = result.ids.numpy().reshape(-1), rows(latents)
        one_hot = np.eye(size)[ids]
        counts = decay * counts + (1 - decay) * one_hot.sum(0)
        sums = decay * sums + (1 - decay) * one_hot.T @ z
        smoothed = (counts + epsilon) / (counts.sum() + size * epsilon) * counts.sum()
        np.testing.assert_allclose(codebook.embedding.weight.numpy(), sums / smoothed[:, None], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows(result.latents), before[ids], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result.loss.item(), 0.25 * ((z - before[ids]) ** 2).mean(), rtol=1e-5)
    assert not [p for p in codebook.parameters() if not p.stop_gradient]


def test_nothing_is_learned_in_evaluation():
    codebook = build_codebook(CodebookConfig(6, 3, learning="ema", revive_after=1))
    codebook.eval()
    before = {name: tensor.numpy() for name, tensor in codebook.state_dict().items()}
    codebook(paddle.randn([2, 3, 4, 4]))
    for name, tensor in codebook.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_dead_codes_are_revived(learning):
    """Codes 2 and 3 are far from everything: after three unused steps they become latents of the third batch."""
    codebook = build_codebook(CodebookConfig(4, 2, learning=learning, revive_after=3))
    start = paddle.to_tensor([[0.0, 0.0], [1.0, 1.0], [90.0, 90.0], [-90.0, 90.0]])
    codebook.embedding.weight.set_value(start)
    if learning == "ema":
        codebook.ema_sums.set_value(start)
    batch = paddle.tile(paddle.to_tensor([0.1, 0.9]), [8]).reshape([1, 1, 4, 4]).tile([1, 2, 1, 1])
    for step in range(3):
        assert np.abs(codebook.embedding.weight.numpy()[2:]).min() > 80, step
        codebook(batch)
    revived = codebook.embedding.weight.numpy()[2:]
    latents = rows(batch)
    for code in revived:
        assert np.abs(latents - code).sum(1).min() < 1e-6
    np.testing.assert_array_equal(codebook.idle.numpy(), [0, 0, 0, 0])
    if learning == "ema":
        np.testing.assert_array_equal(codebook.ema_counts.numpy()[2:], [1, 1])
        np.testing.assert_array_equal(codebook.ema_sums.numpy()[2:], revived)


def test_revival_repeats_under_a_seed_and_continues_from_a_state_dict():
    config = CodebookConfig(64, 4, revive_after=2)
    batches = [np.random.default_rng(i).normal(size=[1, 4, 4, 4]).astype("float32") for i in range(4)]

    def run(codebook, some):
        for batch in some:
            codebook(paddle.to_tensor(batch))
        return codebook

    paddle.seed(5)
    once = run(build_codebook(config), batches).embedding.weight.numpy()
    paddle.seed(5)
    half = run(build_codebook(config), batches[:1])
    assert half.state_dict()["idle"].sum() > 0
    other = build_codebook(config)
    other.set_state_dict(half.state_dict())
    paddle.seed(6)
    expected = run(half, batches[1:]).embedding.weight.numpy()
    paddle.seed(6)
    np.testing.assert_array_equal(run(other, batches[1:]).embedding.weight.numpy(), expected)
    paddle.seed(5)
    np.testing.assert_array_equal(run(build_codebook(config), batches).embedding.weight.numpy(), once)


def test_gumbel_kl_and_evaluation():
    codebook = build_codebook(CodebookConfig(5, 3, learning="gumbel", kl_weight=0.1))
    codebook.eval()
    latents = paddle.randn([2, 3, 2, 2])
    result = codebook(latents)
    logits = rows(latents) @ codebook.proj.weight.numpy().reshape(5, 3).T + codebook.proj.bias.numpy()
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(result.loss.item(), 0.1 * (share * np.log(share * 5)).sum(1).mean(), rtol=1e-4)
    np.testing.assert_array_equal(result.ids.numpy().reshape(-1), logits.argmax(1))
    np.testing.assert_array_equal(codebook.encode(latents).numpy(), result.ids.numpy())
    np.testing.assert_allclose(result.latents.numpy(), codebook.embed(result.ids).numpy())


def test_gumbel_samples_by_the_softmax_and_learns():
    paddle.seed(0)
    codebook = build_codebook(CodebookConfig(3, 3, learning="gumbel"))
    logits = np.log([0.2, 0.5, 0.3]).astype("float32")
    codebook.proj.weight.set_value(paddle.zeros([3, 3, 1, 1]))
    codebook.proj.bias.set_value(paddle.to_tensor(logits))
    result = codebook(paddle.zeros([1, 3, 60, 60]))
    counts = np.bincount(result.ids.numpy().reshape(-1), minlength=3) / 3600
    np.testing.assert_allclose(counts, [0.2, 0.5, 0.3], atol=0.03)
    np.testing.assert_allclose(result.latents.numpy(), codebook.embed(result.ids).numpy(), atol=1e-5)
    result.latents.sum().backward()
    # The gradient of the softmax at temperature 1, which averages p_k (v_k - Σ p v) over the samples' noise.
    assert codebook.proj.bias.grad.abs().min() > 1
    assert codebook.embedding.weight.grad.abs().sum() > 0
