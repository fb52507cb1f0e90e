"""What has to be set before paddle is imported so that it runs well on a CPU.

`import ppvilg` calls `prepare()`, so neither users nor tools need to. Everything here is a default: a variable that is
already in the environment wins. None of it changes what a GPU run computes.
"""

import ctypes
import os
import sys
import warnings
from pathlib import Path

# What the user wants. Paddle's import sets the variable to 1 where it is not set.
_OMP_NUM_THREADS = os.environ.get("OMP_NUM_THREADS")

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def prepare() -> None:
    """Set paddle's flags, the number of threads and the allocator, before `import paddle` (idempotent)."""
    if "paddle" in sys.modules and "FLAGS_use_stride_kernel" not in os.environ:
        warnings.warn("import ppvilg before paddle: paddle was imported first, so the CPU will be slower", stacklevel=3)
    # Programs for inference: run operators one after another in the calling thread, and collect what is no longer needed in
    # pieces of 64 MB; else most of the time of a small step is spent handing every single tensor to another thread.
    os.environ.setdefault("FLAGS_enable_pir_in_executor_trace_run", "1")
    os.environ.setdefault("FLAGS_eager_delete_tensor_gb", "0.0625")
    # Lazy strided views make the copies that follow them several times slower than an eager transpose.
    os.environ.setdefault("FLAGS_use_stride_kernel", "0")
    # Threads for MKL alone: it does nearly all the work, and paddle warns at every start where OMP_NUM_THREADS is above 1.
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("MKL_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    os.environ.setdefault("GLOG_minloglevel", "2")
    # The MKL inside paddle's wheel takes its slowest path on CPUs that are not Intel's; this names the path that suits them.
    if path := _mkl_path_for_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", path)
    _keep_freed_memory()
    for harmless in ("No ccache found", "Setuptools is replacing distutils"):
        warnings.filterwarnings("ignore", message=harmless)


def threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS, else one for each core that the process may use."""
    return int(_OMP_NUM_THREADS or len(os.sched_getaffinity(0)))


def set_threads(count: int) -> None:
    """Compute with so many threads, before `import paddle`; raises `ValueError` for none, or where paddle was imported."""
    global _OMP_NUM_THREADS
    if count < 1:
        raise ValueError(f"threads is {count}: give at least 1")
    if "paddle" in sys.modules:
        raise ValueError("paddle was imported already: choose the number of threads before")
    _OMP_NUM_THREADS = os.environ["MKL_NUM_THREADS"] = str(count)
    os.environ.pop("OMP_NUM_THREADS", None)


def set_device(name: str) -> None:
    """Compute on `cpu`, `gpu` or `gpu:N`; raises `ValueError` for what is none of them or cannot be had."""
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "gpu") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise ValueError(f"device is {name!r}: expected cpu, gpu or gpu:N")

    import paddle

    if kind == "gpu":
        if not paddle.is_compiled_with_cuda():
            raise ValueError(f"device is {name}, but this paddle has no support for GPUs: install paddlepaddle-gpu, or use cpu")
        if int(number or 0) >= (count := paddle.device.cuda.device_count()):
            raise ValueError(f"device is {name}, but there are {count} GPUs")
    paddle.set_device(name)


def environment() -> dict[str, str]:
    """The environment for a new process that is to have as many threads as this one had before it imported paddle."""
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return variables if _OMP_NUM_THREADS is None else variables | {"OMP_NUM_THREADS": _OMP_NUM_THREADS}


def _mkl_path_for_amd() -> str | None:
    """MKL's number for its AVX-512 path or its AVX2 path on AMD's CPUs; None on others."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    if "AuthenticAMD" not in cpu:
        return None
    return "7" if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(cpu.split()) else "5"


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of mapping and clearing new pages for every tensor."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**28)
