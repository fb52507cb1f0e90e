"""Parameters that stay as they are in training."""

from pathlib import Path

import numpy as np
import pytest

from ppvilg.checkpoint import checkpoints, load_arrays
from ppvilg.config import load_config
from ppvilg.plan.shapes import stages
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from ppvilg.train.frozen import check_frozen
from tests.helpers import run_tool

FROZEN = ["blocks.1.", "embedding.image.", "head.image."]


def test_they_stay_and_all_else_is_trained(tiny_configs, tiny_runs, tmp_path):
    run, source = tmp_path / "run", tiny_runs / "vilg"
    arguments = ["-c", tiny_configs / "vilg.yml", "-o", f"train.init_from={source}", "-o", f"train.output={run}"]
    done = run_tool("train", *arguments, "-o", f"train.frozen=[{','.join(FROZEN)}]", "-o", "train.steps=4")
    assert done.returncode == 0, done.stderr
    before = load_arrays(checkpoints(source)[-1] / "average.safetensors")
    for kind in ("model", "average"):
        after = load_arrays(checkpoints(run)[-1] / f"{kind}.safetensors")
        assert after.keys() == before.keys()
        same = {name for name in after if np.array_equal(after[name], before[name])}
        assert same == {name for name in after if name.startswith(tuple(FROZEN))}
    thawed = run_tool("train", *arguments, "-o", "train.frozen=[]", "-o", "train.steps=6", "--resume")
    assert thawed.returncode == 0, thawed.stderr
    after = load_arrays(checkpoints(run)[-1] / "model.safetensors")
    assert not np.array_equal(after["head.image.weight"], before["head.image.weight"])


def test_they_take_no_gradients_and_no_optimizer_in_the_plan():
    path, frozen = Path("configs/vilg_emoji.yml"), "train.frozen=[blocks., embedding.image.]"
    (whole,), (part,) = (stages(load_config(path, overrides)) for overrides in ([], [frozen]))
    assert part.values == whole.values
    left = sum(size for name, size in whole.sizes.items() if not name.startswith(("blocks.", "embedding.image.")))
    assert part.trained_values == left < whole.trained_values


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (["block."], r"no parameter.s name begins with .block\.."),
        (["embedding.", "blocks.", "head."], "leaves nothing to train"),
        (["embedding.", "blocks.", "head.norm.", "head.image."], "leaves nothing to train"),
    ],
)
def test_what_is_refused(tiny_configs, tiny_runs, frozen, said):
    only = ["train.img2txt_weight=0"] if "head.norm." in frozen else []
    config = load_config(tiny_configs / "vilg.yml", [f"train.frozen=[{','.join(frozen)}]", *only])
    with pytest.raises(ValueError, match=said):
        build_task(config, ParallelContext())


def test_an_adapter_freezes_everything_itself(tiny_configs):
    with pytest.raises(ValueError, match=r"train\.frozen.*expected \[\] with lora"):
        load_config(tiny_configs / "vilg.yml", ["train.frozen=[blocks.]", "lora={rank: 2}", "train.init_from=runs/x"])


def test_sharded_weights_are_refused(tiny_configs):
    with pytest.raises(ValueError, match=r"train\.frozen.*expected \[\] with parallel\.sharding_stage: 3"):
        load_config(tiny_configs / "vilg.yml", ["train.frozen=[blocks.]", "parallel={sharding_degree: 2, sharding_stage: 3}"])


@pytest.mark.parametrize("layout", ["parallel.recompute=full", "parallel.pp_degree=2"])
def test_a_frozen_embedding_is_refused_where_layers_need_a_gradient_from_it(tiny_configs, layout):
    with pytest.raises(ValueError, match=r"train\.frozen.*a part of the embedding"):
        load_config(tiny_configs / "vilg.yml", ["train.frozen=[embedding.]", layout])


def test_a_pipeline_stage_with_nothing_to_train_is_refused():
    config = load_config("configs/vilg_emoji.yml", ["train.frozen=[blocks.1.]", "parallel.pp_degree=4"])
    with pytest.raises(ValueError, match=r"pipeline stage 2 of 4 has nothing to train.*parallel\.pp_degree"):
        check_frozen(config)
    check_frozen(load_config("configs/vilg_emoji.yml", ["train.frozen=[blocks.1.]", "parallel.pp_degree=2"]))
