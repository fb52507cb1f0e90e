"""A run's folder: what is checked before anything is written into it.

A run keeps frozen copies of all that its weights were trained with: the config, the vocabulary, the image tokenizer. Going on
from its checkpoints with anything else would make another model of it, so that is refused and the copies stay as they are.
inputs.json holds the checksums of the copies, and of the data, which are not copied.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ppvilg.checkpoint import check_weights, checkpoints, checksum, load_arrays, save_arrays, weights_file
from ppvilg.config import DualEncoderExperiment, TrainingExperiment, ViLGExperiment, load_config
from ppvilg.files import check_folder, write_whole
from ppvilg.folder import BASE, CONFIG, WEIGHTS, ImageTokenizerConfig, read_config, write_config
from ppvilg.train.task import Task

_INPUTS = "inputs.json"
_VOCABULARY, _TOKENIZER, _TRAINING, _VALIDATION = "text.vocabulary", "train.tokenizer", "data.train", "data.validation"
_DATA_KEYS = (  # what decides which pairs the splits have, besides data.path
    "data.captions",
    "data.keep",
    "data.train_split",
    "data.validation_split",
    "data.validation_fraction",
    "train.seed",
)
_MODEL_SECTIONS = ("task", "data.image_size", "text", "vqgan", "transformer", "lora", "dual_encoder")
_FREE = (  # of those sections, what may change from one part of a run to the next
    "text.vocabulary",  # the file itself is compared
    "text.embeddings",
    "text.encoder.model",
    "text.encoder.train",
    "text.encoder.learning_rate_scale",
    "text.styles",
    "vqgan.loss",
    "vqgan.dropout",
    "vqgan.codebook.commitment",
    "vqgan.codebook.ema_decay",
    "vqgan.codebook.temperature",
    "vqgan.codebook.kl_weight",
    "transformer.dropout",
    "dual_encoder.dropout",
    "dual_encoder.temperature",
)


def check_output(config: TrainingExperiment, resume: bool) -> None:
    """Raise `ValueError` where `train.output` is no place for a run: a file, a model, or a run that is not to be resumed."""
    run = Path(config.train.output)
    check_folder("train.output", run)
    if (run / CONFIG).is_file():
        raise ValueError(f"train.output is {run}, which holds a model: give another folder")
    if checkpoints(run) and not resume:
        raise ValueError(f"{run} holds a run already: continue it with --resume, or give another train.output")


def resumed_config(config: TrainingExperiment) -> TrainingExperiment:
    """What the task of a run that goes on is built from: the run's own copies of what is gone since, and nothing that weights
    only start from. Raises `ValueError` as `check_config` does."""
    run = Path(config.train.output)
    check_config(run, config)
    own = load_config(run / "config.yml", kind=TrainingExperiment)
    if isinstance(config, ViLGExperiment | DualEncoderExperiment):
        vocabulary = config.text.vocabulary
        if vocabulary == own.text.vocabulary and not Path(vocabulary).exists():  # or it is a name to download
            vocabulary = str(_vocabulary(run))
        config = replace(config, text=replace(config.text, vocabulary=vocabulary))
    if isinstance(config, ViLGExperiment):
        train = config.train
        named = train.tokenizer or (train.init_from and f"{train.init_from}/tokenizer")
        same = (train.tokenizer, train.init_from) == (own.train.tokenizer, own.train.init_from)
        if same and not (named and Path(named).exists()):
            train = replace(train, tokenizer=str(run / "tokenizer"))
        encoder = config.text.encoder and replace(config.text.encoder, model=None)
        config = replace(config, text=replace(config.text, embeddings=None, encoder=encoder), train=train)
    return config


def check_config(run: Path, config: TrainingExperiment) -> None:
    """Raise `ValueError` if a run has trained another model than a config describes."""
    own = dict(_model_keys(load_config(run / "config.yml", kind=TrainingExperiment)))
    new = dict(_model_keys(config))
    for key in own.keys() | new.keys():
        if own.get(key) != new.get(key):
            raise ValueError(
                f"{run} was trained with {key}: {own.get(key)!r}, but the config says {new.get(key)!r}: "
                f"resume it with the same model, or give another train.output"
            )


def check_inputs(config: TrainingExperiment, task: Task) -> None:
    """Raise `ValueError` naming the key if a task trains with another vocabulary, image tokenizer or data than its run did."""
    run = Path(config.train.output)
    own = _own_inputs(run)
    copies = {_VOCABULARY: run / "text", _TOKENIZER: run / "tokenizer"}
    for name, value in inputs(task).items():
        if own.get(name, value) == value:
            continue
        if name in copies:
            what = f"{name}: this is not what {run} was trained with"
            raise ValueError(f"{what}: resume it with its own copy, {name}={copies[name]}, or give another train.output")
        before = asdict(load_config(run / "config.yml", kind=TrainingExperiment))
        key = next((key for key in _DATA_KEYS if _value(before, key) != _value(asdict(config), key)), "data.path")
        pairs = "training data" if name == _TRAINING else "validation data"
        what = f"{key}: the {pairs} in {config.data.path} are not those that {run} was trained with"
        raise ValueError(f"{what}: resume it with the same data, or give another train.output")


def inputs(task: Task) -> dict[str, str]:
    """Checksums of what a task trains with, by name."""
    found = {_TRAINING: task.training.fingerprint, _VALIDATION: task.validation.fingerprint}
    if task.text_tokenizer is not None:
        with tempfile.TemporaryDirectory() as folder:
            found[_VOCABULARY] = checksum(Path(folder) / task.text_tokenizer.save(Path(folder)))
    if task.image_tokenizer is not None:
        found[_TOKENIZER] = checksum(weights_file(task.image_tokenizer))
    return found


def save_inputs(run: Path, task: Task) -> None:
    """Copy into a new run's folder what its model needs besides its weights, and write inputs.json."""
    if task.text_tokenizer is not None:
        (run / "text").mkdir(exist_ok=True)
        task.text_tokenizer.save(run / "text")
    if task.image_tokenizer is not None:
        (run / "tokenizer").mkdir(exist_ok=True)
        shutil.copyfile(weights_file(task.image_tokenizer), run / "tokenizer" / "model.safetensors")
        write_config(read_config(task.image_tokenizer, ImageTokenizerConfig), run / "tokenizer")
    if task.base is not None:
        (run / BASE).mkdir(exist_ok=True)
        save_arrays({name: weight.numpy() for name, weight in task.base.items()}, run / BASE / WEIGHTS)
    write_whole(run / _INPUTS, json.dumps(inputs(task), indent=2) + "\n")


