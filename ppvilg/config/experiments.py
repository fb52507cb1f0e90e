"""The kinds of experiments: training an image tokenizer, a transformer or a dual encoder, and evaluating a transformer.

Each has a dataclass with the keys that do something for it, and `conflicts`.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from ppvilg.config.models import (
    STRICT,
    Conflicts,
    Count,
    Decay,
    DualEncoderConfig,
    LoRAConfig,
    Positive,
    PositiveFloat,
    Probability,
    Seed,
    TextConfig,
    TextTokenizerConfig,
    TransformerConfig,
    VQGANConfig,
    Weight,
)
from ppvilg.config.parallel import DataParallelConfig, ParallelConfig

Keep = dict[str, list[str]]
SampleWeight = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class ImageDataConfig:
    """Images, and which of them are for training and validation."""

    __pydantic_config__ = STRICT
    path: str = "data/emoji"
    """Prepared data, a folder of tar shards, or a folder of images with a captions file (JSONL, CSV or TSV)."""
    captions: str | list[str] | None = None
    """The file with the captions or questions of a folder of images, or several, relative to `path`; null: the only one there.
    JSON files as COCO, COCO-CN, AIC-ICC, FM-IQA and VQA v2 come with are read as they are."""
    image_size: Positive = 64
    """Images are resized to this many pixels on the shorter side and cropped to a square at the centre."""
    train_split: str = "train"
    validation_split: str = "validation"
    validation_fraction: Probability = 0.05
    """Share of the pairs kept for validation where the data has no splits of its own."""
    keep: Keep = field(default_factory=dict)
    """Keep only samples whose metadata has one of these values, e.g. `{style: [noto, twemoji]}`."""
    sample_weights: dict[str, dict[str, SampleWeight]] = field(default_factory=dict)
    """In which share of the epochs a training sample is seen, by its metadata, e.g. `{tone: {"1": 0.2}}`; all others are in
    every epoch."""
    workers: Count = 0
    """Threads that decode images ahead; 0 decodes in the training thread."""


@dataclass(frozen=True)
class DataConfig(ImageDataConfig):
    """Pairs of images and captions."""

    __pydantic_config__ = STRICT
    languages: dict[str, PositiveFloat] = field(default_factory=dict)
    """How often each language's captions are drawn, as weights; empty: all languages alike."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, logging and checkpoints."""

    __pydantic_config__ = STRICT
    output: str = "runs/unnamed"
    """The run's folder: resolved config, checkpoints, logs, preview images."""
    init_from: str | None = None
    """Folder of a run or a model whose weights a new run starts from; the optimizer and the learning rate start anew."""
    seed: Seed = 0
    steps: Positive = 100_000
    batch_size: Positive = 32
    """Pairs (or images) per optimizer step, all processes and micro-batches together."""
    gradient_accumulation_steps: Positive = 1
    """Micro-batches per optimizer step."""
    learning_rate: PositiveFloat = 4.5e-4
    min_learning_rate: Weight = 0.0
    """Where the cosine ends."""
    warmup_steps: Count = 1000
    beta1: Decay = 0.9
    beta2: Decay = 0.96
    epsilon: PositiveFloat = 1e-8
    weight_decay: Weight = 0.01
    clip_norm: Weight = 1.0
    """Global gradient norm that is clipped to; 0: no clipping."""
    ema_decay: Decay = 0.999
    """Of the weights that are evaluated and exported; 0: no average is kept."""
    log_every: Positive = 20
    validate_every: Positive = 1000
    validation_samples: Positive = 256
    save_every: Positive = 1000
    keep_checkpoints: Positive = 2


@dataclass(frozen=True)
class PreviewTrainConfig(TrainConfig):
    """Training with previews: fixed samples, drawn every so many steps to look at."""

    __pydantic_config__ = STRICT
    preview_every: Positive = 1000
    preview_samples: Positive = 8


@dataclass(frozen=True)
class ViLGTrainConfig(PreviewTrainConfig):
    """Training of the transformer."""

    __pydantic_config__ = STRICT
    tokenizer: str | None = None
    """Run folder of the trained image tokenizer; null: the image tokenizer of `init_from`."""
    token_noise: Probability = 0.0
    """Most that is replaced of an image's input tokens by random ones (the targets stay); each pair draws its own share
    below it. Small data needs it: else the transformer knows an image by its first tokens and does not learn to read."""
    text_drop: Probability = 0.0
    """Share of pairs whose image is generated from an empty text, for classifier-free guidance."""
    txt2img_weight: Weight = 1.0
    """Weight of the loss of text -> image; 0: images are not generated in training, which then takes half the time."""
    img2txt_weight: Weight = 1.0
    """Weight of the loss of image -> text; 0: texts are not."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that stay as they are: those whose names begin like one of these, e.g. `[blocks., embedding.image.]`."""
    reconstruction_weight: PositiveFloat = 1.0
    """Weight of the reconstruction loss beside the generation losses (transformer.reconstructor)."""

    @property
    def sequences_per_pair(self) -> int:
        """How many directions are trained."""
        return (self.txt2img_weight > 0) + (self.img2txt_weight > 0)


