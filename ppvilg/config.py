"""Every key a YAML config can have, its default, and how a config is loaded, overridden, checked and saved.

A config file is an experiment: `base:` names a file (relative to it) whose keys it inherits, `-o section.key=value`
overrides single keys, and the result is checked as a whole before anything runs. Every default stands in this file.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ppvilg.errors import UserError
from ppvilg.files import write_whole

_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
AttentionKind = Literal["dense", "row", "column", "convolution"]


@dataclass(frozen=True)
class DataConfig:
    """Pairs of pictures and captions."""

    __pydantic_config__ = _STRICT
    path: str = "data/emoji"
    """A folder of tar shards with a manifest, or a folder of pictures with a captions file (JSONL, CSV or TSV)."""
    captions: str | None = None
    """The captions file of a folder of pictures, relative to `path`; null: the only one there."""
    image_size: Positive = 64
    """Pictures are resized to this many pixels on the shorter side and cropped to a square at the centre."""
    train_split: str = "train"
    validation_split: str = "validation"
    validation_fraction: Probability = 0.05
    """Share of the pairs kept for validation where the data has no splits of its own."""
    languages: dict[str, PositiveFloat] = field(default_factory=dict)
    """How often each language's captions are drawn, as weights; empty: all languages alike."""
    keep: dict[str, list[str]] = field(default_factory=dict)
    """Keep only samples whose metadata has one of these values, e.g. `{style: [noto, twemoji]}`."""
    workers: Count = 0
    """Threads that decode pictures ahead; 0 decodes in the training thread."""


@dataclass(frozen=True)
class CodebookConfig:
    """The vector quantizer."""

    __pydantic_config__ = _STRICT
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

    __pydantic_config__ = _STRICT
    l1: Weight = 1.0
    l2: Weight = 0.0
    perceptual: Weight = 0.0
    """Weight of LPIPS over VGG16; needs `perceptual_weights`."""
    perceptual_weights: str | None = None
    """A safetensors file with VGG16's and LPIPS's weights, made by tools/convert_vqgan.py lpips."""
    adversarial: Weight = 0.0
    """Weight of the patch GAN, on top of the adaptive weight."""
    adversarial_start: Count = 0
    """Step at which the discriminator starts."""
    discriminator_channels: Positive = 64
    discriminator_layers: Positive = 3


@dataclass(frozen=True)
class VQGANConfig:
    """The image tokenizer: picture <-> grid of tokens."""

    __pydantic_config__ = _STRICT
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
class TextConfig:
    """The text tokenizer and its vocabulary."""

    __pydantic_config__ = _STRICT
    tokenizer: Literal["ernie", "sentencepiece"] = "ernie"
    vocabulary: str = "data/emoji/vocab.txt"
    """A vocab.txt, a folder with one, a name of an ERNIE model (downloaded), or a sentencepiece .model file."""
    vocabulary_size: Positive = 40000
    """Rows of the text embedding table; at least as many as the tokenizer has tokens."""
    max_length: Positive = 64
    """Text tokens per sequence, begin and end tokens included; longer captions are cut in training."""
    embeddings: str | None = None
    """An ERNIE model (name or local folder) whose token embeddings the text table starts from."""
    embedding_width: Positive | None = None
    """Width of the text table where it differs from `transformer.hidden`; it is then projected."""
    styles: dict[str, dict[str, str]] = field(default_factory=dict)
    """Named styles and how a prompt asks for each, by language, with {} for what is shown, e.g.
    `{noto: {zh: "Noto风格的{}", en: "{} in Noto style"}}`: what an API or a page offers to choose from."""


