"""What the server counts, in Prometheus' text format."""

import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WINDOW = 10.0  # seconds over which tokens per second are measured


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # process_resident_memory_bytes, CPU seconds, open files
        self.requests = Counter("ppvilg_requests", "Requests answered", ["route", "status"], registry=registry)
        buckets = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
        self.latency = Histogram(
            "ppvilg_request_seconds", "Time to the end of the answer", ["route"], registry=registry, buckets=buckets
        )
        self.queue = Gauge("ppvilg_queue_sequences", "Sequences that wait for a place", registry=registry)
        self.running = Gauge("ppvilg_running_sequences", "Sequences that are decoded together", registry=registry)
        self.rejected = Counter("ppvilg_rejected", "Requests refused by a full queue or a draining server", registry=registry)
        self.cancelled = Counter("ppvilg_cancelled", "Requests whose client went away", registry=registry)
        self.late = Counter("ppvilg_late", "Requests given up at their deadline", registry=registry)
        self.tokens = Counter("ppvilg_tokens", "Image tokens written", registry=registry)
        self._recent: deque[tuple[float, int]] = deque()
        speed = Gauge("ppvilg_tokens_per_second", f"Image tokens written in the last {_WINDOW:.0f} seconds", registry=registry)
        speed.set_function(self._tokens_per_second)

    def wrote(self, tokens: int) -> None:
        """Count image tokens that were written just now."""
        self.tokens.inc(tokens)
        now = time.monotonic()
        self._recent.append((now, tokens))
        while self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()

    def text(self) -> bytes:
        """All of it, as a scraper reads it."""
        return generate_latest(self.registry)

    def _tokens_per_second(self) -> float:
        oldest = time.monotonic() - _WINDOW
        return sum(tokens for written, tokens in tuple(self._recent) if written >= oldest) / _WINDOW


class Measured:
    """ASGI middleware that counts and times every HTTP request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0  # 0: the client went away before there was an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # never the path itself: anyone can make up new ones
            self._metrics.requests.labels(route, status).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - began)
