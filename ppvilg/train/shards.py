"""What each process holds of the weights and the optimizer's state, under the names that the weights have in one process.

sharding_stage 1, 2    the float32 weights and moments of some parameters; the weights that are computed with, all of them
sharding_stage 3       of each parameter an equal part of its values, laid out in one row; small parameters whole
mp_degree              a part of the parameter along its `split_axis`
pp_degree              the parameters of some layers
"""

from collections.abc import Mapping

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn

from ppvilg.checkpoint import CheckpointReader, ShardedTensor
from ppvilg.ops import at_least_float32
from ppvilg.train.context import ParallelContext
from ppvilg.train.pipe import ViLGPipe

Tensors = dict[str, paddle.Tensor]
_MOMENTS = ("moment1_0", "moment2_0")
_STATE = (*_MOMENTS, "beta1_pow_acc_0", "beta2_pow_acc_0")  # of AdamW, for each parameter


def named_parameters(model: nn.Layer) -> Tensors:
    """The parameters that this process has."""
    rename = model.single_process_name if isinstance(model, ViLGPipe) else str
    return {rename(name): parameter for name, parameter in model.named_parameters()}


def named_tensors(model: nn.Layer) -> Tensors:
    """The parameters and buffers that this process has."""
    rename = model.single_process_name if isinstance(model, ViLGPipe) else str
    return {rename(name): tensor for name, tensor in model.state_dict().items()}


def is_distributed(tensor: paddle.Tensor) -> bool:
    """Whether this is a tensor parallel process's part of a parameter."""
    return getattr(tensor, "is_distributed", False)  # buffers do not say


