"""What a process of a layout holds between two training steps:
python -m paddle.distributed.launch ... tests/parallel/measure.py FOLDER -o key=value ...

The overrides are of configs/vilg_emoji.yml; FOLDER/RANK.json gets numbers.
"""

import gc
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

import ppvilg  # noqa: F401  sets paddle's flags
from tests.parallel.gloo import cure, leave

cure()

from ppvilg.benchmark.random_pairs import random_pairs  # noqa: E402  the cure comes before Fleet
from ppvilg.benchmark.runner import Allocated  # noqa: E402
from ppvilg.config import ViLGExperiment, load_config  # noqa: E402
from ppvilg.model.batch import Batch  # noqa: E402
from ppvilg.model.config import vilg_config  # noqa: E402
from ppvilg.model.loss import vilg_loss  # noqa: E402
from ppvilg.model.vilg import ViLG  # noqa: E402
from ppvilg.train.fleet import init_distributed  # noqa: E402
from ppvilg.train.pipe import ViLGPipe  # noqa: E402
from ppvilg.train.trainer import Trainer  # noqa: E402


def measure(config: ViLGExperiment) -> dict[str, int]:
    """The pipeline stage; values of all its parameters, and of what the process updates; bytes allocated after two steps,
    and those of them that are gradients, which Fleet drops or sets to zero."""
    context = init_distributed(config.parallel, config.train.gradient_accumulation_steps)
    gc.collect()
    allocated = Allocated()
    model = ViLG(vilg_config(config), context.mp_group) if context.pp_group is None else ViLGPipe(vilg_config(config), context)
    values = sum(parameter.size for parameter in model.parameters())

    def criterion(outputs, batch):
        return vilg_loss(outputs, batch, None, context.mp_group)

    def loss(model, batch, step):
        tensors = batch.to_tensors()
        return criterion(model(tensors), tensors)

    task = SimpleNamespace(modules={"model": model}, loss=loss, criterion=criterion, begin=lambda: None)
    trainer = Trainer(config, task, context)
    batches = [Batch.plain(*random_pairs(config, config.micro_batch))] * config.train.gradient_accumulation_steps
    for _ in range(2):
        trainer.train_step(batches)
    gc.collect()
    gradients = sum(p.grad.size * 4 for p in model.parameters() if p.grad is not None and p.grad._is_initialized())
    owned = sum(weight.size for weight in trainer.models["model"].state.weights().values())
    number = 0 if context.pp_group is None else context.pp_group.rank
    return {"stage": number, "values": values, "owned": owned, "bytes": allocated.now(), "gradients": gradients}


if __name__ == "__main__":
    folder, overrides = Path(sys.argv[1]), sys.argv[3::2]
    found = measure(load_config("configs/vilg_emoji.yml", overrides, ViLGExperiment))
    (folder / f"{os.environ['PADDLE_TRAINER_ID']}.json").write_text(json.dumps(found), "utf-8")
    leave()
