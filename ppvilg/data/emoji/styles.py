"""The seven free image styles: where each comes from, under which licence, and what captions call it."""

from dataclasses import dataclass
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Package:
    """One pinned npm package."""

    name: str
    version: str
    licence: str
    """SPDX identifier."""
    attribution: str
    """Who made it and where the work lives, as LICENSES.md says it."""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Style:
    """A set of images drawn in one hand."""

    id: str
    package: Package
    kind: str
    """How the package holds its images: `images` (files named by code points) or `icons` (SVG in JSON)."""
    location: str
    """Folder of the images inside the package (images) or the file with the icons (icons)."""
    words: dict[str, str]
    """What captions call the style, by language."""


_TABLE = yaml.safe_load(files("ppvilg.data.emoji").joinpath("styles.yml").read_text("utf-8"))
NAMES = Package(**_TABLE["names"])
STYLES = tuple(Style(**entry | {"package": Package(**entry["package"])}) for entry in _TABLE["styles"])
