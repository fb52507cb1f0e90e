"""Model folders: what `from_pretrained` reads and `save_pretrained` writes.

    folder/
      config.json            what kind of model it is, and its sizes
      model.safetensors      its weights
      tokenizer/             (transformer) the image tokenizer, a model folder as well
      text/                  (transformer, dual encoder) the text tokenizer's vocabulary

A training run is read like one: its config.yml in place of config.json, its newest checkpoint for the weights. The checkpoints
of a run that trains an adapter (LoRA) hold that alone; base/model.safetensors is what it belongs to.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import paddle
from paddle import nn
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ppvilg import checkpoint
from ppvilg.config import (
    DTYPES,
    DualEncoderExperiment,
    LoRAConfig,
    Precision,
    TokenizerKind,
    TrainingExperiment,
    ViLGExperiment,
    VQGANConfig,
    VQGANExperiment,
    load_config,
    save_config,
)
from ppvilg.files import write_whole
from ppvilg.model.config import ViLGConfig, trained_directions, vilg_config
from ppvilg.model.dual_encoder import DualEncoderSizes, dual_encoder_sizes
from ppvilg.model.init import built_in
from ppvilg.model.lora import merge_lora, weight_updates
from ppvilg.model.mask import Direction
from ppvilg.text import TextTokenizer

CONFIG, WEIGHTS, BASE = "config.json", "model.safetensors", "base"
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """What config.json says of an image tokenizer."""

    __pydantic_config__ = _STRICT
    model_type: ClassVar[str] = "vqgan"
    vqgan: VQGANConfig
    image_size: int
    """Pixels per side that it was trained on."""

    @classmethod
    def of(cls, experiment: VQGANExperiment) -> "ImageTokenizerConfig":
        """The model that an experiment trains."""
        return cls(experiment.vqgan, experiment.data.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of image tokens."""
        side = self.image_size // self.vqgan.downsampling
        return side, side


@dataclass(frozen=True)
class PipelineConfig:
    """What config.json says of a transformer."""

    __pydantic_config__ = _STRICT
    model_type: ClassVar[str] = "vilg"
    transformer: ViLGConfig
    image_size: int
    """Pixels per side of its images."""
    text_tokenizer: TokenizerKind = "ernie"
    classifier_free_guidance: bool = False
    """Whether it was trained with empty texts too, which a guidance scale other than 1 needs."""
    styles: dict[str, dict[str, str]] = field(default_factory=dict)
    """As `text.styles` of an experiment's config."""
    draws_images: bool = True
    """Whether it was trained to draw images of texts."""
    writes_texts: bool = True
    """Whether it was trained to write texts of images."""

    @classmethod
    def of(cls, experiment: ViLGExperiment) -> "PipelineConfig":
        """The model that an experiment trains."""
        text, directions = experiment.text, trained_directions(experiment.train)
        return cls(
            transformer=vilg_config(experiment),
            image_size=experiment.data.image_size,
            text_tokenizer=text.tokenizer,
            classifier_free_guidance=experiment.train.text_drop > 0,
            styles=text.styles,
            draws_images=Direction.TEXT_TO_IMAGE in directions,
            writes_texts=Direction.IMAGE_TO_TEXT in directions,
        )


@dataclass(frozen=True)
class ScorerConfig:
    """What config.json says of a dual encoder."""

    __pydantic_config__ = _STRICT
    model_type: ClassVar[str] = "dual_encoder"
    dual_encoder: DualEncoderSizes
    text_tokenizer: TokenizerKind = "ernie"

    @classmethod
    def of(cls, experiment: DualEncoderExperiment) -> "ScorerConfig":
        """The model that an experiment trains."""
        return cls(dual_encoder_sizes(experiment), experiment.text.tokenizer)


@dataclass(frozen=True)
class AdapterConfig:
    """What config.json says of an adapter (LoRA)."""

    __pydantic_config__ = _STRICT
    model_type: ClassVar[str] = "lora"
    lora: LoRAConfig
    base_checksum: str
    """Of the weights of the model that it belongs to, as `weights_checksum` makes it."""
    base_shapes: dict[str, list[int]]
    """Of these weights, by name."""


Model = TypeVar("Model", bound=nn.Layer)
Config = TypeVar("Config", ImageTokenizerConfig, PipelineConfig, ScorerConfig, AdapterConfig)
_KINDS = {kind.model_type: kind for kind in (ImageTokenizerConfig, PipelineConfig, ScorerConfig)}


