"""Training: one loop, and a short file for each thing that is trained."""

import sys
from pathlib import Path

from tqdm import tqdm

from ppvilg.config import TrainingExperiment, ViLGExperiment


def build_task(config: TrainingExperiment, context):
    """The task that a config describes, for a process of a `ParallelContext`, with its data opened and its first weights drawn
    from `train.seed`."""
    if config.task == "vqgan":
        from ppvilg.train.vqgan import VQGANTask

        return VQGANTask(config)
    if config.task == "dual_encoder":
        from ppvilg.train.dual_encoder import DualEncoderTask

        return DualEncoderTask(config, context)
    from ppvilg.train.vilg import ViLGTask

    return ViLGTask(config, context)


def train(config: TrainingExperiment, resume: bool = False) -> bool:
    """Train what a config describes; False if it was interrupted (and saved) before the last step."""
    from ppvilg.checkpoint import checkpoints
    from ppvilg.ernie import with_encoder_sizes
    from ppvilg.train.fleet import init_distributed
    from ppvilg.train.init_from import init_from, with_image_tokenizer
    from ppvilg.train.run_folder import check_output, resumed_config
    from ppvilg.train.trainer import Trainer

    check_output(config, resume)
    config = with_image_tokenizer(config)
    context = init_distributed(config.parallel, config.train.gradient_accumulation_steps)
    goes_on = resume and checkpoints(Path(config.train.output))
    if isinstance(config, ViLGExperiment):
        config = with_encoder_sizes(config, config.train.output if goes_on else config.train.init_from)
    task = build_task(resumed_config(config) if goes_on else config, context)
    if config.train.init_from and not goes_on:
        taken = init_from(task, context)
        if context.is_main_process:
            tqdm.write(taken, file=sys.stderr)
    trainer = Trainer(config, task, context)
    if resume:
        trainer.resume()
    return trainer.fit()


def finish(config: TrainingExperiment) -> bool:
    """Train what a config describes, from its last checkpoint if there is one, unless that is its last step's already; False if
    it was interrupted (and saved)."""
    from ppvilg import checkpoint

    if any(path.name == f"step-{config.train.steps:08d}" for path in checkpoint.checkpoints(Path(config.train.output))):
        return True
    return train(config, resume=True)
