"""The plan's bytes against what processes really send and keep in a step."""

import json
from dataclasses import asdict

import pytest

from ppvilg.config import load_config
from ppvilg.parallel.plan import communication, kept_bytes, memory, stages
from tests.parallel import launch

MODEL = ["transformer.layers=4", "transformer.hidden=64", "transformer.heads=4", "transformer.attention.kernel=3"]
MODEL += ["text.max_length=12", "text.vocabulary_size=600", "vqgan.codebook.size=400", "train.batch_size=8"]
STAGE_3 = {"sharding_degree": 2, "sharding_stage": 3, "recompute": "full"}
LAYOUTS = {
    2: [
        {"dp_degree": 2},
        {"mp_degree": 2},
        {"mp_degree": 2, "recompute": "full"},
        {"pp_degree": 2},
        {"sharding_degree": 2},
        {"sharding_degree": 2, "sharding_stage": 2},
        STAGE_3,
    ],
    4: [
        {"dp_degree": 2, "mp_degree": 2},
        {"mp_degree": 2, "pp_degree": 2},
        {"sharding_degree": 2, "mp_degree": 2},
        {"dp_degree": 2, **STAGE_3},
        {"pp_degree": 2, "sharding_degree": 2, "tied": True},
    ],
}


def overrides(layout: dict) -> list[str]:
    tied = "true" if layout.get("tied") else "false"
    axes = [f"parallel.{key}={value}" for key, value in layout.items() if key != "tied"]
    return [*MODEL, "train.gradient_accumulation_steps=2", f"transformer.tie_embeddings={tied}", *axes]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A function that gives what each process measured of each layout; all layouts of a number of processes in one launch."""
    found: dict[int, list[list[dict]]] = {}

    def measure(processes: int) -> list[list[dict]]:
        if processes not in found:
            folder = tmp_path_factory.mktemp("measured")
            (folder / "layouts.json").write_text(json.dumps([overrides(layout) for layout in LAYOUTS[processes]]), "utf-8")
            logs = folder / "logs"
            done = launch.run("measure", processes, logs, folder / "layouts.json", folder)
            assert done.returncode == 0, done.stderr + launch.output(logs)
            found[processes] = [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(processes)]
        return found[processes]

    return measure


def check(layout: dict, of_processes: list[dict]) -> None:
    config = load_config("configs/vilg_emoji.yml", overrides(layout))
    pipeline = stages(config)
    for real in of_processes:
        stage, owner = pipeline[real["place"][0]], real["place"][1]
        planned = memory(config, stage, owner)
        assert real["sent"] == {kind: size for kind, size in asdict(communication(config, stage, owner)).items() if size}
        assert real["standing"] == pytest.approx(planned.standing, rel=0.01)
        assert 0.7 < real["peak"] / (planned.total - planned.standing) < 1.02
        if real["kept"] is not None:
            assert real["kept"] == pytest.approx(kept_bytes(config, stage), rel=0.02)
    places = {tuple(real["place"]) for real in of_processes}
    assert len(places) == config.parallel.pp_degree * config.parallel.sharding_degree, "processes of every kind"


@pytest.mark.parametrize("layout", LAYOUTS[2], ids=str)
def test_two_processes_send_and_keep_what_is_planned(measured, layout):
    check(layout, [layouts[LAYOUTS[2].index(layout)] for layouts in measured(2)])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[4], ids=str)
def test_four_processes_send_and_keep_what_is_planned(measured, layout):
    check(layout, [layouts[LAYOUTS[4].index(layout)] for layouts in measured(4)])
