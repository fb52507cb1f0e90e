"""Temporary."""

from contextlib import contextmanager

import paddle

from ppvilg.checkpoint import ShardedTensor


class EMA:
    def __init__(self, distributed, decay):
        self.distributed, self.parameters, self.decay = distributed, distributed.parameters, decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @paddle.no_grad()
    def update(self, step):
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, p in self.parameters.items():
            self.values[name].subtract_((self.values[name] - p).scale_(share))

    @contextmanager
    def applied(self):
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    @paddle.no_grad()
    def _set(self, values):
        for name, p in self.parameters.items():
            p.set_value(values[name])

    def shards(self):
        return self.distributed.model_shards() | {k: ShardedTensor.whole(v.numpy()) for k, v in self.values.items()}

    def load(self, reader):
        for k, v in self.values.items():
            v.set_value(reader.read(k))
