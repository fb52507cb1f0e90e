"""The plan against the model that it plans, and against layouts worked out by hand."""

from dataclasses import asdict, replace

import paddle
import pytest
from paddle.distributed.communication.group import Group

from ppvilg.benchmark.runner import run_alone
from ppvilg.benchmark.training import forward_bytes as measured_forward_bytes
from ppvilg.config import ViLGExperiment, load_config
from ppvilg.model.config import vilg_config
from ppvilg.model.vilg import ViLG
from ppvilg.plan.costs import (
    Cluster,
    communication,
    forward_bytes,
    memory,
    pair_flops,
    pair_scores,
    peak,
    seconds,
    step_flops,
)
from ppvilg.plan.report import layouts, search
from ppvilg.plan.shapes import owned_values, parameter_counts, sliced_values, stages, without_processes
from ppvilg.train.pipe import PipeBlock, PipeEmbedding, PipeHead
from tests.helpers import run_tool

DENSE = ["transformer.attention.plan=[dense]", "transformer.attention.last=null"]
COLUMN = ["transformer.attention.plan=[column]", "transformer.attention.last=null"]
ONE = ["transformer.layers=2", "train.batch_size=1", "train.gradient_accumulation_steps=1"]
ELSEWHERE = [f"transformer.{key}=true" for key in ("causal_text", "sandwich_norm", "head_norm", "head_bias")]
ELSEWHERE += ["transformer.image_positions=flat", "text.padding=positional"]
NO_VOCABULARY = ["vqgan.codebook.size=128", "text.vocabulary_size=100"]


def config(name: str, *overrides: str) -> ViLGExperiment:
    return load_config(f"configs/vilg_{name}.yml", list(overrides), ViLGExperiment)


def layout(**sizes) -> ViLGExperiment:
    """Two layers of width 16 with 4 · 4 + 4 slots, divided as given."""
    steps = sizes.pop("steps", 1)
    degrees = {key: f"{key}_degree" for key in ("dp", "sharding", "mp", "pp")}
    overrides = [f"parallel.{degrees.get(key, key)}={value}" for key, value in sizes.items()]
    shape = ["layers=2", "hidden=16", "heads=4", "ffn_multiplier=4", "attention.kernel=3", "dropout=0.0"]
    return config(
        "emoji",
        *(f"transformer.{key}" for key in shape),
        *("data.image_size=32", "text.max_length=4", "text.vocabulary_size=40", "vqgan.codebook.size=24"),
        *("train.batch_size=16", f"train.gradient_accumulation_steps={steps}", *overrides),
    )


LAYER = 2 * (16 + 16) + 4 * 16 * 16 + 2 * 16 + (16 * 64 + 64) + (64 * 16 + 16)
EMBEDDING = (40 + 24 + 4 + 4 + 4 + 4) * 16
HEAD = 16 * (40 + 24) + 32
TOTAL = 2 * LAYER + EMBEDDING + HEAD
ROWS = 2 * 16 * (4 + 16)  # of a whole batch


def test_the_paper_s_model():
    counts = parameter_counts(config("10b"))
    assert counts["blocks"] == 48 * (12 * 4096**2 + 11 * 4096)
    assert counts["embedding"] == (8192 + 64 + 32 + 32 + 4) * 4096 + (40000 + 4096) * 1024, "ERNIE's embeddings are projected"
    assert sum(counts.values()) == 9_942_491_136


