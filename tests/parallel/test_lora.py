"""An adapter trains in data parallel as in one process, and other layouts are refused."""

import pytest

from ppvilg.config import load_config
from tests.parallel.conftest import SGD, differences, settings_of


def test_two_processes_train_an_adapter_as_one_does(train_layout, alone, tiny_runs):
    settings = settings_of(SGD) | {"train.init_from": tiny_runs / "vilg", "transformer.layers": 2, "lora": "{rank: 2}"}
    together = train_layout({"dp_degree": 2}, settings)
    of_losses, of_weights = differences(together, alone(settings))
    assert of_losses < 1e-5
    assert of_weights < 1e-5
    assert (together / "adapter" / "model.safetensors").is_file()


@pytest.mark.parametrize("axis", ["mp_degree", "pp_degree", "sharding_degree"])
def test_layouts_that_share_out_weights_are_refused(layout_config, axis):
    with pytest.raises(ValueError, match=rf"parallel\.{axis}: 2 does not fit: expected 1 with lora"):
        load_config(layout_config, ["train.init_from=run", "lora={rank: 2}", f"parallel.{axis}=2"])
