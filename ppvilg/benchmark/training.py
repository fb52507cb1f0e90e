"""Whole training steps, of a config against its dense plan or against the same model in PyTorch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ppvilg.benchmark.timing import Timing, allocated, interleaved
from ppvilg.config import AttentionConfig, ViLGExperiment
from ppvilg.errors import UserError
from ppvilg.parallel.topology import Topology
from ppvilg.training.loop import Scalars, Task, run_step
from ppvilg.training.optimizer import Optimizer, WeightAverage
from ppvilg.training.vilg import pairs_gradients, pairs_loss
from ppvilg.transformer.model import Pairs, ViLG
from ppvilg.transformer.pattern import Direction

DENSE = AttentionConfig(plan=["dense"], last=None)


class RandomPairs:
    """Stands for the transformer's task, with random tokens instead of data."""

    def __init__(self, config: ViLGExperiment, topology: Topology | None = None):
        self.config = config
        self.model = ViLG(config, topology)
        self.modules = {"model": self.model}

    def gradients(self, batches: list[Pairs], step: int, scale: float) -> tuple[set[str], Scalars]:
        """As the real task's."""
        return pairs_gradients(self.model, self.config, batches, scale)


def random_pairs(config: ViLGExperiment, count: int) -> Pairs:
    """Pairs with texts of the longest length, random tokens and pictures."""
    random = np.random.default_rng(0)
    text = random.integers(5, config.text.vocabulary_size, [count, config.text.max_length])
    image = random.integers(0, config.vqgan.codebook.size, [count, config.image_tokens])
    pairs = Pairs.plain(text, np.ones(text.shape, dtype=bool), image)
    if not config.transformer.reconstructor:
        return pairs
    size = config.data.image_size
    return replace(pairs, pictures=random.uniform(-1, 1, [count, 3, size, size]).astype(np.float32))


def dense(config: ViLGExperiment) -> ViLGExperiment:
    """The same with every layer dense."""
    return replace(config, transformer=replace(config.transformer, attention=DENSE))


def step_of(task: Task, config: ViLGExperiment, batches: list, topology: Topology | None = None) -> Callable[[], None]:
    """One training step: losses and gradients of all micro-batches, clipping, AdamW, moving average."""
    optimizers = {name: Optimizer(module, config.train, config.parallel, topology) for name, module in task.modules.items()}
    average = WeightAverage(optimizers["model"], config.train.ema_decay) if config.train.ema_decay else None

    def step() -> None:
        run_step(task, optimizers, batches, 0, config.train.learning_rate)
        if average is not None:
            average.update(1000)

    return step


def torch_step_of(model: ViLG, config: ViLGExperiment, batches: list[Pairs]) -> Callable[[], float]:
    """The same step by the same model in PyTorch, starting from the same weights."""
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError("torch is not installed: pip install -r requirements-bench.txt") from None
    from ppvilg.benchmark.peers.torch_vilg import TorchViLG, copy_weights, training_step

    peer = TorchViLG(config, model.kinds)
    copy_weights(peer, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    m = batches[0].text.shape[1]
    patterns = {
        kind: torch.from_numpy(np.stack([model.pattern(kind, direction, m).mask() for direction in Direction]))
        for kind in set(model.kinds)
    }
    tensors = [tuple(map(torch.from_numpy, (pairs.text, pairs.valid, pairs.image))) for pairs in batches]
    step = training_step(peer, config.train)
    return lambda: step(tensors, patterns)


def time_transformer(config: ViLGExperiment, versus: list[str], repetitions: int) -> list[Timing]:
    """Training steps of a transformer config on random pairs; `versus` may name dense and torch, which then come first."""
    batches = [random_pairs(config, config.micro_batch)] * config.train.gradient_accumulation_steps
    runs: dict[str, Callable[[], object]] = {}
    task = RandomPairs(config)
    for peer in versus:
        if peer == "dense":
            runs[peer] = step_of(RandomPairs(dense(config)), dense(config), batches)
        else:
            runs[peer] = torch_step_of(task.model, config, batches)
    runs["ours"] = step_of(task, config, batches)
    return interleaved(runs, repetitions, config.train.batch_size, "pairs", foreign="torch")


def activation_bytes(config: ViLGExperiment, topology: Topology | None = None) -> int:
    """What a forward pass over a micro-batch keeps for its backward."""
    model = ViLG(config, topology)
    batch = random_pairs(config, config.micro_batch).tensors()
    before = allocated()
    loss = pairs_loss(model.loss(batch), config)  # holds what the backward needs for as long as it lives
    kept = allocated() - before
    del loss
    return kept
