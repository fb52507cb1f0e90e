"""What a GPU computes in bfloat16 is computed here in float64: whatever has a precision of its own then shows.

Only the model has the other precision; the image tokenizer keeps float32, paddle's default stays as it is, and numpy may not be
given the model's values, which it could not have in bfloat16.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import paddle
import pytest

from ppvilg.config import DTYPES, load_config
from ppvilg.export.model import ExportedViLG
from ppvilg.export.programs import Programs
from ppvilg.export.write import save_transformer
from ppvilg.generate.beam_search import beam_search
from ppvilg.generate.engine import generate_images, generate_texts
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.loss import ReconstructionWeights, vilg_accuracy, vilg_loss
from ppvilg.model.vilg import ViLG
from ppvilg.train.context import ParallelContext
from ppvilg.train.trainer import Trainer
from ppvilg.train.vilg import ViLGTask
from ppvilg.vqgan.model import VQGAN
from tests.export.test_programs import OPTIONS
from tests.generate.test_engine import PROMPTS, SAMPLINGS, TEXT, build, images
from tests.model.test_vilg import CONFIG, PLANS, pairs, with_plan
from tests.model.test_vilg import VQGAN as SMALL

# With heads of 4 values the scores' scale is exact in any precision, which programs keep as float32.
MODELS = {name: replace(config, heads=4) for name, config in ({plan: with_plan(plan) for plan in PLANS} | OPTIONS).items()}
ALL_SAMPLINGS = [*SAMPLINGS, Sampling(0.8, top_p=0.9, guidance=1.5)]


def in_double(model: ViLG) -> ViLG:
    """The same model with weights of float64."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    double = ViLG(model.config)
    paddle.set_default_dtype(before)
    double.set_state_dict({name: tensor.astype("float64") for name, tensor in model.state_dict().items()})
    double.eval()
    return double


@contextmanager
def numpy_without_double() -> Iterator[None]:
    """Inside this context numpy cannot have float64 tensors."""
    own = paddle.Tensor.numpy

    def numpy(tensor: paddle.Tensor) -> np.ndarray:
        assert tensor.dtype != paddle.float64, "numpy has no bfloat16: convert the tensor first"
        return own(tensor)

    paddle.Tensor.numpy = numpy
    try:
        yield
    finally:
        paddle.Tensor.numpy = own


@pytest.fixture(scope="module", params=MODELS)
def both(request) -> tuple[ViLG, ViLG]:
    """A model in float32 and in float64."""
    paddle.seed(0)
    model = build(MODELS[request.param])
    return model, in_double(model)


def test_loss_and_gradients(both):
    if both[0].config.question_length:
        return  # its batches are others
    batch, found = pairs(), []
    if both[0].config.reconstructor is not None:
        batch = replace(batch, pixel_values=paddle.randn([3, 3, 8, 8]))
    reconstruction = None if both[0].config.reconstructor is None else ReconstructionWeights(1.0, 0.5)
    for model in both:
        outputs = model(batch)
        losses = vilg_loss(outputs, batch, reconstruction)
        losses["loss"].backward()
        found.append(losses | vilg_accuracy(outputs, batch))
    single, double = found
    assert both[1].embedding.image.weight.grad.dtype == paddle.float64
    assert outputs.image_logits.dtype == outputs.text_logits.dtype == paddle.float64
    for name, value in single.items():
        np.testing.assert_allclose(double[name].item(), value.item(), rtol=1e-4, err_msg=name)
    for (name, one), other in zip(both[0].named_parameters(), both[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            np.testing.assert_allclose(other.grad.numpy(), one.grad.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("sampling", ALL_SAMPLINGS)
def test_images(both, sampling):
    *_, single = generate_images(both[0], PROMPTS, TEXT, [1, 2, 1, 2], sampling)
    with numpy_without_double():
        *_, double = generate_images(both[1], PROMPTS, TEXT, [1, 2, 1, 2], sampling, return_states=True)
        assert double.states[0].dtype == paddle.float64
        if both[1].reconstructor is not None:
            assert decode_images(both[1], None, double, "hidden")[0].dtype == np.uint8
    np.testing.assert_array_equal(double.tokens, single.tokens)


def test_texts_and_beams(both):
    read, longest = images(3), CONFIG.max_text_length
    for sampling in (Sampling(0), Sampling(0.9, top_k=3, top_p=0.9)):
        single = generate_texts(both[0], read, TEXT, longest, [1, 2, 3], sampling)
        with numpy_without_double():
            assert generate_texts(both[1], read, TEXT, longest, [1, 2, 3], sampling) == single
    single = beam_search(both[0], read, TEXT, longest, 3, 1.0)
    with numpy_without_double():
        assert beam_search(both[1], read, TEXT, longest, 3, 1.0) == single


def test_exported_steps(both, tmp_path):
    vqgan = VQGAN(SMALL, 4)
    vqgan.eval()
    save_transformer(both[1], tmp_path, vqgan)
    exported = ExportedViLG(both[1].config, Programs(tmp_path))
    for sampling in ALL_SAMPLINGS:
        *_, expected = generate_images(both[1], PROMPTS, TEXT, [1, 2], sampling, return_states=True)
        *_, found = generate_images(exported, PROMPTS, TEXT, [1, 2], sampling, return_states=True)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        for one, other in zip(found.states, expected.states, strict=True):
            assert one.dtype == paddle.float64
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-11, atol=1e-11)
    assert generate_texts(exported, images(2), TEXT, 9, [1, 2], Sampling()) == generate_texts(
        both[1], images(2), TEXT, 9, [1, 2], Sampling()
    )


@pytest.mark.parametrize("name", ["vilg", "vilg_e2e"])
def test_training_with_average_validation_preview_and_checkpoint(name, tiny_runs, tmp_path, monkeypatch):
    """Three steps, once in each precision, and one more after the run was resumed."""
    results = {}
    for dtype in ("float32", "float64"):
        options = [f"train.output={tmp_path / dtype}", "train.steps=3", "train.save_every=3", "train.ema_decay=0.9"]
        config = load_config(tiny_runs.parent / f"{name}.yml", options)
        monkeypatch.setitem(DTYPES, "fp32", dtype)
        trainer = Trainer(config, ViLGTask(config, ParallelContext()))
        assert {str(p.dtype) for p in trainer.task.model.parameters()} == {f"paddle.{dtype}"}
        assert trainer.fit()
        with numpy_without_double() if dtype == "float64" else nullcontext():
            results[dtype] = trainer.evaluate()
            assert trainer.preview().images
        assert {str(value.dtype) for value in trainer.ema.values.values()} == {f"paddle.{dtype}"}
        assert {str(p.dtype) for p in trainer.task.model.parameters()} == {f"paddle.{dtype}"}
        again = Trainer(config, ViLGTask(config, ParallelContext()))
        again.resume()
        for one, other in zip(again.task.model.parameters(), trainer.task.model.parameters(), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
        again.task.prepare()
        again.train_step(again.micro_batches(3))
    assert results["float64"].keys() == results["float32"].keys()
    for key, value in results["float32"].items():
        np.testing.assert_allclose(results["float64"][key], value, rtol=2e-3, atol=1e-6, err_msg=key)
