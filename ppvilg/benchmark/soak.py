"""A server under full load for long: clients that behave, and others that vanish, send garbage, or stall."""

import asyncio
import base64
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from ppvilg.benchmark.serving import Server, served

HEADER = f"{'minute':>6}{'answered':>10}{'p50 s':>8}{'p99 s':>8}{'refused':>9}{'lost':>6}{'RSS MB':>8}{'open files':>12}"


@dataclass
class Seen:
    """What the clients that behave saw since the last line, and what the others did."""

    latencies: list[float] = field(default_factory=list)
    """Of requests that were answered as they should be."""
    refused: int = 0
    """With 503, before they were accepted."""
    lost: Counter = field(default_factory=Counter)
    """Why requests that were accepted have no answer."""
    others: Counter = field(default_factory=Counter)


def soak(model: str, prompt: str, minutes: float, clients: int = 16) -> Iterator[str]:
    """A line for each minute, then a summary. `clients` behave, a quarter as many do each of the other things."""
    with served(model, capacity=16, queue=64, max_n=4, max_candidates=4) as server:
        server.load("", 1, 1, prompt)  # the first request warms up
        yield HEADER
        whole, sizes = Seen(), []
        for minute in range(1, max(1, round(minutes)) + 1):
            seen = Seen()
            asyncio.run(_minute(server, prompt, clients, seen, 60 * min(1, minutes), minute))
            sizes.append(server.metric("process_resident_memory_bytes") / 2**20)
            yield _line(f"{minute}", seen, sizes[-1], server.metric("process_open_fds"))
            whole.latencies += seen.latencies
            whole.refused += seen.refused
            whole.lost += seen.lost
            whole.others += seen.others
        yield _line("all", whole, sizes[-1], server.metric("process_open_fds"))
        yield f"resident memory {min(sizes):.0f} to {max(sizes):.0f} MB; lost: {dict(whole.lost) or 'none'}"
        yield "the others: " + ", ".join(f"{count} {what}" for what, count in sorted(whole.others.items()))
        yield f"requests given up by vanished clients: {server.metric('ppvilg_cancelled_total'):.0f}"


def _line(name: str, seen: Seen, rss: float, files: float) -> str:
    cuts = statistics.quantiles(seen.latencies, n=100, method="inclusive") if len(seen.latencies) > 1 else [0.0] * 99
    answered = f"{name:>6}{len(seen.latencies):>10}{cuts[49]:>8.2f}{cuts[98]:>8.2f}"
    return f"{answered}{seen.refused:>9}{sum(seen.lost.values()):>6}{rss:>8.0f}{files:>12.0f}"


async def _minute(server: Server, prompt: str, clients: int, seen: Seen, seconds: float, seed: int) -> None:
    end, own = time.monotonic() + seconds, max(1, clients // 4)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
        work = [_behaves(http, prompt, seen, end, random.Random(f"{seed} {i}")) for i in range(clients)]
        work += [_vanishes(server.url, prompt, seen, end, random.Random(f"{seed} v{i}")) for i in range(own)]
        work += [_sends_garbage(http, server.url, seen, end, random.Random(f"{seed} g{i}")) for i in range(own)]
        work += [_stalls(server.url, prompt, seen, end) for _ in range(own)]
        await asyncio.gather(*work)


async def _behaves(http: httpx.AsyncClient, prompt: str, seen: Seen, end: float, chance: random.Random) -> None:
    """Asks again as soon as it is answered, one time in three with a stream."""
    while time.monotonic() < end:
        stream = chance.random() < 1 / 3
        form = {"prompt": prompt, "seed": chance.randrange(1000), "n": chance.choice([1, 1, 2]), "stream": stream}
        form["guidance"] = chance.choice([1.0, 2.0])
        began = time.perf_counter()
        try:
            answer = await http.post("/v1/images", json=form)
        except httpx.TransportError as error:
            seen.lost[type(error).__name__] += 1
            continue
        if answer.status_code == 503:
            seen.refused += 1
            await asyncio.sleep(0.2)
        elif answer.status_code == 200 and (not stream or "event: done" in answer.text):
            seen.latencies.append(time.perf_counter() - began)
        else:
            seen.lost[f"{answer.status_code}, {'a stream without its end' if stream else 'no answer'}"] += 1


async def _vanishes(url: str, prompt: str, seen: Seen, end: float, chance: random.Random) -> None:
    """Hangs up at some moment of its drawing."""
    while time.monotonic() < end:
        async with httpx.AsyncClient(base_url=url, timeout=chance.expovariate(5.0)) as http:
            try:
                await http.post("/v1/images", json={"prompt": prompt, "n": 2, "stream": chance.random() < 0.5})
                seen.others["stayed until the answer"] += 1
            except httpx.TransportError:
                seen.others["vanished"] += 1
        await asyncio.sleep(0.2)


async def _sends_garbage(http: httpx.AsyncClient, url: str, seen: Seen, end: float, chance: random.Random) -> None:
    """What no server should take, as HTTP and below it."""
    host, port = url.removeprefix("http://").split(":")
    bodies = [b"", b"{", b"[]", b'{"prompt": 5}', b'{"prompt": "x", "n": 99}', b'{"prompt": "\\ud800"}', chance.randbytes(1000)]
    bodies.append(b'{"image": "' + base64.b64encode(chance.randbytes(3000)) + b'"}')
    while time.monotonic() < end:
        for body in bodies:
            path = chance.choice(["/v1/images", "/v1/captions", "/ernievilg/prediction", "/predict/ernie_vilg", "/nothing"])
            try:
                answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
            except httpx.TransportError:  # the server closed the idle connection just then
                seen.others["garbage, cut off"] += 1
                continue
            seen.others["garbage, refused" if answer.status_code != 500 else "garbage, an internal error"] += 1
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(chance.randbytes(2000))
        writer.close()
        seen.others["not HTTP"] += 1
        await asyncio.sleep(0.5)


async def _stalls(url: str, prompt: str, seen: Seen, end: float) -> None:
    """Sends half a request, or asks for a stream and reads none of it; then waits."""
    host, port = url.removeprefix("http://").split(":")
    body = f'{{"prompt": "{prompt}", "n": 4, "stream": true, "partial_every": 1}}'.encode()
    head = b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    half = False
    while time.monotonic() < end:
        half = not half
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(head + (body[: len(body) // 2] if half else body))
        await asyncio.sleep(min(10.0, max(0.0, end - time.monotonic())))
        writer.close()
        seen.others["stalled"] += 1
