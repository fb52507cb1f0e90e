"""The exponential moving average of the weights, which is what is evaluated and exported."""

from collections.abc import Iterator
from contextlib import contextmanager

from ppvilg import ops
from ppvilg.checkpoint import CheckpointReader, ShardedTensor
from ppvilg.train.shards import OptimizerState


class EMA:
    """Moving average of the float32 weights that this process's optimizer updates.

    The decay grows from 0.1 to `decay`, as min(decay, (1 + step) / (10 + step)), so that the average is of use from the start.
    """

    def __init__(self, state: OptimizerState, decay: float):
        self._state, self._decay = state, decay
        self.values = {name: weight.detach().clone() for name, weight in state.weights().items()}

    def update(self, step: int) -> None:
        """Take up the weights as they are after a step."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        ops.lerp_(list(self.values.values()), list(self._state.weights().values()), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context all processes compute with the averaged weights."""
        own = {name: weight.detach().clone() for name, weight in self._state.weights().items()}
        self._state.publish(self.values)
        try:
            yield
        finally:
            self._state.publish(own)

    def shards(self) -> dict[str, ShardedTensor]:
        """What this process writes of the averaged model."""
        return self._state.model_shards(self.values)

    def load(self, reader: CheckpointReader) -> None:
        """Take up the averaged model, or a model to start the average from."""
        self.values = self._state.read_weights(reader)
