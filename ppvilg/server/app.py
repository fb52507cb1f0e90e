"""The HTTP server: routes, errors, and what starts and stops with it."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException as HTTPError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppvilg import __version__
from ppvilg.dual_encoder import scores
from ppvilg.pipeline import ViLGPipeline
from ppvilg.server import hub, paddle_serving
from ppvilg.server.engine import Busy, Engine, Finished, ImageJob, Late, Partial, Queued, Result
from ppvilg.server.limits import AccessControl, AccessMiddleware, error_answer
from ppvilg.server.metrics import Metrics
from ppvilg.server.requests import (
    Answer,
    AnswersAnswer,
    AnswerSchema,
    Caption,
    CaptionsAnswer,
    CaptionSchema,
    ImagesAnswer,
    ImagesRequest,
    JobFactory,
    ModelAnswer,
    Picture,
    RequestError,
    error_message,
    png,
    png_base64,
)
from ppvilg.server.settings import Settings

WEB = Path(__file__).parent / "web"
"""The page's files."""

_SEND_SECONDS = 30.0  # for one event to leave
_MOST_PARTIAL = 32  # events of one request: painting them keeps the others waiting

_FRESH = {"Cache-Control": "no-cache"}
_log = logging.getLogger("ppvilg.server")
_T = TypeVar("_T")


class _Error(BaseModel):
    code: str
    message: str


class _ErrorAnswer(BaseModel):
    """What every error looks like."""

    error: _Error


_ERRORS = {
    400: "not JSON",
    401: "no API key, or an unknown one",
    413: "too large",
    415: "not declared as application/json",
    422: "nothing that the model or the server can do",
    429: "too many requests of this client",
    503: "too many requests of all clients",
    504: "not finished by the deadline",
}
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type", 499: "client_gone"}


def create_app(
    pipeline: ViLGPipeline, settings: Settings = Settings(), adapters: Mapping[str, ViLGPipeline] = MappingProxyType({})
) -> FastAPI:
    """The server as an ASGI application; its engine is `app.state.engine`.

    `adapters` are what requests may name as `lora`: pipelines that `pipeline.with_adapter` made. Raises `ValueError` for a dual
    encoder that cannot read the pipeline's images.
    """
    if pipeline.dual_encoder is not None:
        size = pipeline.config.image_size
        scores(pipeline.dual_encoder, np.zeros((1, size, size, 3), np.uint8), ["a"])
    metrics = Metrics()
    engine, access = Engine(pipeline, dict(adapters), metrics, settings), AccessControl(settings)
    job_factory = JobFactory(pipeline, adapters, settings)
    service = paddle_serving.Service(engine, job_factory)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server = None
        if settings.grpc_port is not None:
            server, app.state.grpc_port = await paddle_serving.start_grpc(service, access, settings)
        yield
        engine.drain()
        if server is not None:
            await server.stop(settings.deadline)
        await asyncio.to_thread(engine.close)

    answers = {status: {"model": _ErrorAnswer, "description": text} for status, text in _ERRORS.items()}
    app = FastAPIOffline(
        redoc_url=None,
        title="ppvilg",
        version=__version__,
        description="Pictures from text, text from pictures, and answers about them.",
        lifespan=lifespan,
        responses=answers,
    )
    app.state.engine = engine
    _answer_errors(app)
    _add_api(app, engine, job_factory, settings)
    _add_others(app, engine, job_factory, service)
    _add_pages(app, engine)
    app.add_middleware(AccessMiddleware, access=access, max_body=settings.max_body)
    metrics.instrument(app)
    return app


