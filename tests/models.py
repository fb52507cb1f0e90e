"""Small models with random weights."""

from dataclasses import replace
from pathlib import Path

import paddle

from ppvilg.config import AttentionConfig, CodebookConfig, TextTokenizerConfig, VQGANConfig
from ppvilg.dual_encoder import DualEncoderScorer
from ppvilg.folder import PipelineConfig, ScorerConfig
from ppvilg.model.config import ViLGConfig
from ppvilg.model.dual_encoder import DualEncoder, DualEncoderSizes
from ppvilg.model.vilg import ViLG
from ppvilg.pipeline import ViLGPipeline
from ppvilg.text import load_text_tokenizer
from ppvilg.vqgan.model import VQGAN

SIZE, MAX_TEXT = 16, 12
VQGAN_CONFIG = VQGANConfig(
    channels=8,
    channel_multipliers=[1, 2],
    res_blocks=1,
    attention_resolutions=[8],
    latent_channels=8,
    patch_size=2,
    codebook=CodebookConfig(size=16, dim=4, normalize=True),
)
VILG_CONFIG = ViLGConfig(
    text_vocab_size=40,
    max_text_length=MAX_TEXT,
    image_vocab_size=16,
    rows=4,
    columns=4,
    layers=2,
    hidden=16,
    heads=2,
    attention=AttentionConfig(kernel=3),
)
DUAL_ENCODER_SIZES = DualEncoderSizes(
    image_size=SIZE,
    text_vocab_size=40,
    max_text_length=MAX_TEXT,
    hidden=16,
    heads=2,
    image_layers=1,
    text_layers=1,
    patch_size=4,
    embedding=8,
    temperature=0.07,
)
STYLES = {"plain": {"zh": "{}方块", "en": "{}"}, "only_zh": {"zh": "大{}"}}


def random_pipeline(vocabulary: Path, reconstructor: bool = False, guidance: bool = True) -> ViLGPipeline:
    """A pipeline for images 16x16 with 16 tokens, whose model is not trained but whose weights are large enough to matter."""
    text_tokenizer = load_text_tokenizer(TextTokenizerConfig("ernie", str(vocabulary), 40))
    config = replace(VILG_CONFIG, reconstructor=VQGAN_CONFIG) if reconstructor else VILG_CONFIG
    model, vqgan = _random(ViLG(config)), _random(VQGAN(VQGAN_CONFIG, SIZE))
    return ViLGPipeline(model, vqgan, text_tokenizer, PipelineConfig(config, SIZE, "ernie", guidance, STYLES))


def random_scorer(vocabulary: Path) -> DualEncoderScorer:
    """A dual encoder for the same images."""
    text_tokenizer = load_text_tokenizer(TextTokenizerConfig("ernie", str(vocabulary), 40))
    return DualEncoderScorer(_random(DualEncoder(DUAL_ENCODER_SIZES)), text_tokenizer, ScorerConfig(DUAL_ENCODER_SIZES))


def _random(model: paddle.nn.Layer) -> paddle.nn.Layer:
    for parameter in model.parameters():
        parameter.set_value(parameter + paddle.randn(parameter.shape) * 0.2)
    model.eval()
    return model
