"""Every layout trains to the losses and weights of one process."""

import pytest

from tests.parallel.conftest import ADAMW, SGD, differences, settings_of

LAYOUTS = [
    {"dp_degree": 2},
    {"mp_degree": 2},
    {"pp_degree": 2},
    {"sharding_degree": 2},
    {"sharding_degree": 2, "sharding_stage": 2},
    {"sharding_degree": 2, "sharding_stage": 3, "recompute": "full"},
    {"dp_degree": 2, "sharding_degree": 2},
    {"dp_degree": 2, "sharding_degree": 2, "sharding_stage": 2},
    {"dp_degree": 2, "sharding_degree": 2, "sharding_stage": 3},
    {"dp_degree": 2, "mp_degree": 2},
    {"dp_degree": 2, "pp_degree": 2},
    {"sharding_degree": 2, "pp_degree": 2},
    {"mp_degree": 2, "pp_degree": 2},
    {"sharding_degree": 2, "mp_degree": 2},
    {"sharding_degree": 2, "mp_degree": 2, "sharding_stage": 2},
    {"pp_degree": 4},
    {"dp_degree": 2, "mp_degree": 2, "pp_degree": 2},
    {"sharding_degree": 2, "mp_degree": 2, "pp_degree": 2},
    {"mp_degree": 2, "recompute": "full"},
    {"mp_degree": 2, "sequence_parallel": True},
    {"sharding_degree": 2, "mp_degree": 2, "sharding_stage": 2, "sequence_parallel": True},
    {"mp_degree": 2, "pp_degree": 2, "sequence_parallel": True, "recompute": "full"},
    {"pp_degree": 2, "recompute": "full"},
    {"sharding_degree": 2, "mp_degree": 2, "pp_degree": 2, "recompute": "full"},
    {"dp_degree": 2, "sharding_degree": 2, "sharding_stage": 3, "offload": True},
]
"""What Fleet supports, up to eight processes, all with two micro-batches a step and clipping."""
QUICK = [{"dp_degree": 2}, {"mp_degree": 2}, {"pp_degree": 2}, {"sharding_degree": 2, "sharding_stage": 3, "recompute": "full"}]
TIED_LAYOUTS = [
    {"pp_degree": 2},
    {"mp_degree": 2},
    {"mp_degree": 2, "pp_degree": 2},
    {"sharding_degree": 2, "pp_degree": 2},
    {"sharding_degree": 2, "sharding_stage": 2},
    {"sharding_degree": 2, "sharding_stage": 3},
]
E2E_LAYOUTS = [{"pp_degree": 2}, {"mp_degree": 2}, {"dp_degree": 2}, {"sharding_degree": 2, "sharding_stage": 3}]
ENCODER_LAYOUTS = [
    {"dp_degree": 2},
    {"mp_degree": 2},
    {"mp_degree": 2, "sequence_parallel": True},
    {"pp_degree": 2},
    {"sharding_degree": 2},
    {"sharding_degree": 2, "pp_degree": 2},
    {"sharding_degree": 2, "sharding_stage": 2},
    {"sharding_degree": 2, "sharding_stage": 3},
]
TIED = {"transformer.tie_embeddings": True}
E2E = {"transformer.reconstructor": True}
OPTION_LAYOUTS = [
    {"mp_degree": 2, "pp_degree": 2, "sequence_parallel": True, "recompute": "full"},
    {"sharding_degree": 2, "sharding_stage": 3},
]
FROZEN_LAYOUTS = [OPTION_LAYOUTS[0], {"sharding_degree": 2, "sharding_stage": 2}]
ELSEWHERE = {f"transformer.{key}": True for key in ("causal_text", "sandwich_norm", "head_norm", "head_bias")}
ELSEWHERE |= {"transformer.image_positions": "flat", "text.padding": "positional", "text.vocabulary_size": 52}
"""What the models of other projects have."""
FROZEN = {"train.frozen": "[blocks.0., embedding.image., head.image.]"}
ENCODER = {
    "text.encoder.sizes": "{vocab_size: 40, hidden_size: 12, num_hidden_layers: 2, num_attention_heads: 3, "
    "intermediate_size: 24, max_position_embeddings: 12}"
}


def name(layout: dict) -> str:
    return "-".join(f"{key}{value}" for key, value in layout.items())


def check(train_layout, alone, layout: dict, optimizer: dict, within: float, more: dict | None = None) -> None:
    settings = settings_of(optimizer) | (more or {})
    of_losses, of_weights = differences(train_layout(layout, settings), alone(settings))
    print(f"{name(layout)}: losses {of_losses:.1e}, weights {of_weights:.1e}")
    assert of_losses < within
    assert of_weights < within


@pytest.mark.parametrize("layout", QUICK, ids=name)
def test_adamw(train_layout, alone, layout):
    check(train_layout, alone, layout, ADAMW, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in QUICK], ids=name)
def test_adamw_in_all_layouts(train_layout, alone, layout):
    check(train_layout, alone, layout, ADAMW, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_gradient_descent_in_all_layouts(train_layout, alone, layout):
    check(train_layout, alone, layout, SGD, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", TIED_LAYOUTS, ids=name)
def test_tied_tables(train_layout, alone, layout):
    check(train_layout, alone, layout, SGD, 1e-5, TIED)


@pytest.mark.slow
@pytest.mark.parametrize("layout", E2E_LAYOUTS, ids=name)
def test_end_to_end_training(train_layout, alone, layout):
    check(train_layout, alone, layout, SGD, 1e-5, E2E)


@pytest.mark.slow
@pytest.mark.parametrize("layout", OPTION_LAYOUTS, ids=name)
def test_options_of_other_projects_models(train_layout, alone, layout):
    check(train_layout, alone, layout, SGD, 1e-5, ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", FROZEN_LAYOUTS, ids=name)
def test_frozen_parameters(train_layout, alone, layout):
    check(train_layout, alone, layout, SGD, 1e-5, FROZEN)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("layout", ENCODER_LAYOUTS, ids=name)
def test_text_encoder(train_layout, alone, layout, trained):
    check(train_layout, alone, layout, SGD, 1e-5, ENCODER | {"text.encoder.train": trained})


@pytest.mark.slow
def test_one_process_may_recompute(train_layout, alone):
    check(train_layout, alone, {"recompute": "full"}, SGD, 1e-6)