async def _json_only(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send the request as application/json")


def _add_api(app: FastAPI, engine: Engine, job_factory: JobFactory, settings: Settings) -> None:
    kinds = {"image/png": {}, "text/event-stream": {}}

    @app.post(
        "/v1/images", response_model=ImagesAnswer, responses={200: {"content": kinds}}, dependencies=[Depends(_json_only)]
    )
    async def images(form: ImagesRequest, request: Request) -> Any:
        """Pictures of a text."""
        if form.response_format == "png" and (form.n > 1 or form.stream):
            raise RequestError("response_format png is for one picture that is not streamed: give n = 1 and stream = false")
        tokens = job_factory.model().image_tokens
        every = max(1, form.partial_every or tokens // 8, tokens // _MOST_PARTIAL)
        job = await job_factory.image_job(form, every if form.stream else 0)
        if form.stream:
            engine.submit(job)
            # What is streaming when the server stops is finished, too; a client that reads nothing is given up.
            options = {"shutdown_grace_period": settings.deadline, "send_timeout": _SEND_SECONDS}
            return EventSourceResponse(_streamed(engine, job, tokens), sep="\n", **options)
        result = await _unless_gone(request, engine.result(job))
        if form.response_format == "png":
            return Response(png(result.items[0]), media_type="image/png")
        return _images_answer(job, result)

    @app.post("/v1/captions", dependencies=[Depends(_json_only)])
    async def captions(form: CaptionSchema, request: Request) -> CaptionsAnswer:
        """Texts for a picture."""
        result = await _unless_gone(request, engine.result(await job_factory.caption_job(form)))
        fits = result.scores or [None] * len(result.items)
        return CaptionsAnswer(captions=[Caption(text=text, score=fit) for text, fit in zip(result.items, fits, strict=True)])

    @app.post("/v1/answers", dependencies=[Depends(_json_only)])
    async def answers(form: AnswerSchema, request: Request) -> AnswersAnswer:
        """Answers to a question about a picture."""
        result = await _unless_gone(request, engine.result(await job_factory.caption_job(form)))
        return AnswersAnswer(answers=[Answer(text=text) for text in result.items])

    @app.get("/v1/model")
    async def model() -> ModelAnswer:
        """What the model is and what may be asked of it."""
        return job_factory.model()


def _add_others(app: FastAPI, engine: Engine, job_factory: JobFactory, service: paddle_serving.Service) -> None:
    """Routes whose form others have fixed; their clients know it, so OpenAPI does not describe it."""

    @app.post("/{name}/prediction", include_in_schema=False)
    async def prediction(name: str, request: Request) -> JSONResponse:
        return await _unless_gone(request, service.answer_http(name, await request.body()))

    @app.post("/predict/{name}", include_in_schema=False)
    async def predict(name: str, request: Request) -> JSONResponse:
        return await _unless_gone(request, hub.answer(engine, job_factory, name, await request.body()))


def _add_pages(app: FastAPI, engine: Engine) -> None:
    @app.get("/healthz", responses={503: {"model": _ErrorAnswer}})
    async def healthz() -> dict[str, str]:
        """Whether new requests are accepted."""
        if engine.draining:
            raise Busy("the server is about to stop", 10)
        return {"status": "ok"}

    app.mount("/static", _Fresh(directory=WEB), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        # The page's own policy cannot say this one.
        return FileResponse(WEB / "index.html", headers={**_FRESH, "Content-Security-Policy": "frame-ancestors 'none'"})


class _Fresh(StaticFiles):
    """Files that a browser asks after each time, so that it never mixes an upgraded page with its old modules."""

    def file_response(self, *arguments: Any, **keywords: Any) -> Response:
        answer = super().file_response(*arguments, **keywords)
        answer.headers.update(_FRESH)
        return answer


def _images_answer(job: ImageJob, result: Result) -> ImagesAnswer:
    fits = result.scores or [None] * len(result.items)
    data = [
        Picture(b64_json=png_base64(picture), seed=seed, score=fit)
        for picture, seed, fit in zip(result.items, result.seeds, fits, strict=True)
    ]
    return ImagesAnswer(created=int(time.time()), seed=job.seeds[0], prompt=job.prompt, data=data)


async def _streamed(engine: Engine, job: ImageJob, tokens: int) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events; the status is sent already, so that errors are events too."""
    try:
        async for event in engine.events(job):
            match event:
                case Queued():
                    yield _event("place", {"place": event.place})
                case Partial():
                    data = [{"b64_json": png_base64(picture)} for picture in event.images]
                    yield _event("partial", {"tokens": event.tokens, "of": tokens, "data": data})
                case Finished():
                    picture = {"b64_json": png_base64(event.image), "seed": job.seeds[event.index]}
                    yield _event("picture", {"index": event.index, **picture})
                case Result():
                    yield _event("done", _images_answer(job, event).model_dump())
    except Exception as error:
        yield _event("error", json.loads(_error_of(error).body))


def _event(name: str, data: dict) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name, sep="\n")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The work's result; if the client goes away the work is cancelled, which `ClientDisconnect` says."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_of(error: Exception) -> JSONResponse:
    """The answer for whatever a handler raised; what is no known mistake is logged under an id that the answer names."""
    match error:
        case RequestError():
            return error_answer(422, "invalid_request", str(error))
        case Busy():
            return error_answer(503, "overloaded", str(error), error.retry_after)
        case Late():
            return error_answer(504, "deadline", str(error))
        case ClientDisconnect():
            return error_answer(499, _CODES[499], "the client went away")
        case RequestValidationError():
            if error.errors()[0]["type"] == "json_invalid":
                return error_answer(400, _CODES[400], "the request is not valid JSON")
            return error_answer(422, "invalid_request", error_message(error))
        case HTTPError():
            answer = error_answer(error.status_code, _CODES.get(error.status_code, "error"), error.detail)
            answer.headers.update(error.headers or {})
            return answer
    name = secrets.token_hex(4)
    _log.error("internal error %s", name, exc_info=error)
    return error_answer(500, "internal", f"internal error {name}")


def _answer_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return _error_of(error)

    for kind in (RequestError, Busy, Late, ClientDisconnect, RequestValidationError, HTTPError):
        app.add_exception_handler(kind, answer)
    app.add_middleware(_Caught)


class _Caught:
    """ASGI middleware for bugs: Starlette's own handler would raise them again, and the connection would be lost."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started:
                raise
            await _error_of(error)(scope, receive, send)