class TrainingExperiment:
    """What the experiments that train have in common."""

    task: str
    data: ImageDataConfig
    train: TrainConfig
    parallel: DataParallelConfig

    @property
    def reads_questions(self) -> bool:
        """Whether samples need questions instead of captions."""
        return False

    @property
    def micro_batch(self) -> int:
        """Pairs (or images) that one process computes at once."""
        return self.train.batch_size // (self.train.gradient_accumulation_steps * self.parallel.data_world_size)

    def conflicts(self) -> Conflicts:
        """Of the `train` section."""
        train, steps = self.train, self.train.gradient_accumulation_steps
        if train.batch_size % steps:
            expected = f"expected a divisor of train.batch_size = {train.batch_size}"
            yield "train.gradient_accumulation_steps", steps, expected
        parts = steps * self.parallel.data_world_size
        if train.batch_size % parts:
            expected = f"expected a multiple of gradient_accumulation_steps x dp_degree x sharding_degree = {parts}"
            yield "train.batch_size", train.batch_size, expected
        if train.warmup_steps >= train.steps:
            yield "train.warmup_steps", train.warmup_steps, f"expected fewer than train.steps = {train.steps}"
        if train.min_learning_rate > train.learning_rate:
            yield "train.min_learning_rate", train.min_learning_rate, f"expected at most {train.learning_rate}"


