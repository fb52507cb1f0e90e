"""The peers do the same work as ppvilg: PyTorch's model has its loss and gradients, ARTIST writes as many tokens."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from ppvilg.benchmark.peers.artist import artist_generation
from ppvilg.config import (
    AttentionConfig,
    CodebookConfig,
    DataConfig,
    TextConfig,
    TransformerConfig,
    ViLGExperiment,
    VQGANConfig,
)
from ppvilg.transformer.model import Pairs, ViLG
from ppvilg.transformer.pattern import Direction, Pattern

M = 7
KINDS = ["dense", "row", "column", "convolution"]
CONFIG = ViLGExperiment(
    data=DataConfig(image_size=12),
    vqgan=VQGANConfig(channel_multipliers=[1, 1, 1], attention_resolutions=[], codebook=CodebookConfig(size=11, dim=4)),
    text=TextConfig(vocabulary_size=23, max_length=9),
    transformer=TransformerConfig(layers=4, hidden=16, heads=2, attention=AttentionConfig(plan=KINDS, last=None, kernel=3)),
)


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text = np.random.randint(1, 23, [3, M])
    valid = np.arange(M) < np.array([[M], [M - 2], [3]])
    return text, valid, np.random.randint(0, 11, [3, 9])


@pytest.fixture
def peer():
    return pytest.importorskip("ppvilg.benchmark.peers.torch_vilg", exc_type=ModuleNotFoundError)


@pytest.fixture
def ours() -> ViLG:
    model = ViLG(CONFIG)
    for parameter in model.parameters():  # biases and norms too, so that a forgotten one shows
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    return model


def copied(peer, model: ViLG):
    """The torch model with the same weights."""
    theirs = peer.TorchViLG(CONFIG, KINDS)
    peer.copy_weights(theirs, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return theirs


def tensors(arrays):
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(array) for array in arrays]


def mask(kind: str, direction: Direction) -> np.ndarray:
    return Pattern(M, 3, 3, direction, kind=kind, kernel=3).mask()


def patterns():
    return dict(
        zip(KINDS, tensors(np.stack([mask(kind, direction) for direction in Direction]) for kind in KINDS), strict=True)
    )


def test_loss_and_gradients_in_torch_are_ours(peer, ours):
    theirs = copied(peer, ours)
    arrays = pairs()
    loss = ours.loss(Pairs.plain(*map(paddle.to_tensor, arrays)))["loss"]
    loss.backward()
    text, valid, image = tensors(arrays)
    their_loss = theirs.loss(text, valid, image, peer.masks(patterns(), valid))
    their_loss.backward()
    np.testing.assert_allclose(their_loss.item(), loss.item(), rtol=1e-5)
    gradients = {name: parameter.grad.numpy() for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        linear = ".attention." in name or ".ffn." in name or "_head" in name
        gradient = parameter.grad.numpy().T if linear else parameter.grad.numpy()
        ours_name = name.removesuffix(".weight") if "_head" in name else name
        np.testing.assert_allclose(gradient, gradients.pop(ours_name), atol=1e-4, err_msg=name)
    assert not gradients


def test_training_steps_in_torch_lower_the_loss(peer, ours):
    settings = replace(CONFIG.train, learning_rate=0.01)
    step = peer.training_step(copied(peer, ours), settings)
    micro_batches = [tensors(pairs()) for _ in range(2)]
    losses = [step(micro_batches, patterns()) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_masks_hide_padding_from_everybody_else(peer):
    text, valid, _ = pairs()
    visible = peer.masks(patterns(), *tensors([valid]))
    assert list(visible) == KINDS
    for kind in KINDS:
        for row, direction in enumerate(direction for direction in Direction for _ in text):
            expected = mask(kind, direction)
            expected[:, :M] &= valid[row % 3]
            np.testing.assert_array_equal(visible[kind][row, 0].numpy(), expected | np.eye(M + 9, dtype=bool))


def test_artist_writes_all_its_tokens():
    generate = artist_generation(
        layers=2, hidden=16, heads=2, text_vocabulary=23, image_vocabulary=11, text_length=M, image_tokens=9, batch=3
    )
    assert [generate(), generate()] == [27, 27]
