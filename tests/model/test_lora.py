"""Low-rank updates: computed beside the frozen weights in training, added to them for everything else."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from ppvilg.config import ErnieSizes, LoRAConfig, TextEncoderConfig
from ppvilg.model.lora import add_lora, merge_lora, target_names
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG
from tests.model.test_vilg import CONFIG, PLANS, build, pairs, start, step

ADAPTERS = {
    "everything": LoRAConfig(rank=3, alpha=5.0),
    "attention of two layers": LoRAConfig(rank=2, targets=["query", "key", "value", "out"], layers=[3, 1]),
    "head": LoRAConfig(rank=2, targets=["head"]),
}


def adapted(config: LoRAConfig, plan: str = "paper") -> tuple[ViLG, dict[str, np.ndarray], ViLG]:
    """A model with updates that matter, their arrays, and the same model without."""
    base = build(replace(CONFIG, attention=PLANS[plan]))
    model = ViLG(base.config)
    model.set_state_dict(base.state_dict())
    model.eval()
    add_lora(model, config, seed=4)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    return model, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, base


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_equals_unmerged(name):
    config = ADAPTERS[name]
    model, arrays, base = adapted(config)
    batch = pairs()
    unmerged, plain = model(batch), base(batch)
    merge_lora(base, config, arrays)
    merged = base(batch)
    for logits in ("image_logits", "text_logits"):
        np.testing.assert_allclose(getattr(merged, logits).numpy(), getattr(unmerged, logits).numpy(), atol=1e-5, rtol=1e-5)
    assert (merged.image_logits - plain.image_logits).abs().max() > 0.1, "the updates matter"


@pytest.mark.parametrize("plan", ["paper", "dense"])
@pytest.mark.parametrize("direction", list(Direction))
def test_decoding_sees_the_updates(plan, direction):
    """With caches, also those that read a layer's matrices themselves."""
    config = ADAPTERS["everything"]
    model, arrays, base = adapted(config, plan)
    merge_lora(base, config, arrays)
    batch = pairs()
    prompts, images = (batch.prompt, batch.prompt_mask), (batch.image, paddle.ones(batch.image.shape, "bool"))
    source = prompts if direction is Direction.TEXT_TO_IMAGE else images
    found = []
    for each in (model, base):
        states, state = start(each, direction, *source, 1)
        for position in range(3):
            ids = np.full(3, 1 + position)
            states = step(each, state, ids, np.full(3, position))
        found.append(states.numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_an_adapter_changes_nothing_at_first_and_trains_alone():
    base = build()
    batch = pairs()
    before, weights = base(batch).image_logits.numpy(), {name: tensor.numpy() for name, tensor in base.state_dict().items()}
    frozen = add_lora(base, LoRAConfig(rank=2), seed=0)
    np.testing.assert_array_equal(base(batch).image_logits.numpy(), before)
    assert {name.rpartition(".lora.")[0] for name in base.state_dict()} == set(target_names(LoRAConfig(), CONFIG.layers))
    assert base.state_dict().keys() == dict(base.named_parameters()).keys()
    assert frozen.keys() == weights.keys()
    outputs = base(batch)
    (outputs.image_logits.sum() + outputs.text_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in base.parameters())
    for name, weight in frozen.items():
        assert weight.stop_gradient
        assert weight.grad is None
        np.testing.assert_array_equal(weight.numpy(), weights[name])


def test_the_first_updates_depend_on_the_seed_and_the_name_alone():
    first, second, other = (build() for _ in range(3))
    add_lora(first, LoRAConfig(rank=2), seed=1)
    add_lora(second, LoRAConfig(rank=2, targets=["value"], layers=[2]), seed=1)
    add_lora(other, LoRAConfig(rank=2), seed=2)
    name = "blocks.2.attention.value.lora.a"
    np.testing.assert_array_equal(first.state_dict()[name].numpy(), second.state_dict()[name].numpy())
    assert (first.state_dict()[name] != other.state_dict()[name]).all()


def test_strength_scales_the_update():
    config = LoRAConfig(rank=2, alpha=6.0)
    _, arrays, base = adapted(config)
    before = base.state_dict()["head.image.weight"].numpy()
    merge_lora(base, config, arrays, scale=0.5)
    a, b = arrays["head.image.lora.a"], arrays["head.image.lora.b"]
    expected = before + 0.5 * 6.0 / 2 * np.einsum("ir,ro->io", a, b)
    np.testing.assert_allclose(base.state_dict()["head.image.weight"].numpy(), expected, atol=1e-6)
    merge_lora(base, config, arrays, scale=-0.5)
    np.testing.assert_allclose(base.state_dict()["head.image.weight"].numpy(), before, atol=1e-6)


def test_a_text_encoder_is_frozen_with_the_rest():
    """Even one that is trained where there is no adapter."""
    sizes = ErnieSizes(23, 12, 1, 3, 24, max_position_embeddings=16, type_vocab_size=4)
    encoded = replace(CONFIG, text_encoder=TextEncoderConfig(sizes=sizes, train=True))
    base, batch = build(encoded), pairs()
    before = base(batch).image_logits.numpy()
    add_lora(base, LoRAConfig(rank=2), seed=0)
    outputs = base(batch)
    np.testing.assert_array_equal(outputs.image_logits.numpy(), before)
    assert all(".lora." in name for name, _ in base.named_parameters())
    (outputs.image_logits.sum() + outputs.text_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in base.parameters())
