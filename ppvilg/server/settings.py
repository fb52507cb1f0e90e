"""What a server allows, and who may use it."""

import os
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Checked as it is made: values that are each fine but cannot stand together are a `ValueError`."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    """Where Paddle Serving's gRPC clients are answered; None: nowhere."""
    capacity: int = 32
    """Sequences decoded together; a picture takes one, with guidance two."""
    queue: int = 256
    """Sequences that may wait for a place; what would go beyond is refused (503)."""
    deadline: float = 120.0
    """Seconds after which a request that is not finished is given up (504)."""
    api_keys: frozenset[str] = frozenset()
    """Clients have to send one of them; empty: anyone may come."""
    rate: str = ""
    """Requests of each key or, without keys, address, in any such time: `5/second`, or several, `5/second;1000/day`; empty: no
    limit."""
    max_connections: int = 1000
    """Connections at a time; the next ones are answered with 503."""
    max_body: int = 8 * 2**20
    """Bytes of a request."""
    max_characters: int = 1000
    """Of a prompt; the model's own limit, in tokens, is lower but takes longer to check."""
    max_pixels: int = 16_000_000
    """Of a picture that is sent."""
    max_n: int = 8
    """Pictures or captions of one request."""
    max_candidates: int = 64
    """Pictures that are drawn for the best of them, and beams of a caption's search."""

    def __post_init__(self):
        counts = [field.name for field in fields(self) if field.name.startswith("max_")]
        for name in ("capacity", "queue", *counts):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) < 2**16:
                raise ValueError(f"{name} is {getattr(self, name)}: give a port below 65536, or 0 for any that is free")
        if self.deadline <= 0:
            raise ValueError(f"deadline is {self.deadline}: give the seconds that a request may take")
        if self.rate:
            _check_rate(self.rate)
        if self.capacity < 2:
            raise ValueError(f"capacity is {self.capacity}: a picture with guidance takes 2 sequences")
        if self.max_candidates < self.max_n:
            raise ValueError(f"max_candidates is {self.max_candidates}: give at least max_n = {self.max_n}")
        if self.queue < 2 * self.max_candidates:
            raise ValueError(
                f"queue is {self.queue}: the largest request, {self.max_candidates} candidates with guidance, needs room for "
                f"{2 * self.max_candidates} sequences"
            )


def _check_rate(rate: str) -> None:
    from limits import parse_many

    try:
        parse_many(rate)
    except ValueError:
        raise ValueError(f"rate is {rate!r}: give e.g. 5/second, or several as 5/second;1000/day") from None


def read_api_keys(path: str | None) -> frozenset[str]:
    """Keys of a file, one on each line (# starts a comment), and of the environment's PPVILG_API_KEYS, comma-separated."""
    try:
        lines = Path(path).read_text("utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read API keys from {path}: {error}") from None
    found = [line.partition("#")[0].strip() for line in lines] + os.environ.get("PPVILG_API_KEYS", "").split(",")
    keys = frozenset(key.strip() for key in found if key.strip())
    if path and not keys:
        raise ValueError(f"{path} holds no API key: put one on each line")
    return keys
