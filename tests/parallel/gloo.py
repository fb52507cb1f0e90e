"""A cure for paddle's gloo backend, which only tests need: more than two processes on one CPU.

Every process group meets at the same keys of the one store, so that groups which connect at the same time read each other's
addresses. Here each group of processes gets a store of its own. Does nothing where the backend is not gloo.
"""

import os
import socket
import sys
import time

import paddle.distributed as dist
from paddle.base import core

_stores = []  # as long as the process lives


def cure() -> None:
    """Call before paddle's processes are connected."""
    if os.environ.get("PADDLE_DISTRI_BACKEND") != "gloo" or int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) == 1:
        return
    _await_first_process()
    create, made = core.ProcessGroupGloo.create, {}

    def create_apart(store, rank: int, processes: int, group: int = 0):
        if group:
            made[group] = made.get(group, 0) + 1
            store = _store_of(store, f"cure/{group}/{made[group]}", rank)
        return create(store, rank, processes, group)

    core.ProcessGroupGloo.create = staticmethod(create_apart)


def _store_of(store, key: str, rank: int):
    host = os.environ["PADDLE_CURRENT_ENDPOINT"].split(":")[0]
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        own = core.TCPStore(host, port, True, 1, 120)
        store.set(key, f"{host}:{port}".encode())
    else:
        store.wait(key)
        host, port = bytes(store.get(key)).decode().split(":")
        own = core.TCPStore(host, int(port), False, 1, 120)
    _stores.append(own)
    return own


def _await_first_process() -> None:
    """A connection that the first process's store refuses costs paddle three seconds."""
    if os.environ["PADDLE_TRAINER_ID"] == "0" or "PADDLE_MASTER" not in os.environ:
        return
    host, port = os.environ["PADDLE_MASTER"].split(":")
    for _ in range(600):
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.05)


def leave(code: int = 0) -> None:
    """End a process together with the others and without C++'s destructors, which crash now and then."""
    if dist.is_initialized() and not code:
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
