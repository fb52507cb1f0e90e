"""The plan against the model that it plans, and against layouts worked out by hand."""

import gc
import math
from dataclasses import asdict, replace

import paddle
import pytest
from ppvilg.benchmark.timing import allocated, peak_of
from ppvilg.parallel import plan as planned
from ppvilg.parallel.plan import Cluster, communication, kept_bytes, memory, pair_flops, parameters, search, stages, step_flops
from ppvilg.transformer.model import ViLG

from ppvilg.benchmark.training import RandomPairs, activation_bytes, random_pairs, step_of
from ppvilg.config import ViLGExperiment, load_config
from tests.helpers import run_tool

DENSE = ["transformer.attention.plan=[dense]", "transformer.attention.last=null"]
ONE = ["transformer.layers=2", "train.batch_size=1", "train.gradient_accumulation_steps=1"]
NO_VOCABULARY = ["vqgan.codebook.size=128", "text.vocabulary_size=100"]


def config(name: str, *overrides: str) -> ViLGExperiment:
    return load_config(f"configs/vilg_{name}.yml", list(overrides))


def layout(**sizes) -> ViLGExperiment:
    """Two layers of width 16 with 4 · 4 + 4 slots, cut as given."""
    accumulate = sizes.pop("accumulate", 1)
    axes = {axis: f"{axis}_degree" for axis in ("dp", "mp", "pp", "sharding")}
    overrides = [f"parallel.{axes.get(key, key)}={value}" for key, value in sizes.items()]
    shape = ["layers=2", "hidden=16", "heads=4", "ffn_multiplier=4", "attention.kernel=3"]
    return config(
        "emoji",
        *(f"transformer.{key}" for key in shape),
        *("data.image_size=32", "text.max_length=4", "text.vocabulary_size=40", "vqgan.codebook.size=24"),
        *("train.batch_size=16", f"train.gradient_accumulation_steps={accumulate}", *overrides),
    )


LAYER = 2 * (16 + 16) + 4 * 16 * 16 + 2 * 16 + (16 * 64 + 64) + (64 * 16 + 16)
EMBEDDINGS = (40 + 24 + 4 + 4 + 4 + 4) * 16
HEAD = 16 * (40 + 24) + 32
ROWS = 2 * 16 * (4 + 16)  # of a whole batch


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("emoji", []),
        ("small", []),
        ("300m", []),
        ("10b", []),
        ("emoji", ["transformer.tie_embeddings=true"]),
        ("small", ["text.embedding_width=100"]),
    ],
)
def test_weights_are_the_models(name, overrides):
    of = config(name, *overrides)
    with paddle.LazyGuard():
        model = ViLG(of)
    real = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    assert [(weight.name, weight.shape) for weight in planned.weights(of)] == real
    assert sum(parameters(of).values()) == sum(math.prod(shape) for _, shape in real)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("emoji", []),
        ("emoji", DENSE),
        ("emoji", ["transformer.dropout=0.1", "text.embedding_width=100"]),
        ("emoji", ["transformer.heads=16", "data.image_size=128", "train.batch_size=2"]),
        ("emoji", ["transformer.attention.kernel=3", "transformer.attention.strict_row=true", "text.max_length=9"]),
        ("small", [*ONE, *NO_VOCABULARY]),
        ("small", [*ONE, *NO_VOCABULARY, *DENSE]),
        ("small", [*ONE, *NO_VOCABULARY, "transformer.attention.plan=[column]", "transformer.attention.last=null"]),
        ("small", [*ONE, *NO_VOCABULARY, "transformer.hidden=128", "transformer.heads=2", "transformer.ffn_multiplier=2"]),
        ("small", [*ONE, "transformer.layers=1"]),
        ("emoji", ["parallel.recompute=full"]),
        ("emoji", ["parallel.recompute=full", "transformer.dropout=0.1"]),
    ],
)
def test_a_forward_keeps_what_is_planned(name, overrides):
    of = config(name, *overrides)
    gc.collect()
    activation_bytes(of)  # what is made once and stays
    gc.collect()
    assert kept_bytes(of, stages(of)[0]) == pytest.approx(activation_bytes(of), rel=0.02)


