"""What some processes wrote is read by any others, whole or not at all."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg import checkpoint
from ppvilg.checkpoint import CheckpointReader, ShardedTensor, checkpoints, save_checkpoint, save_shards, weights_file
from ppvilg.config import load_config
from ppvilg.folder import merge
from ppvilg.pipeline import ViLGPipeline
from ppvilg.train.context import ParallelContext
from tests.helpers import losses, run_tool
from tests.parallel.conftest import ADAMW, STEPS, settings_of

SAVED = 3
FILES = ("model", "average", "optimizer-model")
ALONE: dict = {}
ZERO1 = {"sharding_degree": 2, "sharding_stage": 1}
ZERO2 = {"sharding_degree": 2, "sharding_stage": 2}
ZERO3 = {"sharding_degree": 2, "sharding_stage": 3, "recompute": "full"}


def title(layout: dict) -> str:
    return "_".join(f"{key}{value}" for key, value in layout.items() if key != "recompute") or "alone"


def pair(before: dict, after: dict, slow: bool = True, **model):
    """Two layouts, the second of which resumes what the first saved, and settings of the transformer."""
    name = f"{title(before)}-{title(after)}" + "".join(f"-{key}" for key in model)
    return pytest.param(before, after, model, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def trained(train_layout):
    """A function that gives a layout's run with checkpoints of steps 3 and 5, trained once."""
    runs: dict[str, Path] = {}

    def run(layout: dict, model: dict) -> Path:
        key = f"{layout} {model}"
        if key not in runs:
            runs[key] = train_layout(layout, saving(model))
        return runs[key]

    return run


def saving(model: dict) -> dict:
    """Settings of a run whose checkpoints are of step 3 and the last."""
    transformer = {f"transformer.{key}": str(value).lower() for key, value in model.items()}
    return settings_of(ADAMW) | transformer | {"train.save_every": SAVED, "train.keep_checkpoints": STEPS}


@pytest.mark.parametrize(
    ("before", "after", "model"),
    [
        pair(ALONE, {"mp_degree": 2}, slow=False),
        pair({"mp_degree": 2}, ALONE),
        pair({"pp_degree": 2}, {"mp_degree": 2}),
        pair({"pp_degree": 2}, ALONE, tie_embeddings=True),
        pair(ALONE, {"pp_degree": 2}, tie_embeddings=True),
        pair(ZERO1, {"pp_degree": 2}),
        pair(ZERO2, ZERO3),
        pair(ZERO3, ALONE),
        pair({"dp_degree": 2}, ZERO2),
        pair({"dp_degree": 2}, {"dp_degree": 4}),
        pair({"pp_degree": 2, "mp_degree": 2}, ZERO1),
        pair(ZERO2 | {"mp_degree": 2}, {"dp_degree": 2, "pp_degree": 2}),
        pair(ALONE, ZERO1 | {"pp_degree": 2}),
    ],
)
def test_one_layout_goes_on_from_another(before, after, model, trained, train_layout, tmp_path, monkeypatch):
    step = f"step-{SAVED:08d}"
    source, alone = trained(before, model), trained(ALONE, model)
    shutil.copytree(source, tmp_path / "run", ignore=shutil.ignore_patterns(f"step-{STEPS:08d}"))
    copied = tmp_path / "run" / "checkpoints" / step
    (copied / "copied").touch()  # gone as soon as the step's checkpoint is written again

    monkeypatch.setenv("SAVE_WHAT_WAS_LOADED", "1")
    resumed = train_layout(after, saving(model), tmp_path, resume=True)

    assert not (copied / "copied").exists()
    for name in FILES:
        written, loaded = CheckpointReader(source / "checkpoints" / step, name).all(), CheckpointReader(copied, name).all()
        assert written.keys() == loaded.keys()
        for key in written:
            np.testing.assert_array_equal(loaded[key], written[key], err_msg=f"{name}: {key}")
    assert checkpoint.checkpoint_state(copied) == checkpoint.checkpoint_state(source / "checkpoints" / step)

    ours, theirs = losses(resumed), losses(alone)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    after_it = zip(ours[SAVED:], theirs[SAVED:], strict=True)
    largest = max(abs(a[key] - b[key]) for a, b in after_it for key in b if key != "group")
    print(f"largest difference from one process's run: {largest:.2e}")
    assert largest <= 1e-5


@st.composite
def cut_arrays(draw) -> tuple[np.ndarray, list[tuple[int | None, int]]]:
    """An array and two ways to cut it: along which dimension (None: not at all), and into how many parts."""
    dims = draw(st.integers(1, 3))
    cuts = [(draw(st.one_of(st.none(), st.integers(0, dims - 1))), draw(st.integers(1, 4))) for _ in range(2)]
    shape = [draw(st.integers(1, 3)) for _ in range(dims)]
    for dim, parts in cuts:
        if dim is not None:
            shape[dim] *= parts
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    array = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    return array, cuts