def read_config(folder: str | Path, kind: type[Config]) -> Config:
    """The config of a model folder or of a training run; raises `ValueError` for a folder that is neither, or of another kind
    of model."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: train a model first or give the folder of one")
    path = folder / CONFIG
    if not path.is_file() and (folder / "config.yml").is_file():
        experiment = load_config(folder / "config.yml", kind=TrainingExperiment)
        _check_type(folder, experiment.task, kind)
        return kind.of(experiment)
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG} and no config.yml: give the folder of a model or of a training run")
    try:
        tree = json.loads(path.read_text("utf-8"))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is damaged: save the model again")
    _check_type(folder, tree.pop("model_type", None), kind)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(tree))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {key}: {first['msg']}: save the model again with this version") from None


def _check_type(folder: Path, found: str | None, kind: type) -> None:
    if found != kind.model_type:
        raise ValueError(f"{folder} holds a model of type `{found}`, but one of type `{kind.model_type}` is needed here")


def write_config(config: ImageTokenizerConfig | PipelineConfig | ScorerConfig | AdapterConfig, folder: Path) -> None:
    """Write config.json."""
    tree = {"model_type": config.model_type, **asdict(config)}
    write_whole(folder / CONFIG, json.dumps(tree, ensure_ascii=False, indent=2) + "\n")


def write_model(
    folder: Path,
    config: ImageTokenizerConfig | PipelineConfig | ScorerConfig,
    model: nn.Layer,
    text_tokenizer: TextTokenizer | None = None,
) -> None:
    """Write config.json, the weights (bfloat16, which numpy lacks, as float32) and the vocabulary into an existing folder."""
    tensors = model.state_dict().items()
    arrays = {name: (x.astype("float32") if x.dtype == paddle.bfloat16 else x).numpy() for name, x in tensors}
    checkpoint.save_arrays(arrays, folder / WEIGHTS)
    if text_tokenizer is not None:
        (folder / "text").mkdir()
        text_tokenizer.save(folder / "text")
    write_config(config, folder)


def read_weights(model: nn.Layer, folder: str | Path, lora_scale: float = 1.0) -> None:
    """Give a model a folder's weights, of a run the newest checkpoint's averaged ones; it is in evaluation mode then.

    `lora_scale`: strength of the adapter that the run has trained, if it has.
    """
    base = base_file(folder)
    checkpoint.load_weights(model, base or checkpoint.weights_file(folder))
    if base is not None:
        config = load_config(Path(folder) / "config.yml", kind=ViLGExperiment).lora
        merge_lora(model, config, checkpoint.load_arrays(checkpoint.weights_file(folder)), lora_scale)
    model.eval()


def base_file(folder: str | Path) -> Path | None:
    """The weights that a run's adapter belongs to; None for a folder that is no run which trains an adapter."""
    path = Path(folder) / BASE / WEIGHTS
    return path if path.is_file() else None


def read_model(
    build: Callable[[], Model], folder: str | Path, precision: Precision | Literal["auto"] = "auto", lora_scale: float = 1.0
) -> Model:
    """What `build` makes with a folder's weights, which are in memory once; else as `read_weights`.

    `precision`: what the weights are kept in and computed with; auto: what the file has, on a CPU fp32. Raises `ValueError` for
    a precision that the device does not compute with.
    """
    with built_in(_dtype(folder, precision)), paddle.LazyGuard():  # without values of its own
        model = build()
    read_weights(model, folder, lora_scale)
    return model


def _dtype(folder: str | Path, precision: Precision | Literal["auto"]) -> str:
    if precision not in ("auto", *DTYPES):
        raise ValueError(f"precision is {precision!r}: expected auto, {', '.join(DTYPES)}")
    if paddle.get_device() == "cpu":
        if precision in ("fp16", "bf16"):
            raise ValueError(f"precision is {precision}, but on a CPU Paddle computes with float32 only: use fp32, or a GPU")
        return "float32"
    return checkpoint.file_dtype(checkpoint.weights_file(folder)) if precision == "auto" else DTYPES[precision]


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when everything is in it; raises `ValueError` where it exists."""
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: give a new folder")
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def merge(run: str | Path, folder: str | Path) -> Path:
    """Make a model folder of the newest checkpoint of a run, whatever number of processes wrote it; the averaged weights, if it
    has them. The run's config.yml stays beside config.json, since it names the data. Returns the checkpoint that was read.

    Raises `ValueError` where there is none, a file of it is missing, or the folder exists.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}: give the folder of a training run")
    found = checkpoint.checkpoints(run)
    if not found:
        raise ValueError(f"{run} holds no complete checkpoint")
    experiment = load_config(run / "config.yml", kind=TrainingExperiment)
    with new_folder(folder) as temporary:
        averaged = any(found[-1].glob("average*.safetensors"))
        arrays = checkpoint.CheckpointReader(found[-1], "average" if averaged else "model").all()
        if (base := base_file(run)) is not None:
            updates, arrays = weight_updates(experiment.lora, arrays), checkpoint.load_arrays(base)
            arrays |= {name: arrays[name] + update for name, update in updates.items()}
        checkpoint.save_arrays(arrays, temporary / WEIGHTS)
        for part in ("tokenizer", "text"):
            if (run / part).is_dir():
                shutil.copytree(run / part, temporary / part, ignore=shutil.ignore_patterns("tokens"))
        save_config(replace(experiment, parallel=type(experiment.parallel)()), temporary / "config.yml")
        write_config(_KINDS[experiment.task].of(experiment), temporary)
    return found[-1]
