"""The peers do the same work as ppvilg: PyTorch's model has its loss and gradients, ARTIST writes as many tokens."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from ppvilg.benchmark.peers.artist import artist_run
from ppvilg.config import AttentionConfig, TrainConfig, ViLGExperiment, load_config
from ppvilg.model.batch import Batch
from ppvilg.model.config import ViLGConfig
from ppvilg.model.loss import vilg_loss
from ppvilg.model.mask import Direction
from ppvilg.model.vilg import ViLG

M = 7
KINDS = ["dense", "row", "column", "convolution"]
CONFIG = ViLGConfig(
    text_vocab_size=23,
    max_text_length=9,
    image_vocab_size=11,
    rows=3,
    columns=3,
    layers=4,
    hidden=16,
    heads=2,
    attention=AttentionConfig(plan=KINDS, last=None, kernel=3),
)


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text = np.random.randint(1, 23, [3, M])
    text_mask = np.arange(M) < np.array([[M], [M - 2], [3]])
    return text, text_mask, np.random.randint(0, 11, [3, 9])


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
    theirs = peer.TorchViLG(CONFIG)
    peer.copy_weights(theirs, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return theirs


def tensors(arrays):
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(array) for array in arrays]


def test_loss_and_gradients_in_torch_are_ours(peer, ours):
    theirs = copied(peer, ours)
    arrays = pairs()
    batch = Batch.plain(*map(paddle.to_tensor, arrays))
    loss = vilg_loss(ours(batch), batch)["loss"]
    loss.backward()
    text, text_mask, image = tensors(arrays)
    their_loss = theirs.loss(text, text_mask, image, peer.attention_biases(peer.attention_masks(CONFIG, M), text_mask))
    their_loss.backward()
    np.testing.assert_allclose(their_loss.item(), loss.item(), rtol=1e-5)
    gradients = {name: parameter.grad.numpy() for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        gradient = peer.transposed(theirs, name, parameter.grad.numpy())
        np.testing.assert_allclose(gradient, gradients.pop(name), atol=1e-4, err_msg=name)
    assert not gradients


def test_training_steps_in_torch_lower_the_loss(peer, ours):
    step = peer.training_step(copied(peer, ours), TrainConfig(learning_rate=0.01))
    micro_batches, masks = [tensors(pairs()) for _ in range(2)], peer.attention_masks(CONFIG, M)
    losses = [step(micro_batches, masks).item() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_masks_hide_padding_from_everybody_else(peer):
    text, text_mask, _ = pairs()
    biases = peer.attention_biases(peer.attention_masks(CONFIG, M), *tensors([text_mask]))
    assert list(biases) == KINDS
    for kind in KINDS:
        for row, direction in enumerate(direction for direction in Direction for _ in text):
            expected = CONFIG.mask(kind, direction, M).mask()
            expected[:, :M] &= text_mask[row % 3]
            expected |= np.eye(M + 9, dtype=bool)
            np.testing.assert_array_equal(biases[kind][row, 0].numpy(), np.where(expected, 0, -np.inf))


@pytest.mark.parametrize("value", [{"dropout": 0.1}, {"tie_embeddings": True}, {"text_embedding_width": 8}])
def test_what_the_torch_model_has_not_is_refused(peer, value):
    with pytest.raises(ValueError, match="the model in PyTorch has no"):
        peer.TorchViLG(replace(CONFIG, **value))


def test_artist_writes_all_its_tokens():
    sizes = ["transformer.layers=2", "transformer.hidden=16", "transformer.heads=2", "data.image_size=32"]
    config = load_config(
        "configs/vilg_emoji.yml", [*sizes, "text.vocabulary_size=23", "vqgan.codebook.size=11"], ViLGExperiment
    )
    generate = artist_run(config, 3)
    assert [generate(), generate()] == [48, 48]
