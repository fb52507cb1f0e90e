"""AdamW, its learning rate over the steps, and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import nn

from ppvilg.checkpoint import Arrays, to_arrays
from ppvilg.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of a step: linear warm-up, then half a cosine from `learning_rate` to `min_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine


class Optimizer:
    """AdamW over one module, with its state under the module's own parameter names."""

    def __init__(self, module: nn.Layer, config: TrainConfig):
        self._clip_norm = config.clip_norm
        self._parameters = {name: p for name, p in module.named_parameters() if not p.stop_gradient}
        decayed = {p.name for p in self._parameters.values() if p.ndim > 1}  # no decay of biases and norms
        self._adam = paddle.optimizer.AdamW(
            learning_rate=config.learning_rate,
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            apply_decay_param_fun=lambda name: name in decayed,
            parameters=list(self._parameters.values()),
        )

    def step(self, rate: float) -> None:
        """Clip the gradients, apply them at a learning rate and drop them."""
        if self._clip_norm:
            clip_gradients(list(self._parameters.values()), self._clip_norm)
        self._adam.set_lr(rate)
        self._adam.step()
        self._adam.clear_grad(set_to_zero=False)

    def drop_gradients(self) -> None:
        """Forget the gradients without applying them."""
        self._adam.clear_grad(set_to_zero=False)

    def state(self) -> Arrays:
        """The moments as `parameter name/moment name`."""
        own_names = {p.name: name for name, p in self._parameters.items()}
        arrays = {}
        for key, tensor in self._adam.state_dict().items():
            if isinstance(tensor, paddle.Tensor):
                parameter, moment = _split_key(key, own_names)
                arrays[f"{own_names[parameter]}/{moment}"] = tensor.numpy()
        return arrays

    def load_state(self, arrays: Arrays) -> None:
        """Take up the moments that `state` gave."""
        state = {}
        for key, array in arrays.items():
            name, _, moment = key.rpartition("/")
            state[f"{self._parameters[name].name}_{moment}"] = paddle.to_tensor(array)
        self._adam.set_state_dict(state)


@paddle.no_grad()
def clip_gradients(parameters: list[paddle.Tensor], limit: float) -> None:
    """Scale all gradients so that their common norm is at most `limit`.

    As nn.ClipGradByGlobalNorm, whose multiplication by a tensor of one value takes a third of AdamW's time on a CPU.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float((gradient * gradient).sum()) for gradient in gradients))
    if norm > limit:
        for gradient in gradients:
            gradient.scale_(limit / norm)


def _split_key(key: str, parameters: dict[str, str]) -> tuple[str, str]:
    """paddle names a moment `{parameter}_{moment}`; both may hold underscores."""
    for end in range(len(key) - 1, 0, -1):
        if key[end] == "_" and key[:end] in parameters:
            return key[:end], key[end + 1 :]
    raise KeyError(key)


class WeightAverage:
    """Exponential moving average of a module's parameters; its buffers are taken as they are.

    The decay grows from 0.1 to `decay`, as min(decay, (1 + step) / (10 + step)), so that the average is of use from the start.
    """

    def __init__(self, module: nn.Layer, decay: float):
        self._module = module
        self._decay = decay
        self._average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Take up the parameters as they are after a step."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._module.named_parameters():
            average = self._average[name]
            average.subtract_((average - parameter).scale_(share))

    def state(self) -> Arrays:
        """A complete state of the module, averaged."""
        return to_arrays(self._module.state_dict() | self._average)

    def load_state(self, arrays: Arrays) -> None:
        """Take up the average that `state` gave."""
        for name in self._average:
            self._average[name] = paddle.to_tensor(arrays[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module has its averaged weights inside this context."""
        own = {name: p.detach().clone() for name, p in self._module.named_parameters()}
        self._set(self._average)
        try:
            yield
        finally:
            self._set(own)

    def _set(self, values: dict[str, paddle.Tensor]) -> None:
        with paddle.no_grad():
            for name, parameter in self._module.named_parameters():
                parameter.set_value(values[name])


def parameter_count(module: nn.Layer) -> int:
    """Number of trainable values."""
    return sum(int(np.prod(p.shape)) for p in module.parameters() if not p.stop_gradient)
