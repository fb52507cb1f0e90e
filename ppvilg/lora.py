"""Adapters (LoRA) as folders of their own, a few megabytes that are loaded onto the model that they were trained on.

adapter/
  config.json            rank, alpha, targets; shapes and checksum of the weights that it belongs to
  model.safetensors      A and B of each target, as blocks.0.attention.query.lora.a
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle

from ppvilg import checkpoint
from ppvilg.checkpoint import Arrays
from ppvilg.config import LoRAConfig
from ppvilg.folder import WEIGHTS, AdapterConfig, base_file, read_config, write_config
from ppvilg.model.attention import ABSORBED
from ppvilg.model.kv_cache import DecodeInputs, Prefix
from ppvilg.model.lora import lora_layers, merge_lora, target_names
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG

ADAPTER = "adapter"
"""Where a run that trains an adapter keeps it."""


def adapter_config(config: LoRAConfig, base: Mapping[str, paddle.Tensor]) -> AdapterConfig:
    """What an adapter's folder says of an adapter to a model with such weights."""
    return AdapterConfig(config, weights_checksum(base), {name: list(weight.shape) for name, weight in base.items()})


def save_adapter(config: AdapterConfig, arrays: Arrays, folder: Path) -> None:
    """Write an adapter, or newer updates of the same one: the weights come last, whole or not at all."""
    folder.mkdir(exist_ok=True)
    write_config(config, folder)
    checkpoint.save_arrays(arrays, folder / WEIGHTS)


def load_adapter(folder: str | Path) -> tuple[AdapterConfig, Arrays]:
    """An adapter's folder, or a run that trains one: its newest checkpoint's. Raises `ValueError` for anything else."""
    folder = Path(folder)
    own = base_file(folder) is not None
    config = read_config(folder / ADAPTER if own else folder, AdapterConfig)
    path = checkpoint.weights_file(folder)
    arrays = checkpoint.load_arrays(path)
    shapes = {}
    for name in target_names(config.lora, _layers(config)):
        inputs, outputs = config.base_shapes[f"{name}.weight"]
        shapes |= {f"{name}.lora.a": [inputs, config.lora.rank], f"{name}.lora.b": [config.lora.rank, outputs]}
    checkpoint.check_weights(arrays, shapes, str(path))
    return config, arrays


def apply_adapter(model: ViLG, folder: str | Path, scale: float = 1.0) -> None:
    """Add the updates of an adapter's folder, `scale` times, to a model's weights.

    Raises `ValueError` where the adapter belongs to a model with other shapes; weights of the same shapes that are not those it
    was trained on are a warning.
    """
    config, arrays = _fitting_adapter(model, folder)
    merge_lora(model, config.lora, arrays, scale)


class AdaptedModel:
    """A model with an adapter's updates, for generation: it computes x W + scale · x ΔW, and shares W with the model and with
    other adapters of it. Not for several threads at once.

    Raises `ValueError` as `apply_adapter` does.
    """

    def __init__(self, model: ViLG, folder: str | Path, scale: float = 1.0):
        config, arrays = _fitting_adapter(model, folder)
        self.config, self.reconstructor, self._model = model.config, model.reconstructor, model
        self._updates = lora_layers(model, config.lora, arrays, scale)
        self._absorbed = [(block.attention, dict.fromkeys(ABSORBED)) for block in model.blocks]

    def prefill(self, direction: Direction, ids: paddle.Tensor, mask: paddle.Tensor) -> tuple[paddle.Tensor, list[Prefix]]:
        """As `ViLG.prefill`."""
        with self._updated():
            return self._model.prefill(direction, ids, mask)

    def decode_step(self, direction: Direction, inputs: DecodeInputs) -> paddle.Tensor:
        """As `ViLG.decode_step`."""
        with self._updated():
            return self._model.decode_step(direction, inputs)

    def image_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """As `ViLG.image_logits`."""
        with self._updated():
            return self._model.image_logits(states)

    def text_logits(self, states: paddle.Tensor) -> paddle.Tensor:
        """As `ViLG.text_logits`."""
        with self._updated():
            return self._model.text_logits(states)

    @contextmanager
    def _updated(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Put the updates into the model or take them out, and with them what its last prefill worked out of its weights."""
        for linear, update in self._updates:
            linear.lora = update if linear.lora is None else None
        for attention, own in self._absorbed:
            for name, tensor in own.items():
                own[name] = getattr(attention, name, None)
                attention.register_buffer(name, tensor, persistable=False)


def _fitting_adapter(model: ViLG, folder: str | Path) -> tuple[AdapterConfig, Arrays]:
    config, arrays = load_adapter(folder)
    weights = model.state_dict()
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    for name in sorted(shapes.keys() | config.base_shapes.keys()):
        here, there = shapes.get(name), config.base_shapes.get(name)
        if here != there:
            said = f"its {name} is {there or 'not there'}, this model's {here or 'not there'}"
            raise ValueError(f"the adapter in {folder} belongs to another model, {said}: load it onto that model")
    exact = all(weight.dtype == paddle.float32 for weight in weights.values())
    if exact and weights_checksum(weights) != config.base_checksum:
        warnings.warn(f"the adapter in {folder} was trained on other weights of these shapes than this model's", stacklevel=4)
    return config, arrays


def weights_checksum(weights: Mapping[str, paddle.Tensor]) -> str:
    """SHA-256 of the names and the float32 values of weights, whatever file they came from; hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name].astype("float32").numpy()))
    return digest.hexdigest()


def _layers(config: AdapterConfig) -> int:
    """Number of layers of the model that an adapter belongs to."""
    return len({name.split(".")[1] for name in config.base_shapes if name.startswith("blocks.")})