def shards_of(array: np.ndarray, axis: int | None, count: int) -> list[ShardedTensor]:
    """What each process holds of an array."""
    if axis is None:
        return [ShardedTensor.whole(array)] * count
    return [ShardedTensor.split(part, axis, rank, count) for rank, part in enumerate(np.split(array, count, axis))]


@given(cut_arrays())
@settings(max_examples=60, deadline=None)
def test_an_array_cut_in_one_way_is_read_whole_and_cut_in_another(drawn):
    array, (written, read) = drawn
    with tempfile.TemporaryDirectory() as folder:
        for rank, shard in enumerate(shards_of(array, *written)):
            save_shards({"cut": shard, "scalar": ShardedTensor.whole(np.array(7))}, Path(folder), "model", rank, written[1])
        stored = CheckpointReader(Path(folder), "model")
        whole = stored.all()
        assert whole["cut"].dtype == array.dtype
        np.testing.assert_array_equal(whole["cut"], array)
        assert whole["scalar"] == 7
        for shard in shards_of(array, *read):
            np.testing.assert_array_equal(stored.like(shard, "cut"), shard.array)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_parts_of_any_sizes_give_any_box(data):
    array = np.arange(data.draw(st.integers(1, 9)) * 5, dtype=np.float32).reshape(-1, 5)
    rows = len(array)
    bounds = [0, *sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=4)) if rows > 1 else []), rows]
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, 4))
    shape = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, 5 - left))
    with tempfile.TemporaryDirectory() as folder:
        count = len(bounds) - 1
        for rank in range(count):
            part = ShardedTensor(array[bounds[rank] : bounds[rank + 1]], (bounds[rank], 0), array.shape)
            save_shards({"x": part}, Path(folder), "model", rank, count)
        read = CheckpointReader(Path(folder), "model").read("x", (top, left), shape)
    np.testing.assert_array_equal(read, array[top : top + shape[0], left : left + shape[1]])


@pytest.fixture
def of_three(tmp_path) -> Path:
    """A folder in which three processes wrote one array they share and one each that is whole."""
    array = np.arange(24, dtype=np.float32).reshape(6, 4)
    for rank, shard in enumerate(shards_of(array, 0, 3)):
        save_shards({"shared": shard, f"own{rank}": ShardedTensor.whole(np.full(2, rank))}, tmp_path, "model", rank, 3)
    return tmp_path


def test_arrays_that_one_process_holds_are_read_beside_shared_ones(of_three):
    stored = CheckpointReader(of_three, "model")
    assert stored.shapes == {"shared": (6, 4), "own0": (2,), "own1": (2,), "own2": (2,)}
    np.testing.assert_array_equal(stored.read("own2"), [2, 2])
    np.testing.assert_array_equal(stored.read("shared", (1, 2), (4, 2)), np.arange(24).reshape(6, 4)[1:5, 2:])


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_file_is_named(of_three, rank):
    (of_three / f"model-{rank:05d}-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"of 3 files model-\*-of-00003\.safetensors 1 are missing") as caught:
        CheckpointReader(of_three, "model")
    assert str(of_three) in str(caught.value)


def test_no_file_at_all_is_named(of_three):
    with pytest.raises(ValueError, match=r"cannot read .*average\.safetensors: there is no such file"):
        CheckpointReader(of_three, "average")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(of_three, share):
    path = of_three / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"model-00001-of-00003\.safetensors is damaged"):
        CheckpointReader(of_three, "model")


def test_another_shape_is_refused_with_both(of_three):
    stored = CheckpointReader(of_three, "model")
    with pytest.raises(ValueError, match=r"model does not hold the expected weights: shared is \[6, 4\], not \[8, 4\]"):
        stored.like(ShardedTensor.split(np.zeros((4, 4)), 0, 1, 2), "shared")


def test_an_unknown_key_is_named(of_three):
    with pytest.raises(ValueError, match="model does not hold the expected weights: it lacks head") as caught:
        CheckpointReader(of_three, "model").read("head")
    assert str(of_three) in str(caught.value)


def test_a_part_that_no_file_holds_is_refused(of_three):
    shards = shards_of(np.zeros((6, 4), np.float32), 0, 3)
    for rank, shard in enumerate([shards[0], shards[0], shards[2]]):
        save_shards({"shared": shard}, of_three, "model", rank, 3)
    with pytest.raises(ValueError, match="a part of shared is missing"):
        CheckpointReader(of_three, "model").all()


