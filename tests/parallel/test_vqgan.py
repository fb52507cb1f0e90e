"""The image tokenizer, whose codebook follows the latents of all processes: two of them train as one does."""

import numpy as np
import pytest

from ppvilg.checkpoint import CheckpointReader, checkpoints
from tests.helpers import losses
from tests.parallel import launch
from tests.parallel.conftest import overrides


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["dp_degree", "sharding_degree"])
def test_two_processes_train_the_tokenizer_of_one(tiny_configs, tmp_path, axis):
    settings = {"train.steps": 4, "train.batch_size": 8, "train.epsilon": "1.0e-4", "vqgan.codebook.learning": "ema"}
    settings |= {"vqgan.loss.adversarial_start": 100, "vqgan.codebook.revive_after": 0, "train.save_every": 4}
    runs = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        given = settings | {f"parallel.{axis}": processes, "train.output": run}
        done = launch.train(processes, tmp_path / "logs", "-c", tiny_configs / "vqgan.yml", *overrides(given))
        assert done.returncode == 0, done.stderr + launch.output(tmp_path / "logs")
        runs.append(run)
    for alone, together in zip(*map(losses, runs), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    for name in ("model", "optimizer-model"):
        alone, together = (CheckpointReader(checkpoints(run)[-1], name).all() for run in runs)
        assert alone.keys() == together.keys()
        for key in alone:
            np.testing.assert_allclose(together[key], alone[key], atol=1e-5, err_msg=key)
