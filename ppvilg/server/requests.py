"""What a client can ask for and what it gets, whichever way it comes: checked request schemas, and the jobs they become."""

import base64
import binascii
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import cv2
import numpy as np
from anyio import CapacityLimiter, to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppvilg import __version__
from ppvilg.data.images import decode_image
from ppvilg.generate.sampling import Sampling
from ppvilg.pipeline import ViLGPipeline
from ppvilg.server.engine import CaptionJob, ImageJob
from ppvilg.server.settings import Settings
from ppvilg.text import styled

_FORM = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
_LARGEST_SEED = 2**53 - 1  # that every JSON reader keeps exact

Count = Annotated[int, Field(ge=1, le=10_000)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST_SEED)]
Limit = Annotated[int, Field(ge=0, le=1_000_000)]
Probability = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=100)]


class ImageSchema(BaseModel):
    """Pictures of a text."""

    model_config = _FORM
    prompt: Annotated[str, Field(min_length=1)]
    """What the pictures show, in a language the model knows."""
    style: str | None = None
    """One of the model's styles, see GET /v1/model; it is put into words around the prompt."""
    n: Count = 1
    """How many pictures."""
    seed: Seed | None = None
    """The i-th picture is drawn with seed + i; the same request with the same seed gives the same pictures. Null: any."""
    candidates: Count | None = None
    """Draw so many pictures and answer with those n that fit the prompt best; needs a dual encoder."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How far to turn from what the model would draw without the text; 1: not at all."""
    temperature: Temperature = 1.0
    """0: always the likeliest token."""
    top_k: Limit = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: Probability = 1.0
    """Draw from the likeliest tokens that add up to p."""
    image: str | None = None
    """A picture file in base64 whose upper rows stay: the model completes it."""
    keep_rows: Count | None = None
    """How many rows of tokens of the picture stay; half of them if null."""
    lora: str | None = None
    """One of the server's adapters, see GET /v1/model; null: the model itself."""


class ImagesRequest(ImageSchema):
    """What POST /v1/images takes."""

    response_format: Literal["b64_json", "png"] = "b64_json"
    """`png`: the answer is the picture file itself; only for one picture that is not streamed."""
    stream: bool = False
    """Answer with server-sent events: the `place` in the queue while it waits, `partial` pictures, each `picture` that is done
    before the others, then `done` with the full answer, or `error`."""
    partial_every: Count | None = None
    """Tokens between two `partial` events; an eighth of the picture if null, and at least a 32nd."""


class CaptionSchema(BaseModel):
    """Captions of a picture."""

    model_config = _FORM
    image: Annotated[str, Field(min_length=1)]
    """A picture file in base64."""
    n: Count = 1
    """How many captions; more than one need a temperature."""
    beams: Count = 1
    """Search with so many beams for the likeliest caption; 1: no search."""
    temperature: Temperature = 0.0
    """0: always the likeliest token."""
    top_k: Limit = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: Probability = 1.0
    """Draw from the likeliest tokens that add up to p."""
    seed: Seed | None = None
    """The i-th caption is drawn with seed + i. Null: any."""
    lora: str | None = None
    """One of the server's adapters, see GET /v1/model; null: the model itself."""


class AnswerSchema(CaptionSchema):
    """Answers to a question about a picture."""

    question: Annotated[str, Field(min_length=1)]
    """In a language the model was asked in, see `max_question` of GET /v1/model."""


class Picture(BaseModel):
    """One picture."""

    b64_json: str
    """A PNG file in base64."""
    seed: int
    """With n = 1, no candidates and this seed the same request gives this picture again."""
    score: float | None
    """How well it fits the prompt, in [0, 1]; null without a dual encoder."""


class ImagesAnswer(BaseModel):
    """What POST /v1/images answers."""

    created: int
    """Unix time."""
    seed: int
    prompt: str
    """What the model read: the prompt with its style."""
    data: list[Picture]
    """The best first, if they were chosen among candidates."""


class Caption(BaseModel):
    """One caption."""

    text: str
    score: float | None
    """How well it fits the picture, in [0, 1]; null without a dual encoder."""


class CaptionsAnswer(BaseModel):
    """What POST /v1/captions answers."""

    captions: list[Caption]


class Answer(BaseModel):
    """One answer."""

    text: str


class AnswersAnswer(BaseModel):
    """What POST /v1/answers answers."""

    answers: list[Answer]


class Limits(BaseModel):
    """What a request may ask for at most."""

    n: int
    candidates: int
    prompt_characters: int
    body_bytes: int
    picture_pixels: int


class ModelAnswer(BaseModel):
    """What GET /v1/model answers: all that a page needs to know."""

    version: str
    styles: dict[str, dict[str, str]]
    """By name, for each language how a prompt asks for it, with {} for what is shown."""
    image_size: int
    """Pixels per side."""
    rows: int
    columns: int
    """Of image tokens."""
    image_tokens: int
    max_text: int
    """Tokens that a prompt may have; a Chinese character is one."""
    max_question: int
    """Tokens that a question may have; 0: the model answers none."""
    adapters: list[str]
    """What `lora` may name."""
    dual_encoder: bool
    """Whether there is a dual encoder, for candidates and scores."""
    guidance: bool
    """Whether the model was trained for guidance other than 1."""
    limits: Limits


class RequestError(ValueError):
    """A request for something that the model or the server cannot do; the message is for the client."""


@contextmanager
def request_errors() -> Iterator[None]:
    """What a request made the library refuse, as a `RequestError`; any other error is a bug."""
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error)) from None


