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
MODELS = [
    ("default", {}, LAYOUTS),
    ("tied tables", TIED, TIED_LAYOUTS),
    ("end to end", E2E, E2E_LAYOUTS),
    ("options of other projects", ELSEWHERE, OPTION_LAYOUTS),
    ("frozen parameters", FROZEN, FROZEN_LAYOUTS),
    ("frozen text encoder", ENCODER | {"text.encoder.train": False}, ENCODER_LAYOUTS),
    ("trained text encoder", ENCODER | {"text.encoder.train": True}, ENCODER_LAYOUTS),
]
"""What is trained, with which settings, in which layouts."""


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
@pytest.mark.parametrize(
    ("layout", "more"),
    [pytest.param(layout, more, id=f"{of}-{name(layout)}") for of, more, layouts in MODELS for layout in layouts],
)
def test_gradient_descent_in_all_layouts(train_layout, alone, layout, more):
    check(train_layout, alone, layout, SGD, 1e-5, more)


@pytest.mark.slow
def test_one_process_may_recompute(train_layout, alone):
    check(train_layout, alone, {"recompute": "full"}, SGD, 1e-6)
