"""Builds and loads the C++ kernels for the CPU (ppvilg/ops/cpu), once for each machine.

The library is kept in ~/.cache/ppvilg (or $XDG_CACHE_HOME/ppvilg), in a folder named after all that it depends on. Where it
cannot be built, paddle's own functions are used, with one warning. PPVILG_CPU_KERNELS=0 turns it off.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import paddle

_NAME = "ppvilg_cpu"
_SOURCES = Path(__file__).parent / "cpu"
# No -ffast-math: linking with it changes how the whole process treats very small numbers.
_COMPILE = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
# Not -fopenmp but the OpenMP library of paddle's matrix products: two of them would have two sets of waiting threads.
_LINK = ["-l:libiomp5.so"]
_BUILD = """
import sys
from paddle.utils.cpp_extension import load
name, source, folder, compile_flags, link_flags = sys.argv[1:]
load(name, [source], extra_cxx_cflags=compile_flags.split(), extra_ldflags=link_flags.split(), build_directory=folder)
"""


def run(name: str, *arguments: object) -> paddle.Tensor:
    """The result of one of the operators in cpu/ops.cc, which autograd knows the gradient of."""
    return paddle._C_ops._run_custom_op(f"ppvilg_{name}", *arguments)[0]  # the others are only kept for the gradient


def has_kernels(*tensors: paddle.Tensor) -> bool:
    """Whether the kernels are there and are for these tensors: float32, on a CPU, and not in a program that is being traced."""
    if not paddle.in_dynamic_mode() or not available():
        return False
    return all([t.dtype == paddle.float32 and t.place.is_cpu_place() for t in tensors])  # a generator takes three times as long


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the kernels are loaded; builds and loads them at the first call."""
    if os.environ.get("PPVILG_CPU_KERNELS") == "0":
        return False
    try:
        from paddle.utils.cpp_extension import load_op_meta_info_and_register_op  # slow, and needs setuptools

        load_op_meta_info_and_register_op(str(_built()))
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"the C++ kernels for the CPU cannot be used ({_reason(error)}); paddle's slower functions are used instead",
            stacklevel=2,
        )
        return False
    return True


def _built() -> Path:
    """The library, built if it is not there; several processes may ask for it at once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppvilg"
    folder = cache / _key()
    library = folder / _NAME / f"{_NAME}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed when the file is closed, or the process killed
        if not library.exists():
            print("Building the C++ kernels for this CPU, once (about 20 seconds)", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                _build(Path(temporary))
                os.rename(temporary, folder)
                os.mkdir(temporary)  # for TemporaryDirectory to remove
    return library


def _build(folder: Path) -> None:
    arguments = [_NAME, str(_SOURCES / "ops.cc"), str(folder), " ".join(_COMPILE), " ".join(_LINK)]
    subprocess.run([sys.executable, "-c", _BUILD, *arguments], check=True, capture_output=True, text=True)


def _key() -> str:
    """Changes with all that the library depends on: sources, flags, paddle, compiler and CPU."""
    sources = [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    compiler = subprocess.run([os.environ.get("CXX", "g++"), "--version"], check=True, capture_output=True).stdout
    others = repr((_COMPILE, _LINK, paddle.__file__, paddle.version.full_version, paddle.version.commit, sys.version, _cpu()))
    return hashlib.sha256(b"\0".join([*sources, compiler, others.encode()])).hexdigest()[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return f"{platform.machine()} {named[:2]}"


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is missing"
    if isinstance(error, subprocess.CalledProcessError):
        output = error.stderr.decode() if isinstance(error.stderr, bytes) else error.stderr
        told = [line.strip() for line in output.splitlines() if "error:" in line or "Error:" in line]
        return told[0] if told else f"building them ended with status {error.returncode}"
    return str(error).strip().splitlines()[0]
