"""What a config of tools/prepare_data.py can say."""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ppvilg.config.models import STRICT, Conflicts, Positive, Probability, Seed
from ppvilg.data.filters import AnyFilter
from ppvilg.data.readers import AnyReader
from ppvilg.data.translation import NoTranslation, Translation


@dataclass(frozen=True)
class DuplicatesConfig:
    """What is dropped because it came before, anywhere in the corpus."""

    __pydantic_config__ = STRICT
    images: bool = True
    """Images that look the same, by their perceptual hash."""
    captions: bool = False
    """Captions that say the same, letter by letter; an image that loses its last one goes too."""


@dataclass(frozen=True)
class RayConfig:
    """A cluster, or this machine."""

    __pydantic_config__ = STRICT
    address: str | None = None
    """As `ray.init` takes it, e.g. auto or ray://head:10001; null: a Ray of its own on this machine."""
    workers: Positive = 2
    """Actors, each with a tokenizer and filters of its own."""
    cpus: Positive = 1
    """Of an actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """Of an actor."""


@dataclass(frozen=True)
class PrepareExperiment:
    """From raw pairs to prepared data."""

    __pydantic_config__ = STRICT
    sources: Annotated[dict[str, AnyReader], Field(min_length=1)]
    """Readers by name; a pair's metadata has the name as `source`, for `data.keep` and `data.sample_weights`."""
    output: str
    """A new folder, or the one of a preparation that was interrupted."""
    task: Literal["data"] = "data"
    image_size: Positive = 64
    """Pixels per side of the square that is cut out of the middle of each image."""
    tokenizer: str | None = None
    """Folder of the image tokenizer whose tokens are stored; null: none are."""
    images: Literal["webp", "png"] | None = "webp"
    """Keep the squares themselves, which training a tokenizer, evaluation and previews of real images need; null: don't."""
    quality: Annotated[int, Field(ge=1, le=101)] = 90
    """Of webp; 101 is without loss."""
    filters: list[AnyFilter] = field(default_factory=list)
    """In this order."""
    translation: Translation = field(default_factory=NoTranslation)
    """Of captions into another language, beside the original."""
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    validation_fraction: Probability = 0.01
    """Share of the pairs kept for validation, chosen by a hash of their keys; a pair with a `split` of its own stays there."""
    seed: Seed = 0
    rows_per_shard: Positive = 65536
    engine: Literal["loop", "ray"] = "loop"
    """A loop on this machine, or Ray Data; both write the same."""
    workers: Positive = 1
    """Processes of the loop."""
    ray: RayConfig = field(default_factory=RayConfig)

    def decisive(self) -> dict[str, Any]:
        """What decides which pairs come out, as JSON's types; the rest may change before an interrupted preparation goes on."""
        free = ("output", "engine", "workers", "ray", "rows_per_shard")
        return json.loads(json.dumps({key: value for key, value in asdict(self).items() if key not in free}))

    def conflicts(self) -> Conflicts:
        """Of all keys."""
        if self.tokenizer is None and self.images is None:
            yield "images", self.images, "webp or png where there is no tokenizer, or nothing of the images would be left"
