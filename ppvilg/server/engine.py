"""One thread that owns the model, and what the asyncio side says to it.

Requests become jobs. The thread writes the pictures of all jobs in one batch, which they join as soon as there is room and
leave when they are finished, late or no longer wanted; between steps it writes captions.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from ppvilg.generate.continuous import ImageBatch, Writing
from ppvilg.generate.decoding import Written
from ppvilg.generate.painting import paint
from ppvilg.generate.sampling import Sampling
from ppvilg.matching import Scorer, scores
from ppvilg.pipeline import Pipeline
from ppvilg.server.metrics import Metrics
from ppvilg.server.settings import Settings

_log = logging.getLogger("ppvilg.server")
_PAINTED = 16  # pictures that are painted at once
_UNREAD = 16  # events that wait for a slow reader; it then misses partial pictures


class Busy(Exception):
    """The queue is full, or the server is about to stop."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it may be worth another try."""


class Late(Exception):
    """A request was not finished by its deadline."""


@dataclass(frozen=True)
class Partial:
    """Pictures that are half done."""

    tokens: int
    """How many tokens of each picture stand."""
    pictures: list[np.ndarray]
    """Uint8 [H, W, 3]; what is missing is painted as code 0."""


@dataclass(frozen=True)
class Result:
    """What a job asked for, the best first where a matching model chose."""

    items: list
    """Pictures uint8 [H, W, 3], or captions."""
    seeds: list[int]
    """Of each item."""
    scores: list[float] | None
    """How well picture and text fit, in [0, 1], for each item; None without a matching model."""


