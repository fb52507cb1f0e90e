"""Fleet as the engine: connecting the processes, and a model with its optimizer as they train in a layout.

Which part of Fleet does what:

    sharding_stage 1, mp_degree, pp_degree   fleet.distributed_model and fleet.distributed_optimizer
    sharding_stage 2 and 3                   group_sharded_parallel, with the dp group beside the sharding group
    dp_degree alone                          the plain model and optimizer; gradients are averaged once before each step
    sequence_parallel                        Fleet's layers in the model; gradients of norms and biases are added up once a step

`precision` other than fp32 needs a GPU and has not been run.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import paddle
from paddle import nn
from paddle.distributed import fleet
from paddle.distributed.fleet.utils import recompute
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients_with_group
from paddle.distributed.fleet.utils.mix_precision_utils import MixPrecisionLayer, MixPrecisionOptimizer
from paddle.distributed.sharding import group_sharded_parallel

from ppvilg.config import DTYPES, ParallelConfig, Precision
from ppvilg.model.batch import Batch
from ppvilg.model.layers import LayerNorm, sequence_parallel
from ppvilg.model.vilg import Block, Outputs
from ppvilg.train import pipe
from ppvilg.train.context import ParallelContext
from ppvilg.train.shards import OptimizerState

Losses = dict[str, paddle.Tensor]
SEGMENT_SIZE = 2**20
"""Parameters with at most so many values are not shared out by stage 3."""


def init_distributed(parallel: ParallelConfig, gradient_accumulation_steps: int = 1) -> ParallelContext:
    """Connect the launched processes; raises `ValueError` where their number is not the layout's."""
    launched = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    if launched != parallel.world_size:
        raise ValueError(_what_to_launch(parallel, launched))
    if launched == 1:
        return ParallelContext()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {
        "dp_degree": parallel.dp_degree,
        "pp_degree": parallel.pp_degree,
        "sharding_degree": parallel.sharding_degree,
        "mp_degree": parallel.mp_degree,
    }
    # Tensor parallel processes load the same batches themselves.
    strategy.hybrid_configs["mp_configs"].need_broadcast_data = False
    strategy.pipeline_configs = {"accumulate_steps": gradient_accumulation_steps}
    fleet.init(is_collective=True, strategy=strategy, log_level="WARNING")
    groups = fleet.get_hybrid_communicate_group()
    groups.get_model_parallel_group().sequence_parallel = parallel.sequence_parallel
    return ParallelContext(
        launched,
        groups.get_global_rank(),
        groups.get_data_parallel_group() if parallel.dp_degree > 1 else None,
        groups.get_sharding_parallel_group() if parallel.sharding_degree > 1 else None,
        groups.get_model_parallel_group() if parallel.mp_degree > 1 else None,
        groups.get_pipe_parallel_group() if parallel.pp_degree > 1 else None,
    )


def _what_to_launch(parallel: ParallelConfig, launched: int) -> str:
    degrees = {name: getattr(parallel, f"{name}_degree") for name in ("dp", "sharding", "mp", "pp")}
    product = " x ".join(f"{name}_degree {degree}" for name, degree in degrees.items() if degree > 1) or "no degrees"
    per_machine = min(parallel.world_size, 8)
    machines = parallel.world_size // per_machine
    if parallel.world_size == 1:
        command = "run `python tools/train.py -c ...`"
    else:
        command = f"launch `python -m paddle.distributed.launch --nproc_per_node {per_machine} tools/train.py -c ...`"
        command += f" on {machines} machines (with --nnodes {machines} --master HOST:PORT)" if machines > 1 else ""
    return (
        f"parallel: {product} are {parallel.world_size} processes, but {launched} {'is' if launched == 1 else 'are'} running: "
        f"{command}, or change the parallel section"
    )


