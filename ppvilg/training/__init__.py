"""Training: a loop, and one small file for each thing that is trained."""

from ppvilg.config import Config


def start(config: Config, resume: bool = False) -> bool:
    """Train what a config describes; False if it was interrupted (and saved) before the last step."""
    import paddle

    from ppvilg.training.loop import train

    paddle.seed(config.train.seed)  # the initial weights
    if config.task == "vqgan":
        from ppvilg.training.vqgan import VQGANTask as Task
    else:
        from ppvilg.training.vilg import ViLGTask as Task
    return train(config, Task(config), resume)
