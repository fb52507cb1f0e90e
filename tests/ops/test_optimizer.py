"""AdamW, clipping and averaging against paddle's."""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from ppvilg import ops
from ppvilg.ops import extension


@pytest.fixture(autouse=True)
def _kernels():
    if not extension.available():
        pytest.skip("the C++ kernels cannot be built here")


def draw(*shape: int, seed: int = 0) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


class Model(nn.Layer):
    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.layers = nn.Sequential(nn.Linear(40, 301), nn.LayerNorm(301), nn.GELU(), nn.Linear(301, 7))
        self.unused = nn.Linear(2, 2)
        self.free = self.create_parameter([7])
        self.free.need_clip = False

    def forward(self, x):
        return F.mse_loss(self.layers(x) + self.free, 30 * x[:, :7])


def trained(optimizer, clip, groups: bool, steps: int = 5, model=None, state=None):
    model = model or Model()
    named = dict(model.named_parameters())
    matrices = [p for p in named.values() if p.ndim > 1]
    decayed = {p.name for p in matrices}
    parameters = list(named.values())
    if groups:
        others = [p for p in parameters if p.ndim <= 1]
        parameters = [
            {"params": matrices, "weight_decay": 0.3, "learning_rate": 0.5},
            {"params": others, "weight_decay": 0.0, "beta1": 0.8},
        ]
    rate = paddle.optimizer.lr.LinearWarmup(0.01, 4, 0.001, 0.01)
    made = optimizer(
        learning_rate=rate,
        beta2=0.95,
        epsilon=1e-6,
        weight_decay=0.1,
        parameters=parameters,
        grad_clip=clip,
        apply_decay_param_fun=None if groups else lambda name: name in decayed,
    )
    if state:
        made.set_state_dict(state)
    for step in range(steps):
        model(draw(8, 40, seed=step)).backward()
        made.step()
        made.clear_grad()
        rate.step()
    places = {p.name: name for name, p in named.items()}
    arrays = {name: p.numpy() for name, p in named.items()}
    for key, value in made.state_dict().items():
        if isinstance(value, paddle.Tensor):
            weight = next(name for name in sorted(places, key=len, reverse=True) if key.startswith(name))
            arrays[places[weight] + key.removeprefix(weight)] = value.numpy()
    return arrays, made.state_dict()


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
@pytest.mark.parametrize("groups", [False, True])
def test_adamw(clip_norm, groups):
    theirs, _ = trained(paddle.optimizer.AdamW, clip_norm and nn.ClipGradByGlobalNorm(clip_norm), groups)
    ours, _ = trained(ops.AdamW, clip_norm and ops.ClipGradByGlobalNorm(clip_norm), groups)
    assert ours.keys() == theirs.keys()
    assert "layers.0.weight_moment2_0" in ours
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=3e-7, err_msg=name)


def test_paddles_state_continues_in_ours():
    with paddle.utils.unique_name.guard():
        before, state = trained(paddle.optimizer.AdamW, None, False)
    after = []
    for optimizer in (paddle.optimizer.AdamW, ops.AdamW):
        with paddle.utils.unique_name.guard():  # the state's names are those of the parameters, which are counted
            model = Model()
            for name, p in model.named_parameters():
                p.set_value(before[name])
            after.append(trained(optimizer, None, False, 3, model, state)[0])
    theirs, ours = after
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=3e-7, err_msg=name)


def test_float64_weights_are_updated_by_paddle():
    results = []
    for optimizer in (ops.AdamW, paddle.optimizer.AdamW):
        weight = paddle.create_parameter([5], "float64", default_initializer=nn.initializer.Constant(1.0))
        (weight * weight).sum().backward()
        optimizer(parameters=[weight]).step()
        results.append(weight.numpy())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squared_sum(dtype):
    tensors = [draw(*shape, seed=i).astype(dtype) for i, shape in enumerate([(3,), (70, 1000), (), (1, 2, 3)])]
    found = ops.squared_sum(tensors)
    assert (found.shape, found.dtype) == ([], paddle.float32)
    np.testing.assert_allclose(found.item(), sum((t.numpy().astype("float64") ** 2).sum() for t in tensors), rtol=1e-5)


def test_squared_sum_of_what_is_not_finite():
    for value in (np.inf, np.nan):
        assert not np.isfinite(ops.squared_sum([draw(5), paddle.to_tensor([1.0, value])]).item())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lerp(dtype):
    shapes = [(3,), (70, 1000), (1,)]
    tensors = [draw(*shape, seed=i).astype(dtype) for i, shape in enumerate(shapes)]
    others = [draw(*shape, seed=9 + i).astype(dtype) for i, shape in enumerate(shapes)]
    others[0].stop_gradient = False  # weights are
    expected = [t.numpy() + 0.25 * (o.numpy() - t.numpy()) for t, o in zip(tensors, others, strict=True)]
    ops.lerp_(tensors, others, 0.25)
    for tensor, array in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-6, atol=1e-7)