def test_a_process_killed_while_old_checkpoints_are_removed_leaves_no_half_ones(tmp_path, monkeypatch):
    def save(step: int) -> None:
        files = {name: {"x": ShardedTensor.whole(np.full(3, step))} for name in FILES}
        save_checkpoint(tmp_path, {"step": step, "samples": step}, files, 2, ParallelContext())

    save(1)
    save(2)
    rmtree = shutil.rmtree

    def half(folder, **_):
        if Path(folder).is_dir():
            next(path for path in sorted(Path(folder).iterdir()) if path.name != "state.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        save(3)
    found = checkpoints(tmp_path)
    assert [folder.name for folder in found[-2:]] == ["step-00000002", "step-00000003"]
    for folder in found:
        for name in FILES:
            CheckpointReader(folder, name).all()

    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    save(4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


@pytest.fixture(scope="module")
def run_of_three(tiny_runs, tmp_path_factory) -> Path:
    """The tiny transformer's run as three processes would have left it."""
    run = tmp_path_factory.mktemp("of_three") / "run"
    shutil.copytree(tiny_runs / "vilg", run)
    newest = checkpoints(run)[-1]
    for name in FILES:
        arrays = CheckpointReader(newest, name).all()
        (newest / f"{name}.safetensors").unlink()
        cut = {key: next((dim for dim, size in enumerate(array.shape) if size % 3 == 0), None) for key, array in arrays.items()}
        assert set(cut.values()) > {None}
        shards = {key: shards_of(array, cut[key], 3) for key, array in arrays.items()}
        for rank in range(3):
            save_shards({key: of_ranks[rank] for key, of_ranks in shards.items()}, newest, name, rank, 3)
    return run


@pytest.fixture(scope="module")
def merged(run_of_three, tmp_path_factory) -> Path:
    """It, merged by the tool."""
    output = tmp_path_factory.mktemp("merged") / "models" / "vilg"
    done = run_tool("merge_checkpoint", run_of_three, "-o", output)
    assert done.returncode == 0, done.stderr
    assert str(checkpoints(run_of_three)[-1]) in done.stdout
    assert f"{output}/model.safetensors" in done.stdout
    return output


def draw(folder: Path) -> np.ndarray:
    """An image by the model of a folder."""
    return ViLGPipeline.from_pretrained(folder)("红色方块", seed=3, output_type="np").images[0]


def test_a_merged_run_is_the_model_with_averaged_weights(merged, tiny_runs):
    assert {path.name for path in merged.iterdir()} == {"config.json", "config.yml", "model.safetensors", "tokenizer", "text"}
    ours = checkpoint.load_arrays(merged / "model.safetensors")
    theirs = checkpoint.load_arrays(checkpoints(tiny_runs / "vilg")[-1] / "average.safetensors")
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    assert load_config(merged / "config.yml") == load_config(tiny_runs / "vilg" / "config.yml")
    image, expected = (draw(folder) for folder in (merged, tiny_runs / "vilg"))
    np.testing.assert_array_equal(image, expected)


def test_infer_reads_a_merged_run(merged, tmp_path):
    done = run_tool("infer", "--mode", "t2i", "--model", merged, "--text", "红色方块", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0000.png").is_file()


def test_an_unmerged_run_is_told_to_be_merged(run_of_three):
    with pytest.raises(ValueError, match=r"merge it first, tools/merge_checkpoint\.py") as caught:
        weights_file(run_of_three)
    assert str(run_of_three) in str(caught.value)


def test_a_run_without_an_average_is_merged_to_its_weights(tiny_runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_runs / "vilg", run)
    newest = checkpoints(run)[-1]
    (newest / "average.safetensors").unlink()
    assert merge(run, tmp_path / "merged") == newest
    ours, theirs = (checkpoint.load_arrays(folder / "model.safetensors") for folder in (tmp_path / "merged", newest))
    assert all((ours[key] == theirs[key]).all() for key in ours.keys() | theirs.keys())


def test_merging_refuses_a_folder_that_exists(run_of_three, tmp_path):
    done = run_tool("merge_checkpoint", run_of_three, "-o", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} exists already" in done.stderr
    assert not any(tmp_path.iterdir())


def test_merging_refuses_a_folder_without_checkpoints(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run holds no complete checkpoint"):
        merge(tmp_path / "run", tmp_path / "merged")
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        merge(tmp_path / "none", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("rank", [0, 2])
def test_merging_refuses_a_checkpoint_that_lacks_a_part(run_of_three, tmp_path, rank):
    run = tmp_path / "run"
    shutil.copytree(run_of_three, run)
    (checkpoints(run)[-1] / f"average-{rank:05d}-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"of 3 files average-\*-of-00003\.safetensors 1 are missing"):
        merge(run, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_what_a_layout_trained_draws_the_same_images_merged(trained, tmp_path):
    run, alone = trained({"pp_degree": 2, "mp_degree": 2}, {}), trained(ALONE, {})
    merge(run, tmp_path / "merged")
    config = load_config(tmp_path / "merged" / "config.yml")
    assert config.parallel.world_size == 1
    ours = checkpoint.load_arrays(tmp_path / "merged" / "model.safetensors")
    theirs = checkpoint.load_arrays(weights_file(alone))
    assert ours.keys() == theirs.keys()
    assert max(np.abs(ours[key] - theirs[key]).max() for key in ours) <= 1e-5
    image, expected = (draw(folder) for folder in (tmp_path / "merged", alone))
    np.testing.assert_array_equal(image, expected)
