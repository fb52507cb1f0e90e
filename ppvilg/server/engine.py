"""One thread that owns the model, and what the asyncio side says to it.

Requests become jobs. The thread generates the images of all jobs in one batch, which they join as soon as there is room and
leave when they are finished, late or no longer wanted; between steps it writes captions.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ppvilg.dual_encoder import scores
from ppvilg.generate.engine import GenerationEngine, GenerationRequest, ImageTokens
from ppvilg.generate.images import decode_images
from ppvilg.generate.sampling import Sampling
from ppvilg.model.mask import Direction
from ppvilg.pipeline import ViLGPipeline
from ppvilg.server.metrics import Metrics
from ppvilg.server.settings import Settings

_log = logging.getLogger("ppvilg.server")
_DECODED = 16  # images that are decoded at once
_UNREAD = 16  # events that wait for a slow reader; it then misses partial images


class Busy(Exception):
    """The queue is full, or the server is about to stop."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it may be worth another try."""


class Late(Exception):
    """A request was not finished by its deadline."""


@dataclass(frozen=True)
class Queued:
    """No image of the job has been begun."""

    place: int
    """Jobs before it; 0: it is the next."""


@dataclass(frozen=True)
class Finished:
    """One image of several, while others are not finished."""

    index: int
    """Which of the job's images."""
    image: np.ndarray
    """Uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Partial:
    """Images that are not finished."""

    tokens: int
    """How many tokens each image has so far."""
    images: list[np.ndarray]
    """Uint8 [H, W, 3]; missing tokens are decoded as code 0."""


@dataclass(frozen=True)
class Result:
    """What a job asked for, the best first where a dual encoder chose."""

    items: list
    """Images uint8 [H, W, 3], captions, or answers."""
    seeds: list[int]
    """Of each item."""
    scores: list[float] | None
    """How well image and text fit, in [0, 1], for each item; None without a dual encoder, and for answers."""


Event = Queued | Partial | Finished | Result


@dataclass(eq=False, kw_only=True)
class _Job:
    """What both kinds of jobs have. Only the engine's thread changes a job that was submitted."""

    seeds: list[int]
    sampling: Sampling
    adapter: str | None = None
    """The name of the adapter whose updates the model has for it."""
    deadline: float = field(default=0.0, init=False)
    """By time.monotonic()."""
    cancelled: bool = field(default=False, init=False)
    events: asyncio.Queue = field(default_factory=asyncio.Queue, init=False)
    loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)

    def emit(self, event: Event | Exception) -> None:
        """Hand an event to the asyncio side; an exception or a result is the last one."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop was closed: nobody is left to hear it
            self.cancelled = True


@dataclass(eq=False, kw_only=True)
class ImageJob(_Job):
    """Images of one text, one for each seed."""

    prompt: str
    text: list[int]
    """Token ids of the prompt."""
    keep: int
    """How many of the images are wanted: the best ones, if there is a dual encoder."""
    image: np.ndarray | None = None
    """Uint8 [H, W, 3]: an image to complete, whose upper rows are kept."""
    keep_rows: int = 0
    every: int = 0
    """Tokens between two `Partial` events; 0: no events but the result."""
    waiting: list[int] = field(default_factory=list, init=False)
    """Seeds that have not joined the batch yet."""
    requests: list[GenerationRequest] = field(default_factory=list, init=False)
    """Those that have; together they have the other seeds."""
    prefix_tokens: np.ndarray | None = field(default=None, init=False)
    """Int64 [k]: the tokens of the rows that are kept."""
    emitted: int = field(default=0, init=False)
    """Tokens of the last `Partial`."""
    place: int | None = field(default=None, init=False)
    """Of the last `Queued`."""
    shown: list[GenerationRequest] = field(default_factory=list, init=False)
    """Those whose images were `Finished`."""

    @property
    def per_image(self) -> int:
        """Sequences that each image takes."""
        return 2 if self.sampling.guidance != 1 else 1

    @property
    def size(self) -> int:
        """Sequences in all."""
        return len(self.seeds) * self.per_image


@dataclass(eq=False, kw_only=True)
class CaptionJob(_Job):
    """Captions of one image, or answers to a question about it."""

    image: np.ndarray
    """Uint8 [H, W, 3]."""
    question: str | None = None
    num_beams: int = 1

    @property
    def size(self) -> int:
        """Sequences in all."""
        return max(len(self.seeds), self.num_beams)


class Engine:
    """Starts its thread; `close` ends it. All other methods are the asyncio side's."""

    def __init__(self, pipeline: ViLGPipeline, adapters: dict[str, ViLGPipeline], metrics: Metrics, settings: Settings):
        self._pipelines: dict[str | None, ViLGPipeline] = {None: pipeline} | adapters
        self._pipeline, self._scorer, self._metrics = pipeline, pipeline.dual_encoder, metrics
        self._capacity, self._queue, self._deadline = settings.capacity, settings.queue, settings.deadline
        self._image_length = pipeline.config.transformer.image_length
        self._batches = self._new_batches()
        self._changed = threading.Condition()
        # These two are shared; the lock of `_changed` guards them.
        self._images: deque[ImageJob] = deque()  # that wait, wholly or in part
        self._captions: deque[CaptionJob] = deque()
        self.draining = False
        self._closing = False
        self._running: list[ImageJob] = []  # with images in the batch
        self._steps_since_caption = 0
        metrics.queue.set_function(self._waiting)
        metrics.running.set_function(self._sequences)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: ImageJob | CaptionJob) -> None:
        """Accept a job, to be followed with `events`; raises `Busy` for a full queue or a draining server."""
        job.loop = asyncio.get_running_loop()
        job.deadline = time.monotonic() + self._deadline
        with self._changed:
            if self.draining:
                self._metrics.rejected.inc()
                raise Busy("the server is about to stop: ask again later", 10)
            waiting = self._waiting()
            if waiting + job.size > self._queue:
                self._metrics.rejected.inc()
                raise Busy(f"{waiting} sequences wait already, at most {self._queue} may: ask again later", 2)
            if isinstance(job, ImageJob):
                job.waiting = list(job.seeds)
                self._images.append(job)
            else:
                self._captions.append(job)
            self._changed.notify()

    async def events(self, job: ImageJob | CaptionJob) -> AsyncIterator[Event]:
        """What becomes of a job: any number of `Queued`, `Partial` and `Finished` where it asked for them, then a `Result`.

        Closing the iterator, or cancelling who waits for it, gives the job up. Raises `Late` after the deadline.
        """
        event = None
        try:
            while not isinstance(event, Result | Exception):
                event = await job.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            if not isinstance(event, Result | Exception):
                with self._changed:
                    job.cancelled = True
                    self._changed.notify()

    async def result(self, job: ImageJob | CaptionJob) -> Result:
        """Submit a job and wait for its end; raises as `submit` and `events` do."""
        self.submit(job)
        async for event in self.events(job):
            result = event
        return result

    def drain(self) -> None:
        """Refuse new jobs from now on; those that were accepted are finished."""
        with self._changed:
            self.draining = True

    def close(self) -> None:
        """Drain, wait until all jobs are finished, and end the thread."""
        with self._changed:
            self.draining = self._closing = True
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> int:
        images = sum(len(job.waiting) * job.per_image for job in tuple(self._images))
        return images + sum(job.size for job in tuple(self._captions))

    # What follows runs in the engine's thread.

    def _new_batches(self) -> dict[str | None, GenerationEngine]:
        """One for each adapter and one without, which step in turn: the model has one adapter's updates at a time."""
        max_length, tokenizer = self._pipeline.config.transformer.max_text_length, self._pipeline.text_tokenizer
        return {
            name: GenerationEngine(pipeline.model, Direction.TEXT_TO_IMAGE, tokenizer, max_length)
            for name, pipeline in self._pipelines.items()
        }

    def _sequences(self) -> int:
        """In all batches."""
        return sum(batch.sequences for batch in self._batches.values())

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._images or self._captions or self._running or self._closing):
                    self._changed.wait()
                if not (self._images or self._captions or self._running):
                    return
            try:
                self._turn()
            except Exception as error:  # a bug: those who were in it hear of it, the others go on
                self._fail(error)

    def _turn(self) -> None:
        """Let jobs go and come, then one step of the batch, with a caption before it where one is due."""
        self._give_up()
        self._admit()
        self._tell_places()
        # A caption takes about as long as so many steps of the batch.
        caption_steps = self._pipeline.config.transformer.max_text_length
        if self._captions and (not self._running or self._steps_since_caption >= caption_steps):
            with self._changed:
                job = self._captions.popleft()
            self._caption(job)
            self._steps_since_caption = 0
        if self._running:
            count = sum(len(request.seeds) for request in self._unfinished(self._running))
            for batch in self._batches.values():
                if batch.sequences:
                    batch.step()
            self._metrics.wrote(count)
            self._steps_since_caption += 1
            self._report()

    def _give_up(self) -> None:
        """Forget jobs whose clients have gone or whose time is over."""
        now = time.monotonic()
        with self._changed:
            jobs = {*self._images, *self._captions, *self._running}
            gone = {job for job in jobs if job.cancelled or job.deadline < now}
            if gone:
                self._images = deque(job for job in self._images if job not in gone)
                self._captions = deque(job for job in self._captions if job not in gone)
        if not gone:
            return
        for name, batch in self._batches.items():
            batch.leave(self._unfinished([job for job in self._running if job in gone and job.adapter == name]))
        self._running = [job for job in self._running if job not in gone]
        for job in gone:
            if job.cancelled:
                self._metrics.cancelled.inc()
            else:
                self._metrics.late.inc()
                job.emit(Late(f"not finished within {self._deadline:g} seconds: ask for less, or again later"))

    def _admit(self) -> None:
        """Let waiting images join while there is room, in the order of their requests."""
        joining: list[tuple[ImageJob, list[int]]] = []
        free = self._capacity - self._sequences()
        with self._changed:
            while self._images and free >= self._images[0].per_image:
                job = self._images[0]
                count = free // job.per_image
                seeds, job.waiting = job.waiting[:count], job.waiting[count:]
                free -= len(seeds) * job.per_image
                joining.append((job, seeds))
                if not job.requests:
                    self._running.append(job)
                if not job.waiting:
                    self._images.popleft()
        requests: dict[str | None, list[GenerationRequest]] = {}
        for job, seeds in joining:
            if job.image is not None and job.prefix_tokens is None:
                kept = job.keep_rows * self._pipeline.config.transformer.columns
                job.prefix_tokens = self._pipeline.encode_images([job.image])[0, :kept]
            job.requests.append(GenerationRequest(job.text, seeds, job.sampling, job.prefix_tokens))
            requests.setdefault(job.adapter, []).append(job.requests[-1])
        for name, own in requests.items():
            self._batches[name].join(own)

    def _tell_places(self) -> None:
        """Emit its place to each job that waits and wants events, where it changed."""
        with self._changed:
            waiting = [job for job in self._images if not job.requests]
        for place, job in enumerate(waiting):
            if job.every and job.place != place:
                job.place = place
                job.emit(Queued(place))

    def _report(self) -> None:
        """Emit the results of jobs that are finished, and to those that want events their images so far."""
        due: list[tuple[np.ndarray, Callable[[list[np.ndarray]], None]]] = []  # tokens, and what takes their images
        done: set[ImageJob] = set()
        for job in self._running:
            length = 0 if job.waiting else min(request.length for request in job.requests)
            tokens = np.concatenate([request.tokens for request in job.requests])
            if length == self._image_length:
                done.add(job)
                due.append((tokens, partial(self._finish, job)))
                continue
            if not job.every:
                continue
            if job.keep == len(job.seeds):  # else nobody knows yet which images the answer will have
                for request in job.requests:
                    if request.length == self._image_length and request not in job.shown:
                        job.shown.append(request)
                        due.append((request.tokens, partial(self._show, job, job.seeds.index(request.seeds[0]))))
            if length % job.every == 0 and length > job.emitted and job.events.qsize() < _UNREAD:
                job.emitted = length
                due.append((tokens[: job.keep], partial(self._grow, job, length)))
        if not due:
            return
        images = iter(self._decoded(np.concatenate([tokens for tokens, _ in due])))
        for tokens, emit in due:
            emit([next(images) for _ in tokens])
        self._running = [job for job in self._running if job not in done]

    def _finish(self, job: ImageJob, images: list[np.ndarray]) -> None:
        job.emit(self._best(job, images))

    def _show(self, job: ImageJob, first: int, images: list[np.ndarray]) -> None:
        for i, image in enumerate(images):
            job.emit(Finished(first + i, image))

    def _grow(self, job: ImageJob, length: int, images: list[np.ndarray]) -> None:
        job.emit(Partial(length, images))

    def _decoded(self, tokens: np.ndarray) -> list[np.ndarray]:
        parts = [ImageTokens(tokens[first : first + _DECODED]) for first in range(0, len(tokens), _DECODED)]
        return [image for part in parts for image in decode_images(self._pipeline.model, self._pipeline.vqgan, part)]

    def _best(self, job: ImageJob, images: list[np.ndarray]) -> Result:
        if self._scorer is None:
            return Result(images, job.seeds, None)
        fits = scores(self._scorer, np.stack(images), [job.prompt] * len(images))
        order = np.argsort(-fits, kind="stable")[: job.keep] if job.keep < len(images) else range(len(images))
        return Result([images[i] for i in order], [job.seeds[i] for i in order], [float(fits[i]) for i in order])

    def _caption(self, job: CaptionJob) -> None:
        how, count = job.sampling, len(job.seeds)
        options = {"num_beams": job.num_beams, "temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
        options["seed"] = job.seeds[0]
        try:
            pipeline = self._pipelines[job.adapter]
            if job.question is None:
                texts = pipeline.caption([job.image], count, **options)[0]
            else:
                texts = pipeline.answer([job.image], job.question, count, **options)[0]
            fits = None
            if self._scorer is not None and job.question is None:
                fits = scores(self._scorer, np.stack([job.image] * len(texts)), texts).tolist()
            job.emit(Result(texts, job.seeds, fits))
        except Exception as error:  # a bug, since the request was checked; only this job hears of it
            job.emit(error)

    def _fail(self, error: Exception) -> None:
        """After a bug nothing is known of the batches: start new ones."""
        _log.error("the batches were given up after %r", error)
        self._batches = self._new_batches()
        failed, self._running = self._running, []
        with self._changed:
            self._images = deque(job for job in self._images if job not in failed)
        for job in failed:
            job.emit(error)

    def _unfinished(self, jobs: list[ImageJob]) -> list[GenerationRequest]:
        return [request for job in jobs for request in job.requests if request.length < self._image_length]
