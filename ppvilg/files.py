"""Files that appear whole or not at all."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def check_folder(name: str, folder: Path) -> None:
    """Raise `ValueError` where a folder, which something called `name` asks for, is not there and cannot be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{name} is {folder}, but {there} is a file: give a folder")
    _check_writable(name, folder, there)


def check_new_folder(name: str, folder: Path) -> None:
    """As `check_folder`, of a folder that must not be there yet."""
    if folder.exists():
        raise ValueError(f"{name}: {folder} exists already: give a new name")
    check_folder(name, folder)


def check_file(name: str, path: Path) -> None:
    """Raise `ValueError` where a file, which something called `name` asks for, cannot be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{name} is {path}: give a file in a folder that exists")
    _check_writable(name, path, path.parent)


def _check_writable(name: str, path: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name} is {path}, but nothing may be written into {folder}: give another place")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name, for whatever writes there: the file gets its own name when the block ends, or is removed where an error
    ends it, so that nobody ever finds half of it. It may be read by whom the umask says, whoever wrote it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that nobody else may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file (texts as UTF-8) whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or the one of an .npy file under the name ""; raises `ValueError`, which ends with the
    remedy, for a file that is missing, damaged or something else."""
    try:
        loaded = np.load(path)
        return dict(loaded) if hasattr(loaded, "files") else {"": loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is {'damaged' if path.is_file() else 'missing'}: {remedy}") from None
