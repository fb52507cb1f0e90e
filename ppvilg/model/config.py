"""What a ViLG is made of, apart from how it is trained and on what."""

from dataclasses import dataclass, field

from ppvilg.config import (
    AttentionConfig,
    ImagePositions,
    TextEncoderConfig,
    TextPadding,
    ViLGExperiment,
    ViLGTrainConfig,
    VQGANConfig,
)
from ppvilg.model.mask import AttentionMask, Direction


@dataclass(frozen=True)
class ViLGConfig:
    """Sizes and attention of the transformer (paper 3.1); raises `ValueError` for sizes that do not fit each other."""

    text_vocab_size: int
    max_text_length: int
    image_vocab_size: int
    rows: int
    columns: int
    layers: int
    hidden: int
    heads: int
    ffn_multiplier: int = 4
    dropout: float = 0.0
    tie_embeddings: bool = False
    """Use the embedding tables as the output head."""
    text_embedding_width: int | None = None
    """Width of the text table where it differs from `hidden`; it is then projected."""
    text_encoder: TextEncoderConfig | None = None
    """What reads the texts that images are generated from, sizes included; None: the text table."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    causal_text: bool = False
    sandwich_norm: bool = False
    head_norm: bool = False
    head_bias: bool = False
    image_positions: ImagePositions = "grid"
    text_padding: TextPadding = "hidden"
    """These six as in `TransformerConfig` and `TextConfig`."""
    question_length: int = 0
    """q, the slots for a question in the prefix of image -> text; 0: the model answers none."""
    reconstructor: VQGANConfig | None = None
    """The decoder that end-to-end training draws pixels with (paper 3.1.3); None: without."""

    def __post_init__(self):
        if self.question_length > self.max_text_length:
            raise ValueError(f"question_length is {self.question_length}: give at most max_text_length, {self.max_text_length}")
        if self.text_encoder is not None and self.text_encoder.sizes is None:
            raise ValueError("the sizes of text.encoder are not known: train with it first, or give text.encoder.sizes")
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}: give a multiple of the number of heads, {self.heads}")
        if self.tie_embeddings and self.head_bias:
            raise ValueError("head_bias is true: give false with tie_embeddings, whose head is the tables alone")

    @property
    def image_length(self) -> int:
        """n, the number of image tokens."""
        return self.rows * self.columns

    @property
    def kinds(self) -> list[str]:
        """The attention kind of each layer."""
        return self.attention.kinds(self.layers)

    def mask(self, kind: str, direction: Direction, text_length: int) -> AttentionMask:
        """The attention mask of a kind of layer for texts of a length."""
        return AttentionMask(
            text_length,
            self.rows,
            self.columns,
            direction,
            kind,
            self.attention.kernel,
            self.attention.strict_row,
            self.causal_text,
            self.question_slots(direction),
        )

    def question_slots(self, direction: Direction) -> int:
        """How many slots the sequences of a direction have for a question."""
        return 0 if direction is Direction.TEXT_TO_IMAGE else self.question_length

    def text_length(self, direction: Direction, length: int) -> int:
        """m, of a direction's sequences with `length` slots."""
        return length - self.image_length - self.question_slots(direction)


def vilg_config(experiment: ViLGExperiment) -> ViLGConfig:
    """The model that an experiment trains."""
    transformer, text = experiment.transformer, experiment.text
    rows, columns = experiment.grid
    return ViLGConfig(
        text_vocab_size=text.vocabulary_size,
        max_text_length=text.max_length,
        image_vocab_size=experiment.vqgan.codebook.size,
        rows=rows,
        columns=columns,
        layers=transformer.layers,
        hidden=transformer.hidden,
        heads=transformer.heads,
        ffn_multiplier=transformer.ffn_multiplier,
        dropout=transformer.dropout,
        tie_embeddings=transformer.tie_embeddings,
        text_embedding_width=text.embedding_width,
        text_encoder=text.encoder,
        attention=transformer.attention,
        causal_text=transformer.causal_text,
        sandwich_norm=transformer.sandwich_norm,
        head_norm=transformer.head_norm,
        head_bias=transformer.head_bias,
        image_positions=transformer.image_positions,
        text_padding=text.padding,
        question_length=text.question_length,
        reconstructor=experiment.vqgan if transformer.reconstructor else None,
    )


def trained_directions(train: ViLGTrainConfig) -> tuple[Direction, ...]:
    """Those whose loss has a weight."""
    weights = {Direction.TEXT_TO_IMAGE: train.txt2img_weight, Direction.IMAGE_TO_TEXT: train.img2txt_weight}
    return tuple(direction for direction, weight in weights.items() if weight)


def untrained_parameters(config: ViLGExperiment) -> tuple[str, ...]:
    """What their names begin with: those that `train.frozen` names, and those that the directions trained do not reach."""
    unused = {Direction.TEXT_TO_IMAGE: ["head.image."], Direction.IMAGE_TO_TEXT: ["head.text."]}
    if config.text.encoder is not None:  # it reads every text that is a prefix; the table, those that are written
        unused[Direction.IMAGE_TO_TEXT] += ["embedding.text.", "embedding.text_projection."]
        if not config.text.question_length:
            unused[Direction.TEXT_TO_IMAGE] += ["embedding.text_encoder."]
    directions = trained_directions(config.train)
    return (
        *config.train.frozen,
        *(name for direction, names in unused.items() if direction not in directions for name in names),
    )
