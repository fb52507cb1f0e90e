"""Pipeline stages: which layers a stage has, and the order in which it computes and passes on micro-batches."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Protocol, TypeVar

import paddle
import paddle.distributed as dist

from ppvilg.config import ViLGExperiment
from ppvilg.parallel.topology import Topology

Batch = TypeVar("Batch")
Scalars = dict[str, paddle.Tensor]


def stages(config: ViLGExperiment, count: int) -> list[range]:
    """The layers of each stage, cut so that the largest stage has as few parameters as can be; each has a layer at least.

    Where stages are equally large the later ones, which keep fewer micro-batches, get more layers.
    """
    model, text, (rows, columns) = config.transformer, config.text, config.grid
    hidden, text_width, codes = model.hidden, text.embedding_width or model.hidden, config.vqgan.codebook.size
    layer = (4 + 2 * model.ffn_multiplier) * hidden**2 + (7 + model.ffn_multiplier) * hidden
    projection = text_width * hidden if text_width != hidden else 0
    places = text.max_length + rows + columns + 4
    lengths, sizes = [1] * count, [layer] * count
    sizes[0] += text.vocabulary_size * text_width + projection + (codes + places) * hidden
    sizes[-1] += (text.vocabulary_size + codes + 2) * hidden  # the head, or the tied tables once more
    for _ in range(model.layers - count):
        smallest = min(range(count), key=lambda stage: (sizes[stage], -stage))
        lengths[smallest] += 1
        sizes[smallest] += layer
    ends = list(accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


class Stages(Protocol):
    """A model, or the part of it that a stage has."""

    def enter(self, batch: Batch) -> paddle.Tensor:
        """What the first layer reads."""

    def empty_rows(self, batch: Batch) -> paddle.Tensor:
        """Of the shape and dtype of what stages pass on, without values."""

    def through(self, x: paddle.Tensor, batch: Batch) -> paddle.Tensor:
        """The layers that are here."""

    def leave(self, x: paddle.Tensor, batch: Batch) -> Scalars:
        """The losses."""


def order(stage: int, count: int, batches: int) -> Iterator[tuple[str, int]]:
    """What a stage does one after the other: ("forward" or "backward", micro-batch). One forward, one backward (PipeDream),
    after as many forwards as there are stages behind this one, so that no more micro-batches are ever kept."""
    ahead = min(count - 1 - stage, batches)
    yield from (("forward", i) for i in range(ahead))
    for i in range(ahead, batches):
        yield "forward", i
        yield "backward", i - ahead
    yield from (("backward", i) for i in range(batches - ahead, batches))


def messages(stage: int, count: int, batches: int) -> Iterator[tuple[str, str, int]]:
    """`order` with its messages: also ("send" or "receive", "forward" or "backward", micro-batch).

    A message goes through when both ends are at it. What two neighbours have for each other between a forward and a backward
    is sent down first, then up, on both sides, so that neither waits for the other for ever.
    """
    steps = list(order(stage, count, batches))
    for k, (what, i) in enumerate(steps):
        before = steps[k - 1] if k else None
        if what == "forward" and stage > 0:
            yield "receive", "forward", i
            if before and before[0] == "backward":
                yield "send", "backward", before[1]
        elif before and before[0] == "backward" and stage > 0:
            yield "send", "backward", before[1]
        if what == "backward" and stage < count - 1:
            yield "receive", "backward", i
        yield "compute", what, i
        if what == "forward" and stage < count - 1:
            yield "send", "forward", i
    if stage > 0:
        yield "send", "backward", steps[-1][1]


def forward_backward(
    model: Stages,
    topology: Topology,
    batches: list[Batch],
    loss: Callable[[Scalars], paddle.Tensor],
) -> list[Scalars]:
    """Gradients of the mean of all micro-batches' losses, and on the last stage the scalars of each.

    `loss` makes of the scalars what is derived.
    """
    entered: dict[int, paddle.Tensor] = {}
    left: dict[int, paddle.Tensor] = {}
    gradients: dict[int, paddle.Tensor] = {}
    scalars = []
    pp = topology.pp
    for kind, what, i in messages(pp.rank, pp.size, len(batches)):
        if kind == "receive":
            received = model.empty_rows(batches[i])
            _receive(received, topology, -1 if what == "forward" else 1)
            if what == "forward":
                received.stop_gradient = False
                entered[i] = received
            else:
                gradients[i] = received
        elif kind == "send":
            _send(left[i] if what == "forward" else entered.pop(i).grad, topology, 1 if what == "forward" else -1)
        elif what == "forward":
            x = model.through(model.enter(batches[i]) if topology.first_stage else entered[i], batches[i])
            if topology.last_stage:
                scalars.append(model.leave(x, batches[i]))
                x = loss(scalars[-1]) / len(batches)
            left[i] = x
        else:
            paddle.autograd.backward([left.pop(i)], [gradients.pop(i, None)])
    return [{name: value.detach() for name, value in values.items()} for values in scalars]


@paddle.no_grad()
def forward(model: Stages, topology: Topology, batch: Batch) -> Scalars:
    """The scalars of one batch, on all stages but the last an empty dict."""
    if topology.first_stage:
        x = model.enter(batch)
    else:
        x = model.empty_rows(batch)
        _receive(x, topology, -1)
    x = model.through(x, batch)
    if topology.last_stage:
        return model.leave(x, batch)
    _send(x, topology, 1)
    return {}


def _send(x: paddle.Tensor, topology: Topology, steps: int) -> None:
    ranks, mine = topology.pp.ranks, topology.pp.rank
    pair = ranks[mine], ranks[mine + steps]
    dist.send(x.detach().contiguous(), pair[1], group=topology.neighbours[pair])


def _receive(x: paddle.Tensor, topology: Topology, steps: int) -> None:
    ranks, mine = topology.pp.ranks, topology.pp.rank
    pair = ranks[mine + steps], ranks[mine]
    dist.recv(x, pair[0], group=topology.neighbours[pair])