class JobFactory:
    """Turns checked requests into jobs for one model; whatever does not fit it is a `RequestError`."""

    def __init__(self, pipeline: ViLGPipeline, adapters: Iterable[str], settings: Settings):
        self._pipeline, self._adapters, self._settings = pipeline, sorted(adapters), settings
        self._config = pipeline.config
        self._decoding = CapacityLimiter(2)  # threads, since a decoded picture takes 4 bytes a pixel

    async def image_job(self, form: ImageSchema, every: int = 0) -> ImageJob:
        """`every`: tokens between two events that show how far the pictures are; 0: none."""
        settings, candidates = self._settings, form.candidates or form.n
        if form.n > settings.max_n:
            raise RequestError(f"n is {form.n}: this server writes at most {settings.max_n} pictures for a request")
        if candidates > settings.max_candidates:
            raise RequestError(f"candidates is {candidates}: this server draws at most {settings.max_candidates}")
        if form.candidates is not None and self._pipeline.dual_encoder is None:
            raise RequestError("this server has no dual encoder to choose among candidates: leave candidates out")
        if candidates < form.n:
            raise RequestError(f"the best of {candidates} candidates cannot be {form.n} pictures: give more candidates")
        if len(form.prompt) > settings.max_characters:
            length = len(form.prompt)
            raise RequestError(f"the prompt has {length} characters, this server reads at most {settings.max_characters}")
        self._check_adapter(form.lora)
        seeds = _seeds(form.seed, candidates)
        with request_errors():
            self._pipeline.check_supported(form.guidance, "codebook")
            prompt = form.prompt if form.style is None else styled(form.prompt, form.style, self._config.styles)
            sampling = Sampling(form.temperature, form.top_k, form.top_p, form.guidance)
            self._pipeline.check_known(form.prompt)
            text = self._pipeline.encode_prompts(prompt)[0]
        image, keep_rows = None, 0
        if form.image is not None:
            rows = self._config.transformer.rows
            keep_rows = form.keep_rows or rows // 2
            if keep_rows >= rows:
                raise RequestError(f"keep_rows is {keep_rows}: the image has {rows} rows of tokens, keep 1 to {rows - 1}")
            image = await self._picture(form.image)
        elif form.keep_rows is not None:
            raise RequestError("keep_rows is for completing an image: give the image too")
        return ImageJob(
            prompt=prompt,
            text=text,
            seeds=seeds,
            sampling=sampling,
            adapter=form.lora,
            keep=form.n,
            image=image,
            keep_rows=keep_rows,
            every=every,
        )

    async def caption_job(self, form: CaptionSchema) -> CaptionJob:
        """The picture decoded, the rest checked; the form may be that of a question."""
        settings, question = self._settings, form.question if isinstance(form, AnswerSchema) else None
        if form.n > settings.max_n:
            raise RequestError(f"n is {form.n}: this server writes at most {settings.max_n} texts for a request")
        if form.beams > settings.max_candidates:
            raise RequestError(f"beams is {form.beams}: this server searches with at most {settings.max_candidates}")
        if form.beams > 1 and (form.n > 1 or form.temperature):
            raise RequestError(
                f"beams is {form.beams}, but a beam search finds one text and draws nothing: leave n and temperature out"
            )
        self._check_adapter(form.lora)
        with request_errors():
            self._pipeline.check_captions()
            sampling = Sampling(form.temperature, form.top_k, form.top_p)
            if question is not None:
                self._pipeline.check_answers()
                self._pipeline.encode_questions(question)
        image, seeds = await self._picture(form.image), _seeds(form.seed, form.n)
        options = {"adapter": form.lora, "question": question, "num_beams": form.beams}
        return CaptionJob(seeds=seeds, sampling=sampling, image=image, **options)

    def model(self) -> ModelAnswer:
        """What the model is and what may be asked of it."""
        config, settings = self._config, self._settings
        empty = len(self._pipeline.text_tokenizer.encode(""))
        return ModelAnswer(
            version=__version__,
            styles=config.styles,
            image_size=config.image_size,
            rows=config.transformer.rows,
            columns=config.transformer.columns,
            image_tokens=config.transformer.image_length,
            max_text=config.transformer.max_text_length - empty,
            max_question=max(0, config.transformer.question_length - empty),
            adapters=self._adapters,
            dual_encoder=self._pipeline.dual_encoder is not None,
            guidance=config.classifier_free_guidance,
            limits=Limits(
                n=settings.max_n,
                candidates=settings.max_candidates,
                prompt_characters=settings.max_characters,
                body_bytes=settings.max_body,
                picture_pixels=settings.max_pixels,
            ),
        )

    def _check_adapter(self, name: str | None) -> None:
        if name is not None and name not in self._adapters:
            known = ", ".join(self._adapters)
            raise RequestError(f"lora is {name!r}: this server has {f'the adapters {known}' if known else 'no adapters'}")

    async def _picture(self, encoded: str) -> np.ndarray:
        # Browsers put this before the base64 of a file: data:image/png;base64,
        if encoded.startswith("data:"):
            encoded = encoded.partition(",")[2]
        try:
            content = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("image is not base64") from None
        size, most = self._config.image_size, self._settings.max_pixels
        with request_errors():
            return await to_thread.run_sync(decode_image, content, size, most, limiter=self._decoding)


def error_message(error: ValidationError) -> str:
    """The first thing that is wrong, as a sentence with the field's name; FastAPI's errors have the same form."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")[:100]
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {message}" if where else message


def _seeds(seed: int | None, count: int) -> list[int]:
    first = secrets.randbelow(2**31) if seed is None else seed
    return [first + i for i in range(count)]


def png(picture: np.ndarray) -> bytes:
    """A PNG file of uint8 RGB [H, W, 3]."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def png_base64(picture: np.ndarray) -> str:
    """As `png`, in base64."""
    return base64.b64encode(png(picture)).decode()
