"""PaddleHub's HTTP form of its module `ernie_vilg`: POST /predict/ernie_vilg, errors as a status of their own in a 200."""

import json
import logging
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from ppvilg.hub import NO_STYLE, check_resolution, hub_styled
from ppvilg.server.engine import Busy, Engine, Late
from ppvilg.server.requests import ImageSchema, JobFactory, RequestError, error_message, png_base64, request_errors

_NAME = "ernie_vilg"
_DONE, _FAILED, _NO_MODULE, _NO_JSON = "000", "101", "111", "112"  # PaddleHub's numbers

_log = logging.getLogger("ppvilg.server")


class _Schema(BaseModel):
    """The module's arguments; `visualization` and `output_dir`, files on the server, are taken and have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text_prompts: str | list[str]
    style: str | None = NO_STYLE
    resolution: str | None = None
    topk: Annotated[int, Field(ge=1)] = 6
    visualization: bool = True
    output_dir: str | None = None


async def answer(engine: Engine, job_factory: JobFactory, name: str, body: bytes) -> JSONResponse:
    """What PaddleHub's server would answer: {"status", "msg", "results"}, the results a list of PNG files in base64."""
    if name != _NAME:
        return _packed(_NO_MODULE, f"Module {name[:40]} is not available.")
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return _packed(_NO_JSON, "the request is not JSON")
    try:
        results = await _pictures(engine, job_factory, _Schema.model_validate(tree))
    except ValidationError as error:
        return _packed(_FAILED, error_message(error))
    except (RequestError, Busy, Late) as error:
        return _packed(_FAILED, str(error))
    except Exception:
        _log.exception("a bug, met by a request in PaddleHub's form")
        return _packed(_FAILED, "internal error")
    return _packed(_DONE, "", results)


async def _pictures(engine: Engine, job_factory: JobFactory, form: _Schema) -> list[str]:
    model = job_factory.model()
    prompts = [form.text_prompts] if isinstance(form.text_prompts, str) else form.text_prompts
    if len(prompts) * form.topk > model.limits.candidates:
        asked_for = f"{len(prompts)} prompts with topk {form.topk}"
        raise RequestError(f"{asked_for}: this server writes at most {model.limits.candidates} pictures for a request")
    with request_errors():
        check_resolution(form.resolution, model.image_size)
        texts = [hub_styled(prompt, form.style, model.styles) for prompt in prompts]
    asked = [ImageSchema(prompt=text, n=form.topk) for text in texts]
    jobs = [await job_factory.image_job(each) for each in asked]
    # One after another: a request never waits with more pictures than one of the other forms may ask for.
    return [png_base64(picture) for job in jobs for picture in (await engine.result(job)).items]


def _packed(status: str, message: str, results: list[str] | str = "") -> JSONResponse:
    return JSONResponse({"msg": message, "results": results, "status": status})
