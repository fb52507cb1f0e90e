"""Training: a loop, and one small file for each thing that is trained."""

from pathlib import Path

from ppvilg.config import TrainingExperiment


def build_task(config: TrainingExperiment, topology=None):
    """The task that a config describes, with its data opened and its weights initialised from `train.seed`; in a layout of
    processes (a `Topology`) this process's part of it."""
    import paddle

    paddle.seed(config.train.seed)
    if config.task == "vqgan":
        from ppvilg.training.vqgan import VQGANTask as Task
    elif config.task == "dual_encoder":
        from ppvilg.training.matching import MatchingTask as Task
    else:
        from ppvilg.training.vilg import ViLGTask as Task
    return Task(config, topology)


def start(config: TrainingExperiment, resume: bool = False) -> bool:
    """Train what a config describes; False if it was interrupted (and saved) before the last step."""
    from ppvilg.parallel.topology import join
    from ppvilg.training.loop import train

    topology = join(config.parallel)
    return train(config, build_task(config, topology), topology, resume)


def finish(config: TrainingExperiment) -> bool:
    """Train what a config describes, from its last checkpoint if there is one, unless that is its last step's already; False if
    it was interrupted (and saved)."""
    from ppvilg import checkpoint

    if any(path.name == f"step-{config.train.steps:08d}" for path in checkpoint.checkpoints(Path(config.train.output))):
        return True
    return start(config, resume=True)
