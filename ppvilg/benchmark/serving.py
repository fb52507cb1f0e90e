"""Load on a server (deploy/serve.py) over loopback: throughput, latency, a full queue, and clients that vanish."""

import asyncio
import contextlib
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ppvilg.runtime import environment

_SERVE = Path(__file__).parents[2] / "deploy" / "serve.py"
_START_SECONDS = 120.0


@dataclass
class Load:
    """What some clients saw."""

    name: str
    seconds: float = 0.0
    """From the first request to the last answer."""
    latencies: list[float] = field(default_factory=list)
    """Of the requests that were answered with 200."""
    statuses: Counter = field(default_factory=Counter)
    """How often each status was seen; 0 is a broken connection."""
    rss: float = 0.0
    """The server's resident bytes afterwards."""

    def row(self) -> str:
        """A line of the table."""
        cuts = (
            statistics.quantiles(self.latencies, n=100, method="inclusive") if len(self.latencies) > 1 else self.latencies * 99
        )
        p50, p95, p99 = cuts[49], cuts[94], cuts[98]
        speed = len(self.latencies) / self.seconds
        others = {status: count for status, count in self.statuses.items() if status != 200}
        said = f"  not 200: {others}" if others else ""
        return f"{self.name:<28}{speed:>10.2f}{p50:>9.2f}{p95:>9.2f}{p99:>9.2f}{self.rss / 2**20:>9.0f}{said}"


HEADER = f"{'':<28}{'images/s':>10}{'p50 s':>9}{'p95 s':>9}{'p99 s':>9}{'RSS MB':>9}"


class Server:
    """A server's process as its clients see it."""

    def __init__(self, url: str, process: subprocess.Popen):
        self.url, self.process = url, process

    def metric(self, name: str) -> float:
        """A number of /metrics, summed over its labels."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def load(self, name: str, clients: int, requests: int, prompt: str, at_once: int | None = None) -> Load:
        """`clients` that each send a request as soon as the one before is answered, `requests` in all; with `at_once` no more
        than so many are on their way together."""
        load = Load(name)
        asyncio.run(self._clients(load, clients, requests, prompt, asyncio.Semaphore(at_once or clients)))
        load.rss = self.metric("process_resident_memory_bytes")
        return load

    async def _clients(self, load: Load, clients: int, requests: int, prompt: str, gate: asyncio.Semaphore) -> None:
        left = iter(range(requests))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as http:

            async def client() -> None:
                for seed in left:
                    began = time.perf_counter()
                    try:
                        async with gate:  # its queue counts as latency
                            answer = await http.post("/v1/images", json={"prompt": prompt, "seed": seed})
                        status = answer.status_code
                    except httpx.TransportError:
                        status = 0
                    load.statuses[status] += 1
                    if status == 200:
                        load.latencies.append(time.perf_counter() - began)

            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(clients)))
            load.seconds = time.perf_counter() - began

    def vanish(self, clients: int, prompt: str, after: float) -> float:
        """Clients that hang up `after` seconds; returns how long the server still went on for them."""

        async def all_of_them() -> None:
            async with httpx.AsyncClient(base_url=self.url, timeout=after) as http:
                asked = (http.post("/v1/images", json={"prompt": prompt}) for _ in range(clients))
                await asyncio.gather(*asked, return_exceptions=True)

        asyncio.run(all_of_them())
        gone = time.perf_counter()
        while self.metric("ppvilg_running_sequences") + self.metric("ppvilg_queue_sequences"):
            time.sleep(0.01)
        return time.perf_counter() - gone


@contextmanager
def served(model: str, **settings: int | str) -> Iterator[Server]:
    """Start deploy/serve.py on a free port, and end it; raises `ValueError` if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(_SERVE), "--model", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        end = time.monotonic() + _START_SECONDS
        while not _healthy(server.url):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise ValueError(f"the server does not start: {process.stderr.read()[-500:]}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.communicate()


def _healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz").status_code == 200
    return False


def measure_serving(model: str, prompt: str, clients: list[int], requests: int) -> Iterator[str]:
    """The lines of the report. Every load sends `requests`, but at least one for each client."""
    with served(model) as server:
        server.load("", 1, 1, prompt)  # the first request warms up
        yield "continuous batching, one image a request"
        yield HEADER
        for count in clients:
            yield server.load(f"{count} clients", count, max(requests, count), prompt).row()
        most = 16
        yield server.load(f"{most} clients, one at a time", most, max(requests, most), prompt, at_once=1).row()
        yield server.load(f"{most} clients", most, max(requests, most), prompt).row()
    capacity, queue = 8, 32
    with served(model, capacity=capacity, queue=queue, max_n=4, max_candidates=4) as server:
        server.load("", 1, 1, prompt)
        yield f"capacity {capacity}, queue {queue}: {2 * queue} clients at once, three times"
        yield HEADER
        for _ in range(3):
            yield server.load(f"{2 * queue} clients", 2 * queue, 2 * queue, prompt).row()
        server.load("", 1, 1, prompt)
        seconds = server.vanish(capacity + 4, prompt, 0.3)
        cancelled = server.metric("ppvilg_cancelled_total")
        yield f"{capacity + 4} clients vanish after 0.3 s: {cancelled:.0f} requests given up, places free after {seconds:.2f} s"
        yield server.load("the next client", 1, 1, prompt).row()