def load_base(run: Path, task: Task) -> None:
    """Give a task the frozen weights that a run's checkpoints are updates of, if they are."""
    if task.base is not None:
        arrays = load_arrays(run / BASE / WEIGHTS)
        check_weights(arrays, {name: weight.shape for name, weight in task.base.items()}, str(run / BASE / WEIGHTS))
        for name, weight in task.base.items():
            weight.set_value(arrays[name])


def _own_inputs(run: Path) -> dict[str, str]:
    """What `inputs` was when a run began; of a run without inputs.json what its copies say."""
    try:
        return json.loads((run / _INPUTS).read_text("utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        raise ValueError(f"{run / _INPUTS} is damaged: give another train.output") from None
    copies = {_VOCABULARY: _vocabulary(run), _TOKENIZER: run / "tokenizer" / "model.safetensors"}
    return {name: checksum(path) for name, path in copies.items() if path.is_file()}


def _vocabulary(run: Path) -> Path:
    """The file of a run's own vocabulary."""
    return next((run / "text").glob("*"), run / "text")


def _value(tree: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return tree[section][name]


def _model_keys(config: TrainingExperiment) -> list[tuple[str, Any]]:
    """The keys, with their values, that decide which model is trained."""
    found: list[tuple[str, Any]] = []

    def walk(key: str, value: Any) -> None:
        if key in _FREE:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}.{name}" if key else name, inner)
        elif key.startswith(_MODEL_SECTIONS):
            found.append((key, value))

    walk("", asdict(config))
    return found
