"""Files that appear whole or not at all."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file (texts as UTF-8) under a temporary name and rename it, so that nobody ever finds half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or the one of an .npy file under the name ""; raises `ValueError`, which ends with the
    remedy, for a file that is missing, damaged or something else."""
    try:
        loaded = np.load(path)
        return dict(loaded) if hasattr(loaded, "files") else {"": loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is {'damaged' if path.is_file() else 'missing'}: {remedy}") from None