class ImageTokensExperiment(TrainingExperiment):
    """What the image tokenizer's and the transformer's experiments have in common."""

    vqgan: VQGANConfig

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of image tokens."""
        side = self.data.image_size // self.vqgan.downsampling
        return side, side

    @property
    def image_tokens(self) -> int:
        """n: image tokens per image."""
        rows, columns = self.grid
        return rows * columns

    def conflicts(self) -> Conflicts:
        """Of the `vqgan` section too."""
        yield from super().conflicts()
        vqgan, codebook = self.vqgan, self.vqgan.codebook
        if self.data.image_size % vqgan.downsampling:
            yield "data.image_size", self.data.image_size, f"expected a multiple of f = {vqgan.downsampling} (vqgan)"
        loss = vqgan.loss
        if loss.perceptual and loss.perceptual_network == "vgg16" and not loss.perceptual_weights:
            expected = "expected 0 unless perceptual_weights names a file or perceptual_network is efficientnet-lite0"
            yield "vqgan.loss.perceptual", loss.perceptual, expected
        if codebook.learning == "gumbel" and codebook.normalize:
            yield "vqgan.codebook.normalize", True, "expected false with learning: gumbel, which compares no distances"
        if codebook.learning == "gumbel" and codebook.revive_after:
            yield "vqgan.codebook.revive_after", codebook.revive_after, "expected 0 with learning: gumbel"


@dataclass(frozen=True)
class VQGANExperiment(ImageTokensExperiment):
    """Training the image tokenizer."""

    __pydantic_config__ = STRICT
    task: Literal["vqgan"] = "vqgan"
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    train: PreviewTrainConfig = field(default_factory=PreviewTrainConfig)
    parallel: DataParallelConfig = field(default_factory=DataParallelConfig)


@dataclass(frozen=True)
class ViLGExperiment(ImageTokensExperiment):
    """Training the transformer over a trained image tokenizer."""

    __pydantic_config__ = STRICT
    task: Literal["vilg"] = "vilg"
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    """The image tokenizer in `train.tokenizer`."""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    lora: LoRAConfig | None = None
    """Train low-rank updates of the model in `train.init_from`, which stays as it is; null: train the weights themselves."""
    train: ViLGTrainConfig = field(default_factory=ViLGTrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def reads_questions(self) -> bool:
        """Whether the texts to write are answers to questions."""
        return self.text.question_length > 0

    @property
    def text_tokens(self) -> int:
        """Most text tokens of a sequence, those of a question included."""
        return self.text.max_length + self.text.question_length

    def conflicts(self) -> Conflicts:
        """Of all sections."""
        yield from super().conflicts()
        model, text, parallel = self.transformer, self.text, self.parallel
        if model.hidden % model.heads:
            yield "transformer.heads", model.heads, f"expected a divisor of transformer.hidden = {model.hidden}"
        if model.tie_embeddings and text.embedding_width not in (None, model.hidden):
            expected = "expected false where text.embedding_width differs from the width"
            yield "transformer.tie_embeddings", True, expected
        if text.question_length and self.train.txt2img_weight:
            why = "expected 0 with text.question_length, since an answer is no text to generate an image from"
            yield "train.txt2img_weight", self.train.txt2img_weight, why
        if text.question_length > text.max_length:
            yield "text.question_length", text.question_length, f"expected at most text.max_length = {text.max_length}"
        if model.tie_embeddings and model.head_bias:
            yield "transformer.head_bias", True, "expected false with tie_embeddings: true, whose head is the tables alone"
        if text.padding == "positional" and text.max_length >= text.vocabulary_size:
            expected = f"expected more than the {text.max_length} padding tokens (text.padding: positional)"
            yield "text.vocabulary_size", text.vocabulary_size, expected
        if model.attention.kernel % 2 == 0:
            yield "transformer.attention.kernel", model.attention.kernel, "expected an odd number"
        if model.causal_text and text.encoder is not None:
            yield "transformer.causal_text", True, "expected false with text.encoder, whose states read the whole text"
        yield from text.conflicts()
        if not self.train.sequences_per_pair:
            yield (
                "train.img2txt_weight",
                0.0,
                "expected more than 0 with train.txt2img_weight: 0, else there is nothing to train",
            )
        if self.train.frozen and parallel.sharding_stage == 3:
            why = "Fleet's stage 3 does not free weights again that have no gradient"
            yield "train.frozen", self.train.frozen, f"expected [] with parallel.sharding_stage: 3: {why}"
        whole = any("embedding.".startswith(start) for start in self.train.frozen)
        if whole and (parallel.recompute == "full" or parallel.pp_degree > 1):
            why = "what a layer is given needs a gradient with recompute: full and with pipeline stages"
            yield "train.frozen", self.train.frozen, f"expected a part of the embedding to be trained: {why}"
        if model.reconstructor and not self.train.txt2img_weight:
            yield "transformer.reconstructor", True, "expected false with train.txt2img_weight: 0, which generates no images"
        yield from parallel.conflicts()
        for name, size in (
            ("transformer.heads", model.heads),
            ("text.vocabulary_size", text.vocabulary_size),
            ("vqgan.codebook.size", self.vqgan.codebook.size),
        ):
            if size % parallel.mp_degree:
                yield "parallel.mp_degree", parallel.mp_degree, f"expected a divisor of {name} = {size}"
        sequences = self.train.sequences_per_pair * self.micro_batch
        if parallel.sequence_parallel and sequences % parallel.mp_degree:
            expected = f"expected false, or a parallel.mp_degree that divides the {sequences} sequences of a micro-batch"
            yield "parallel.sequence_parallel", True, expected
        if parallel.pp_degree > model.layers:
            yield "parallel.pp_degree", parallel.pp_degree, f"expected at most transformer.layers = {model.layers}"
        if self.lora is not None:
            yield from self._lora_conflicts(self.lora)

    def _lora_conflicts(self, lora: LoRAConfig) -> Conflicts:
        model, parallel = self.transformer, self.parallel
        if self.train.init_from is None:
            yield "train.init_from", None, "expected the folder of the model that lora updates"
        if self.train.frozen:
            yield "train.frozen", self.train.frozen, "expected [] with lora, which leaves all weights as they are"
        if lora.rank > model.hidden:
            yield "lora.rank", lora.rank, f"expected at most transformer.hidden = {model.hidden}"
        if lora.layers is not None and max(lora.layers, default=0) >= model.layers:
            yield "lora.layers", lora.layers, f"expected numbers below transformer.layers = {model.layers}"
        if "head" in lora.targets and model.tie_embeddings:
            yield "lora.targets", lora.targets, "expected no head with transformer.tie_embeddings, which makes it a table"
        for name in ("mp_degree", "pp_degree", "sharding_degree"):
            if (degree := getattr(parallel, name)) > 1:
                how = "every process holds the frozen weights whole, and there is little else: use dp_degree"
                yield f"parallel.{name}", degree, f"expected 1 with lora, where {how}"


@dataclass(frozen=True)
class DualEncoderExperiment(TrainingExperiment):
    """Training the dual encoder."""

    __pydantic_config__ = STRICT
    task: Literal["dual_encoder"] = "dual_encoder"
    data: DataConfig = field(default_factory=DataConfig)
    text: TextTokenizerConfig = field(default_factory=TextTokenizerConfig)
    dual_encoder: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: DataParallelConfig = field(default_factory=DataParallelConfig)

    def conflicts(self) -> Conflicts:
        """Of all sections."""
        yield from super().conflicts()
        model, size = self.dual_encoder, self.data.image_size
        if model.hidden % model.heads:
            yield "dual_encoder.heads", model.heads, f"expected a divisor of dual_encoder.hidden = {model.hidden}"
        if size % model.patch_size:
            yield "dual_encoder.patch_size", model.patch_size, f"expected a divisor of data.image_size = {size}"


@dataclass(frozen=True)
class EvalDataConfig:
    """The pairs that a model is evaluated on."""

    __pydantic_config__ = STRICT
    path: str = "data/emoji"
    """As in training: a folder of tar shards, or of images with a captions file."""
    captions: str | list[str] | None = None
    """As in training: the file or files with the captions or questions of a folder of images."""
    validation_fraction: Probability = 0.05
    """Share of the pairs in the split `validation` where the data has no splits of its own."""
    seed: Seed = 0
    """What that split is drawn with, `train.seed` in training."""
    keep: Keep = field(default_factory=dict)
    """What the model was trained on: samples whose metadata has one of these values."""
    languages: dict[str, PositiveFloat] = field(default_factory=dict)
    """Weights of the captions' languages, of which the heaviest is evaluated."""


