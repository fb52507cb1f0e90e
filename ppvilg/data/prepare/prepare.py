"""The whole preparation: units, parts, shards."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ppvilg.checkpoint import checksum, weights_file
from ppvilg.config.load import save_config
from ppvilg.data.prepare.config import PrepareExperiment
from ppvilg.data.prepare.engines import run_loop, run_ray
from ppvilg.data.prepare.finish import finish
from ppvilg.data.prepare.unit import PARTS, Part, Worker
from ppvilg.data.prepared import read_manifest
from ppvilg.files import check_folder, write_whole

_CONFIG = "config.yml"


def prepare(config: PrepareExperiment) -> Path:
    """Prepare what a config describes, or go on where it was interrupted; returns the folder, which has report.html too.

    Raises `ValueError` for what is there already, for an interrupted preparation with another config, and as readers, filters,
    translations and tokenizers do.
    """
    output = Path(config.output)
    check_folder("output", output)
    if read_manifest(output) is not None:
        if not (output / PARTS).is_dir():
            raise ValueError(f"{output} is prepared already: give another output")
        shutil.rmtree(output / PARTS)  # it was killed just before
        return output
    parts = list_parts(config)
    Worker(config)  # whatever cannot be had is said here, not by many workers
    _begin(config, output)
    todo = [part for part in parts if not part.is_done(output)]
    with tqdm(total=len(parts), initial=len(parts) - len(todo), desc="units", unit="unit") as bar:
        for _ in _run(config, todo):
            bar.update()
    finish(config, parts)
    return output


def list_parts(config: PrepareExperiment) -> list[Part]:
    """All units of all sources, in a fixed order. Raises `ValueError` for files that are not there."""
    parts = [Part(name, unit) for name, reader in config.sources.items() for unit in reader.units()]
    if not parts:
        raise ValueError("sources: there is nothing to read")
    return parts


def _run(config: PrepareExperiment, parts: list[Part]) -> Iterator[Part]:
    return run_ray(config, parts) if config.engine == "ray" and parts else run_loop(config, parts)


def _begin(config: PrepareExperiment, output: Path) -> None:
    """Make the folder, or find that it is that of the same preparation; raises `ValueError` for any other."""
    path = output / PARTS / "made_with.json"
    made = config.decisive()
    if config.tokenizer is not None:
        made["tokenizer's weights"] = checksum(weights_file(config.tokenizer))
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        for key, value in made.items():
            if before.get(key) != value:
                what = f"{output} holds the parts of a preparation with another {key}, {before.get(key)!r}"
                raise ValueError(f"{what}: go on with the same config, or give another output")
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"output: {output} exists already and is no preparation: give a new folder")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(made))
    save_config(config, output / _CONFIG)