@pytest.mark.parametrize(
    "degrees",
    [
        {"dp_degree": 8, "sharding_degree": 8, "mp_degree": 1, "sharding_stage": 3},
        {"dp_degree": 8, "sharding_degree": 4, "mp_degree": 2},
        {"dp_degree": 4, "sharding_degree": 2, "mp_degree": 2, "pp_degree": 4},
    ],
)
def test_one_ranks_part_of_the_10b_model_is_built_without_memory(degrees):
    """As training builds it, its weights apart, and counted."""
    of = config("10b", *(f"parallel.{key}={value}" for key, value in degrees.items()))
    model, planned, mp = vilg_config(of), stages(of), of.parallel.mp_degree
    assert of.parallel.world_size == 64
    assert all(peak(memory(of, stage)) < 80e9 for stage in planned)
    group = Group(0, 0, list(range(mp))) if mp > 1 else None
    for stage in planned:
        count = sum(stage.kinds.values())
        with paddle.LazyGuard(), without_processes():
            if of.parallel.pp_degree == 1:
                parts = [ViLG(model, group)]
            else:
                parts = [PipeBlock(model, "row", group, True) for _ in range(count)]
                parts += [PipeEmbedding(model, group)] * stage.is_first + [PipeHead(model, group)] * stage.is_last
        built = [parameter for part in parts for parameter in part.parameters()]
        assert not any(parameter._is_initialized() for parameter in built)
        assert sum(parameter.size for parameter in built) == stage.values
    everything = sum(parameter_counts(of).values())
    kept_whole = 48 * (4 + 2) * 4096 + (64 + 32 + 32 + 4 + 2) * 4096  # norms and outer biases, positions, the last norm
    projection = 1024 * 4096  # of the text table
    not_cut = kept_whole + projection
    assert sum(stage.values for stage in planned) == not_cut + (everything - not_cut) // mp
    if of.parallel.sharding_stage == 3:
        large, small = sliced_values(planned[0].sizes)
        assert small == kept_whole + 48 * 5 * 4096, "small parameters are not sliced"
        assert owned_values(of, planned[0]) == [large // 8 + small] * 8


@pytest.mark.parametrize("pp", [1, 2, 3, 5, 48])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_stages_share_out_the_model(pp, tied):
    width = ["text.embedding_width=null"] if tied == "true" else []
    of = config("10b", f"transformer.tie_embeddings={tied}", f"parallel.pp_degree={pp}", "parallel.mp_degree=1", *width)
    found = stages(of)
    kinds = vilg_config(of).kinds
    assert sum((stage.kinds for stage in found), start=type(found[0].kinds)()) == type(found[0].kinds)(kinds)
    names = [name for stage in found for name in stage.sizes]
    shared = 2 if tied == "true" and pp > 1 else 0
    assert len(names) == len(set(names)) + shared
    assert sum(stage.values for stage in found) == sum(parameter_counts(of).values()) + found[-1].tied
    assert (found[0].tied > 0) == (found[-1].tied > 0) == (shared > 0)
    for stage in found:
        owned = owned_values(of, stage)
        assert sum(owned) == stage.values
        assert max(owned) - min(owned) <= max(stage.sizes.values())
    parts = sum(sum(pair_flops(of, stage).values()) for stage in found)
    assert parts * of.train.batch_size == pytest.approx(sum(step_flops(of).values()))


def test_mp_shares_out_matrices_and_tables_and_nothing_else():
    whole, part = (stages(layout(mp=mp))[0].values for mp in (1, 4))
    kept_whole = 2 * (4 * 16 + 2 * 16) + (4 + 4 + 4 + 4) * 16 + 32  # norms and outer biases of two layers, positions, last norm
    assert whole == TOTAL
    assert part == kept_whole + (whole - kept_whole) / 4


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("emoji", ["train.batch_size=8"]),
        ("emoji", ["train.batch_size=8", "transformer.dropout=0.1", "text.embedding_width=100"]),
        ("emoji", ["train.batch_size=8", "text.embedding_width=100", "train.txt2img_weight=0.0"]),
        ("emoji", ["train.batch_size=8", "text.embedding_width=100", "train.img2txt_weight=0.0"]),
        ("emoji", ["transformer.heads=16", "data.image_size=128", "train.batch_size=2"]),
        ("emoji", ["train.batch_size=8", *ELSEWHERE]),
        pytest.param("small", [*ONE, *NO_VOCABULARY, *DENSE], marks=pytest.mark.slow),
        pytest.param("small", [*ONE, *NO_VOCABULARY, *COLUMN], marks=pytest.mark.slow),
        pytest.param("small", [*ONE, "transformer.layers=1"], marks=pytest.mark.slow),
    ],
)
def test_a_forward_pass_keeps_what_is_planned(name, overrides, monkeypatch):
    """By paddle's functions, as on a GPU."""
    monkeypatch.setenv("PPVILG_CPU_KERNELS", "0")
    of = config(name, *overrides)
    assert forward_bytes(of, stages(of)[0]) == pytest.approx(run_alone(measured_forward_bytes, of), rel=0.025)


