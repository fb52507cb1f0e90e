"""What the server counts, in Prometheus' text format."""

import time
from collections import deque

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_fastapi_instrumentator import Instrumentator

_WINDOW = 10.0  # seconds over which tokens per second are measured


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # process_resident_memory_bytes, CPU seconds, open files
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

    def instrument(self, app: FastAPI) -> None:
        """Count and time the requests of an application by route and status too, and answer scrapers at /metrics."""
        buckets = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
        instrumentator = Instrumentator(should_group_status_codes=False, registry=self.registry)
        instrumentator.instrument(app, latency_lowr_buckets=buckets).expose(app, include_in_schema=False)

    def _tokens_per_second(self) -> float:
        oldest = time.monotonic() - _WINDOW
        return sum(tokens for written, tokens in tuple(self._recent) if written >= oldest) / _WINDOW