@pytest.mark.parametrize("overrides", [[], DENSE, ["transformer.hidden=64", "transformer.layers=8"]])
def test_a_step_stays_within_the_planned_memory(overrides):
    of = config("emoji", "train.batch_size=16", "train.gradient_accumulation_steps=2", *overrides)
    found = memory(of, stages(of)[0])
    gc.collect()
    before = allocated()
    task = RandomPairs(of)
    assert allocated() - before == pytest.approx(found.weights, rel=0.001)
    step = step_of(task, of, [random_pairs(of, of.micro_batch)] * 2)
    step()  # makes the optimizer's moments; the average is there before
    assert allocated() - before == pytest.approx(found.weights + found.optimizer, rel=0.01)
    gc.collect()
    assert 0.7 < peak_of(step) / (found.total - found.weights - found.optimizer) < 1.02


def test_float32_copies_of_the_weights():
    """On a CPU offloaded ones are in the same memory as the model."""
    of = config("emoji")
    of = replace(of, parallel=replace(of.parallel, offload=True))
    copied = memory(replace(of, parallel=replace(of.parallel, offload=False, precision="bf16")), stages(of)[0]).optimizer
    gc.collect()
    before = allocated()
    step = step_of(RandomPairs(of), of, [random_pairs(of, 1)])
    step()
    gc.collect()
    assert allocated() - before == pytest.approx(memory(of, stages(of)[0]).weights + copied, rel=0.01)


def test_flops_of_dense_layers_are_those_of_the_products():
    of = config("small", *DENSE)
    hidden, m, n = 512, 64, 1024
    layers = 12 * (2 * 2 * (m + n) * 12 * hidden**2 + 2 * 2 * hidden * 2 * (m * m + n * n + m * n))
    head = 2 * hidden * (n * 8192 + (m - 1) * 40000)
    found = step_flops(of)
    assert (found.layers, found.head, found.embeddings, found.recompute) == (3 * 4 * layers, 3 * 4 * head, 0, 0)
    again = replace(of, parallel=replace(of.parallel, recompute="full"))
    assert step_flops(again).done == found.done + 4 * layers
    assert step_flops(again).model == found.model


def test_flops_of_sparse_layers_are_those_of_their_blocks():
    of = config("small", "transformer.attention.plan=[row]", "transformer.attention.last=null")
    found = planned.pair_scores(of, "row")
    both = 64 * 64 + 64 * 1024
    assert found.pairs == 2 * both + 32 * 32 * 64 + 32 * 32 * 32, "rows with the one above, and rows alone"
    assert planned.pair_scores(of, "column").pairs == 2 * (both + 32 * 32 * 32)


@pytest.mark.parametrize("pp", [1, 2, 3, 5, 48])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_stages_share_out_the_model(pp, tied):
    of = config("10b", f"parallel.pp_degree={pp}", "parallel.mp_degree=1", f"transformer.tie_embeddings={tied}")
    found = stages(of)
    assert [layer for stage in found for layer in stage.layers] == list(range(48))
    assert sum(stage.held.whole for stage in found) == sum(parameters(of).values()) + found[-1].held.tied * (pp > 1)
    assert (found[0].held.tied > 0) == (tied == "true" and pp > 1)
    for stage in found:
        owned = [share.owned for share in stage.held.shares]
        assert sum(owned) == stage.held.whole
        assert max(owned) - min(owned) <= stage.held.largest
        assert sum(share.layers for share in stage.held.shares) == stage.held.layers
    parts = sum(pair_flops(of, stage).done for stage in found)
    assert parts * of.train.batch_size == pytest.approx(step_flops(of).done)


