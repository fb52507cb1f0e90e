"""Learning rate, AdamW's state under our names, the average of the weights."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppvilg.checkpoint import Stored, save_pieces
from ppvilg.config import ParallelConfig, TrainConfig
from ppvilg.training.optimizer import LossScale, Optimizer, WeightAverage, learning_rate


def test_learning_rate_warms_up_and_follows_half_a_cosine():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.2)
    rates = [learning_rate(config, step) for step in range(110)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(100) / 100)) / 2)


def train(module: nn.Layer, optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        (module(paddle.full([2, 3], 0.5 + step)) ** 2).sum().backward()
        optimizer.step(0.01)


def numpy_adamw(w, gradients, config, decay):
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = config.beta1 * m + (1 - config.beta1) * g, config.beta2 * v + (1 - config.beta2) * g * g
        rate = m / (1 - config.beta1**t) / (np.sqrt(v / (1 - config.beta2**t)) + config.epsilon)
        w = w - 0.01 * decay * w - 0.01 * rate
    return w


def test_adamw_decays_matrices_only():
    config = TrainConfig(weight_decay=0.1, clip_norm=0.0)
    module = nn.Linear(3, 2)
    before = {name: p.numpy() for name, p in module.named_parameters()}
    optimizer = Optimizer(module, config)
    module(paddle.ones([2, 3])).sum().backward()
    optimizer.step(0.01)
    ones = np.full((3, 2), 2.0)
    np.testing.assert_allclose(module.weight.numpy(), numpy_adamw(before["weight"], [ones], config, 0.1), atol=1e-6)
    np.testing.assert_allclose(module.bias.numpy(), numpy_adamw(before["bias"], [ones[0]], config, 0.0), atol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    config = TrainConfig(clip_norm=1e-3, beta1=0.0, beta2=0.0, epsilon=1.0, weight_decay=0.0)
    module = nn.Linear(3, 2)
    before = module.weight.numpy()
    optimizer = Optimizer(module, config)
    module(paddle.ones([2, 3])).sum().backward()
    optimizer.step(1.0)
    clipped = 1e-3 / np.sqrt(8 * 2.0**2) * 2.0  # eight gradients of 2: six weights, two biases
    np.testing.assert_allclose(before - module.weight.numpy(), clipped / (clipped + 1), rtol=1e-3)


def test_state_continues_exactly(tmp_path):
    config = TrainConfig(clip_norm=1.0)
    paddle.seed(1)
    straight = nn.Linear(3, 2)
    optimizer = Optimizer(straight, config)
    train(straight, optimizer, 3)
    weights, state = {k: v.numpy() for k, v in straight.state_dict().items()}, optimizer.state()
    assert {name.rpartition("/")[0] for name in state} == {"weight", "bias"}
    train(straight, optimizer, 2)
    resumed = nn.Linear(3, 2)
    resumed.set_state_dict(weights)
    again = Optimizer(resumed, config)
    save_pieces(state, tmp_path, "optimizer", 0, 1)
    again.load_state(Stored(tmp_path, "optimizer"))
    train(resumed, again, 2)
    np.testing.assert_array_equal(resumed.weight.numpy(), straight.weight.numpy())


def test_average_against_numpy_and_swapping():
    module = nn.Linear(2, 2)
    optimizer = Optimizer(module, TrainConfig())
    average = WeightAverage(optimizer, 0.5)
    expected = module.weight.numpy()
    for step in range(4):
        module.weight.set_value(paddle.full([2, 2], float(step)))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.swapped_in():
        np.testing.assert_allclose(module.weight.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(module.weight.numpy(), np.full((2, 2), 3.0))
    assert average.values["weight"].numpy() == pytest.approx(expected, rel=1e-6)


def test_an_overflow_skips_the_step_and_halves_the_loss_scale():
    module = nn.Linear(3, 2)
    optimizer = Optimizer(module, TrainConfig())
    optimizer.loss_scale = LossScale(fixed=False, first=8.0, patience=2)
    before = module.weight.numpy()
    (module(paddle.full([2, 3], 1e30)) ** 2).sum().backward()
    optimizer.step(0.01)
    np.testing.assert_array_equal(module.weight.numpy(), before)
    assert optimizer.loss_scale.value == 4.0
    assert module.weight.grad is None
    values = []
    for _ in range(4):
        (module(paddle.ones([2, 3])).sum() * optimizer.loss_scale.value).backward()
        optimizer.step(0.01)
        values.append(optimizer.loss_scale.value)
    assert values == [4.0, 8.0, 8.0, 16.0]


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_the_loss_scale_does_not_change_the_step(clip):
    results = []
    for scale in (1.0, 1024.0):
        paddle.seed(3)
        module = nn.Linear(3, 2)
        optimizer = Optimizer(module, TrainConfig(clip_norm=clip))
        optimizer.loss_scale = LossScale(fixed=False, first=scale)
        ((module(paddle.ones([2, 3])) ** 2).sum() * scale).backward()
        optimizer.step(0.01)
        results.append(module.weight.numpy())
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_loss_scale_and_moments_on_the_cpu_are_kept(tmp_path):
    """With offload the optimizer works on copies of the weights, which the module follows."""
    plain, offloaded = [], []
    for kept, parallel in ((plain, ParallelConfig()), (offloaded, ParallelConfig(offload=True))):
        paddle.seed(3)
        module = nn.Linear(3, 2)
        optimizer = Optimizer(module, TrainConfig(), parallel)
        train(module, optimizer, 2)
        save_pieces(optimizer.state(), tmp_path, f"optimizer{parallel.offload}", 0, 1)
        kept += [module.weight.numpy(), module.bias.numpy()]
        assert (optimizer.weights["weight"] is module.weight) is not parallel.offload
    np.testing.assert_array_equal(plain[0], offloaded[0])
    np.testing.assert_array_equal(plain[1], offloaded[1])
    a, b = (Stored(tmp_path, f"optimizer{offload}").all() for offload in (False, True))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
