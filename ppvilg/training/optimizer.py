"""AdamW, its learning rate over the steps, and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import nn

from ppvilg.checkpoint import Piece, Stored
from ppvilg.config import ParallelConfig, TrainConfig
from ppvilg.parallel.sharding import Sharding
from ppvilg.parallel.topology import Topology
from ppvilg.transformer.layers import at_least_float32


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of a step: linear warm-up, then half a cosine from `learning_rate` to `min_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine


class Optimizer:
    """AdamW over one module's parameters, of which each process updates its own, with state under the parameters' names."""

    def __init__(
        self, module: nn.Layer, config: TrainConfig, parallel: ParallelConfig | None = None, topology: Topology | None = None
    ):
        parallel = parallel or ParallelConfig()
        self.sharding = Sharding(module, topology or Topology(), parallel.sharding_stage)
        self._clip_norm = config.clip_norm
        self.loss_scale = LossScale(fixed=parallel.precision != "fp16")
        own = self.sharding.own
        self._apart = parallel.precision != "fp32" or parallel.offload
        self.weights = {name: _apart(p, parallel.offload) for name, p in own.items()} if self._apart else own
        """What is updated: the own parameters, or float32 copies of them where those are not float32 or not in that memory."""
        decayed = {self.weights[name].name for name, p in own.items() if p.ndim > 1}  # no decay of biases and norms
        self._adam = paddle.optimizer.AdamW(
            learning_rate=config.learning_rate,
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            apply_decay_param_fun=lambda name: name in decayed,
            parameters=list(self.weights.values()),
        )

    @paddle.no_grad()
    def step(self, rate: float) -> None:
        """Make the gradients common, clip them, apply them at a learning rate and drop them."""
        sharding = self.sharding
        sharding.reduce_gradients()
        gradients = [p.grad for p in sharding.own.values() if p.grad is not None]
        scale = 1 / self.loss_scale.value
        if self._clip_norm or not self.loss_scale.fixed:
            norm = self._norm() * scale
            if self.loss_scale.overflowed(norm):
                return self.drop_gradients()
            if self._clip_norm and norm > self._clip_norm:
                scale *= self._clip_norm / norm
        if scale != 1:
            for gradient in gradients:
                gradient.scale_(scale)
        if self._apart:
            for name, p in sharding.own.items():
                weight = self.weights[name]
                weight.grad = None if p.grad is None else p.grad.astype("float32").to(weight.place)
        self._adam.set_lr(rate)
        self._adam.step()
        self._adam.clear_grad(set_to_zero=False)
        self.drop_gradients()
        self.publish(self.weights)

    def drop_gradients(self) -> None:
        """Forget the gradients without applying them."""
        for p in self.sharding.parameters.values():
            p.clear_gradient(False)  # paddle ignores the argument's name: set_to_zero

    @paddle.no_grad()
    def publish(self, values: dict[str, paddle.Tensor]) -> None:
        """Give every process the parameters with these values of its own, which may be `weights`."""
        for name, p in self.sharding.own.items():
            if values[name] is not p:
                p.set_value(values[name].astype(p.dtype).to(p.place))
        self.sharding.spread()

    def state(self) -> dict[str, Piece]:
        """What this process keeps for the checkpoint: the moments as `parameter name/moment name`."""
        own_names = {weight.name: name for name, weight in self.weights.items()}
        counted, pieces = self.sharding.counted, {}
        for key, tensor in self._adam.state_dict().items():
            if isinstance(tensor, paddle.Tensor):
                weight, moment = _split_key(key, own_names)
                name = own_names[weight]
                if name in counted:
                    cut = tensor.shape == self.weights[name].shape
                    pieces[f"{name}/{moment}"] = self.piece(name, tensor) if cut else Piece.whole(tensor.numpy())
        if not self.loss_scale.fixed:
            pieces["loss_scale"] = Piece.whole(self.loss_scale.state())
        return pieces

    def load_state(self, stored: Stored) -> None:
        """Take up what all processes' `state` wrote, in whatever layout."""
        state = {}
        for key, shape in stored.shapes.items():
            name, _, moment = key.rpartition("/")
            if name in self.weights:
                like = self.piece(name, self.weights[name])
                array = stored.like(like, key) if shape == like.shape else stored.read(key)
                state[f"{self.weights[name].name}_{moment}"] = paddle.to_tensor(array)
        self._adam.set_state_dict(state)
        if not self.loss_scale.fixed and "loss_scale" in stored.shapes:
            self.loss_scale.load_state(stored.read("loss_scale"))

    def module_state(self, module: nn.Layer, values: dict[str, paddle.Tensor]) -> dict[str, Piece]:
        """What this process keeps of the module for the checkpoint: `values` of its own parameters, and what is not trained."""
        pieces = {name: self.piece(name, values[name]) for name in self.sharding.counted}
        topology = self.sharding.topology
        if topology.sharding.rank == topology.mp.rank == 0:
            pieces |= {name: Piece.whole(tensor.numpy()) for name, tensor in self._untrained(module).items()}
        return pieces

    @paddle.no_grad()
    def load_module(self, module: nn.Layer, stored: Stored) -> None:
        """Take up what all processes' `module_state` wrote, in whatever layout."""
        for name, weight in self.weights.items():
            weight.set_value(stored.like(self.piece(name, weight), name))
        for name, tensor in self._untrained(module).items():
            tensor.set_value(stored.like(Piece.whole(tensor.numpy()), name))
        self.publish(self.weights)

    def _untrained(self, module: nn.Layer) -> dict[str, paddle.Tensor]:
        return {name: tensor for name, tensor in module.state_dict().items() if name not in self.sharding.parameters}

    def piece(self, name: str, tensor: paddle.Tensor) -> Piece:
        """The part of a parameter, or of what has its shape, that this process holds."""
        p = self.sharding.parameters[name]
        return Piece.cut(tensor.numpy(), getattr(p, "split_dim", None), self.sharding.topology.mp)

    def _norm(self) -> float:
        """Of all gradients together: every value of the model is counted once."""
        counted = (at_least_float32(p.grad) for p in self.sharding.counted.values() if p.grad is not None)
        square = sum(float((gradient * gradient).sum()) for gradient in counted)
        total = paddle.to_tensor([square], dtype="float64")
        topology = self.sharding.topology
        for axis in (topology.mp, topology.pp, topology.sharding):
            axis.sum_(total)
        return math.sqrt(total.item())


