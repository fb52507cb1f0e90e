"""How a config is read, inherited, overridden, checked and saved.

A YAML file is an experiment: `task:` says of which kind, `base:` names a file, or several, relative to it, whose keys it
inherits, `-o section.key=value` overrides single keys, and the result is checked as a whole before anything runs.
"""

import dataclasses
import difflib
import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from ppvilg.config.experiments import Experiment
from ppvilg.files import write_whole

Kind = TypeVar("Kind")
_KINDS = {kind.task: kind for kind in get_args(Experiment)}


def load_config(path: str | Path, overrides: list[str] = (), kind: type[Kind] = Experiment) -> Kind:
    """Read a YAML config, its bases and `section.key=value` overrides into a checked experiment (of `kind`).

    Raises `ValueError` naming file, key, value and what was expected.
    """
    tree, origins = _read_tree(Path(path), ())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"-o {override}: expected section.key=value, e.g. -o train.steps=100")
        try:
            _merge(tree, _nest(key, yaml.safe_load(value)), origins, f"-o {override}")
        except yaml.YAMLError as error:
            raise ValueError(f"-o {override}: the value is not valid YAML ({_line(error)})") from None
    kind = _kind(tree, origins, str(path), kind)
    config = _check_types(kind, tree, origins, str(path), f" for the task {kind.task}")
    for key, value, expected in config.conflicts():
        raise ValueError(f"{_origin(origins, key, str(path))}: {key}: {value!r} does not fit: {expected}")
    return config


def check_mapping(tree: dict[str, Any], kind: type[Kind], origins: dict[str, str]) -> Kind:
    """A mapping as a config dataclass; `origins` says for each key which file or option set it. Raises `ValueError` as
    `load_config` does."""
    return _check_types(kind, tree, origins, "")


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The YAML mapping in a file, not checked; raises `ValueError` where there is none."""
    return _read_tree(Path(path), ())[0]


def save_config(config: Experiment, path: str | Path) -> None:
    """Write the resolved config, every key included, as YAML that `load_config` reads back to an equal one."""
    write_whole(Path(path), yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def _kind(tree: dict, origins: dict[str, str], path: str, wanted: type) -> type:
    """The dataclass of the tree's `task`."""
    # Kinds that few need are not among those, since what they import takes long.
    kinds = {task: kind for task, kind in _KINDS.items() if issubclass(kind, wanted)} or {wanted.task: wanted}
    tasks = list(kinds)
    expected = f"expected {' or '.join(tasks)}"
    if "task" not in tree:
        raise ValueError(f"{path}: the key `task` is missing: {expected}")
    if tree["task"] not in tasks:
        raise ValueError(f"{_origin(origins, 'task', path)}: task: {tree['task']!r} does not fit: {expected}")
    return kinds[tree["task"]]


def _read_tree(path: Path, above: tuple[Path, ...]) -> tuple[dict, dict[str, str]]:
    """The file's keys merged over its bases', and for each dotted key the file that set it."""
    if path.resolve() in above:
        raise ValueError(f"{path}: inherits from itself through `base`")
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {_line(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a YAML mapping of sections, got {type(tree).__name__}")
    bases = tree.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    merged: dict = {}
    origins: dict[str, str] = {}
    for base in bases:
        if not isinstance(base, str):
            raise ValueError(f"{path}: base: expected the name of a config file, or a list of them, got {base!r}")
        inherited, from_where = _read_tree(path.parent / base, (*above, path.resolve()))
        _merge(merged, inherited, {}, base)
        origins |= from_where
    _merge(merged, tree, origins, str(path))
    return merged, origins


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _nest(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


# These keys hold free-form mappings: a file that sets one replaces it, instead of adding to its base's entries.
_MAPPINGS = ("data.languages", "data.keep", "text.styles", "keep", "style_keep", "sources")


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


def _check_types(kind: type, tree: dict, origins: dict[str, str], path: str, what: str = "") -> Any:
    try:
        # From JSON, because pydantic's strict mode takes a mapping for a dataclass only there.
        return TypeAdapter(kind).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    where = _origin(origins, dotted, path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        raise ValueError(f"{where}: unknown key `{dotted}`{what}; {hint}")
    if first["type"] in ("missing", "missing_argument"):
        raise ValueError(f"{where}: the key `{dotted}` is missing; give it a value")
    if first["type"] == "value_error":  # of values that cannot stand together
        raise ValueError(str(first["ctx"]["error"]))
    expected = first["msg"][0].lower() + first["msg"][1:]
    hint = " (in YAML 1e-4 is a text; write 1.0e-4)" if _looks_like_number(first["input"]) else ""
    raise ValueError(f"{where}: {dotted}: {first['input']!r} does not fit: {expected}{hint}")


def _looks_like_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _known_keys(kind: Any, section: list[str]) -> list[str]:
    """The keys that a section can have."""
    for part in section:
        kind = _below(kind, part)
    sections = [one for one in _alternatives(kind) if dataclasses.is_dataclass(one)]
    return list(dict.fromkeys(f.name for one in sections for f in dataclasses.fields(one)))


def _below(kind: Any, part: str) -> Any:
    """What a part of pydantic's location leads to: a key, an index, or the tag of one of several kinds of sections."""
    kinds = _alternatives(kind)
    sections = [one for one in kinds if dataclasses.is_dataclass(one)]
    for one in sections if len(sections) > 1 else ():
        if any(get_origin(f.type) is Literal and part in get_args(f.type) for f in dataclasses.fields(one)):
            return one
    found = [f.type for one in sections for f in dataclasses.fields(one) if f.name == part]
    found += [get_args(one)[-1] for one in kinds if get_origin(one) in (list, dict)]
    return found[0]


def _alternatives(kind: Any) -> list[Any]:
    """The types that a value may have, without what pydantic is told besides."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in _alternatives(part)]
    return [kind]
