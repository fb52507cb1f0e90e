"""The transformer as a pipeline: Fleet's `PipelineLayer` over the same embedding, blocks and head.

The first stage reads a micro-batch, each stage hands (x, key mask) to the next, and the last one computes the losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

import numpy as np
import paddle
from paddle import nn
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import LayerDesc, PipelineLayer, PipelineParallel, SharedLayerDesc
from paddle.distributed.fleet.utils import recompute

from ppvilg.model.batch import Batch
from ppvilg.model.config import ViLGConfig
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import BOTH, Block, Embedding, Head, Outputs
from ppvilg.train.context import ParallelContext

Losses = dict[str, paddle.Tensor]
Directions = tuple[Direction, ...]
Hidden = tuple[paddle.Tensor, paddle.Tensor]
"""x [DB, m+n, hidden] of D directions and the key mask bool [DB, m+n]."""
_SHARED = "embedding"
_TIED = ["text_table", "image_table"]


class PipeEmbedding(Embedding):
    """The embedding of the first stage, or the tied tables alone on the last."""

    def __init__(self, config: ViLGConfig, mp_group, directions: Directions = BOTH, tables_only: bool = False):
        super().__init__(config, mp_group)
        self.directions = directions
        if tables_only:
            for name in ("text_position", "image_position", "row_position", "column_position", "segment"):
                delattr(self, name)

    @property
    def text_table(self) -> paddle.Tensor:
        """[text vocabulary, hidden]."""
        return self.text.weight

    @property
    def image_table(self) -> paddle.Tensor:
        """[image vocabulary, hidden]."""
        return self.image.weight

    def forward(self, batch: dict[str, paddle.Tensor]) -> Hidden:
        """A batch's tensors by the names of their fields."""
        return super().forward(Batch(**batch), self.directions)


class PipeBlock(Block):
    """A block."""

    def __init__(self, config: ViLGConfig, kind: str, mp_group, recomputed: bool, directions: Directions = BOTH):
        super().__init__(config, kind, mp_group)
        self.recomputed, self.directions = recomputed, directions

    def forward(self, inputs: Hidden) -> Hidden:
        """Through the block."""
        x, mask = inputs
        run, arguments = super().forward, (x, mask, self.directions)
        x = recompute(run, *arguments) if self.recomputed and self.training else run(*arguments)
        return x, mask.clone()  # Fleet frees what it has sent


class PipeHead(Head):
    """The head."""

    def __init__(self, config: ViLGConfig, mp_group, directions: Directions = BOTH):
        super().__init__(config, mp_group)
        self.directions = directions

    def forward(self, inputs: tuple) -> Outputs:
        """x, key mask and, where they are tied, the tables."""
        return super().forward(*inputs, directions=self.directions)


class ViLGPipe(PipelineLayer):
    """This process's stage of the model."""

    def __init__(self, config: ViLGConfig, context: ParallelContext, recomputed: bool = False, directions: Directions = BOTH):
        mp, tied = context.mp_group, config.tie_embeddings
        blocks = [LayerDesc(PipeBlock, config, kind, mp, recomputed, directions) for kind in config.kinds]
        if tied:
            tables_only = not context.is_first_stage
            shared = (_TIED, config, mp, directions, tables_only)
            first = SharedLayerDesc(_SHARED, PipeEmbedding, None, *shared)
            tables = [SharedLayerDesc(_SHARED, PipeEmbedding, lambda tables, inputs: (*inputs, tables), *shared)]
        else:
            first, tables = LayerDesc(PipeEmbedding, config, mp, directions), []
        losses = _Losses()
        super().__init__(
            [first, *blocks, *tables, LayerDesc(PipeHead, config, mp, directions)],
            topology=fleet.get_hybrid_communicate_group().topology(),
            seg_method=stage_starts(config, context.pp_group.nranks),
            loss_fn=losses,
        )
        self.config, self.losses = config, losses
        self.sent: tuple[int, bool] | None = None
        """Of what the stages last sent each other: batch size, and whether it had gradients."""
        for table in _TIED if tied and not context.is_first_stage and self.shared_layers else ():
            # Fleet forgets this mark, without which the norm that gradients are clipped by counts the table twice.
            getattr(self.shared_layers[_SHARED], table).is_firstly_shared = False

    def single_process_name(self, name: str) -> str:
        """A parameter's name in a `ViLG`."""
        first, _, rest = name.partition(".")
        if first == "shared_layers":
            return rest
        kind, index = type(self._sub_layers[first]), int(first)
        if kind is PipeBlock:
            return f"blocks.{index - 1}.{rest}"
        return f"embedding.{rest}" if kind is PipeEmbedding else f"head.{rest}"