@dataclass(frozen=True)
class AttentionConfig:
    """Which image tokens an image token sees, layer by layer; the defaults are the paper's (3.1.4)."""

    __pydantic_config__ = _STRICT
    plan: list[AttentionKind] = field(default_factory=lambda: ["row", "column", "row", "row"])
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

    __pydantic_config__ = _STRICT
    layers: Positive = 24
    hidden: Positive = 1024
    heads: Positive = 16
    ffn_multiplier: Positive = 4
    dropout: Decay = 0.0
    tie_embeddings: bool = False
    """Use the embedding tables as the output head."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    reconstructor: bool = False
    """A second way from the last hidden states to a picture, trained with the transformer (end to end; paper 3.1.3)."""


@dataclass(frozen=True)
class MatchingConfig:
    """The model that says how well a picture and a text fit: two encoders that meet in one space."""

    __pydantic_config__ = _STRICT
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


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, logging and checkpoints."""

    __pydantic_config__ = _STRICT
    output: str = "runs/unnamed"
    """The run's folder: resolved config, checkpoints, logs, preview pictures."""
    seed: Count = 0
    steps: Positive = 100_000
    batch_size: Positive = 32
    """Pairs (or pictures) per optimizer step, all micro-batches together."""
    accumulate: Positive = 1
    """Micro-batches per step."""
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
    tokenizer: str | None = None
    """Run folder of the trained image tokenizer (task vilg)."""
    token_noise: Probability = 0.0
    """Most that is replaced of a picture's input tokens by random ones (the targets stay); each pair draws its own share
    below it. Small data needs it: else the transformer knows a picture by its first tokens and does not learn to read."""
    text_drop: Probability = 0.0
    """Share of pairs whose picture is written from an empty text, for classifier-free guidance."""
    reconstruction_weight: PositiveFloat = 1.0
    """Weight of the reconstruction loss beside the generation losses (transformer.reconstructor)."""
    log_every: Positive = 20
    validate_every: Positive = 1000
    validation_samples: Positive = 256
    preview_every: Positive = 1000
    preview_samples: Positive = 8
    save_every: Positive = 1000
    keep_checkpoints: Positive = 2


@dataclass(frozen=True)
class ParallelConfig:
    """How the launched processes share the work; their number is dp · sharding · mp · pp."""

    __pydantic_config__ = _STRICT
    dp: Positive = 1
    """Data parallel: groups of processes that each hold everything the others hold (across machines)."""
    sharding: Positive = 1
    """Processes that see different pairs, as with dp, and share out what `sharding_stage` says (within a machine)."""
    sharding_stage: Annotated[int, Field(ge=1, le=3)] = 1
    """1: AdamW's moments; 2: the gradients too; 3: the layers' weights too."""
    mp: Positive = 1
    """Tensor parallel: processes that share each layer's matrices (within a machine)."""
    pp: Positive = 1
    """Pipeline stages that share out the layers."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: each layer's attention, or each layer."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of weights and activations on GPUs; the optimizer always works on float32 weights."""
    offload: bool = False
    """Keep the optimizer's weights and moments in the CPU's memory and update them there."""

    @property
    def data_ranks(self) -> int:
        """Into how many parts a batch is cut."""
        return self.dp * self.sharding

    @property
    def processes(self) -> int:
        """How many processes have to be launched."""
        return self.data_ranks * self.mp * self.pp

    @property
    def cuts_model(self) -> bool:
        """Whether no process holds all weights."""
        return self.mp * self.pp > 1 or (self.sharding > 1 and self.sharding_stage == 3)


@dataclass(frozen=True)
class EvalConfig:
    """What tools/eval.py measures, and how."""

    __pydantic_config__ = _STRICT
    keep: dict[str, list[str]] | None = None
    """Evaluate only pairs whose metadata has one of these values; null: as `data.keep`, which says what was trained on."""
    samples: Positive | None = None
    """Pairs drawn at random from the split; null: all."""
    captions: Literal["canonical", "any"] = "canonical"
    """Each picture with the first caption of its heaviest language, or any caption of that language with its picture (COCO)."""
    seed: Count = 0
    training_split: str | None = "train"
    """Where the baselines find real pictures and captions besides those of the split; null: without these baselines."""
    extractor: str = "efficientnet-lite0"
    """Features of pictures: efficientnet-lite0, or the file that tools/convert_inception.py made."""
    matching: str | None = None
    """Run folder of the matching model, or an ErnieViL: retrieval, scores, and the best of several candidates."""
    best_of: list[Positive] = field(default_factory=lambda: [1])
    """Candidates per prompt of which the matching model takes the best."""
    pool: Annotated[int, Field(ge=2)] = 100
    """Captions among which a picture has to find its own (R@1, R@5)."""
    blur: list[Weight] = field(default_factory=lambda: [0.0])
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