def test_flops_of_dense_layers_are_those_of_the_products():
    of = config("small", *DENSE)
    hidden, m, n, batch = 512, 64, 1024, of.train.batch_size
    layers = 12 * (2 * 2 * (m + n) * 12 * hidden**2 + 2 * 2 * hidden * 2 * (m * m + n * n + m * n))
    head = 2 * hidden * (n * 8192 + (m - 1) * 40000)
    assert step_flops(of) == {"layers": 3 * batch * layers, "head": 3 * batch * head, "embedding": 0, "recompute": 0}
    again = replace(of, parallel=replace(of.parallel, recompute="full"))
    assert step_flops(again) == step_flops(of) | {"recompute": batch * layers}


def test_flops_of_sparse_layers_are_those_of_their_blocks():
    of = config("small")
    both = 64 * 64 + 64 * 1024
    assert pair_scores(of, "row").pairs == 2 * both + 32 * 32 * 64 + 32 * 32 * 32, "rows with the one above, and rows alone"
    assert pair_scores(of, "column").pairs == 2 * (both + 32 * 32 * 32)


def test_one_direction_takes_its_part():
    both, to_image, to_text = (
        config("small", f"train.txt2img_weight={a}", f"train.img2txt_weight={b}") for a, b in ((1, 1), (1, 0), (0, 1))
    )
    for name in ("layers", "head"):
        assert step_flops(to_image)[name] + step_flops(to_text)[name] == step_flops(both)[name]
    assert step_flops(to_image)["head"] / step_flops(to_text)["head"] == (1024 * 8192) / (63 * 40000)
    (whole,), (part,) = stages(both), stages(to_image)
    assert part.values == whole.values
    assert sum(owned_values(both, whole)) - sum(owned_values(to_image, part)) == 40000 * 512, "the text head is not trained"
    assert pair_flops(to_image, part)["layers"] / pair_flops(both, whole)["layers"] == pytest.approx(0.5, abs=0.02)


def held(of: ViLGExperiment) -> dict[str, float]:
    return memory(of, stages(of)[0])


def test_memory_stage_by_stage(monkeypatch):
    monkeypatch.setattr("ppvilg.plan.shapes.SEGMENT_SIZE", 100)
    alone = held(layout())
    assert (alone["weights"], alone["gradients"], alone["optimizer"]) == (4 * TOTAL, 4 * TOTAL, 12 * TOTAL), "with the average"
    found = {}
    for stage in (1, 2, 3):
        of = layout(sharding=4, sharding_stage=stage, recompute="full", precision="bf16")
        own, found[stage] = max(owned_values(of, stages(of)[0])), held(of)
        assert found[stage]["optimizer"] == 16 * own
        if stage > 1:
            assert found[stage]["gradients"] == 4 * (own + 16 * 64)
    assert found[1]["weights"] == found[2]["weights"] == 2 * TOTAL
    assert found[1]["gradients"] == 4 * TOTAL, "main gradients"
    large, small = sliced_values(stages(layout())[0].sizes)
    assert large + small == TOTAL
    assert found[3]["weights"] == 2 * (large / 4 + small)
    assert found[3]["fetched"] == 2 * 16 * 64
    offloaded = held(layout(sharding=4, sharding_stage=3, precision="bf16", offload="true"))
    assert (offloaded["optimizer"], offloaded["gradients"], offloaded["weights"]) == (0, 2 * 16 * 64, 2 * small)


def test_the_peak_is_in_the_backward_or_in_the_update():
    found = held(layout(dp=2))
    assert found["update"] == 4 * TOTAL
    standing = found["weights"] + found["gradients"] + found["optimizer"]
    assert peak(found) == standing + max(found["activations"] + found["logits"] + found["workspace"], found["update"])


def test_recompute_keeps_the_inputs_of_layers():
    none, full = (held(layout(recompute=how)) for how in ("none", "full"))
    rows, head = 4 * ROWS * 16, 4 * 16 * (16 + 3) * 16
    assert full["activations"] == 2 * rows + rows + head
    assert none["activations"] - rows - head == pytest.approx(2 * full["recomputed"], rel=0.03), "the larger layer twice"