class OptimizerState:
    """The float32 weights that this process's optimizer updates, and its moments."""

    def __init__(self, model: nn.Layer, optimizer, adamw: paddle.optimizer.AdamW, stage: int, context: ParallelContext):
        self.context, self.stage = context, stage
        self.parameters = {name: p for name, p in named_parameters(model).items() if not p.stop_gradient}
        """The trained parameters that this process computes with."""
        self._untrained = {name: tensor for name, tensor in named_tensors(model).items() if tensor.stop_gradient}
        self._tensors = self.parameters | self._untrained
        self._adamw = adamw
        owners: Mapping[str, int] = {}
        if context.sharding_group is not None and stage < 3:
            owners = optimizer.param2rank if stage == 2 else optimizer._param2rank
        self._owners = {name: owners[p.name] for name, p in self.parameters.items()} if owners else {}
        rank = 0 if context.sharding_group is None else context.sharding_group.rank
        self.names = [name for name in self.parameters if self._owners.get(name, rank) == rank]
        """The parameters of which this process updates something."""

    def weights(self) -> Tensors:
        """What is updated, in float32 at least: parameters, or copies of them where they have another precision, or slices."""
        return {name: self._weight(name) for name in self.names}

    @paddle.no_grad()
    def publish(self, values: Tensors) -> None:
        """Let all processes compute with these values of what they update, which may be `weights()`."""
        for name in self.names:
            parameter, value = self.parameters[name], values[name]
            if value is self._updated(name):
                continue
            if self._is_sliced(parameter):  # its memory may be that of offloaded weights
                parameter.fw_storage = value.astype(parameter.dtype).clone()
            else:
                parameter.copy_(value.astype(parameter.dtype), False)
        group = self.context.sharding_group
        for name, owner in self._owners.items():
            dist.broadcast(self.parameters[name], src=group.ranks[owner], group=group)

    def model_shards(self, values: Tensors | None = None) -> dict[str, ShardedTensor]:
        """What this process writes of the model, with these values of what it updates (None: as they are)."""
        values = self.weights() if values is None else values
        shards = {name: self._shard(name, values[name]) for name in self.names}
        if self.stage == 3 or self.context.sharding_group is None or self.context.sharding_group.rank == 0:
            shards |= {name: self._shard(name, self._updated(name)) for name in self._untrained}
        return {name: shard for name, shard in shards.items() if shard is not None}

    def optimizer_shards(self) -> dict[str, ShardedTensor]:
        """What this process writes of the moments, as `parameter name/moment name`."""
        state, shards = self._adamw.state_dict(), {}
        for name in self.names:
            for key in _STATE:
                tensor = state.get(self._state_key(name, key))
                if tensor is not None:
                    shards[f"{name}/{key}"] = self._shard(name, tensor)
        return {name: shard for name, shard in shards.items() if shard is not None}

    def read_weights(self, reader: CheckpointReader) -> Tensors:
        """The values of what this process updates, as any layout wrote them."""
        return {name: self._like(self._weight(name), self._read(reader, name, name)) for name in self.names}

    @paddle.no_grad()
    def load_model(self, reader: CheckpointReader) -> None:
        """Take up the model that any layout's `model_shards` wrote."""
        for name in self.names:
            weight = self._weight(name)
            weight.copy_(self._like(weight, self._read(reader, name, name)), False)
        for name in self._untrained:
            own = self._updated(name)
            own.copy_(self._like(own, self._read(reader, name, name)), False)
        self.publish(self.weights())

    def load_optimizer(self, reader: CheckpointReader) -> None:
        """Take up the moments that any layout's `optimizer_shards` wrote; there are none of what was not trained."""
        state, first = {}, {"beta1_pow_acc_0": self._adamw._beta1, "beta2_pow_acc_0": self._adamw._beta2}
        for name in self.names:
            weight = self._weight(name)
            for key in _STATE:
                stored = f"{name}/{key}"
                if stored in reader.shapes:
                    array = self._read(reader, name, stored) if key in _MOMENTS else reader.read(stored)
                elif key in _MOMENTS:
                    array = np.zeros(weight.shape, np.float32)
                else:
                    array = np.array([first[key]], np.float32)
                state[self._state_key(name, key)] = self._like(weight, array)
        self._adamw.set_state_dict(state)

    def _updated(self, name: str) -> paddle.Tensor:
        """The tensor, or this process's slice of it."""
        parameter = self._tensors[name]
        return parameter.fw_storage if self._is_sliced(parameter) else parameter

    def _weight(self, name: str) -> paddle.Tensor:
        parameter = self.parameters[name]
        if (offloaded := getattr(parameter, "master_weight", None)) is not None:
            return offloaded
        if parameter.dtype not in (paddle.float16, paddle.bfloat16):
            return self._updated(name)
        masters = self._adamw._master_weights
        if self._key(parameter) not in masters:
            self._adamw._create_master_weight(parameter)
        return masters[self._key(parameter)]

    @staticmethod
    def _like(tensor: paddle.Tensor, array: np.ndarray) -> paddle.Tensor:
        """With the dtype and in the place of a tensor, which may be offloaded."""
        return paddle.to_tensor(array, place=tensor.place).astype(tensor.dtype)

    def _key(self, parameter: paddle.Tensor) -> str:
        """Under which the optimizer knows what it updates."""
        return f"slice@{parameter.name}" if self._is_sliced(parameter) else parameter.name

    def _state_key(self, name: str, key: str) -> str:
        """Under which `state_dict` has a moment."""
        parameter = self.parameters[name]
        master = self._adamw._master_weights.get(self._key(parameter))
        return f"{self._key(parameter) if master is None else master.name}_{key}"

    def _is_sliced(self, parameter: paddle.Tensor) -> bool:
        # Of stage 3; one that is not trained may stay as it was gathered, since no backward pass releases it.
        return getattr(parameter, "fw_storage", None) is not None

    def _shard(self, name: str, tensor: paddle.Tensor) -> ShardedTensor | None:
        """What this process writes of a weight or of what belongs to it; None where another process writes it."""
        parameter, context = self._tensors[name], self.context
        tensor = at_least_float32(tensor)  # numpy has no bfloat16, in which are the weights that are not trained
        if self.stage == 3:
            group = context.sharding_group
            if self._is_sliced(parameter) and tensor.shape == self._updated(name).shape:
                parts: list[paddle.Tensor] = []
                dist.all_gather(parts, tensor.to(paddle.get_device()), group=group)  # it may be offloaded
                tensor = paddle.concat(parts)[: parameter.size].reshape(parameter.shape)
            writes = list(self._tensors).index(name) % group.nranks == group.rank
            return ShardedTensor.whole(tensor.numpy()) if writes else None
        if not getattr(parameter, "is_firstly_shared", True):  # a tied table, which the first pipeline stage writes
            return None
        if is_distributed(parameter) and tensor.shape == parameter.shape:
            return ShardedTensor.split(tensor.numpy(), parameter.split_axis, context.mp_group.rank, context.mp_group.nranks)
        return ShardedTensor.whole(tensor.numpy()) if context.mp_group is None or context.mp_group.rank == 0 else None

    def _read(self, reader: CheckpointReader, name: str, key: str) -> np.ndarray:
        """The part of a weight or of one of its moments that this process holds."""
        parameter, group = self._tensors[name], self.context.mp_group
        nothing = np.broadcast_to(np.float32(0), parameter.shape)
        if is_distributed(parameter):
            return reader.like(ShardedTensor.split(nothing, parameter.split_axis, group.rank, group.nranks), key)
        whole = reader.like(ShardedTensor.whole(nothing), key)
        if not self._is_sliced(parameter):
            return whole
        slices, size = self.context.sharding_group, self._updated(name).size
        padded = np.zeros(slices.nranks * size, np.float32)
        padded[: whole.size] = whole.ravel()
        return padded[slices.rank * size : (slices.rank + 1) * size]
