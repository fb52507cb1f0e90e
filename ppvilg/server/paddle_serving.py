"""Paddle Serving's pipeline protocol (0.9.0), over HTTP and gRPC: texts by key in, texts by key out, errors as numbers.

Its clients work unchanged. A request with the key `prompt` asks for pictures, one with `image` and no prompt for captions; the
other keys are the fields of `ImageSchema` and `CaptionSchema`.
"""

import json
import logging
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from pydantic import ValidationError
from starlette.responses import JSONResponse

from ppvilg.server.engine import Busy, Engine, ImageJob, Late, Result
from ppvilg.server.limits import AccessControl
from ppvilg.server.requests import CaptionSchema, ImageSchema, JobFactory, RequestError, error_message, png_base64
from ppvilg.server.settings import Settings

NAME = "ernievilg"
"""Of the service; requests that name another one are refused."""
PACKAGE = "baidu.paddle_serving.pipeline_serving"
_PROTO = Path(__file__).with_name("pipeline_service.proto")

# Numbers of errors: 51 to 99 are the service's own, the others Paddle Serving's.
REFUSED, BUSY, LATE = 51, 52, 53
_WRONG_NAME, _BAD_PACKAGE, _UNKNOWN = 3002, 8000, 10000
_INVALID_ARGUMENT = 3  # gRPC's code
_STRING, _LAST_TYPE = 12, 13  # of Tensor.elem_type

_log = logging.getLogger("ppvilg.server")


@cache
def message_class(name: str) -> type[Message]:
    """The class of `Request`, `Response` or `Tensor`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    """The messages of the .proto file in a pool of our own: in the default one, where generated modules put theirs, they would
    clash with Paddle Serving's."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "service.bin"
        protoc.main(["protoc", f"--proto_path={_PROTO.parent}", f"--descriptor_set_out={compiled}", _PROTO.name])
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def parse_request(values: dict[str, Any]) -> ImageSchema | CaptionSchema:
    """What a request's values ask for; raises `RequestError` for values that no schema has."""
    kind = ImageSchema if "prompt" in values or "image" not in values else CaptionSchema
    try:
        return kind.model_validate_strings(values)
    except ValidationError as error:
        raise RequestError(error_message(error)) from None


def written_values(job: Any, result: Result) -> dict[str, str]:
    """The answer's values: lists as JSON."""
    if isinstance(job, ImageJob):
        values = {"images": json.dumps([png_base64(picture) for picture in result.items]), "seeds": json.dumps(result.seeds)}
    else:
        values = {"captions": json.dumps(result.items, ensure_ascii=False)}
    if result.scores is not None:
        values["scores"] = json.dumps(result.scores)
    return values


def failed(number: int, message: str) -> Message:
    """A `Response` that says what went wrong."""
    return message_class("Response")(err_no=number, err_msg=message)


class Service:
    """Answers requests, whichever way they came."""

    def __init__(self, engine: Engine, job_factory: JobFactory):
        self._engine, self._job_factory = engine, job_factory

    async def answer(self, request: Message) -> Message:
        """A `Response` for a `Request`; it never raises but for who is cancelled."""
        if request.name not in ("", NAME):
            return failed(_WRONG_NAME, "Failed to inference: Service name error.")
        try:
            values = _values(request)
        except (IndexError, ValueError) as error:
            return failed(_BAD_PACKAGE, f"rpc package error: {error}")
        number, message, answered = await self.answer_values(values, request.logid)
        response = message_class("Response")
        return response(err_no=number, err_msg=message, key=list(answered), value=list(answered.values()))

    async def answer_values(self, values: dict[str, Any], log_id: int) -> tuple[int, str, dict[str, str]]:
        """The number and the text of an error, 0 and "" for none, and the answer's values."""
        try:
            form = parse_request(values)
            job = await (self._job_factory.image_job if isinstance(form, ImageSchema) else self._job_factory.caption_job)(form)
            return 0, "", written_values(job, await self._engine.result(job))
        except RequestError as error:
            return REFUSED, str(error), {}
        except Busy as error:
            return BUSY, str(error), {}
        except Late as error:
            return LATE, str(error), {}
        except Exception:
            _log.exception("a bug, met by the request with log id %s", log_id)
            return _UNKNOWN, f"Log_id: {log_id}  Raise_msg: internal error", {}

    async def answer_http(self, name: str, body: bytes) -> JSONResponse:
        """As Paddle Serving's gateway does: fields may be missing and unknown ones are ignored, errors keep the status 200."""
        request = message_class("Request")()
        try:
            # The gateway takes bytes that are not UTF-8 as they come, and stops reading after the first value.
            text = body.decode("utf-8", "replace").lstrip()
            tree = json.JSONDecoder().raw_decode(text)[0] if text else {}
            if not isinstance(tree, dict):
                raise json_format.ParseError(f"expected an object, got {type(tree).__name__}")
            json_format.ParseDict(tree, request, ignore_unknown_fields=True)
        except (ValueError, json_format.ParseError, RecursionError) as error:
            message = str(error) or "nested too deeply"
            return JSONResponse({"error": message, "code": _INVALID_ARGUMENT, "message": message, "details": []}, 400)
        request.name = name
        response = await self.answer(request)
        options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
        tree = json_format.MessageToDict(response, **options)
        return JSONResponse({field.name: tree[field.name] for field in response.DESCRIPTOR.fields})


def _values(request: Message) -> dict[str, Any]:
    """Texts by key, and () for what is no text; raises `IndexError` for a key without a value and `ValueError` for a tensor of
    an unknown type."""
    values = {key: request.value[i] for i, key in enumerate(request.key)}
    for tensor in request.tensors:
        if not 0 <= tensor.elem_type <= _LAST_TYPE:
            raise ValueError(f"elem_type:{tensor.elem_type} error")
        # No schema has a field of numbers in a tensor: anything but a text lets it say so.
        values[tensor.name] = "".join(tensor.str_data) if tensor.elem_type == _STRING else ()
    return values


async def start_grpc(service: Service, access: AccessControl, settings: Settings) -> tuple[Any, int]:
    """Serve the same over gRPC, on the running event loop; returns grpcio's server and its port."""
    import grpc

    async def inference(request: Message, context: grpc.aio.ServicerContext) -> Message:
        metadata = {key: value for key, value in context.invocation_metadata() or ()}
        refusal = access.refuses(metadata.get("authorization", ""), context.peer().rpartition(":")[0])
        if refusal is not None:
            codes = {401: grpc.StatusCode.UNAUTHENTICATED, 429: grpc.StatusCode.RESOURCE_EXHAUSTED}
            await context.abort(codes[refusal.status], refusal.message)
        return await service.answer(request)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", settings.max_body), ("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        inference, message_class("Request").FromString, message_class("Response").SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(f"{PACKAGE}.PipelineService", {"inference": handler}),)
    )
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")
    except RuntimeError:
        raise ValueError(f"cannot listen on {settings.host}:{settings.grpc_port} for gRPC: is the port taken?") from None
    await server.start()
    return server, port
