"""Who may ask for how much: API keys, rates, and the size of a request, all before any of it is read."""

import asyncio
import hmac
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from limits import parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppvilg.server.settings import Settings

_DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Refusal:
    """Why a client is not served."""

    status: int
    code: str
    message: str
    retry_after: int | None = None


def error_answer(status: int, code: str, message: str, retry_after: int | None = None) -> JSONResponse:
    """The one form that every error has."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


class AccessControl:
    """Checks keys and, for each client, rates."""

    def __init__(self, settings: Settings):
        self._keys = [key.encode() for key in settings.api_keys]
        self._rates = parse_many(settings.rate) if settings.rate else []
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def refuses(self, authorization: str, address: str) -> Refusal | None:
        """`authorization` as the header has it; None: the client may go on, and the request counts."""
        key = authorization.removeprefix("Bearer ").encode() if authorization.startswith("Bearer ") else b""
        # Every key is compared, in full, so that the time tells nothing.
        if self._keys and not sum(hmac.compare_digest(key, known) for known in self._keys):
            return Refusal(401, "unauthorized", "an API key is needed: send the header Authorization: Bearer <key>")
        client = key.decode() if self._keys else address
        full = [rate for rate in self._rates if not self._limiter.test(rate, client)]
        if full:
            ends = max(self._limiter.get_window_stats(rate, client).reset_time for rate in full)
            return Refusal(429, "rate_limited", f"at most {full[0]}", max(1, math.ceil(ends - time.time())))
        for rate in self._rates:
            self._limiter.hit(rate, client)
        return None


class AccessMiddleware:
    """ASGI middleware: whatever is posted passes the access control and has at most `max_body` bytes."""

    def __init__(self, app: ASGIApp, access: AccessControl, max_body: int):
        self._app, self._access, self._max_body = app, access, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        address = scope["client"][0] if scope.get("client") else ""
        refusal = self._access.refuses(headers.get(b"authorization", b"").decode("latin-1"), address)
        body = None if refusal else await self._read(headers.get(b"content-length", b""), receive)
        if body is None:
            refusal = refusal or Refusal(413, "too_large", f"a request may have at most {self._max_body} bytes")
            answer = error_answer(refusal.status, refusal.code, refusal.message, refusal.retry_after)
            answer.headers["Connection"] = "close"
            await answer(scope, receive, _draining(send, receive, 4 * self._max_body))
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replayed, send)

    async def _read(self, declared: bytes, receive: Receive) -> bytes | None:
        """The whole body; None as soon as it is known to be too large."""
        if declared.isdigit() and int(declared[:20]) > self._max_body:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)  # nobody waits for the answer
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


def _draining(send: Send, receive: Receive, most: int) -> Send:
    """Read on before the answer's end, or a client that is still sending would see a broken connection instead of it."""

    async def drained(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        read = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while read < most:
                    part = await receive()
                    read += len(part.get("body", b""))
                    if not part.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return drained
