"""LoRA (Hu et al. 2021): low-rank updates ΔW = alpha/rank · A B, trained in place of the matrices W of a frozen model.

Training computes x W + x ΔW. For everything else the updates are added to the weights once, so that a model with an adapter
generates and is exported like any other.
"""

import zlib
from collections.abc import Mapping

import numpy as np
import paddle
from paddle import nn

from ppvilg.config import LoRAConfig
from ppvilg.model.layers import Linear
from ppvilg.model.vilg import ViLG

_PARTS = {name: f"attention.{name}" for name in ("query", "key", "value", "out")} | {"up": "mlp.up", "down": "mlp.down"}
_HEADS = ("head.text", "head.image")


class LoRA(nn.Layer):
    """x -> x ΔW with ΔW = scaling · A B; A float [in, rank], B float [rank, out], both 0 until they are set."""

    def __init__(self, inputs: int, outputs: int, rank: int, scaling: float):
        super().__init__()
        self.scaling = scaling
        zero = nn.initializer.Constant(0.0)
        self.a = self.create_parameter([inputs, rank], default_initializer=zero)
        self.b = self.create_parameter([rank, outputs], default_initializer=zero)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[..., in] -> [..., out]."""
        return paddle.matmul(paddle.matmul(x, self.a) * self.scaling, self.b)

    def delta(self) -> paddle.Tensor:
        """ΔW [in, out]."""
        return paddle.matmul(self.a, self.b) * self.scaling


def target_names(config: LoRAConfig, layers: int) -> list[str]:
    """The names, in a `ViLG` of so many layers, of the linear layers that an adapter updates."""
    chosen = range(layers) if config.layers is None else sorted(set(config.layers))
    names = [f"blocks.{i}.{_PARTS[target]}" for i in chosen for target in config.targets if target in _PARTS]
    return names + list(_HEADS if "head" in config.targets else ())


@paddle.no_grad()
def add_lora(model: ViLG, config: LoRAConfig, seed: int) -> dict[str, paddle.Tensor]:
    """Give a model low-rank updates, which change nothing yet, and freeze all else: what the model's `state_dict` and its
    parameters hold from then on are the updates alone, as `blocks.0.attention.query.lora.a`.

    Returns the frozen weights by name. A is drawn from N(0, 1/in), by the seed and the name alone; B is 0.
    """
    layers, frozen = dict(model.named_sublayers(include_self=True)), {}
    for key in model.state_dict():
        path, _, name = key.rpartition(".")
        frozen[key] = getattr(layers[path], name).detach()
        delattr(layers[path], name)
        layers[path].register_buffer(name, frozen[key], persistable=False)
    for name in target_names(config, model.config.layers):
        linear: Linear = layers[name]
        inputs, outputs = linear.weight.shape
        linear.lora = LoRA(inputs, outputs, config.rank, config.alpha / config.rank)
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        linear.lora.a.set_value(generator.standard_normal([inputs, config.rank], np.float32) * np.float32(inputs**-0.5))
    return frozen


def weight_updates(config: LoRAConfig, arrays: Mapping[str, np.ndarray], scale: float = 1.0) -> dict[str, np.ndarray]:
    """scale · ΔW float32 [in, out] by the name of the weight that it is added to, from an adapter's arrays."""
    factor = np.float32(scale * config.alpha / config.rank)
    names = [name.removesuffix(".lora.a") for name in arrays if name.endswith(".lora.a")]
    return {f"{name}.weight": factor * (arrays[f"{name}.lora.a"] @ arrays[f"{name}.lora.b"]) for name in names}


@paddle.no_grad()
def merge_lora(model: ViLG, config: LoRAConfig, arrays: Mapping[str, np.ndarray], scale: float = 1.0) -> None:
    """Add an adapter's updates, times `scale`, to the weights of a model that has none itself; each keeps its precision."""
    weights = model.state_dict()
    for name, update in weight_updates(config, arrays, scale).items():
        weights[name].set_value((weights[name].astype("float32") + paddle.to_tensor(update)).astype(weights[name].dtype))


def lora_layers(
    model: ViLG, config: LoRAConfig, arrays: Mapping[str, np.ndarray], scale: float = 1.0
) -> list[tuple[Linear, LoRA]]:
    """The linear layers that an adapter updates, each with its update, in the precision of its weights; the model stays as it
    is."""
    layers, found = dict(model.named_sublayers(include_self=True)), []
    for name in target_names(config, model.config.layers):
        linear: Linear = layers[name]
        lora = LoRA(*linear.weight.shape, config.rank, scale * config.alpha / config.rank)
        lora.astype(linear.weight.dtype)
        for key in ("a", "b"):
            getattr(lora, key).set_value(paddle.to_tensor(arrays[f"{name}.lora.{key}"]).astype(linear.weight.dtype))
        found.append((linear, lora))
    return found
