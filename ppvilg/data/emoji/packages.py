"""Fetching the pinned npm packages and reading files out of them."""

import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from ppvilg.data.emoji.styles import Package


def fetch(packages: Iterable[Package], cache: Path) -> dict[Package, Path]:
    """The tarball of each package, fetched with `npm pack` unless the cache folder has it.

    Raises `ValueError` if npm is missing or refuses.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = {package: cache / _tarball(package) for package in packages}
    missing = [str(package) for package, path in found.items() if not path.exists()]
    if missing:
        try:
            subprocess.run(["npm", "pack", "--silent", *missing], cwd=cache, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError("npm was not found; install Node.js, or put the .tgz files into the cache") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"npm pack failed for {', '.join(missing)}: {reason}") from None
    return found


def _tarball(package: Package) -> str:
    return f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}.tgz"


def read(tarball: Path, prefix: str) -> dict[str, bytes]:
    """{path inside the package: content} of every file whose path starts with `prefix`."""
    files = {}
    try:
        with tarfile.open(tarball) as archive:
            for member in archive:
                path = member.name.partition("/")[2]
                if member.isfile() and path.startswith(prefix):
                    files[path] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{tarball} cannot be read ({error}); delete it, so that it is fetched again") from None
    return files
