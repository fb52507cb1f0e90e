"""Temporary: one process."""

import paddle

from ppvilg.checkpoint import ShardedTensor


from ppvilg.train.context import ParallelContext


def init_distributed(parallel, steps=1):
    """This process's place."""
    return ParallelContext()


class DistributedModel:
    """One process."""

    def __init__(self, module, optimizer):
        self.module, self.optimizer = module, optimizer
        self.parameters = {k: p for k, p in module.named_parameters() if not p.stop_gradient}

    def __call__(self, *args):
        return self.module(*args)

    def backward(self, loss):
        loss.backward()

    def evaluate(self, batches, measure):
        self.module.eval()
        with paddle.no_grad():
            return [measure(self.module(batch), batch) for batch in batches]

    def step(self):
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)

    def model_shards(self):
        return {k: ShardedTensor.whole(v.numpy()) for k, v in self.module.state_dict().items()}

    def optimizer_shards(self):
        names = {p.name: name for name, p in self.parameters.items()}
        state = {}
        for key, tensor in self.optimizer.state_dict().items():
            if isinstance(tensor, paddle.Tensor):
                cut = next(end for end in range(len(key) - 1, 0, -1) if key[end] == "_" and key[:end] in names)
                state[f"{names[key[:cut]]}/{key[cut + 1 :]}"] = ShardedTensor.whole(tensor.numpy())
        return state

    def load(self, model, optimizer):
        tensors = {}
        for key, array in optimizer.all().items():
            name, _, moment = key.rpartition("/")
            tensors[f"{self.parameters[name].name}_{moment}"] = paddle.to_tensor(array)
        self.optimizer.set_state_dict(tensors)


def distribute(model, optimizer, parallel, context):
    """Wrap both."""
    return DistributedModel(model, optimizer)
