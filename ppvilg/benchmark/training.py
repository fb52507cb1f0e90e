"""Whole training steps, of a config against its dense plan, itself without the C++ kernels, or the same model in PyTorch."""

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import paddle
from paddle import nn

from ppvilg.benchmark.random_pairs import random_pairs
from ppvilg.benchmark.runner import Allocated, Competitor, Timing, compare
from ppvilg.config import AttentionConfig, TrainConfig, ViLGExperiment, VQGANExperiment
from ppvilg.model.batch import Batch
from ppvilg.model.config import vilg_config
from ppvilg.model.loss import ReconstructionWeights, vilg_loss
from ppvilg.model.vilg import ViLG
from ppvilg.vqgan.loss import VQGANLoss
from ppvilg.vqgan.model import VQGAN


def dense(config: ViLGExperiment) -> ViLGExperiment:
    """The same with every layer dense."""
    return replace(config, transformer=replace(config.transformer, attention=AttentionConfig(plan=["dense"], last=None)))


def random_batch(config: ViLGExperiment) -> Batch:
    """A micro-batch of random pairs, as arrays."""
    batch = Batch.plain(*random_pairs(config, config.micro_batch))
    if not config.transformer.reconstructor:
        return batch
    shape = [config.micro_batch, 3, config.data.image_size, config.data.image_size]
    return replace(batch, pixel_values=np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))


def vilg_step(config: ViLGExperiment) -> Callable[[], None]:
    """A training step of a transformer: losses and gradients of all micro-batches, clipping, AdamW, moving average."""
    model = ViLG(vilg_config(config))
    reconstruction = ReconstructionWeights() if config.transformer.reconstructor else None
    batch, parts = random_batch(config), config.train.gradient_accumulation_steps
    update = _update(model, config.train)

    def step() -> None:
        for _ in range(parts):
            tensors = batch.to_tensors()
            (vilg_loss(model(tensors), tensors, reconstruction)["loss"] / parts).backward()
        update()

    return step


def vqgan_step(config: VQGANExperiment) -> Callable[[], None]:
    """A training step of an image tokenizer before its discriminator starts, on random images."""
    model, objective = VQGAN(config.vqgan, config.data.image_size), VQGANLoss(config.vqgan.loss)
    shape = [config.micro_batch, 3, config.data.image_size, config.data.image_size]
    images, parts = paddle.uniform(shape, min=-1, max=1), config.train.gradient_accumulation_steps
    update = _update(model, config.train)

    def step() -> None:
        for _ in range(parts):
            reconstruction, quantized = model(images)
            loss, _ = objective.generator(images, reconstruction, quantized, model.last_layer, 0)
            (loss / parts).backward()
        update()

    return step


def _update(model: nn.Layer, settings: TrainConfig) -> Callable[[], None]:
    """Clipping, AdamW and the moving average of the weights."""
    parameters = model.parameters()
    decayed = {p.name for p in parameters if p.ndim > 1}
    optimizer = paddle.optimizer.AdamW(
        settings.learning_rate,
        settings.beta1,
        settings.beta2,
        settings.epsilon,
        parameters=parameters,
        weight_decay=settings.weight_decay,
        apply_decay_param_fun=lambda name: name in decayed,
        grad_clip=nn.ClipGradByGlobalNorm(settings.clip_norm) if settings.clip_norm else None,
    )
    average = [p.detach().clone() for p in parameters]

    @paddle.no_grad()
    def update() -> None:
        optimizer.step()
        optimizer.clear_grad()
        for mean, p in zip(average, parameters, strict=True):
            mean.lerp_(p, paddle.full([], 1 - settings.ema_decay))

    return update


def forward_bytes(config: ViLGExperiment) -> Callable[[], int]:
    """A function that runs a forward pass over a micro-batch and returns how many bytes it keeps for its backward pass, logits
    included. What the first call allocates once and for all (masks, caches) is not among them in later calls."""
    model = ViLG(vilg_config(config))
    batch = random_batch(config).to_tensors()
    reconstruction = ReconstructionWeights() if config.transformer.reconstructor else None

    def run() -> int:
        gc.collect()
        allocated = Allocated()
        loss = vilg_loss(model(batch), batch, reconstruction)["loss"]  # holds what the backward needs for as long as it lives
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
