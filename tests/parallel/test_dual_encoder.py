"""The dual encoder's negatives come from all processes: two of them train as one does."""

import pytest
import yaml

from tests.helpers import losses
from tests.parallel import launch


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["dp_degree", "sharding_degree"])
def test_two_processes_find_their_pairs_among_all(tiny_configs, tmp_path, axis):
    tree = {"base": ["base.yml", "text.yml"], "task": "dual_encoder", "train": {"steps": 5, "batch_size": 8, "epsilon": 1e-4}}
    tree["dual_encoder"] = {"hidden": 32, "heads": 2, "image_layers": 1, "text_layers": 1, "patch_size": 4, "embedding": 16}
    path = tiny_configs / f"{axis}.yml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    runs = []
    for processes in (1, 2):
        arguments = ["-c", path, "-o", f"parallel.{axis}={processes}", "-o", f"train.output={tmp_path / str(processes)}"]
        done = launch.train(processes, tmp_path / "logs", *arguments)
        assert done.returncode == 0, done.stderr + launch.output(tmp_path / "logs")
        runs.append(losses(tmp_path / str(processes)))
    assert len(runs[0]) == 5
    for alone, together in zip(*runs, strict=True):
        for name in ("loss", "image_to_text", "text_to_image"):
            assert together[name] == pytest.approx(alone[name], abs=1e-5), name