def test_sequence_parallel_processes_keep_a_share_between_the_matrices():
    plain, shared = (held(layout(mp=2, recompute="full", **more)) for more in ({}, {"sequence_parallel": "true"}))
    rows, head = 4 * ROWS * 16, 4 * 16 * (16 + 3) * 16
    assert plain["activations"] == 2 * rows + rows + head
    assert shared["activations"] == 2 * rows / 2 + rows + head
    assert plain["recomputed"] - shared["recomputed"] == rows, "what the two norms read"
    assert shared["weights"] == plain["weights"]


def test_stages_keep_as_many_micro_batches_as_stages_follow():
    first, last = (memory(layout(pp=2, steps=4), stage) for stage in stages(layout(pp=2, steps=4)))
    of_one = layout(pp=2, steps=4)
    assert first["activations"] == 2 * forward_bytes(of_one, stages(of_one)[0])
    assert last["activations"] + last["logits"] / 2 == forward_bytes(of_one, stages(of_one)[1])


def sent(of: ViLGExperiment, stage: int = 0) -> dict[str, float]:
    return {kind: size for kind, size in communication(of, stages(of)[stage]).items() if size}


def test_messages_of_data_parallel_processes(monkeypatch):
    monkeypatch.setattr("ppvilg.plan.shapes.SEGMENT_SIZE", 100)
    assert sent(layout()) == {}
    assert sent(layout(dp=2, steps=4)) == {"dp all_reduce": 4 * TOTAL}
    first = layout(sharding=4, steps=4, precision="bf16")
    assert sent(first) == {"sharding reduce": 4 * TOTAL, "sharding broadcast": 2 * TOTAL}
    second = layout(sharding=2, sharding_stage=2, dp=2, steps=4)
    own = max(owned_values(second, stages(second)[0]))
    after_each = {"sharding reduce": 4 * 4 * TOTAL, "sharding broadcast": 4 * TOTAL}
    assert sent(second) == after_each | {"dp all_reduce": 4 * own}
    large, small = sliced_values(stages(layout())[0].sizes)
    third = sent(layout(sharding=4, sharding_stage=3, recompute="full", steps=4))
    assert third == {"sharding all_reduce": 4 * (4 * large + small), "sharding all_gather": 4 * 4 * 3 * large}
    assert sent(layout(sharding=4, sharding_stage=3, steps=4))["sharding all_gather"] == 4 * 4 * 2 * large


def test_messages_within_layers_and_between_stages():
    rows = 4 * ROWS * 16  # bytes of the rows of all micro-batches
    slots = 16 * (16 + 3)
    ends = rows + slots * (16 + 3) * 4  # embedded rows, and the head
    # Of each layer: after attention and MLP, and the gradients of what queries, keys, values and MLP read.
    assert sent(layout(mp=2, steps=2)) == {"mp all_reduce": 12 * rows + ends}
    assert sent(layout(mp=2, steps=2, recompute="full")) == {"mp all_reduce": 16 * rows + ends}
    shared = sent(layout(mp=2, steps=2, sequence_parallel="true"))
    assert shared == {"mp all_reduce": ends, "mp gather/scatter": 2 * 12 * rows + 2 * rows}
    assert [sent(layout(pp=2, steps=4), stage) for stage in (0, 1)] == [{"pp send/receive": 2 * rows}] * 2
    tied = replace(layout(pp=2), transformer=replace(layout().transformer, tie_embeddings=True))
    assert sent(tied, 1)["tied all_reduce"] == 4 * 16 * (40 + 24)


def test_seconds_are_flops_over_rate_and_bytes_over_bandwidth():
    cluster = Cluster(gpus=16, peak=1e9, utilization=0.5, inside=1e6, across=1e5)
    of = layout(dp=16)
    found = seconds(of, stages(of)[0], cluster)
    assert found["compute"] == pytest.approx(sum(step_flops(of).values()) / 16 / 0.5e9)
    assert found["dp"] == pytest.approx(sent(of)["dp all_reduce"] * 2 * 15 / 16 / 1e5), "over two machines"
    assert sum(found.values()) == found["compute"] + found["dp"]
    of = layout(sharding=4, pp=2, steps=2)
    piped = seconds(of, stages(of)[0], cluster)
    assert piped["bubble"] == pytest.approx((piped["compute"] + piped["pp"]) / 2)
    assert piped["sharding"] == pytest.approx(sum(size for kind, size in sent(of).items() if "sharding" in kind) / 1e6)