@dataclass(frozen=True)
class Config:
    """One experiment."""

    __pydantic_config__ = _STRICT
    task: Literal["vqgan", "vilg", "match"]
    """What is trained: the image tokenizer, the transformer, or the matching model."""
    data: DataConfig = field(default_factory=DataConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    text: TextConfig = field(default_factory=TextConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def micro_batch(self) -> int:
        """Pairs (or pictures) that one process computes at once."""
        return self.train.batch_size // (self.train.accumulate * self.parallel.data_ranks)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of image tokens."""
        side = self.data.image_size // self.vqgan.downsampling
        return side, side

    @property
    def image_tokens(self) -> int:
        """n: image tokens per picture."""
        rows, columns = self.grid
        return rows * columns


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read a YAML config, its bases and `section.key=value` overrides into a checked `Config`.

    Raises `UserError` naming file, key, value and what was expected.
    """
    tree, origins = _read_tree(Path(path), ())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"-o {override}: expected section.key=value, e.g. -o train.steps=100")
        try:
            _merge(tree, _nest(key, yaml.safe_load(value)), origins, f"-o {override}")
        except yaml.YAMLError as error:
            raise UserError(f"-o {override}: the value is not valid YAML ({_line(error)})") from None
    config = _check_types(tree, origins, str(path))
    _check_combinations(config, origins, str(path))
    return config


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config, every key included, as YAML that `load_config` reads back to an equal `Config`."""
    write_whole(Path(path), yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def _read_tree(path: Path, above: tuple[Path, ...]) -> tuple[dict, dict[str, str]]:
    """The file's keys merged over its base's, and for each dotted key the file that set it."""
    if path.resolve() in above:
        raise UserError(f"{path}: inherits from itself through `base`")
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a YAML mapping of sections, got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        merged, origins = {}, {}
    elif isinstance(base, str):
        merged, origins = _read_tree(path.parent / base, (*above, path.resolve()))
    else:
        raise UserError(f"{path}: base: expected the name of a config file, got {base!r}")
    _merge(merged, tree, origins, str(path))
    return merged, origins


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _nest(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


# These keys hold free-form mappings: a file that sets one replaces it, instead of adding to its base's entries.
_MAPPINGS = ("data.languages", "data.keep", "text.styles", "eval.keep")


def _merge(into: dict, tree: dict, origins: dict[str, str], origin: str, prefix: str = "") -> None:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict) and dotted not in _MAPPINGS:
            _merge(into[key], value, origins, origin, dotted + ".")
        else:
            into[key] = value
            _note_origin(value, origins, origin, dotted)


def _note_origin(value: Any, origins: dict[str, str], origin: str, dotted: str) -> None:
    origins[dotted] = origin
    if isinstance(value, dict):
        for key, inner in value.items():
            _note_origin(inner, origins, origin, f"{dotted}.{key}")


def _origin(origins: dict[str, str], dotted: str, default: str) -> str:
    """The file (or override) that set a key, or the nearest section above it."""
    while dotted and dotted not in origins:
        dotted = dotted.rpartition(".")[0]
    return origins.get(dotted, default)


def _check_types(tree: dict, origins: dict[str, str], path: str) -> Config:
    try:
        # From JSON, because pydantic's strict mode takes a mapping for a dataclass only there.
        return TypeAdapter(Config).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    where = _origin(origins, dotted, path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        raise UserError(f"{where}: unknown key `{dotted}`; {hint}")
    if first["type"] in ("missing", "missing_argument"):
        raise UserError(f"{where}: the key `{dotted}` is missing; {_expected(dotted)}")
    expected = first["msg"][0].lower() + first["msg"][1:]
    hint = " (in YAML 1e-4 is a text; write 1.0e-4)" if _looks_like_number(first["input"]) else ""
    raise UserError(f"{where}: {dotted}: {first['input']!r} does not fit: {expected}{hint}")


def _looks_like_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _known_keys(section: list[str]) -> list[str]:
    kind = Config
    for part in section:
        kind = next(f.type for f in dataclasses.fields(kind) if f.name == part)
    return [f.name for f in dataclasses.fields(kind)]


def _expected(dotted: str) -> str:
    return "expected `vqgan`, `vilg` or `match`" if dotted == "task" else "give it a value"


def _check_combinations(config: Config, origins: dict[str, str], path: str) -> None:
    """Refuse values that are each fine but cannot stand together."""

    def refuse(key: str, value: Any, expected: str) -> None:
        raise UserError(f"{_origin(origins, key, path)}: {key}: {value!r} does not fit: {expected}")

    vqgan, model, text, train = config.vqgan, config.transformer, config.text, config.train
    if config.data.image_size % vqgan.downsampling:
        refuse("data.image_size", config.data.image_size, f"expected a multiple of f = {vqgan.downsampling} (vqgan)")
    if model.hidden % model.heads:
        refuse("transformer.heads", model.heads, f"expected a divisor of transformer.hidden = {model.hidden}")
    if model.tie_embeddings and text.embedding_width not in (None, model.hidden):
        refuse("transformer.tie_embeddings", True, "expected false where text.embedding_width differs from the width")
    if not model.attention.plan:
        refuse("transformer.attention.plan", [], "expected at least one kind, e.g. [dense]")
    if model.attention.kernel % 2 == 0:
        refuse("transformer.attention.kernel", model.attention.kernel, "expected an odd number")
    if train.batch_size % train.accumulate:
        refuse("train.accumulate", train.accumulate, f"expected a divisor of train.batch_size = {train.batch_size}")
    parts = train.accumulate * config.parallel.data_ranks
    if train.batch_size % parts:
        refuse("train.batch_size", train.batch_size, f"expected a multiple of accumulate x dp x sharding = {parts}")
    _check_parallel(config, refuse)
    if train.warmup_steps >= train.steps:
        refuse("train.warmup_steps", train.warmup_steps, f"expected fewer than train.steps = {train.steps}")
    if train.min_learning_rate > train.learning_rate:
        refuse("train.min_learning_rate", train.min_learning_rate, f"expected at most {train.learning_rate}")
    if vqgan.loss.perceptual and not vqgan.loss.perceptual_weights:
        refuse("vqgan.loss.perceptual", vqgan.loss.perceptual, "expected 0 unless perceptual_weights names a file")
    if vqgan.codebook.learning == "gumbel" and vqgan.codebook.normalize:
        refuse("vqgan.codebook.normalize", True, "expected false with learning: gumbel, which compares no distances")
    if vqgan.codebook.learning == "gumbel" and vqgan.codebook.revive_after:
        refuse("vqgan.codebook.revive_after", vqgan.codebook.revive_after, "expected 0 with learning: gumbel")
    matching = config.matching
    if matching.hidden % matching.heads:
        refuse("matching.heads", matching.heads, f"expected a divisor of matching.hidden = {matching.hidden}")
    if config.task == "match" and config.data.image_size % matching.patch_size:
        refuse("matching.patch_size", matching.patch_size, f"expected a divisor of data.image_size = {config.data.image_size}")
    for name, templates in text.styles.items():
        for language, template in templates.items():
            if template.count("{}") != 1:
                refuse(f"text.styles.{name}.{language}", template, "expected a prompt with one {} for what is shown")
    if max(config.eval.best_of, default=0) > 1 and not config.eval.matching:
        refuse("eval.best_of", config.eval.best_of, "expected [1] unless eval.matching names a model that chooses")
    if not config.eval.best_of or not config.eval.blur:
        key = "blur" if config.eval.best_of else "best_of"
        refuse(f"eval.{key}", [], "expected at least one number")
    if text.max_length < 3:
        refuse("text.max_length", text.max_length, "expected at least 3: begin, one token, end")


def _check_parallel(config: Config, refuse: Callable[[str, Any, str], None]) -> None:
    parallel, model = config.parallel, config.transformer
    if config.task != "vilg":
        for key in ("mp", "pp"):
            if getattr(parallel, key) > 1:
                refuse(f"parallel.{key}", getattr(parallel, key), "expected 1: only the transformer can be cut")
    for name, size in (
        ("transformer.heads", model.heads),
        ("text.vocabulary_size", config.text.vocabulary_size),
        ("vqgan.codebook.size", config.vqgan.codebook.size),
    ):
        if size % parallel.mp:
            refuse("parallel.mp", parallel.mp, f"expected a divisor of {name} = {size}")
    if parallel.pp > model.layers:
        refuse("parallel.pp", parallel.pp, f"expected at most transformer.layers = {model.layers}")
    if parallel.sharding > 1 and parallel.sharding_stage == 3 and parallel.recompute != "full":
        refuse("parallel.recompute", parallel.recompute, "expected full with sharding_stage: 3, which frees weights")