class _Losses:
    """Fleet's loss function: returns the loss to minimise and keeps the others."""

    def __init__(self):
        self.function: Callable[[Outputs, Batch], Losses] | None = None
        self.found: list[Losses] = []

    def __call__(self, outputs: Outputs, batch: dict[str, paddle.Tensor]) -> paddle.Tensor:
        losses = self.function(outputs, Batch(**batch))
        self.found.append({name: value.detach() for name, value in losses.items()})
        return losses["loss"]


def stage_starts(config: ViLGConfig, count: int) -> list[int]:
    """The layer that each stage begins with and the number of layers, embedding and head included, divided so that the largest
    stage has as few parameters as can be; each has a block at least.

    Where stages are equally large the later ones, which keep fewer micro-batches, get more blocks.
    """
    with paddle.LazyGuard():
        embedding, block, head = Embedding(config), Block(config, config.kinds[0]), Head(config)
    lengths, sizes = [1] * count, [_parameter_count(block)] * count
    sizes[0] += _parameter_count(embedding)
    sizes[-1] += _parameter_count(head)
    if config.tie_embeddings and count > 1:
        sizes[-1] += _parameter_count(embedding.text) + _parameter_count(embedding.image)
    for _ in range(config.layers - count):
        smallest = min(range(count), key=lambda stage: (sizes[stage], -stage))
        lengths[smallest] += 1
        sizes[smallest] += _parameter_count(block)
    starts = [0, *(1 + end for end in accumulate(lengths))]
    starts[-1] += 1 + config.tie_embeddings
    return starts


def _parameter_count(layer: nn.Layer) -> int:
    return sum(int(np.prod(p.shape)) for p in layer.parameters())


def forward_backward(
    pipeline: PipelineParallel, batches: Sequence[Batch], loss: Callable[[Outputs, Batch], Losses], scaler
) -> list[Losses]:
    """Gradients of the mean loss of a step's micro-batches; the losses of each, on the last stage."""
    losses = _start(pipeline, batches, loss)
    pipeline.forward_backward_pipeline(_data(pipeline, batches), scaler)
    return losses.found


def evaluate(pipeline: PipelineParallel, batches: Sequence[Batch], measure: Callable[[Outputs, Batch], Losses]) -> list[Losses]:
    """The losses of each batch, on the last stage."""
    found: list[Losses] = []
    steps = pipeline.accumulate_steps
    for _, group in groupby(batches, key=lambda batch: len(batch.text)):
        alike = list(group)
        losses = _start(pipeline, alike, measure)
        pipeline.accumulate_steps = len(alike)
        pipeline.eval_batch(_data(pipeline, alike), compute_loss=True)
        found += losses.found
    pipeline.accumulate_steps = steps
    return found


def _start(pipeline: PipelineParallel, batches: Sequence[Batch], function: Callable[[Outputs, Batch], Losses]) -> _Losses:
    module = pipeline._layers
    sent = len(batches[0].text), paddle.is_grad_enabled()
    if module.sent != sent:  # Stages tell each other once what they send.
        module.sent = sent
        pipeline._p2p_helper.clear_meta_cache()
    module.losses.function, module.losses.found = function, []
    return module.losses


def _data(pipeline: PipelineParallel, batches: Sequence[Batch]):
    """Inputs and labels of each micro-batch; texts as long as can be, so that all micro-batches have one shape."""
    length = pipeline._layers.config.max_text_length
    return iter([(vars(batch), vars(batch)) for batch in (_padded(batch, length) for batch in batches)])


def _padded(batch: Batch, length: int) -> Batch:
    missing = length - batch.text.shape[1]
    texts = {name: getattr(batch, name) for name in ("text", "text_mask", "prompt", "prompt_mask")}
    for name, text in texts.items():
        texts[name] = paddle.concat([text, paddle.zeros([text.shape[0], missing], text.dtype)], axis=1) if missing else text
    return replace(batch, **texts)
