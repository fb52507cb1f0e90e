"""Sharing out what training keeps of the weights over the sharding group (ZeRO; paper 3.2): each whole parameter has one owner.

stage 1    the owner alone keeps the parameter's moments and updates it
stage 2    the owner alone keeps its gradient too
stage 3    the owner alone keeps the weights of the layers too; the others get them for as long as they compute a layer
"""

from collections.abc import Callable

import paddle
import paddle.distributed as dist
from paddle import nn

from ppvilg.parallel.collectives import together
from ppvilg.parallel.topology import Topology

TIED = ("text_embedding.weight", "image_embedding.weight")
"""With tied embeddings both the first and the last pipeline stage hold these tables."""


def owners(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Which of `count` processes owns each parameter: the largest first, to the one that has least."""
    load = [0] * count
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = min(range(count), key=lambda rank: load[rank])
        found[name] = owner
        load[owner] += sizes[name]
    return found


class Sharding:
    """The parameters of one module under a layout; without a sharding group every process owns all of them."""

    def __init__(self, module: nn.Layer, topology: Topology, stage: int = 1):
        self.topology = topology
        self.parameters = {name: p for name, p in module.named_parameters() if not p.stop_gradient}
        self._axis = topology.sharding
        self._stage = stage if self._axis.size > 1 else 0
        self._owner = owners({name: p.size for name, p in self.parameters.items()}, self._axis.size)
        self.own = {name: p for name, p in self.parameters.items() if self._owner[name] == self._axis.rank}
        tied = TIED if topology.ends.size > 1 and module.tied else ()
        self.tied = [name for name in tied if name in self.parameters]
        self._reduced_at_once = {name for name in self.parameters if self._stage >= 2 and name not in self.tied}
        for name in self._reduced_at_once:
            self.parameters[name]._register_backward_hook(self._ready(name))
        self._freed: set[str] = set()
        self._present: list[str] = []
        if self._stage == 3:
            self._free_layers(module.blocks)

    @property
    def counted(self) -> dict[str, paddle.Tensor]:
        """The own parameters that this process stands for among all processes that see the same pairs; each value of the model
        is counted by one of them."""
        topology = self.topology
        return {
            name: p
            for name, p in self.own.items()
            if (topology.mp.rank == 0 or hasattr(p, "split_dim")) and (topology.first_stage or name not in self.tied)
        }

    @paddle.no_grad()
    def reduce_gradients(self) -> None:
        """After all micro-batches: the owners' gradients become the means over all parts of the batch; the others have none."""
        topology = self.topology
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for name in self.tied:
            topology.ends.sum_(gradients[name])
        if self._stage:
            rest = [name for name in gradients if name not in self._reduced_at_once]
            for rank, root in enumerate(self._axis.ranks):
                theirs = [gradients[name] for name in rest if self._owner[name] == rank]
                together(theirs, lambda flat, root=root: dist.reduce(flat, root, group=self._axis.group))
            for name in rest:
                if name not in self.own:
                    self.parameters[name].clear_gradient(False)
        own = [gradient for name, gradient in gradients.items() if name in self.own]
        if topology.dp.size > 1:
            together(own, topology.dp.sum_)
        if topology.data_ranks > 1:
            for gradient in own:
                gradient.scale_(1 / topology.data_ranks)

    @paddle.no_grad()
    def spread(self) -> None:
        """After the owners' parameters changed: everyone has them, those of freed layers excepted."""
        if self._stage:
            for name in self._freed:
                self._free(name)
            self._present.clear()
            self._broadcast([name for name in self.parameters if name not in self._freed])

    def _broadcast(self, names: list[str]) -> None:
        for rank, root in enumerate(self._axis.ranks):
            theirs = [self.parameters[name] for name in names if self._owner[name] == rank]
            together(theirs, lambda flat, root=root: dist.broadcast(flat, root, group=self._axis.group))

    def _ready(self, name: str) -> Callable:
        """A hook for when a micro-batch's gradient is complete: adds it to the owner's, which may hold those before it."""

        @paddle.no_grad()
        def reduce(*_) -> None:
            p = self.parameters[name]
            dist.reduce(p.grad, self._axis.ranks[self._owner[name]], group=self._axis.group)
            if name not in self.own:
                p.clear_gradient(False)

        return reduce

    def _free_layers(self, layers: nn.LayerList) -> None:
        """Let the weights of each layer be here, where they are not owned, only from its forward to that of another."""
        names = {id(p): name for name, p in self.parameters.items()}
        self._shapes = {name: p.shape for name, p in self.parameters.items()}

        @paddle.no_grad()
        def get(layer: nn.Layer, inputs: tuple) -> None:
            wanted = [names[id(p)] for p in layer.parameters()]
            if self._present == wanted:
                return
            for name in self._present:
                self._free(name)
            self._present = wanted
            for name in wanted:
                if name not in self.own:
                    paddle.empty(self._shapes[name], self.parameters[name].dtype)._share_buffer_to(self.parameters[name])
            self._broadcast(wanted)

        for layer in layers:
            layer.register_forward_pre_hook(get)
            self._freed |= {names[id(p)] for p in layer.parameters()}
        for name in self._freed:
            self._free(name)

    def _free(self, name: str) -> None:
        if name not in self.own:
            self.parameters[name]._clear_data()