def _apart(p: paddle.Tensor, on_cpu: bool) -> paddle.Tensor:
    """A float32 parameter with the same values, in the CPU's memory or on the same device."""
    copy = p.detach().astype("float32").clone()
    copy = copy.cpu() if on_cpu else copy
    copy.stop_gradient = False
    return copy


class LossScale:
    """What the loss is multiplied by so that float16 gradients do not vanish (Micikevicius et al. 2018); 1 where it is fixed.

    An overflow halves it and skips the step; after `patience` steps without one it doubles.
    """

    def __init__(self, fixed: bool, first: float = 2.0**16, patience: int = 2000):
        self.fixed = fixed
        self.value = 1.0 if fixed else first
        self._patience = patience
        self._good = 0

    def overflowed(self, norm: float) -> bool:
        """Whether a step with this gradient norm has to be skipped."""
        if self.fixed:
            return False
        if not math.isfinite(norm):
            self.value, self._good = self.value / 2, 0
            return True
        self._good += 1
        if self._good == self._patience:
            self.value, self._good = self.value * 2, 0
        return False

    def state(self) -> np.ndarray:
        """Float64 [2]."""
        return np.array([self.value, self._good])

    def load_state(self, state: np.ndarray) -> None:
        """Take up what `state` gave."""
        self.value, self._good = float(state[0]), int(state[1])


def _split_key(key: str, parameters: dict[str, str]) -> tuple[str, str]:
    """paddle names a moment `{parameter}_{moment}`; both may hold underscores."""
    for end in range(len(key) - 1, 0, -1):
        if key[end] == "_" and key[:end] in parameters:
            return key[:end], key[end + 1 :]
    raise KeyError(key)


class WeightAverage:
    """Exponential moving average of the weights that an optimizer updates.

    The decay grows from 0.1 to `decay`, as min(decay, (1 + step) / (10 + step)), so that the average is of use from the start.
    """

    def __init__(self, optimizer: Optimizer, decay: float):
        self._optimizer = optimizer
        self._decay = decay
        self.values = {name: weight.detach().clone() for name, weight in optimizer.weights.items()}

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights as they are after a step."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, weight in self._optimizer.weights.items():
            average = self.values[name]
            average.subtract_((average - weight).scale_(share))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module has its averaged weights inside this context."""
        optimizer = self._optimizer
        own = {name: weight.detach().clone() for name, weight in optimizer.weights.items()}
        optimizer.publish(self.values)
        try:
            yield
        finally:
            optimizer.publish(own)


def parameter_count(module: nn.Layer) -> int:
    """Number of trainable values."""
    return sum(int(np.prod(p.shape)) for p in module.parameters() if not p.stop_gradient)
