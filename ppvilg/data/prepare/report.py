"""What a preparation did as one HTML page: the funnel of its steps with examples of what each dropped, and all faults."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ppvilg.data.filters import Funnel
from ppvilg.files import write_whole

_TEMPLATE = Path(__file__).parents[2] / "assets" / "data_report.html"
_FAULTS_SHOWN = 200


@dataclass(frozen=True)
class Preparation:
    """What there is to report."""

    output: str
    config: dict[str, Any]
    funnel: Funnel
    faults: list[tuple[str, str]]
    """(where, why) of what could not be read."""
    untranslated: int
    """Captions for which there is no translation."""
    splits: dict[str, int]
    """Rows of each."""


def write_report(folder: Path, made: Preparation) -> None:
    """report.html for people, report.json for machines, faults.tsv with every fault that is named."""
    from jinja2 import Environment, StrictUndefined

    funnel = made.funnel.to_json()
    tree = {"funnel": funnel, "untranslated": made.untranslated, "splits": made.splits}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    config = yaml.safe_dump(made.config, sort_keys=False, allow_unicode=True)
    first = funnel[0]
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        tree,
        output=made.output,
        config=config,
        steps=made.funnel.steps,
        pairs=first["pairs"],
        faults=made.faults[:_FAULTS_SHOWN],
        more_faults=max(0, len(made.faults) - _FAULTS_SHOWN),
    )
    lines = "".join(f"{_printable(key)}\t{reason}\n" for key, reason in made.faults)
    write_whole(folder / "faults.tsv", lines)
    write_whole(folder / "report.json", json.dumps(tree, ensure_ascii=False, indent=1) + "\n")
    write_whole(folder / "report.html", page.encode("utf-8", "replace"))


def _printable(key: str) -> str:
    return key.encode("utf-8", "replace").decode()
