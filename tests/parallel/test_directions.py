"""One direction alone trains in every layout to the losses and weights of one process."""

import pytest

from tests.parallel.conftest import SGD, differences, settings_of

ZERO3 = {"sharding_degree": 2, "sharding_stage": 3, "recompute": "full"}
QUICK = [({"mp_degree": 2, "pp_degree": 2}, "img2txt"), (ZERO3, "txt2img")]
LAYOUTS = [
    {"dp_degree": 2},
    {"mp_degree": 2},
    {"pp_degree": 2},
    {"sharding_degree": 2},
    {"sharding_degree": 2, "sharding_stage": 2},
    {"mp_degree": 2, "sequence_parallel": True},
    {"mp_degree": 2, "pp_degree": 2, "sequence_parallel": True, "recompute": "full"},
    ZERO3,
]
CASES = [(layout, other) for layout in LAYOUTS for other in ("img2txt", "txt2img")]


@pytest.mark.parametrize(
    ("layout", "other"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case not in QUICK)],
    ids=str,
)
def test_one_direction(train_layout, alone, layout, other):
    settings = settings_of(SGD) | {f"train.{other}_weight": "0.0"}
    of_losses, of_weights = differences(train_layout(layout, settings), alone(settings))
    assert of_losses < 1e-5
    assert of_weights < 1e-5
