"""A cure for what Fleet lacks on CPUs, where processes talk over gloo. Only tests need it; it does nothing with other backends.

Each part replaces a call that fails on a CPU by one with the same result, so that Fleet's own engine runs otherwise unchanged.
"""

import os
import queue
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Client, Connection, Listener

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import _C_ops
from paddle.autograd import PyLayer
from paddle.base import core
from paddle.distributed import collective, sharding
from paddle.distributed.fleet.meta_parallel.pp_utils import p2p_communication
from paddle.distributed.fleet.meta_parallel.sharding import (
    group_sharded_optimizer_stage2,
    group_sharded_stage2,
    group_sharded_stage3,
    group_sharded_storage,
    group_sharded_utils,
)

_SECONDS = 120
_stores = []  # as long as the process lives


def cure() -> None:
    """Call before the processes are connected and before `ppvilg.train` is imported."""
    if os.environ.get("PADDLE_DISTRI_BACKEND") != "gloo" or int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) == 1:
        return
    _await_first_process()
    _own_stores()
    _reuse_groups()
    _calculation_streams()
    _messages()
    _tensor_parallel_operators()
    _group_sharding()


def leave(code: int = 0) -> None:
    """End a process together with the others and without C++'s destructors, which crash now and then."""
    if dist.is_initialized() and not code:
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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


def _own_stores() -> None:
    """All groups meet at the same keys of one store, so that groups which connect at the same time read each other's addresses:
    give each a store of its own."""
    create, made = core.ProcessGroupGloo.create, defaultdict(int)

    def create_apart(store, rank: int, world_size: int, group: int = 0):
        if group == 0:
            _mail.open(store, rank)
        else:
            made[group] += 1
            store = _store_of(store, f"cure/{group}/{made[group]}", rank)
        return create(store, rank, world_size, group)

    core.ProcessGroupGloo.create = staticmethod(create_apart)


def _store_of(store, key: str, rank: int):
    host = os.environ["PADDLE_CURRENT_ENDPOINT"].split(":")[0]
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        own = core.TCPStore(host, port, True, 1, _SECONDS)
        store.set(key, f"{host}:{port}".encode())
    else:
        store.wait(key)
        host, port = bytes(store.get(key)).decode().split(":")
        own = core.TCPStore(host, int(port), False, 1, _SECONDS)
    _stores.append(own)
    return own


def _reuse_groups() -> None:
    """Fleet makes many equal groups, each of which takes half a second to connect: make one for each list of ranks."""
    new_group, made = collective.new_group, {}

    def new_or_known(ranks=None, *arguments, **options):
        key = None if ranks is None else tuple(sorted(ranks))
        if key not in made:
            made[key] = new_group(ranks, *arguments, **options)
        return made[key]

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("paddle") and module.__dict__.get("new_group") is new_group:
            module.new_group = new_or_known


def _calculation_streams() -> None:
    """A CPU has no streams: the calls for the one that computes are the plain ones."""
    gloo = core.ProcessGroupGloo

    def all_reduce(self, tensor, op=core.ReduceOp.SUM):
        task = self.all_reduce(tensor, op, True)
        task.wait()
        return task

    def reduce_scatter(self, output, tensor, op=core.ReduceOp.SUM, _=True):
        total = tensor.clone()
        self.all_reduce(total, op, True).wait()
        paddle.assign(total.split(self.size())[self.rank()], output)
        return _Done()

    gloo.all_reduce_on_calc_stream = all_reduce
    gloo.reduce_scatter_tensor = paddle.no_grad()(reduce_scatter)
    dist.ParallelEnv._device_id = 0


class _Mail:
    """Messages from process to process over sockets, which are sent before they are asked for, as NCCL's are. gloo's wait for
    their receiver and are counted over all pairs of a group."""

    def __init__(self):
        self._received: dict[int, queue.Queue] = defaultdict(queue.Queue)
        self._connections: dict[int, Connection] = {}

    def open(self, store, rank: int) -> None:
        """Take messages from now on."""
        self._store, self._rank = store, rank
        listener = Listener(("127.0.0.1", 0))
        store.set(f"mail/{rank}", str(listener.address[1]).encode())
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: Listener) -> None:
        while True:
            threading.Thread(target=self._read, args=(listener.accept(),), daemon=True).start()

    def _read(self, connection: Connection) -> None:
        sender = connection.recv()
        try:
            while True:
                self._received[sender].put(connection.recv_bytes())
        except EOFError:
            return

    def send(self, group, tensor: paddle.Tensor, receiver: int, *_) -> "_Done":
        """A tensor to a process by its number in a group."""
        receiver = _ranks(group)[receiver]
        if receiver not in self._connections:
            port = int(bytes(self._store.get(f"mail/{receiver}")).decode())
            self._connections[receiver] = Client(("127.0.0.1", port))
            self._connections[receiver].send(self._rank)
        self._connections[receiver].send_bytes(tensor.detach().numpy().tobytes())
        return _Done()

    def receive(self, group, tensor: paddle.Tensor, sender: int, *_) -> "_Done":
        """The next one of a process into a tensor."""
        data = self._received[_ranks(group)[sender]].get(timeout=_SECONDS)
        array = np.frombuffer(data, tensor.numpy().dtype).reshape(tensor.shape)
        tensor.detach().get_tensor().set(array, paddle.CPUPlace())
        return _Done()