@dataclass(frozen=True, kw_only=True)
class EvalExperiment:
    """What tools/eval.py measures of a trained transformer, and how."""

    __pydantic_config__ = STRICT
    task: Literal["eval"] = "eval"
    model: str
    """Folder of a run or a model."""
    data: EvalDataConfig | None = None
    """null: the data that the model was trained on."""
    keep: Keep | None = None
    """Evaluate only pairs whose metadata has one of these values; null: as `data.keep`, which says what was trained on."""
    samples: Positive | None = None
    """Pairs drawn at random from the split; null: all."""
    captions: Literal["canonical", "any"] = "canonical"
    """Each image with the first caption of its heaviest language, or any caption of that language with its image (COCO)."""
    seed: Seed = 0
    training_split: str | None = "train"
    """Where the baselines find real images and captions besides those of the split; null: without these baselines."""
    extractor: str = "efficientnet-lite0"
    """Features of images: efficientnet-lite0, or the file that tools/convert.py inception made."""
    dual_encoder: str | None = None
    """Run folder of a dual encoder, or an ErnieViL: retrieval, scores, and the best of several candidates."""
    best_of: Annotated[list[Positive], Field(min_length=1)] = field(default_factory=lambda: [1])
    """Candidates per prompt of which the dual encoder takes the best."""
    style_keep: Keep | None = None
    """Fit a classifier of styles to training pictures whose metadata has one of these values; null: without that measure."""
    pool: Annotated[int, Field(ge=2)] = 100
    """Captions among which an image has to find its own (R@1, R@5)."""
    blur: Annotated[list[Weight], Field(min_length=1)] = field(default_factory=lambda: [0.0])
    """Deviations in pixels of the blur before features are taken (FID-k)."""
    temperature: Weight = 1.0
    top_k: Count = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    guidance: Weight = 1.0
    decoder: Literal["codebook", "hidden"] = "codebook"
    """What paints the tokens: the image tokenizer, or the reconstructor of an end-to-end model."""
    beams: Positive = 1
    """Of the search for captions; 1: the likeliest token each time."""
    unit: Literal["characters", "words"] = "characters"
    """What captions are cut into before they are compared."""

    def with_data_of(self, trained: ViLGExperiment) -> "EvalExperiment":
        """The same with the data of the model's training where `data` is null."""
        if self.data is not None:
            return self
        found, seed = trained.data, trained.train.seed
        values = (found.path, found.captions, found.validation_fraction, seed, found.keep, found.languages)
        return replace(self, data=EvalDataConfig(*values))

    def conflicts(self) -> Conflicts:
        """Of all keys."""
        if max(self.best_of) > 1 and not self.dual_encoder:
            yield "best_of", self.best_of, "expected [1] unless dual_encoder names a model that chooses"


Experiment = VQGANExperiment | ViLGExperiment | DualEncoderExperiment | EvalExperiment
