"""Uvicorn around the application: where it listens, and how it stops."""

import math
import socket

import uvicorn
from fastapi import FastAPI

from ppvilg.server.settings import Settings


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame) -> None:
        """Refuse new requests from the signal on, also on connections that are open; what was accepted is finished."""
        self.config.app.state.engine.drain()
        super().handle_exit(sig, frame)


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what runs; raises `ValueError` for an address that cannot be listened on."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            raise ValueError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from None
        # Longer than any request can take: the engine gives them up at their deadline.
        patience = math.ceil(settings.deadline) + 5
        config = uvicorn.Config(app, limit_concurrency=settings.max_connections, timeout_graceful_shutdown=patience)
        _Server(config).run(sockets=[listening])