def test_search_finds_what_fits():
    of = config("10b", "parallel.precision=bf16")
    cluster = Cluster(gpus=16, memory=40e9)
    found = search(of, cluster)
    times = [sum(one.seconds.values()) for one in found.fitting]
    assert times == sorted(times)
    assert all(peak(one.memory) <= 40e9 for one in found.fitting)
    assert all(peak(closest.memory) > 40e9 for _, closest in found.misfits)
    tried = list(layouts(of, cluster))
    assert len(tried) == len(found.fitting) + sum(count for count, _ in found.misfits) == len({str(one) for one in tried})
    assert all(one.world_size == 16 and one.sharding_degree * one.mp_degree <= 8 for one in tried)
    assert not any(one.sharding_stage > 1 and one.pp_degree > 1 for one in tried), "Fleet cannot combine them"
    assert not any(one.sharding_stage == 3 and one.mp_degree > 1 for one in tried)
    assert {one.sharding_stage for one in tried} == {1, 2, 3}
    for one in found.fitting[:10]:  # the config would be accepted
        keys = asdict(one.config.parallel).items()
        cut = [f"train.gradient_accumulation_steps={one.config.train.gradient_accumulation_steps}"]
        assert config("10b", *cut, *(f"parallel.{key}={str(value).lower()}" for key, value in keys)) == one.config


def test_a_batch_that_cannot_be_divided():
    found = search(config("emoji", "train.batch_size=3", "train.gradient_accumulation_steps=1"), Cluster(gpus=4))
    expected = (
        "train.batch_size: 3 does not fit: expected a multiple of gradient_accumulation_steps x dp_degree x sharding_degree"
    )
    assert set(found.refused) == {f"{expected} = {ranks}" for ranks in (2, 4)}
    assert found.fitting, "mp and pp need no more pairs"


def test_what_cannot_be_planned():
    with pytest.raises(ValueError, match="--per-machine"):
        search(config("emoji"), Cluster(gpus=12))
    with pytest.raises(ValueError, match="reconstructor"):
        stages(config("emoji", "transformer.reconstructor=true"))
    with pytest.raises(ValueError, match=r"text\.encoder=null"):
        stages(config("emoji", "text.encoder={model: ernie}"))


@pytest.mark.parametrize("name", ["10b", "10b_stage3"])
def test_the_papers_layouts_fit_64_gpus(name):
    of = config(name)
    assert of.parallel.world_size == 64
    assert all(peak(memory(of, stage)) < 80e9 for stage in stages(of))


def test_tool():
    overrides = ("parallel.dp_degree=2", "parallel.sharding_degree=8", "parallel.mp_degree=1", "parallel.recompute=none")
    done = run_tool("plan", "-c", "configs/vilg_10b.yml", "--gpus", 16, *(x for o in overrides for x in ("-o", o)))
    assert done.returncode == 0, done.stderr
    for said in (
        "9,942,491,136",
        "dp 2 x sharding 8 x mp 1 x pp 1",
        "does not fit",
        "None of these rates was measured",
        "days for 1.45e+08 pairs",
        "The fastest 8 of",
    ):
        assert said in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
    alone = run_tool("plan", "-c", "configs/vilg_emoji.yml", "--gpus", 1)
    assert "GB that one process passes to the others in a step: none" in alone.stdout, alone.stderr
    refused = run_tool("plan", "-c", "configs/vilg_10b.yml", "--gpus", 16, "--mfu", 1.5)
    assert (refused.returncode, refused.stderr.startswith("error: --mfu is 1.5")) == (2, True)
    refused = run_tool("plan", "-c", "configs/vqgan_emoji.yml", "--gpus", 16)
    assert (refused.returncode, "expected vilg" in refused.stderr) == (2, True)
