"""AdamW and its learning rate over the steps."""

import math

from paddle import nn
from paddle.optimizer.lr import LambdaDecay, LRScheduler

from ppvilg import ops
from ppvilg.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of a step: linear warm-up, then half a cosine from `learning_rate` to `min_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine


def build_schedule(config: TrainConfig) -> LRScheduler:
    """`learning_rate` for optimizers; `schedule.step(step)` sets the rate of a step."""
    return LambdaDecay(1.0, lambda step: learning_rate(config, step))


def build_optimizer(module: nn.Layer, config: TrainConfig, schedule: LRScheduler) -> ops.AdamW:
    """AdamW over a module's trainable parameters, which clips gradients by their global norm; biases and norms do not decay."""
    parameters = [p for p in module.parameters() if not p.stop_gradient]
    decayed = {p.name for p in parameters if p.ndim > 1}
    return ops.AdamW(
        learning_rate=schedule,
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
        apply_decay_param_fun=lambda name: name.removeprefix("slice@") in decayed,  # Fleet's stage 3 renames parameters
        grad_clip=ops.ClipGradByGlobalNorm(config.clip_norm) if config.clip_norm else None,
        parameters=parameters,
    )
