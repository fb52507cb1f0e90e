"""What the models are made of: one dataclass for each section of a config that describes one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True)

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Conflicts = Iterator[tuple[str, Any, str]]
"""Values that are each fine but cannot stand together, as (key, value, what to write instead)."""
LoRATarget = Literal["query", "key", "value", "out", "up", "down", "head"]
AttentionKind = Literal["dense", "row", "column", "convolution"]
TokenizerKind = Literal["ernie", "wordpiece", "sentencepiece", "yttm"]
ImagePositions = Literal["grid", "flat"]
TextPadding = Literal["hidden", "visible", "positional"]


@dataclass(frozen=True)
class CodebookConfig:
    """The vector quantizer."""

    __pydantic_config__ = STRICT
    size: Positive = 8192
    dim: Positive = 256
    """Width of a code; the latents are projected to it and the codes back to `vqgan.latent_channels`."""
    learning: Literal["gradient", "ema", "gumbel"] = "gradient"
    """How codes learn: by gradient (VQGAN), by exponential moving average, or by Gumbel-softmax (dVAE)."""
    normalize: bool = False
    """Compare l2-normalised latents with l2-normalised codes (ViT-VQGAN)."""
    commitment: Weight = 0.25
    ema_decay: Decay = 0.99
    revive_after: Count = 0
    """Steps without use after which a code is replaced by a latent of the batch; 0: never."""
    temperature: PositiveFloat = 1.0
    """Gumbel-softmax temperature (learning: gumbel)."""
    kl_weight: Weight = 5e-4
    """Weight of the KL term towards uniform code use (learning: gumbel)."""


@dataclass(frozen=True)
class VQGANLossConfig:
    """What the image tokenizer is trained on."""

    __pydantic_config__ = STRICT
    l1: Weight = 1.0
    l2: Weight = 0.0
    perceptual: Weight = 0.0
    """Weight of the distance between the features of a picture and of its reconstruction."""
    perceptual_network: Literal["vgg16", "efficientnet-lite0"] = "vgg16"
    """Whose features: LPIPS's VGG16, whose weights are in `perceptual_weights`, or the EfficientNet-Lite0 of a package
    (requirements-eval.txt)."""
    perceptual_weights: str | None = None
    """A safetensors file with VGG16's and LPIPS's weights, made by tools/convert.py lpips."""
    adversarial: Weight = 0.0
    """Weight of the patch GAN, on top of the adaptive weight."""
    adversarial_start: Count = 0
    """Step at which the discriminator starts."""
    discriminator_channels: Positive = 64
    discriminator_layers: Positive = 3


@dataclass(frozen=True)
class VQGANConfig:
    """The image tokenizer: picture <-> grid of tokens."""

    __pydantic_config__ = STRICT
    channels: Positive = 128
    """Channels at the highest resolution."""
    channel_multipliers: list[Positive] = field(default_factory=lambda: [1, 1, 2, 4])
    """Channels at each resolution as multiples of `channels`; each further entry halves the resolution."""
    res_blocks: Positive = 2
    attention_resolutions: list[Positive] = field(default_factory=lambda: [16])
    """Resolutions (in pixels) whose residual blocks are followed by attention."""
    latent_channels: Positive = 256
    patch_size: Positive = 1
    """Pixels per side that are folded into channels before the first convolution; 1 is the paper's network."""
    dropout: Decay = 0.0
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    loss: VQGANLossConfig = field(default_factory=VQGANLossConfig)

    @property
    def downsampling(self) -> int:
        """f: pixels per side of the picture for one token."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class TextTokenizerConfig:
    """The text tokenizer and its vocabulary."""

    __pydantic_config__ = STRICT
    tokenizer: TokenizerKind = "ernie"
    """ernie: WordPiece as ERNIE does it, with a begin and an end token; wordpiece: without them."""
    vocabulary: str = "data/emoji/vocab.txt"
    """A vocab.txt, a folder with one, a name of an ERNIE model (downloaded), a sentencepiece .model file, or one of
    YouTokenToMe (yttm; ruDALL-E's)."""
    vocabulary_size: Positive = 40000
    """Rows of the text embedding table; at least as many as the tokenizer has tokens."""
    max_length: Annotated[int, Field(ge=3)] = 64
    """Text tokens per sequence, begin and end tokens included; longer captions are cut in training."""

    @property
    def token_rows(self) -> int:
        """How many tokens the tokenizer may have."""
        return self.vocabulary_size


@dataclass(frozen=True)
class ErnieSizes:
    """What an ERNIE encoder is made of, under the names and with the defaults of PaddleNLP's `ErnieConfig`."""

    __pydantic_config__ = STRICT
    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    intermediate_size: Positive
    hidden_act: Literal["gelu", "relu"] = "gelu"
    max_position_embeddings: Positive = 512
    type_vocab_size: Positive = 16
    use_task_id: bool = False
    task_id: Count = 0
    task_type_vocab_size: Positive = 3
    pad_token_id: Count = 0


@dataclass(frozen=True)
class TextEncoderConfig:
    """An ERNIE encoder whose contextual states take the place of the source text's embeddings."""

    __pydantic_config__ = STRICT
    model: str | None = None
    """An ERNIE model (name or local folder) that its weights start from; null: drawn from the seed, as `sizes` say."""
    train: bool = False
    """Whether its weights are trained; false: they stay as they are, and only the projection of its states is trained."""
    learning_rate_scale: PositiveFloat = 0.1
    """Its learning rate, as a share of the transformer's, where it is trained."""
    sizes: ErnieSizes | None = None
    """What it is made of; null: what `model` says, which a run's own config then has here."""


@dataclass(frozen=True)
class TextConfig(TextTokenizerConfig):
    """The transformer's text: tokenizer, embedding table, encoder, and the styles that prompts can ask for."""

    __pydantic_config__ = STRICT
    question_length: Count = 0
    """Tokens of a question that is read beside an image, begin and end tokens included; longer ones are cut in training. The
    texts to write are then answers, and the data needs questions. 0: no questions."""
    embeddings: str | None = None
    """An ERNIE model (name, or local folder with vocab.txt) whose token embeddings the text table starts from; `vocabulary` has
    to be its own. With `train.init_from` they are not read."""
    embedding_width: Positive | None = None
    """Width of the text table where it differs from `transformer.hidden`; it is then projected."""
    encoder: TextEncoderConfig | None = None
    """What reads the texts that images are generated from; null: the text table, as for the other direction."""
    padding: TextPadding = "hidden"
    """What follows a text that an image is drawn from. hidden: padding that nothing sees; visible: padding tokens up to
    `max_length`, seen like any other; positional: the same, but each place has a token of its own, the last `max_length` rows
    of the text table."""
    styles: dict[str, dict[str, str]] = field(default_factory=dict)
    """Named styles and how a prompt asks for each, by language, with {} for what is shown, e.g.
    `{noto: {zh: "Noto风格的{}", en: "{} in Noto style"}}`: what an API or a page offers to choose from."""

    @property
    def token_rows(self) -> int:
        """Positional padding has rows of its own."""
        return self.vocabulary_size - (self.max_length if self.padding == "positional" else 0)

    def conflicts(self) -> Conflicts:
        """Of the encoder and of the styles."""
        if self.encoder is not None:
            yield from self._encoder_conflicts(self.encoder)
        for name, templates in self.styles.items():
            for language, template in templates.items():
                if template.count("{}") != 1:
                    expected = "expected a prompt with one {} for what is shown"
                    yield f"text.styles.{name}.{language}", template, expected

    def _encoder_conflicts(self, encoder: TextEncoderConfig) -> Conflicts:
        sizes, key = encoder.sizes, "text.encoder.sizes"
        if self.tokenizer != "ernie":
            yield "text.encoder", encoder.model, "expected null with a text.tokenizer other than ernie"
        if self.padding != "hidden":
            yield "text.padding", self.padding, "expected hidden with text.encoder, which does not see padding"
        if sizes is None:
            if encoder.model is None:
                yield "text.encoder.model", None, "expected an ERNIE model's name or folder, or sizes to draw one by"
            return
        if sizes.hidden_size % sizes.num_attention_heads:
            expected = f"expected a divisor of hidden_size = {sizes.hidden_size}"
            yield f"{key}.num_attention_heads", sizes.num_attention_heads, expected
        if sizes.max_position_embeddings < self.max_length:
            expected = f"expected at least text.max_length = {self.max_length}"
            yield f"{key}.max_position_embeddings", sizes.max_position_embeddings, expected


@dataclass(frozen=True)
class AttentionConfig:
    """Which image tokens an image token sees, layer by layer; the defaults are the paper's (3.1.4)."""

    __pydantic_config__ = STRICT
    plan: Annotated[list[AttentionKind], Field(min_length=1)] = field(default_factory=lambda: ["row", "column", "row", "row"])
    """Kinds of the layers, from the first on and over again; `[dense]`: every layer sees everything."""
    last: AttentionKind | None = "convolution"
    """Kind of the last layer; null: as the plan has it."""
    kernel: Positive = 11
    """Width and height of the convolution kind's window, odd."""
    strict_row: bool = False
    """Let row layers see their own row only, instead of the tokens back to the one right above."""

    def kinds(self, layers: int) -> list[AttentionKind]:
        """The kind of each layer."""
        kinds = [self.plan[i % len(self.plan)] for i in range(layers)]
        return kinds if self.last is None else [*kinds[:-1], self.last]


@dataclass(frozen=True)
class TransformerConfig:
    """The one stack that serves both directions."""

    __pydantic_config__ = STRICT
    layers: Positive = 24
    hidden: Positive = 1024
    heads: Positive = 16
    ffn_multiplier: Positive = 4
    dropout: Decay = 0.0
    tie_embeddings: bool = False
    """Use the embedding tables as the output head."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    causal_text: bool = False
    """Let the tokens of a text that an image is drawn from see those before them only, as GPTs over text and image do."""
    sandwich_norm: bool = False
    """Normalise what each branch adds to the residual stream, too (CogView)."""
    head_norm: bool = False
    """A second LayerNorm between the last one and the logits."""
    head_bias: bool = False
    """Add a bias to the logits."""
    image_positions: ImagePositions = "grid"
    """grid: one table for rows plus one for columns (DALL·E); flat: one table for all slots of the image."""
    reconstructor: bool = False
    """A second way from the last hidden states to a picture, trained with the transformer (end to end; paper 3.1.3)."""


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates of a frozen model (Hu et al. 2021): in place of weights W, ΔW = alpha/rank · A B is trained."""

    __pydantic_config__ = STRICT
    rank: Positive = 8
    """Columns of A and rows of B."""
    alpha: PositiveFloat = 16.0
    """Weight of the updates, which with alpha/rank does not depend on the rank."""
    targets: Annotated[list[LoRATarget], Field(min_length=1)] = field(
        default_factory=lambda: ["query", "key", "value", "out", "up", "down", "head"]
    )
    """Which matrices have one: of each layer's attention, of its MLP, and the output head's."""
    layers: list[Count] | None = None
    """Numbers of the layers, counted from 0, in which they do; null: all. The head belongs to none."""


@dataclass(frozen=True)
class DualEncoderConfig:
    """The model that says how well an image and a text fit: two encoders into one space."""

    __pydantic_config__ = STRICT
    hidden: Positive = 192
    heads: Positive = 4
    image_layers: Positive = 4
    text_layers: Positive = 3
    patch_size: Positive = 8
    """Pixels per side of the patches that the image encoder reads."""
    embedding: Positive = 128
    """Width of the common space."""
    temperature: PositiveFloat = 0.07
    """What the similarities are divided by at first; it is learned."""
    dropout: Decay = 0.0