@dataclass(eq=False, kw_only=True)
class _Job:
    """What both kinds of jobs have. Only the engine's thread changes a job that was submitted."""

    seeds: list[int]
    sampling: Sampling
    deadline: float = field(default=0.0, init=False)
    """By time.monotonic()."""
    cancelled: bool = field(default=False, init=False)
    events: asyncio.Queue = field(default_factory=asyncio.Queue, init=False)
    loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)

    def tell(self, event: Partial | Result | Exception) -> None:
        """Hand an event to the asyncio side; an exception or a result is the last one."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop was closed: nobody is left to hear it
            self.cancelled = True


@dataclass(eq=False, kw_only=True)
class PictureJob(_Job):
    """Pictures of one text, one for each seed."""

    prompt: str
    text: list[int]
    """Token ids of the prompt."""
    keep: int
    """How many of the pictures are wanted: the best ones, if there is a matching model."""
    given: np.ndarray | None = None
    """Uint8 [H, W, 3]: a picture whose upper rows stand already."""
    keep_rows: int = 0
    every: int = 0
    """Tokens between two `Partial` events; 0: none."""
    waiting: list[int] = field(default_factory=list, init=False)
    """Seeds that have not joined the batch yet."""
    parts: list[Writing] = field(default_factory=list, init=False)
    tokens: np.ndarray | None = field(default=None, init=False)
    """Int64 [k]: the tokens of the rows that stand already."""
    told: int = field(default=0, init=False)
    """Tokens of the last `Partial`."""

    @property
    def per_picture(self) -> int:
        """Sequences that each picture takes."""
        return 2 if self.sampling.guidance != 1 else 1

    @property
    def size(self) -> int:
        """Sequences in all."""
        return len(self.seeds) * self.per_picture


@dataclass(eq=False, kw_only=True)
class CaptionJob(_Job):
    """Captions of one picture."""

    picture: np.ndarray
    """Uint8 [H, W, 3]."""
    beams: int = 1

    @property
    def size(self) -> int:
        """Sequences in all."""
        return max(len(self.seeds), self.beams)


class Engine:
    """Starts its thread; `close` ends it. All other methods are the asyncio side's."""

    def __init__(self, pipeline: Pipeline, scorer: Scorer | None, metrics: Metrics, settings: Settings):
        self._pipeline, self._scorer, self._metrics = pipeline, scorer, metrics
        self._capacity, self._queue, self._deadline = settings.capacity, settings.queue, settings.deadline
        self._image_tokens = pipeline.config.image_tokens
        self._batch = self._new_batch()
        self._changed = threading.Condition()
        # These two are shared; the lock of `_changed` guards them.
        self._pictures: deque[PictureJob] = deque()  # that wait, wholly or in part
        self._captions: deque[CaptionJob] = deque()
        self.draining = False
        self._closing = False
        self._running: list[PictureJob] = []  # with pictures in the batch
        self._steps_since_caption = 0
        metrics.queue.set_function(self._waiting)
        metrics.running.set_function(lambda: self._batch.sequences)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: PictureJob | CaptionJob) -> None:
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
            if isinstance(job, PictureJob):
                job.waiting = list(job.seeds)
                self._pictures.append(job)
            else:
                self._captions.append(job)
            self._changed.notify()

    async def events(self, job: PictureJob | CaptionJob) -> AsyncIterator[Partial | Result]:
        """What becomes of a job: any number of `Partial`, then a `Result`.

        Closing the iterator, or cancelling who waits for it, gives the job up. Raises `Late` after the deadline and `UserError`
        for what the model refuses.
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

    async def result(self, job: PictureJob | CaptionJob) -> Result:
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
        pictures = sum(len(job.waiting) * job.per_picture for job in tuple(self._pictures))
        return pictures + sum(job.size for job in tuple(self._captions))

    # What follows runs in the engine's thread.

    def _new_batch(self) -> ImageBatch:
        pipeline = self._pipeline
        return ImageBatch(pipeline.model, pipeline.text, pipeline.config.text.max_length)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._pictures or self._captions or self._running or self._closing):
                    self._changed.wait()
                if not (self._pictures or self._captions or self._running):
                    return
            try:
                self._turn()
            except Exception as error:  # a bug: those who were in it hear of it, the others go on
                self._fail(error)

    def _turn(self) -> None:
        """Let jobs go and come, then one step of the batch, with a caption before it where one is due."""
        self._give_up()
        self._admit()
        # A caption takes about as long as so many steps of the batch.
        if self._captions and (not self._running or self._steps_since_caption >= self._pipeline.config.text.max_length):
            with self._changed:
                job = self._captions.popleft()
            self._caption(job)
            self._steps_since_caption = 0
        if self._running:
            written = sum(len(part.seeds) for part in self._unfinished(self._running))
            self._batch.step()
            self._metrics.wrote(written)
            self._steps_since_caption += 1
            self._report()

    def _give_up(self) -> None:
        """Forget jobs whose clients have gone or whose time is over."""
        now = time.monotonic()
        with self._changed:
            jobs = {*self._pictures, *self._captions, *self._running}
            gone = {job for job in jobs if job.cancelled or job.deadline < now}
            if gone:
                self._pictures = deque(job for job in self._pictures if job not in gone)
                self._captions = deque(job for job in self._captions if job not in gone)
        if not gone:
            return
        self._batch.leave(self._unfinished([job for job in self._running if job in gone]))
        self._running = [job for job in self._running if job not in gone]
        for job in gone:
            if job.cancelled:
                self._metrics.cancelled.inc()
            else:
                self._metrics.late.inc()
                job.tell(Late(f"not finished within {self._deadline:g} seconds: ask for less, or again later"))

    def _admit(self) -> None:
        """Let waiting pictures join while there is room, in the order of their requests."""
        joining: list[tuple[PictureJob, list[int]]] = []
        free = self._capacity - self._batch.sequences
        with self._changed:
            while self._pictures and free >= self._pictures[0].per_picture:
                job = self._pictures[0]
                count = free // job.per_picture
                seeds, job.waiting = job.waiting[:count], job.waiting[count:]
                free -= len(seeds) * job.per_picture
                joining.append((job, seeds))
                if not job.parts:
                    self._running.append(job)
                if not job.waiting:
                    self._pictures.popleft()
        parts = []
        for job, seeds in joining:
            if job.given is not None and job.tokens is None:
                job.tokens = self._pipeline.tokens([job.given])[0, : job.keep_rows * self._pipeline.config.grid[1]]
            parts.append(Writing(job.text, seeds, job.sampling, job.tokens))
            job.parts.append(parts[-1])
        if parts:
            self._batch.join(parts)

    def _report(self) -> None:
        """Tell the jobs that are finished, or that want to see how far they are."""
        told: list[tuple[PictureJob, int, np.ndarray]] = []
        for job in self._running:
            tokens = 0 if job.waiting else min(part.written for part in job.parts)
            written = np.concatenate([part.tokens for part in job.parts])
            if tokens == self._image_tokens:
                told.append((job, tokens, written))
            elif job.every and tokens % job.every == 0 and tokens > job.told and job.events.qsize() < _UNREAD:
                job.told = tokens
                told.append((job, tokens, written[: job.keep]))
        if not told:
            return
        pictures = iter(self._painted(np.concatenate([written for *_, written in told])))
        for job, tokens, written in told:
            own = [next(pictures) for _ in written]
            job.tell(Partial(tokens, own) if tokens < self._image_tokens else self._chosen(job, own))
        done = {job for job, tokens, _ in told if tokens == self._image_tokens}
        self._running = [job for job in self._running if job not in done]

    def _painted(self, tokens: np.ndarray) -> list[np.ndarray]:
        parts = [Written(tokens[first : first + _PAINTED], []) for first in range(0, len(tokens), _PAINTED)]
        return [picture for part in parts for picture in paint(self._pipeline.model, self._pipeline.vqgan, part)]

    def _chosen(self, job: PictureJob, pictures: list[np.ndarray]) -> Result:
        if self._scorer is None:
            return Result(pictures, job.seeds, None)
        fits = scores(self._scorer, np.stack(pictures), [job.prompt] * len(pictures))
        order = np.argsort(-fits, kind="stable")[: job.keep] if job.keep < len(pictures) else range(len(pictures))
        return Result([pictures[i] for i in order], [job.seeds[i] for i in order], [float(fits[i]) for i in order])

    def _caption(self, job: CaptionJob) -> None:
        try:
            texts = self._pipeline.caption([job.picture], len(job.seeds), job.seeds[0], job.sampling, job.beams)[0]
            fits = None
            if self._scorer is not None:
                fits = scores(self._scorer, np.stack([job.picture] * len(texts)), texts).tolist()
            job.tell(Result(texts, job.seeds, fits))
        except Exception as error:  # a mistake in the request, or a bug: the asyncio side tells them apart
            job.tell(error)

    def _fail(self, error: Exception) -> None:
        """After a bug nothing is known of the batch: start a new one."""
        _log.error("the batch was given up after %r", error)
        self._batch = self._new_batch()
        failed, self._running = self._running, []
        with self._changed:
            self._pictures = deque(job for job in self._pictures if job not in failed)
        for job in failed:
            job.tell(error)

    def _unfinished(self, jobs: list[PictureJob]) -> list[Writing]:
        return [part for job in jobs for part in job.parts if part.written < self._image_tokens]