def test_mp_cuts_matrices_and_tables_and_nothing_else():
    whole, part = (stages(layout(mp=mp))[0].held for mp in (1, 4))
    kept_whole = 2 * (4 * 16 + 2 * 16) + (4 + 4 + 4 + 4) * 16 + 32  # norms and outer biases of two layers, places, last norm
    assert whole.whole == 2 * LAYER + EMBEDDINGS + HEAD
    assert part.whole == kept_whole + (whole.whole - kept_whole) / 4


def test_sharding_and_precision_share_out_memory():
    total = 2 * LAYER + EMBEDDINGS + HEAD
    alone = memory(layout(), stages(layout())[0])
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * total, 4 * total, 12 * total), "with the average"
    found = {}
    for stage in (1, 2, 3):
        of = layout(sharding=4, sharding_stage=stage, recompute="full", precision="bf16")
        most = max(stages(of)[0].held.shares, key=lambda share: share.owned)
        found[stage] = memory(of, stages(of)[0])
        assert found[stage].optimizer == 16 * most.owned
    assert found[1].weights == found[1].gradients == found[2].weights == 2 * total
    assert found[2].gradients == 2 * (most.owned + LAYER)
    assert found[3].weights == 2 * (EMBEDDINGS + HEAD + most.layers)
    assert found[3].fetched == 2 * (most.lacking + LAYER)
    assert found[1].update == max(2 * (total + 16 * 64), 4 * most.owned), "all laid end to end, or gradients in float32"
    every = [memory(of, stages(of)[0], owner) for owner in range(4)]
    assert sum(one.optimizer for one in every) == 16 * total
    assert sum(one.weights for one in every) == 2 * (2 * LAYER + 4 * (EMBEDDINGS + HEAD)), "of each layer one owner's"
    offloaded = memory(
        replace(layout(), parallel=replace(layout().parallel, precision="bf16", offload=True)), stages(layout())[0]
    )
    assert (offloaded.optimizer, offloaded.update) == (0, 4 * 16 * 64)


def test_recompute_keeps_less():
    none, full = (memory(of, stages(of)[0]) for of in (config("small", f"parallel.recompute={r}") for r in ("none", "full")))
    assert none.activations > full.activations
    assert none.masks == full.masks


def sent(of: ViLGExperiment, stage: int = 0, owner: int = 0) -> dict[str, float]:
    return {kind: size for kind, size in asdict(communication(of, stages(of)[stage], owner)).items() if size}


def test_messages_of_data_parallel_processes():
    total, layers = 2 * LAYER + EMBEDDINGS + HEAD, 2 * LAYER
    assert sent(layout()) == {}
    assert sent(layout(dp=2, accumulate=4)) == {"dp_all_reduce": 4 * total}
    first = layout(sharding=4, accumulate=4, precision="bf16")
    assert sent(first) == {"sharding_reduce": 2 * total, "sharding_broadcast": 2 * total}
    second = layout(sharding=2, sharding_stage=2, dp=2, accumulate=4)
    both = [sent(second, owner=owner) for owner in range(2)]
    assert all(one["sharding_reduce"] == 4 * 4 * total for one in both), "after each micro-batch"
    assert sum(one["dp_all_reduce"] for one in both) == 4 * total
    third = layout(sharding=4, sharding_stage=3, recompute="full", accumulate=4)
    assert sent(third) == {
        "sharding_reduce": 4 * 4 * total,
        "sharding_broadcast": 4 * (total - layers),
        # A layer after itself is there still: the last between forward and backward, the first between micro-batches.
        "layer_broadcast": 4 * (4 * 2 * 2 - 4 - 3) * LAYER,
    }


