"""Which process does what, and what a process of a large layout holds."""

import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.distributed import fleet
from paddle.distributed.fleet.layers.mpu.random import MODEL_PARALLEL_RNG, get_rng_state_tracker

from ppvilg.config import ParallelConfig, load_config
from ppvilg.model.config import ViLGConfig, vilg_config
from ppvilg.model.init import init_weights, own_part
from ppvilg.model.vilg import Block, ViLG
from ppvilg.train import pipe
from ppvilg.train.context import ParallelContext
from ppvilg.train.fleet import init_distributed
from ppvilg.train.pipe import ViLGPipe, stage_starts
from ppvilg.train.shards import named_parameters
from tests.helpers import run_tool

AXES = ("dp", "pp", "sharding", "sep", "mp")


def topology(parallel: ParallelConfig) -> fleet.CommunicateTopology:
    """Fleet's, from the outermost axis to the innermost."""
    sizes = [1 if axis == "sep" else getattr(parallel, f"{axis}_degree") for axis in AXES]
    return fleet.CommunicateTopology(["data", "pipe", "sharding", "sep", "model"], sizes)


def context_of(parallel: ParallelConfig, rank: int) -> ParallelContext:
    """The place of a rank, without any connection."""
    groups = {}
    for axis, name in zip(AXES, topology(parallel)._parallel_names, strict=True):
        ranks = next(ranks for ranks in topology(parallel).get_comm_list(name) if rank in ranks)
        groups[axis] = SimpleNamespace(nranks=len(ranks), rank=ranks.index(rank)) if len(ranks) > 1 else None
    return ParallelContext(parallel.world_size, rank, groups["dp"], groups["sharding"], groups["mp"], groups["pp"])


def rank_of(group) -> int:
    return 0 if group is None else group.rank


