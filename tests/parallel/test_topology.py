"""Places of processes, and what a process of a large layout holds."""

from collections import Counter
from itertools import product

import numpy as np
import paddle
import pytest

from ppvilg.config import ParallelConfig, load_config
from ppvilg.errors import UserError
from ppvilg.parallel.sharding import owners
from ppvilg.parallel.topology import join, place
from ppvilg.transformer.model import Block, ViLG
from tests.helpers import run_tool


def test_axes_cover_the_layout_with_mp_innermost():
    config = ParallelConfig(dp_degree=2, sharding_degree=3, mp_degree=2, pp_degree=2)
    places = [place(config, rank) for rank in range(config.world_size)]
    seen = Counter((t.dp.rank, t.pp.rank, t.sharding.rank, t.mp.rank) for t in places)
    assert sorted(seen) == sorted(product(range(2), range(2), range(3), range(2)))
    for rank, topology in enumerate(places):
        assert topology.mp.ranks[topology.mp.rank] == rank
        assert topology.mp.ranks == (rank - rank % 2, rank - rank % 2 + 1), "neighbours share matrices"
        for axis in (topology.dp, topology.sharding, topology.pp):
            assert axis.ranks[axis.rank] == rank
    assert sum(topology.leads for topology in places) == 1


def test_layout_and_launched_processes_have_to_agree(monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    with pytest.raises(UserError, match="dp 2 x sharding 1 x mp 1 x pp 1 are 2 processes, but 4 are running: launch 2"):
        join(ParallelConfig(dp_degree=2))


def test_the_10b_config_refuses_one_process():
    done = run_tool("train", "-c", "configs/vilg_10b.yml")
    assert done.returncode == 2
    assert "64 processes, but 1 is running" in done.stderr


def test_owners_share_out_evenly():
    sizes = {f"p{i}": int(size) for i, size in enumerate(np.random.default_rng(0).integers(1, 1000, 200))}
    owner = owners(sizes, 8)
    loads = [sum(size for name, size in sizes.items() if owner[name] == rank) for rank in range(8)]
    assert max(loads) - min(loads) < max(sizes.values())


EIGHT_BY_FOUR = {"mp_degree": 8, "pp_degree": 4, "dp_degree": 2, "sharding_degree": 1}


@pytest.mark.parametrize(
    ("layout", "rank"),
    [
        (EIGHT_BY_FOUR, 0),
        (EIGHT_BY_FOUR, 63),
        ({}, 5),
    ],
)
def test_one_process_of_the_10b_model(layout, rank):
    """Shapes and counts of what a rank of the layout has, first without memory, then each layer with it, one at a time."""
    overrides = [f"parallel.{key}={value}" for key, value in layout.items()]
    config = load_config("configs/vilg_10b_stage3.yml", ["parallel.sharding_stage=1", *overrides])
    topology = place(config.parallel, rank)
    with paddle.LazyGuard():
        model = ViLG(config, topology)
    h, mp, pp = 4096, topology.mp.size, topology.pp.size
    layers = len(model.stage)
    assert sum(len(stage_of(config, r)) for r in topology.pp.ranks) == 48
    tables = (config.text.vocabulary_size + config.vqgan.codebook.size) * h // mp
    positions = (config.text.max_length + 64 + 4) * h
    # Per layer: four square matrices, two of four times that, cut by mp; the biases of query and up are cut, norms and the
    # biases of out and down are not.
    expected = layers * (12 * h * h // mp + 5 * h // mp + 6 * h)
    expected += (tables + positions) * topology.first_stage + (tables + 2 * h) * topology.last_stage
    assert sum(int(np.prod(p.shape)) for p in model.parameters()) == expected
    first = next(name for name, _ in model.named_parameters() if name.startswith("blocks."))
    assert first.startswith(f"blocks.{model.stage[0]}."), "names are those of the whole model"
    if pp == 1 and mp == 1:
        assert expected == 10_061_176_832
        return
    block = Block(config.transformer, mp=topology.mp)  # 100 MB of the 800
    assert block.attention.query.weight.shape == [h, h // mp]
    assert block.attention.out.weight.shape == [h // mp, h]
    assert block.ffn.up.weight.shape == [h, 4 * h // mp]
    assert block.ffn.up.weight.numpy().std() == pytest.approx(0.02, rel=0.01)


def stage_of(config, rank: int) -> range:
    from ppvilg.parallel.pipeline import stages

    topology = place(config.parallel, rank)
    return stages(config, topology.pp.size)[topology.pp.rank]
