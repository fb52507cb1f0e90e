"""Training: a loop, and one small file for each thing that is trained."""

from pathlib import Path

from ppvilg.config import Config


def build_task(config: Config):
    """The task that a config describes, with its data opened and its weights initialised from `train.seed`."""
    import paddle

    paddle.seed(config.train.seed)
    if config.task == "vqgan":
        from ppvilg.training.vqgan import VQGANTask as Task
    else:
        from ppvilg.training.vilg import ViLGTask as Task
    return Task(config)


def start(config: Config, resume: bool = False) -> bool:
    """Train what a config describes; False if it was interrupted (and saved) before the last step."""
    from ppvilg.training.loop import train

    return train(config, build_task(config), resume)


def finish(config: Config) -> bool:
    """Train what a config describes, from its last checkpoint if there is one, unless that is its last step's already; False if
    it was interrupted (and saved)."""
    from ppvilg import checkpoint

    if any(path.name == f"step-{config.train.steps:08d}" for path in checkpoint.checkpoints(Path(config.train.output))):
        return True
    return start(config, resume=True)
