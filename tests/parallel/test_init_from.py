"""Every layout starts from other weights as one process does."""

import pytest

from tests.parallel.conftest import SGD, differences, settings_of

QUICK = [{"mp_degree": 2, "pp_degree": 2}]
LAYOUTS = [
    {"mp_degree": 2},
    {"pp_degree": 2},
    {"sharding_degree": 2, "sharding_stage": 2},
    {"sharding_degree": 2, "sharding_stage": 3},
    *QUICK,
]
# Another vocabulary is made of rows that tensor parallel processes share out.
SETTINGS = {"text.vocabulary_size": 48, "text.max_length": 10}


@pytest.mark.parametrize(
    "layout", [pytest.param(one, id=str(one), marks=[] if one in QUICK else [pytest.mark.slow]) for one in LAYOUTS]
)
def test_a_layout_starts_from_a_run(train_layout, alone, tiny_runs, layout):
    settings = settings_of(SGD) | SETTINGS | {"train.init_from": tiny_runs / "vilg"}
    of_losses, of_weights = differences(train_layout(layout, settings), alone(settings))
    assert of_losses < 1e-5
    assert of_weights < 1e-5
