"""What the trainer knows of a task: data that becomes batches, and modules that make losses of them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from ppvilg.config import TrainingExperiment
from ppvilg.data.loader import SampleStream
from ppvilg.data.splits import open_splits
from ppvilg.text import TextTokenizer
from ppvilg.train.logs import Preview

Losses = dict[str, paddle.Tensor]


class Task(ABC):
    """One thing that can be trained. Making one reads and checks; nothing is written before `prepare`."""

    unit: str
    """What the speed is counted in, e.g. tokens."""
    modules: dict[str, nn.Layer]
    """What is trained, each by an optimizer of its own; the one called `model` is averaged and exported."""
    text_tokenizer: TextTokenizer | None = None
    image_tokenizer: Path | None = None
    """The folder of a frozen image tokenizer."""

    base: dict[str, paddle.Tensor] | None = None
    """Frozen weights that are no part of the modules' own, by name, where those are updates of them (LoRA)."""

    def __init__(self, config: TrainingExperiment):
        self.config = config
        self.training, self.validation = open_splits(config.data, config.train.seed, config.reads_questions)
        self.stream = SampleStream(self.training.records, config.data.sample_weights, config.train.seed)

    @abstractmethod
    def batch(self, positions: range) -> Any:
        """The micro-batch of some positions of the endless stream of samples: numpy arrays."""

    @abstractmethod
    def units(self, batch: Any) -> int:
        """How many units a micro-batch holds."""

    @abstractmethod
    def loss(self, model: nn.Layer, batch: Any, step: int) -> Losses:
        """Scalars of a micro-batch: `loss`, which is minimised, and others to log. `model` is the module of that name as Fleet
        wraps it."""

    @abstractmethod
    def validate(self, model: nn.Layer, step: int) -> dict[str, float]:
        """Metrics on the validation split."""

    def preview(self) -> Preview:
        """Fixed samples, to look at."""
        return Preview()

    def begin(self) -> None:  # noqa: B027, nothing by default
        """Make of the modules what is trained, once they have the weights to start from."""

    def prepare(self) -> None:  # noqa: B027, nothing by default
        """Compute what training needs besides the data, once everything has been checked."""

    def saved(self, run: Path) -> None:  # noqa: B027, nothing by default
        """Write into the run's folder what goes with its newest checkpoint; one process does."""
