"""What one training step sends and keeps in some layouts, one after the other, counted by each process:
python -m paddle.distributed.launch ... tests/parallel/measure.py LAYOUTS.json FOLDER

LAYOUTS.json has a list of overrides of configs/vilg_emoji.yml for each layout; FOLDER/RANK.json gets a dict for each.
"""

import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import ppvilg  # noqa: F401  isort: skip  sets paddle's flags

import paddle.distributed as dist

from ppvilg.benchmark.timing import allocated, peak_of
from ppvilg.benchmark.training import RandomPairs, activation_bytes, random_pairs, step_of
from ppvilg.config import ViLGExperiment, load_config
from ppvilg.parallel.sharding import Sharding
from ppvilg.parallel.topology import Topology, join
from tests.parallel.gloo import cure, leave


def measure(config: ViLGExperiment) -> dict:
    """What a process finds.

    place       numbers of its pipeline stage and of itself in its sharding group
    sent        bytes of each kind in a step
    standing    bytes that are there after it
    peak        most bytes in a step, above those
    kept        bytes that a forward keeps, where mp makes them other than in one process
    """
    topology = join(config.parallel)
    kept = None
    if config.parallel.mp_degree > 1 and config.parallel.pp_degree == 1:
        activation_bytes(config, topology)  # what is made once and stays
        gc.collect()
        kept = activation_bytes(config, topology)
    gc.collect()
    before = allocated()
    task = RandomPairs(config, topology)
    step = step_of(
        task, config, [random_pairs(config, config.micro_batch)] * config.train.gradient_accumulation_steps, topology
    )
    with counted(topology) as sent:
        step()
    gc.collect()
    standing = allocated() - before
    peak = peak_of(step)
    return {"place": [topology.pp.rank, topology.sharding.rank], "sent": sent, "standing": standing, "peak": peak, "kept": kept}


@contextmanager
def counted(topology: Topology) -> Iterator[Counter]:
    """Bytes of the tensors that are passed to paddle.distributed, scalars left out, by the names of the plan."""
    real = {name: getattr(dist, name) for name in ("all_reduce", "reduce", "broadcast", "send", "recv")}
    spread, spreading, sent = Sharding.spread, [], Counter()
    sums = {"dp_all_reduce": topology.dp, "mp_all_reduce": topology.mp, "tied_all_reduce": topology.ends}

    def kind(name: str, group: object) -> str:
        if name == "all_reduce":
            return next(said for said, axis in sums.items() if axis.size > 1 and axis.group is group)
        if name == "broadcast":
            return "sharding_broadcast" if spreading else "layer_broadcast"
        return {"reduce": "sharding_reduce", "send": "pp_send_receive", "recv": "pp_send_receive"}[name]

    def counting(name: str):
        def call(tensor, *arguments, group=None, **options):
            if tensor.size > 1:
                sent[kind(name, group)] += tensor.size * tensor.element_size()
            return real[name](tensor, *arguments, group=group, **options)

        return call

    def spread_noted(sharding: Sharding) -> None:
        spreading.append(True)
        spread(sharding)
        spreading.clear()

    Sharding.spread = spread_noted
    for name in real:
        setattr(dist, name, counting(name))
    try:
        yield sent
    finally:
        Sharding.spread = spread
        for name, function in real.items():
            setattr(dist, name, function)


if __name__ == "__main__":
    cure()
    layouts, folder = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    found = [measure(load_config("configs/vilg_emoji.yml", overrides)) for overrides in layouts]
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found), "utf-8")
    leave()