_mail = _Mail()


class _Done:
    """A message that has arrived."""

    def wait(self, *_) -> bool:
        return True


def _ranks(process_group) -> list[int]:
    return next(group.ranks for group in collective._group_map.values() if group and group.process_group is process_group)


def _messages() -> None:
    """What pipeline stages send each other."""
    gloo = core.ProcessGroupGloo
    for name, method in (("send", _mail.send), ("recv", _mail.receive)):
        for ending in ("", "_on_calc_stream"):
            setattr(gloo, name + ending, lambda self, *arguments, method=method: method(self, *arguments))
    gloo._start_coalescing = gloo._end_coalescing = lambda *_: None
    # Tensor parallel processes would send a part each and gather them.
    p2p_communication._is_valid_send_recv_partial = lambda *_: False


def _tensor_parallel_operators() -> None:
    """Operators without a CPU kernel."""
    _C_ops.c_identity = lambda x, *_: x.clone()
    _C_ops.c_softmax_with_cross_entropy = lambda logits, labels, _, group, rank, __: _CrossEntropy.apply(
        logits, labels, dist.get_group(group), rank
    )


class _CrossEntropy(PyLayer):
    """-log p [..., 1] of labels int64 [..., 1] by the process's share of the logits [..., V], and the softmax [..., V]."""

    @staticmethod
    def forward(ctx, logits, labels, group, rank):
        largest = logits.max(-1, keepdim=True)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - largest
        total = shifted.exp().sum(-1, keepdim=True)
        dist.all_reduce(total, group=group)
        own = labels - rank * logits.shape[-1]
        one_hot = (own == paddle.arange(logits.shape[-1])).astype(logits.dtype)
        label = (shifted * one_hot).sum(-1, keepdim=True)
        dist.all_reduce(label, group=group)
        softmax = shifted.exp() / total
        ctx.save_for_backward(softmax, one_hot)
        ctx.mark_non_differentiable(softmax)
        return softmax, total.log() - label

    @staticmethod
    def backward(ctx, _, gradient):
        softmax, one_hot = ctx.saved_tensor()
        return (softmax - one_hot) * gradient


def _group_sharding() -> None:
    """`group_sharded_parallel` refuses CPUs and moves what it holds to a GPU."""
    for module in (
        group_sharded_utils,
        group_sharded_storage,
        group_sharded_optimizer_stage2,
        group_sharded_stage2,
        group_sharded_stage3,
    ):
        if hasattr(module, "device_guard"):
            module.device_guard = lambda *_, **__: nullcontext()
        if hasattr(module, "cvt_to_device"):
            module.cvt_to_device = lambda x, *_, **__: x
    to = paddle.Tensor.to
    paddle.Tensor.cuda = lambda self, *_, **__: self
    paddle.Tensor.to = lambda self, device, *more, **options: (
        self.clone() if str(device).startswith("gpu") else to(self, device, *more, **options)
    )
    group_sharded_stage3._device2cpu = lambda tensor, *_, **__: tensor.clone()
    storage = group_sharded_storage.ParamStorage
    add = storage.add_rank_params
    storage.add_rank_params = lambda self, parameters, align, _=True: add(self, parameters, align, False)
    wrap = sharding.group_sharded_parallel

    def wrap_as_on_gpu(*arguments, **options):
        with _pretended_gpu():
            return wrap(*arguments, **options)

    sharding.group_sharded_parallel = wrap_as_on_gpu


@contextmanager
def _pretended_gpu():
    device, compiled = paddle.get_device, core.is_compiled_with_cuda
    paddle.get_device, core.is_compiled_with_cuda = lambda: "gpu:0", lambda: True
    try:
        yield
    finally:
        paddle.get_device, core.is_compiled_with_cuda = device, compiled
