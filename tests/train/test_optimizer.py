"""Learning rate, AdamW and the average of the weights."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from ppvilg.checkpoint import CheckpointReader, save_shards
from ppvilg.config import ParallelConfig, TrainConfig
from ppvilg.train.context import ParallelContext
from ppvilg.train.ema import EMA
from ppvilg.train.fleet import DistributedModel, distribute
from ppvilg.train.optimizer import build_optimizer, build_schedule, learning_rate

CONSTANT = TrainConfig(steps=10**9, warmup_steps=0, learning_rate=0.01)


def test_learning_rate_warms_up_and_follows_half_a_cosine():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.2)
    expected = np.arange(1, 11) / 10, 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose([learning_rate(config, step) for step in range(110)], np.concatenate(expected))


def test_the_optimizer_follows_the_schedule():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)
    schedule = build_schedule(config)
    optimizer = build_optimizer(nn.Linear(3, 2), config, schedule)
    for step in (3, 50, 7):
        schedule.step(step)
        assert optimizer.get_lr() == learning_rate(config, step)


def distributed(module: nn.Layer, config: TrainConfig) -> DistributedModel:
    optimizer = build_optimizer(module, config, build_schedule(config))
    return distribute(module, optimizer, ParallelConfig(), ParallelContext())


def train(model: DistributedModel, steps: int) -> None:
    for step in range(steps):
        model.backward((model(paddle.full([2, 3], 0.5 + step)) ** 2).sum())
        model.step()


def numpy_adamw(w, gradients, config, decay):
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = config.beta1 * m + (1 - config.beta1) * g, config.beta2 * v + (1 - config.beta2) * g * g
        rate = m / (1 - config.beta1**t) / (np.sqrt(v / (1 - config.beta2**t)) + config.epsilon)
        w = w - 0.01 * decay * w - 0.01 * rate
    return w


def test_adamw_decays_matrices_only():
    config = replace(CONSTANT, weight_decay=0.1, clip_norm=0.0)
    module = nn.Linear(3, 2)
    before = {name: p.numpy() for name, p in module.named_parameters()}
    model = distributed(module, config)
    model.backward(model(paddle.ones([2, 3])).sum())
    model.step()
    ones = np.full((3, 2), 2.0)
    np.testing.assert_allclose(module.weight.numpy(), numpy_adamw(before["weight"], [ones], config, 0.1), atol=1e-6)
    np.testing.assert_allclose(module.bias.numpy(), numpy_adamw(before["bias"], [ones[0]], config, 0.0), atol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    config = replace(CONSTANT, learning_rate=1.0, clip_norm=1e-3, beta1=0.0, beta2=0.0, epsilon=1.0, weight_decay=0.0)
    module = nn.Linear(3, 2)
    before = module.weight.numpy()
    model = distributed(module, config)
    model.backward(model(paddle.ones([2, 3])).sum())
    model.step()
    clipped = 1e-3 / np.sqrt(8 * 2.0**2) * 2.0  # eight gradients of 2: six weights, two biases
    np.testing.assert_allclose(before - module.weight.numpy(), clipped / (clipped + 1), rtol=1e-3)


def test_state_continues_exactly(tmp_path):
    paddle.seed(1)
    straight = distributed(nn.Linear(3, 2), CONSTANT)
    train(straight, 3)
    weights, state = {k: v.numpy() for k, v in straight.module.state_dict().items()}, straight.state.optimizer_shards()
    assert {name.rpartition("/")[0] for name in state} == {"weight", "bias"}
    save_shards(state, tmp_path, "optimizer")
    train(straight, 2)
    module = nn.Linear(3, 2)
    module.set_state_dict(weights)
    resumed = distributed(module, CONSTANT)
    resumed.state.load_optimizer(CheckpointReader(tmp_path, "optimizer"))
    train(resumed, 2)
    np.testing.assert_array_equal(module.weight.numpy(), straight.module.weight.numpy())


def test_average_against_numpy_and_applying_it():
    module = nn.Linear(2, 2)
    average = EMA(distributed(module, CONSTANT).state, 0.5)
    expected = module.weight.numpy()
    for step in range(4):
        module.weight.set_value(paddle.full([2, 2], float(step)))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        np.testing.assert_allclose(module.weight.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(module.weight.numpy(), np.full((2, 2), 3.0))
    assert average.shards()["weight"].array == pytest.approx(expected, rel=1e-6)


def test_the_loss_scale_is_kept(monkeypatch):
    """paddle makes none on a CPU: let it take this one for a GPU."""
    gpu = SimpleNamespace(_expected_place=SimpleNamespace(is_gpu_place=lambda: True))
    monkeypatch.setattr("paddle.amp.grad_scaler._dygraph_tracer", lambda: gpu)
    module = nn.Linear(3, 2)
    plain = distributed(module, CONSTANT)
    assert plain.loss_scale() == {}
    first, second = (
        DistributedModel(module, module, None, paddle.amp.GradScaler(init_loss_scaling=scale), plain.state, "fp16")
        for scale in (8.0, 2.0)
    )
    state = json.loads(json.dumps(first.loss_scale()))
    assert state["scale"] == [8.0]
    second.load_loss_scale(state)
    assert second.loss_scale() == first.loss_scale()
    plain.load_loss_scale(state)
