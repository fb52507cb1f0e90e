"""Which parameters of a transformer stay as they are while it is trained."""

from dataclasses import replace

import paddle

from ppvilg.config import ViLGExperiment
from ppvilg.model.config import trained_directions, vilg_config
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG


def untrained_parameters(config: ViLGExperiment) -> tuple[str, ...]:
    """What their names begin with: those that `train.frozen` names, and those that the directions trained do not reach."""
    unused = {Direction.TEXT_TO_IMAGE: ["head.image."], Direction.IMAGE_TO_TEXT: ["head.text."]}
    if config.text.encoder is not None:  # it reads every text that is a prefix; the table, those that are written
        unused[Direction.IMAGE_TO_TEXT] += ["embedding.text.", "embedding.text_projection."]
        if not config.text.question_length:
            unused[Direction.TEXT_TO_IMAGE] += ["embedding.text_encoder."]
    directions = trained_directions(config.train)
    return (
        *config.train.frozen,
        *(name for direction, names in unused.items() if direction not in directions for name in names),
    )


def check_frozen(config: ViLGExperiment) -> None:
    """Raise `ValueError` where no parameter's name begins like an entry of `train.frozen`, or nothing is left to train."""
    from ppvilg.plan.shapes import stages  # which asks this file what is trained

    if not config.train.frozen:
        return
    with paddle.LazyGuard():  # the whole model, of which a process may have a part
        names = [name for name, _ in ViLG(vilg_config(config)).named_parameters()]
    for start in config.train.frozen:
        if not any(name.startswith(start) for name in names):
            raise ValueError(
                f"train.frozen: no parameter's name begins with {start!r}: expected the beginnings of names in a run's "
                "safetensors files, e.g. embedding.text. or blocks.0."
            )
    if all(name.startswith(untrained_parameters(config)) for name in names):
        raise ValueError(f"train.frozen: {config.train.frozen} leaves nothing to train: take something out")
    # What cannot be planned is in a stage that has other parameters besides.
    transformer, text = replace(config.transformer, reconstructor=False), replace(config.text, encoder=None)
    for stage in stages(replace(config, transformer=transformer, text=text)):
        if not stage.trained:
            raise ValueError(
                f"train.frozen: pipeline stage {stage.number + 1} of {stage.count} has nothing to train, and stages step "
                f"together: take something out, or set a smaller parallel.pp_degree"
            )
