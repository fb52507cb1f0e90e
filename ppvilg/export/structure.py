"""Arguments made of lists, dictionaries and dataclasses, as named arrays and back: a program's inputs are flat."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

Names = tuple[str, ...]


def arrays(structure: Any, name: str) -> dict[str, Any]:
    """Each array or tensor in a structure by its path, e.g. `caches.3.keys`; what is none is left out."""
    if hasattr(structure, "dtype"):
        return {name: structure}
    return {path: array for part, inner in _parts(structure) for path, array in arrays(inner, f"{name}.{part}").items()}


def with_arrays(structure: Any, found: dict[str, Any], name: str) -> Any:
    """The same structure with other arrays in their places."""
    if hasattr(structure, "dtype"):
        return found[name]
    changed = {part: with_arrays(inner, found, f"{name}.{part}") for part, inner in _parts(structure)}
    if isinstance(structure, list):
        return list(changed.values())
    if is_dataclass(structure):
        return replace(structure, **changed)
    return changed if isinstance(structure, dict) else structure


def _parts(structure: Any) -> list[tuple[Any, Any]]:
    if isinstance(structure, dict):
        return list(structure.items())
    if isinstance(structure, list):
        return list(enumerate(structure))
    return [(field.name, getattr(structure, field.name)) for field in fields(structure)] if is_dataclass(structure) else []