class DistributedModel:
    """A model and its optimizer as they train in a layout; made by `distribute`."""

    def __init__(self, module: nn.Layer, wrapped: nn.Layer, optimizer, scaler, state: OptimizerState, precision: str):
        self.module = module
        """The model as it was built, or the pipeline stage."""
        self.state = state
        """What the optimizer of this process updates, under single-process names."""
        self._wrapped, self._optimizer, self._scaler = wrapped, optimizer, scaler
        self._precision = precision
        self._shared_sequences = []  # parameters of which each tensor parallel process knows its sequences' gradients
        for block in module.sublayers():
            if isinstance(block, Block) and sequence_parallel(state.context.mp_group):
                norms = [p for layer in block.sublayers() if isinstance(layer, LayerNorm) for p in layer.parameters()]
                shared = [*norms, block.attention.out.bias, block.mlp.down.bias]
                self._shared_sequences += [p for p in shared if not p.stop_gradient]

    def __call__(self, *inputs) -> object:
        """The model's forward in training."""
        with self._autocast():
            return self._wrapped(*inputs)

    def backward(self, loss: paddle.Tensor) -> None:
        """Add the loss's gradients to those that are there."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def forward_backward(self, batches: Sequence[Batch], loss: Callable[[Outputs, Batch], Losses]) -> list[Losses]:
        """Under a pipeline: gradients of the mean of `loss(outputs, batch)["loss"]` over the micro-batches of a step.

        Returns the losses of each micro-batch, which are still on the device; on other than the last stage none.
        """
        with self._autocast():
            return pipe.forward_backward(self._wrapped, batches, loss, self._scaler)

    def step(self) -> None:
        """Reduce the gradients over the processes, clip them, update the weights and drop the gradients; does nothing where no
        parameter has one."""
        if all(p.grad is None and getattr(p, "main_grad", None) is None for p in self.state.parameters.values()):
            return
        context = self.state.context
        if self._shared_sequences:
            fused_allreduce_gradients_with_group(self._shared_sequences, context.mp_group, scale=1.0)
        if context.replica_size == 1 < context.world_size:  # data parallelism alone
            fused_allreduce_gradients_with_group(list(self.state.parameters.values()), context.dp_group)
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if self.state.stage > 1:
            self._optimizer.clear_grad()  # Fleet's takes no argument here
        else:
            self._optimizer.clear_grad(set_to_zero=False)

    @paddle.no_grad()
    def evaluate(self, batches: Sequence[Batch], measure: Callable[[Outputs, Batch], Losses]) -> list[Losses]:
        """`measure(outputs, batch)`, which has a "loss", of each batch; on other than the last pipeline stage none."""
        self.module.eval()
        with self._autocast():
            if isinstance(self.module, pipe.ViLGPipe):
                found = pipe.evaluate(self._wrapped, batches, measure)
            else:
                found = [measure(self.module(batch), batch) for batch in batches]
        self.module.train()
        return found

    def loss_scale(self) -> dict[str, Any]:
        """The loss scale of fp16 and what it depends on, as JSON takes it; empty without one."""
        state = {} if self._scaler is None else self._scaler.state_dict()
        return state | {"scale": state["scale"].tolist()} if state else {}

    def load_loss_scale(self, state: dict[str, Any]) -> None:
        """Take up what `loss_scale` gave."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)

    def _autocast(self):
        if self._precision == "fp32":
            return nullcontext()
        return paddle.amp.auto_cast(level="O2", dtype=DTYPES[self._precision])


def built_dtype(precision: Precision) -> str:
    """What a model's weights are built in, so that a process never holds them in float32 as well where they are bfloat16. Those
    that are to be float16 are built in float32, since paddle chooses which of them stay so."""
    return DTYPES["fp32" if precision == "fp16" else precision]


def distribute(model: nn.Layer, optimizer: paddle.optimizer.AdamW, parallel: ParallelConfig, context: ParallelContext):
    """A model, this process's part of it, and the optimizer of its parameters, made ready to train -> `DistributedModel`.

    Raises `ValueError` for a precision that the device cannot compute with.
    """
    adamw, scaler = optimizer, None
    replaces_optimizer = context.world_size > parallel.dp_degree  # else Fleet has nothing to do
    if parallel.recompute == "full" and context.pp_group is None:
        for block in model.blocks:
            block.forward = partial(recompute, block.forward)
    if parallel.precision != "fp32":
        if paddle.get_device() == "cpu":
            raise ValueError(f"parallel.precision: {parallel.precision} needs a GPU: set fp32 to train on a CPU")
        dtype = DTYPES[parallel.precision]
        paddle.amp.decorate(model, optimizer, level="O2", dtype=dtype, master_weight=True)
        scaler = paddle.amp.GradScaler() if parallel.precision == "fp16" else None
        if not parallel.offload and (replaces_optimizer or scaler is None):  # paddle's own scaler does not know main gradients
            MixPrecisionLayer(model, dtype=dtype)  # gradients of micro-batches are added up in float32
            optimizer = MixPrecisionOptimizer(optimizer)
    wrapped = model
    if parallel.sharding_stage > 1:
        wrapped, optimizer, scaler = group_sharded_parallel(
            model,
            optimizer,
            "os_g" if parallel.sharding_stage == 2 else "p_g_os",
            scaler=scaler,
            group=context.sharding_group,
            dp_group=context.dp_group,
            offload=parallel.offload,
            segment_size=SEGMENT_SIZE,
            exclude_layer=_whole_layers(model) if parallel.sharding_stage == 3 else None,
            # Else stage 3 gathers weights ahead, in the order of the first forward. The backward pass has another order where a
            # layer is called twice (text embeddings) or two follow one (heads): it then also gathers what it no longer needs,
            # and the next step computes with these old weights.
            sync_comm=True,
        )
    elif replaces_optimizer:
        wrapped, optimizer = fleet.distributed_model(model), fleet.distributed_optimizer(optimizer)
        scaler = scaler and fleet.distributed_scaler(scaler)
    state = OptimizerState(model, optimizer, adamw, parallel.sharding_stage, context)
    return DistributedModel(model, wrapped, optimizer, scaler, state, parallel.precision)


def _whole_layers(model: nn.Layer) -> list[str | int]:
    """What stage 3 leaves whole: tied tables, which the head reads when stage 3 has freed what their own layer had gathered;
    layers that are not trained, whose weights it would keep to itself."""
    frozen = [layer for layer in model.sublayers() if (own := layer.parameters(False)) and all(p.stop_gradient for p in own)]
    return (["Embedding"] if model.config.tie_embeddings else []) + [id(layer) for layer in frozen]
