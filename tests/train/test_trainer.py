"""A step against the same written out with plain paddle."""

import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from ppvilg.config import load_config
from ppvilg.data.loader import own_positions
from ppvilg.model.config import vilg_config
from ppvilg.model.loss import vilg_loss
from ppvilg.model.vilg import ViLG
from ppvilg.train import build_task
from ppvilg.train.context import ParallelContext
from ppvilg.train.trainer import Trainer
from ppvilg.vqgan.loss import VQGANLoss
from ppvilg.vqgan.model import VQGAN
from tests.helpers import losses


def build_trainer(path: Path, *overrides: str) -> Trainer:
    config = load_config(path, list(overrides))
    task = build_task(config, ParallelContext())
    task.prepare()
    return Trainer(config, task)


def plain_adamw(module: nn.Layer, trainer: Trainer) -> paddle.optimizer.AdamW:
    train = trainer.config.train
    decayed = {p.name for p in module.parameters() if p.ndim > 1}
    return paddle.optimizer.AdamW(
        learning_rate=0.0,
        beta1=train.beta1,
        beta2=train.beta2,
        epsilon=train.epsilon,
        weight_decay=train.weight_decay,
        apply_decay_param_fun=lambda name: name in decayed,
        grad_clip=nn.ClipGradByGlobalNorm(train.clip_norm),
        parameters=[p for p in module.parameters() if not p.stop_gradient],
    )


def copy_of(module: nn.Layer, twin: nn.Layer) -> nn.Layer:
    twin.set_state_dict({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return twin


def assert_same_weights(module: nn.Layer, twin: nn.Layer) -> None:
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), twin.state_dict()[name].numpy(), atol=2e-6, err_msg=name)


def test_a_step_of_the_transformer_equals_a_plain_loop(tiny_configs, tiny_runs):
    # The noise of near-zero gradients would be scaled up by the default epsilon.
    trainer = build_trainer(tiny_configs / "vilg.yml", "train.epsilon=1.0e-4", "train.clip_norm=0.5", "train.token_noise=0.5")
    twin = copy_of(trainer.task.modules["model"], ViLG(vilg_config(trainer.config)))
    adamw = plain_adamw(twin, trainer)
    average = {name: p.numpy() for name, p in twin.named_parameters()}
    for step in range(3):
        micro_batches = trainer.micro_batches(step)
        logged = trainer.train_step(micro_batches)

        paddle.seed(step)
        expected = 0.0
        for batch in (trainer.task.batch(own_positions(4 * step + 2 * part, 2, 0, 1)).to_tensors() for part in range(2)):
            loss = vilg_loss(twin(batch), batch)["loss"] / 2
            loss.backward()
            expected += loss.item()
        adamw.set_lr([0.0015, 0.003, 0.003][step])
        adamw.step()
        adamw.clear_grad()
        decay = (1 + step) / (10 + step)
        average = {name: decay * average[name] + (1 - decay) * p.numpy() for name, p in twin.named_parameters()}

        assert logged["loss"].item() == pytest.approx(expected, rel=1e-5)
        assert_same_weights(trainer.task.modules["model"], twin)
    with trainer.ema.applied():
        for name, p in trainer.task.modules["model"].named_parameters():
            np.testing.assert_allclose(p.numpy(), average[name], atol=2e-6, err_msg=name)


def test_a_step_of_the_tokenizer_equals_two_backward_passes(tiny_configs):
    """The discriminator's optimizer sees the gradients of its own loss alone."""
    trainer = build_trainer(tiny_configs / "vqgan.yml", "train.epsilon=1.0e-4", "vqgan.loss.adversarial_start=1")
    config, modules = trainer.config, trainer.task.modules
    model = copy_of(modules["model"], VQGAN(config.vqgan, config.data.image_size))
    objective = VQGANLoss(config.vqgan.loss)
    copy_of(modules["discriminator"], objective.patch_gan)
    optimizers = [plain_adamw(model, trainer), plain_adamw(objective.patch_gan, trainer)]
    first = modules["discriminator"].state_dict()["main.0.weight"].numpy()
    for step in range(3):
        (batch,) = trainer.micro_batches(step)
        trainer.train_step([batch])

        paddle.seed(step)
        images = paddle.to_tensor(batch.transpose(0, 3, 1, 2).astype("float32") / 127.5 - 1)
        reconstruction, quantized = model(images)
        objective.generator(images, reconstruction, quantized, model.last_layer, step)[0].backward()
        if step >= 1:
            objective.discriminator(images, reconstruction, step)[0].backward()
        for optimizer in optimizers if step >= 1 else optimizers[:1]:
            optimizer.set_lr([0.0015, 0.003, 0.003][step])
            optimizer.step()
            optimizer.clear_grad()

        assert_same_weights(modules["model"], model)
        assert_same_weights(modules["discriminator"], objective.patch_gan)
        assert (modules["discriminator"].state_dict()["main.0.weight"].numpy() == first).all() == (step == 0)


@pytest.mark.parametrize("name", ["vqgan", "vilg_e2e"])
def test_a_step_does_not_wait_for_the_device(tiny_configs, tiny_runs, monkeypatch, name):
    """Losses are read where they are logged, and nothing else is."""
    trainer = build_trainer(tiny_configs / f"{name}.yml")
    batches = [trainer.micro_batches(step) for step in range(5)]
    fetched = []
    for method in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__"):
        read = getattr(paddle.Tensor, method)
        monkeypatch.setattr(paddle.Tensor, method, lambda x, *a, read=read, **k: fetched.append(read) or read(x, *a, **k))
    for batch in batches:
        values = trainer.train_step(batch)
    assert not fetched
    values["loss"].item()
    assert fetched, "the test sees it where something is read"


def test_a_loss_that_is_not_finite_ends_the_run(tiny_configs, tmp_path):
    trainer = build_trainer(tiny_configs / "vqgan.yml", f"train.output={tmp_path}")
    weight = trainer.task.modules["model"].decoder.conv_out.weight
    weight.set_value(paddle.full(weight.shape, float("nan")))
    with pytest.raises(ValueError, match="not finite at step 1: resume from the last checkpoint"):
        trainer.fit()
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_goes_on_with_more_steps_and_other_batches(tiny_configs, tiny_runs, tmp_path):
    """The samples go on where they were, whatever the batch size."""
    run = tmp_path / "run"
    shutil.copytree(tiny_runs / "vilg", run)
    config = load_config(tiny_configs / "vilg.yml", [f"train.output={run}", "train.steps=8", "train.batch_size=6"])
    trainer = Trainer(config, build_task(config, ParallelContext()))
    trainer.resume()
    trainer.task.prepare()
    own = [batch.image for batch in trainer.micro_batches(6)]
    expected = [trainer.task.batch(range(first, first + 3)).image for first in (24, 27)]
    np.testing.assert_array_equal(own, expected)
    assert trainer.fit()
    assert [line["step"] for line in losses(run)] == list(range(1, 9))
