"""The plan's parameters and standing memory against what processes hold under Fleet."""

import json

import pytest

from ppvilg.config import ViLGExperiment, load_config
from ppvilg.plan.costs import memory
from ppvilg.plan.shapes import owned_values, stages
from tests.parallel import launch
from tests.parallel.conftest import overrides

MODEL = {
    "transformer.layers": 3,
    "transformer.hidden": 64,
    "transformer.heads": 4,
    "text.vocabulary_size": 20000,  # a table that stage 3 slices
    "train.batch_size": 4,
    "train.gradient_accumulation_steps": 2,
}
QUICK = [{"sharding_degree": 2}, {"sharding_degree": 2, "sharding_stage": 3, "recompute": "full"}]
LAYOUTS = [
    {"dp_degree": 2},
    {"sharding_degree": 2, "sharding_stage": 2},
    {"mp_degree": 2},
    {"pp_degree": 2},
    {"pp_degree": 2, "transformer.tie_embeddings": "true"},
]


def check(layout: dict, tmp_path) -> None:
    given = MODEL | {key if "." in key else f"parallel.{key}": value for key, value in layout.items()}
    config = load_config("configs/vilg_emoji.yml", [f"{key}={value}" for key, value in given.items()], ViLGExperiment)
    done = launch.run("measure", 2, tmp_path / "logs", tmp_path, *overrides(given))
    assert done.returncode == 0, done.stderr + launch.output(tmp_path / "logs")
    found = [json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in range(2)]
    planned = stages(config)
    for process in found:
        stage = planned[process["stage"]]
        assert process["values"] == stage.values
        expected = memory(config, stage)
        # Of the one that owns most; the others have less of the optimizer's state.
        less = max(owned_values(config, stage)) - process["owned"]
        standing = expected["weights"] + expected["optimizer"] - 12 * less
        buffer = 2**23 if config.parallel.sharding_stage == 2 else 0  # of Fleet's, at most, whatever the model's size
        assert 0.99 * standing < process["bytes"] - process["gradients"] < 1.01 * standing + buffer
        assert process["gradients"] <= expected["gradients"]
    if config.parallel.sharding_degree == 2:
        assert sorted(process["owned"] for process in found) == sorted(owned_values(config, planned[0]))


@pytest.mark.parametrize("layout", QUICK, ids=str)
def test_processes_hold_what_is_planned(layout, tmp_path):
    check(layout, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_processes_hold_what_is_planned_in_more_layouts(layout, tmp_path):
    check(layout, tmp_path)