def test_contexts_cover_the_layout():
    parallel = ParallelConfig(dp_degree=2, sharding_degree=3, mp_degree=2, pp_degree=2)
    contexts = [context_of(parallel, rank) for rank in range(parallel.world_size)]
    assert sum(context.is_main_process for context in contexts) == 1
    main = next(context for context in contexts if context.is_main_process)
    assert main.is_last_stage
    assert not main.is_first_stage
    seen = Counter((c.data_rank, rank_of(c.pp_group), rank_of(c.mp_group)) for c in contexts)
    assert sorted(seen) == sorted(product(range(6), range(2), range(2))), "each place is taken once"
    for context in contexts:
        assert context.data_world_size == 6
        assert (context.replica, context.replica_size) == (context.rank // 12, 12), "consecutive ranks hold the model once"


@pytest.mark.parametrize(
    ("parallel", "launched", "message"),
    [
        ({"dp_degree": 2}, 4, "dp_degree 2 are 2 processes, but 4 are running: launch `python -m paddle.distributed.launch "
         "--nproc_per_node 2 tools/train.py -c ...`, or change the parallel section"),
        ({}, 2, "1 processes, but 2 are running: run `python tools/train.py -c ...`"),
        ({"mp_degree": 8, "dp_degree": 2}, 1, "--nproc_per_node 8 tools/train.py -c ...` on 2 machines (with --nnodes 2 "),
    ],
)  # fmt: skip
def test_layout_and_launched_processes_have_to_agree(parallel, launched, message, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(launched))
    with pytest.raises(ValueError, match=re.escape(message)):
        init_distributed(ParallelConfig(**parallel))


def test_the_10b_config_refuses_one_process():
    done = run_tool("train", "-c", "configs/vilg_10b.yml")
    assert done.returncode == 2
    assert "64 processes, but 1 is running" in done.stderr
    assert "paddle.distributed.launch --nproc_per_node 8 tools/train.py" in done.stderr


@pytest.fixture
def part_of(monkeypatch):
    """A function that builds what a rank has of a model, without any connection."""
    monkeypatch.setattr(fleet.fleet, "_user_defined_strategy", fleet.DistributedStrategy(), raising=False)
    get_rng_state_tracker().reset()
    get_rng_state_tracker().add(MODEL_PARALLEL_RNG, 1)

    def build(config: ViLGConfig, parallel: ParallelConfig, rank: int, lazy: bool = False):
        starts = stage_starts(config, parallel.pp_degree)  # outside of the guard, within which it would end the laziness
        monkeypatch.setattr(pipe, "stage_starts", lambda *_: starts)
        with paddle.LazyGuard() if lazy else nullcontext():
            return build_now(config, parallel, rank)

    def build_now(config: ViLGConfig, parallel: ParallelConfig, rank: int):
        context = context_of(parallel, rank)
        if context.pp_group is None:
            return ViLG(config, context.mp_group)
        monkeypatch.setattr(paddle.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(paddle.distributed.ParallelEnv, "_device_id", 0, raising=False)
        groups = SimpleNamespace(topology=lambda: topology(parallel))
        monkeypatch.setattr(pipe.fleet, "get_hybrid_communicate_group", lambda: groups)
        return ViLGPipe(config, context)

    return build


SMALL = ViLGConfig(text_vocab_size=24, max_text_length=6, image_vocab_size=16, rows=2, columns=2, layers=4, hidden=16, heads=4)


@pytest.mark.parametrize("parallel", [{"mp_degree": 2}, {"pp_degree": 3}, {"mp_degree": 2, "pp_degree": 2}])
def test_every_layout_starts_from_the_weights_of_one_process(parallel, part_of):
    parallel = ParallelConfig(**parallel)
    whole = named_parameters(ViLG(SMALL))
    init_weights(whole, 3, SMALL.layers)
    seen = set()
    for rank in range(parallel.world_size):
        part, mp_group = named_parameters(part_of(SMALL, parallel, rank)), context_of(parallel, rank).mp_group
        init_weights(part, 3, SMALL.layers, mp_group)
        seen |= part.keys()
        for name, parameter in part.items():
            expected = own_part(parameter, whole[name].numpy(), mp_group)
            np.testing.assert_array_equal(parameter.numpy(), expected, err_msg=f"{rank}: {name}")
    assert seen == whole.keys()


EIGHT_BY_FOUR = {"dp_degree": 2, "sharding_degree": 1, "mp_degree": 8, "pp_degree": 4}


@pytest.mark.parametrize(("layout", "rank"), [(EIGHT_BY_FOUR, 0), (EIGHT_BY_FOUR, 63), ({}, 5)])
def test_one_process_of_the_10b_model(layout, rank, part_of):
    """Shapes and counts of what a rank of the layout has, without memory."""
    experiment = load_config("configs/vilg_10b.yml")
    parallel, config = replace(experiment.parallel, **({"mp_degree": 1} | layout)), vilg_config(experiment)
    found = named_parameters(part_of(config, parallel, rank, lazy=True))
    context, h, mp = context_of(parallel, rank), config.hidden, parallel.mp_degree
    layers = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    width, head = config.text_embedding_width, (config.text_vocab_size + config.image_vocab_size) * h // mp
    tables = (config.text_vocab_size * width + config.image_vocab_size * h) // mp + width * h
    positions = (config.max_text_length + config.rows + config.columns + 4) * h
    # Per layer: four square matrices, two of four times that, divided by mp; the biases of query and up are divided, norms and
    # the biases of out and down are not.
    expected = layers * (12 * h * h // mp + 5 * h // mp + 6 * h)
    expected += (tables + positions) * context.is_first_stage + (head + 2 * h) * context.is_last_stage
    assert sum(int(np.prod(p.shape)) for p in found.values()) == expected
    if mp == 1:
        assert layers == 48
        assert expected == 9_942_491_136


def test_one_layer_of_the_10b_model_with_its_memory(part_of):
    config = vilg_config(load_config("configs/vilg_10b.yml"))
    mp_group = SimpleNamespace(nranks=8, rank=3)
    part_of(SMALL, ParallelConfig(), 0)
    block = Block(config, "row", mp_group)  # 100 MB of the 800
    query, out = block.attention.query.weight, block.attention.out.weight
    init_weights({"attention.query.weight": query, "attention.out.weight": out}, 0, config.layers, mp_group)
    assert query.shape == [4096, 512]
    assert out.shape == [512, 4096]
    assert block.mlp.up.weight.shape == [4096, 2048]
    assert query.numpy().std() == pytest.approx(0.02, rel=0.01)
    assert out.numpy().std() == pytest.approx(0.02 / np.sqrt(96), rel=0.01)
