"""Whole training steps, of a config against its dense plan, itself without the C++ kernels, or the same model in PyTorch."""

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import paddle

from ppvilg.benchmark.random_pairs import random_pairs
from ppvilg.benchmark.runner import Allocated, Competitor, Timing, compare
from ppvilg.config import AttentionConfig, ViLGExperiment, VQGANExperiment
from ppvilg.model.batch import Batch
from ppvilg.model.config import trained_directions, vilg_config
from ppvilg.model.loss import ReconstructionWeights, vilg_loss
from ppvilg.model.vilg import Outputs, ViLG
from ppvilg.train.trainer import Trainer
from ppvilg.train.vqgan import VQGANTask


def dense(config: ViLGExperiment) -> ViLGExperiment:
    """The same with every layer dense."""
    return replace(config, transformer=replace(config.transformer, attention=AttentionConfig(plan=["dense"], last=None)))


class RandomPairs:
    """Stands for the transformer's task, with random tokens and pixels instead of data."""

    def __init__(self, config: ViLGExperiment):
        self.config, self.model = config, ViLG(vilg_config(config), directions=trained_directions(config.train))
        self.modules = {"model": self.model}
        self.reconstruction = ReconstructionWeights() if config.transformer.reconstructor else None

    def begin(self) -> None:
        """All of the model is trained."""

    def batch(self) -> Batch:
        """A micro-batch, as arrays."""
        batch = Batch.plain(*random_pairs(self.config, self.config.micro_batch))
        if self.reconstruction is None:
            return batch
        shape = [self.config.micro_batch, 3, self.config.data.image_size, self.config.data.image_size]
        return replace(batch, pixel_values=np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))

    def loss(self, model: Callable[[Batch], Outputs], batch: Batch, step: int) -> dict[str, paddle.Tensor]:
        """As `ViLGTask.loss`."""
        tensors = batch.to_tensors()
        return vilg_loss(model(tensors), tensors, self.reconstruction)


def vilg_step(config: ViLGExperiment) -> Callable[[], None]:
    """A training step of a transformer on random pairs."""
    task = RandomPairs(config)
    return _step(Trainer(config, task), [task.batch()] * config.train.gradient_accumulation_steps)


def vqgan_step(config: VQGANExperiment) -> Callable[[], None]:
    """A training step of an image tokenizer on the first images of its data."""
    trainer = Trainer(config, VQGANTask(config))
    return _step(trainer, trainer.micro_batches(0))


def _step(trainer: Trainer, micro_batches: list) -> Callable[[], None]:
    def step() -> None:
        trainer.train_step(micro_batches)  # returns tensors, which belong to this process

    return step


def forward_bytes(config: ViLGExperiment) -> Callable[[], int]:
    """A function that runs a forward pass over a micro-batch and returns how many bytes it keeps for its backward pass, logits
    included. What the first call allocates once and for all (masks, caches) is not among them in later calls."""
    task = RandomPairs(config)
    batch = task.batch()

    def run() -> int:
        gc.collect()
        allocated = Allocated()
        loss = task.loss(task.model, batch, 0)["loss"]  # holds what the backward needs for as long as it lives
        kept = allocated.now()
        del loss
        return kept

    return run


def compare_training(config: ViLGExperiment | VQGANExperiment, versus: list[str], repetitions: int) -> list[Timing]:
    """Training steps; `versus` may name no-kernels, and for a transformer dense and torch. They come first, in this order."""
    build, unit = (vqgan_step, "images") if isinstance(config, VQGANExperiment) else (vilg_step, "pairs")
    competitors = []
    for name in versus:
        if name == "no-kernels":
            competitors.append(Competitor(name, build, (config,), {"PPVILG_CPU_KERNELS": "0"}))
        elif isinstance(config, VQGANExperiment):
            raise ValueError(f"--vs {name} compares transformers: leave it out for an image tokenizer")
        else:
            competitors.append(_torch(config) if name == "torch" else Competitor(name, vilg_step, (dense(config),)))
    competitors.append(Competitor("ours", build, (config,)))
    return compare(competitors, repetitions, config.train.batch_size, unit)


def _torch(config: ViLGExperiment) -> Competitor:
    try:
        from ppvilg.benchmark.peers.torch_vilg import build_step
    except ModuleNotFoundError:
        raise ValueError("torch is not installed: pip install -r requirements-bench.txt") from None
    return Competitor("torch", build_step, (config,))