def test_messages_within_layers_and_between_stages():
    rows = 4 * ROWS * 16  # bytes of the rows of all micro-batches
    slots = 16 * (16 + 3)
    assert sent(layout(mp=2, accumulate=2)) == {"mp_all_reduce": 8 * rows + rows + slots * (16 + 3) * 4}
    again = sent(layout(mp=2, accumulate=2, recompute="full"))["mp_all_reduce"]
    assert again - sent(layout(mp=2, accumulate=2))["mp_all_reduce"] == 4 * rows
    assert [sent(layout(pp=2, accumulate=4), stage) for stage in (0, 1)] == [{"pp_send_receive": 2 * rows}] * 2
    tied = replace(layout(pp=2), transformer=replace(layout().transformer, tie_embeddings=True))
    assert sent(tied, 1)["tied_all_reduce"] == 4 * 16 * (40 + 24)


def test_seconds_are_flops_over_rate_and_bytes_over_bandwidth():
    cluster = Cluster(gpus=16, peak=1e9, utilization=0.5, inside=1e6, across=1e5)
    of = layout(dp=16)
    found = planned.plan(of, cluster).seconds
    assert found.compute == pytest.approx(step_flops(of).done / 16 / 0.5e9)
    assert found.dp == pytest.approx(sent(of)["dp_all_reduce"] * 2 * 15 / 16 / 1e5), "over two machines"
    assert found.total == found.compute + found.dp
    assert found.days(of, 160) == pytest.approx(10 * found.total / 86400)
    piped = planned.plan(layout(sharding=4, pp=2, accumulate=2), cluster).seconds
    assert piped.bubble == pytest.approx((piped.compute + piped.pp) / 2)


def test_search_finds_what_fits():
    of = config("10b", "parallel.precision=bf16")
    cluster = Cluster(gpus=16, memory=40e9)
    found = search(of, cluster)
    times = [one.seconds.total for one in found.fitting]
    assert times == sorted(times)
    assert all(one.memory.total <= 40e9 for one in found.fitting)
    assert all(group.closest.memory.total > 40e9 for group in found.misfits)
    tried = list(planned.layouts(of, cluster))
    assert len(tried) == len(found.fitting) + sum(group.count for group in found.misfits) == len({str(one) for one in tried})
    assert all(one.world_size == 16 and one.sharding_degree * one.mp_degree <= 8 for one in tried)
    for one in found.fitting[:10]:  # the config would be accepted
        keys = asdict(one.config.parallel).items()
        cut = [f"train.gradient_accumulation_steps={one.config.train.gradient_accumulation_steps}"]
        assert config("10b", *cut, *(f"parallel.{key}={str(value).lower()}" for key, value in keys)) == one.config


def test_a_batch_that_cannot_be_cut():
    found = search(config("emoji", "train.batch_size=3"), Cluster(gpus=4))
    assert set(found.refused) == {f"train.batch_size 3 is not a multiple of dp x sharding = {ranks}" for ranks in (2, 4)}
    assert found.fitting, "mp and pp need no more pairs"


def test_what_cannot_be_planned():
    with pytest.raises(ValueError, match="--per-machine"):
        search(config("emoji"), Cluster(gpus=12))
    with pytest.raises(ValueError, match="reconstructor"):
        parameters(config("emoji_e2e"))
    with pytest.raises(ValueError, match="task"):
        parameters(load_config("configs/vqgan_emoji.yml"))


def test_tool():
    overrides = ("parallel.dp_degree=2", "parallel.sharding_degree=8", "parallel.mp_degree=1", "parallel.recompute=none")
    done = run_tool("plan", "-c", "configs/vilg_10b.yml", "--gpus", 16, *(x for o in overrides for x in ("-o", o)))
    assert done.returncode == 0, done.stderr
    for said in (
        "10,061,176,832",
        "dp 2 x sharding 8 x mp 1 x pp 1",
        "does not fit",
        "after the backward",
        "None of these rates was measured",
        "days for 1.45e+08 pairs",
        "The fastest 8 of",
    ):
        assert said in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
    refused = run_tool("plan", "-c", "configs/vilg_10b.yml", "--gpus", 16, "--mfu", 1.5)
    assert (refused.returncode, refused.stderr.startswith("error: --mfu is 1.5")) == (2, True)
