"""The models of a server: one thread computes for all of them, and what it draws reaches the event loop in queues.

A backend is used by one thread only: models are loaded there, too, between steps. Everything else happens on the event
loop, so that nothing here needs a lock.
"""

import asyncio
import functools
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alpha import checkpoint
from alpha.backend import Backend
from alpha.engine import Engine, Event, Generation, Request, RequestError
from alpha.errors import AlphaError
from alpha.gpt import GPT
from alpha.model_loading import LoadedModel, load_model
from alpha.option import nearest
from alpha.run_reader import resolve
from alpha.server_fields import RefusedError
from alpha.thread_choice import ThreadChoice

T = TypeVar("T")

RETRY_SECONDS = 1
"""What a client is told to wait when the queue is full."""


@dataclass(frozen=True)
class Limits:
    """How much a server takes on: requests that run at a time and that wait, tokens in the cache of each model."""

    max_batch: int = 16
    max_queue: int = 256
    cache_tokens: int | None = None
    threads: int = 0


class EngineThread:
    """The thread that steps engines, and does other work with the backend between steps."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wake = threading.Event()
        self._work: deque[Callable[[], None]] = deque()
        self._engines: tuple[tuple[Engine, Callable[[list[Event]], None]], ...] = ()
        self._is_closing = False
        self.failure = ""
        """Why it has ended before its time."""
        self._on_failure: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[], T]) -> T:
        """Do some work between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # it is raised where the result is waited for
                future.set_exception(error)

        if self.failure:
            raise RefusedError(self.failure, status=503)
        self._work.append(run)
        self.wake()
        return await asyncio.wrap_future(future)

    def add(self, engine: Engine, deliver: Callable[[list[Event]], None], on_failure: Callable[[], None]) -> None:
        """Step this engine, too; its events are delivered on the event loop, those of a step at once."""
        self._engines = (*self._engines, (engine, deliver))
        self._on_failure.append(on_failure)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def close(self) -> None:
        """End after the step under way."""
        self._is_closing = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._wake.wait()
                self._wake.clear()
                while not self._is_closing and self._round():
                    pass
        except Exception as error:
            # A programming error: it is shown, and whoever waits for an answer gets one.
            traceback.print_exc()
            self.failure = f"The server has a fault, {type(error).__name__}; its log says more."
            self._loop.call_soon_threadsafe(lambda: [tell() for tell in self._on_failure])

    def _round(self) -> bool:
        """One step of each engine; whether there was anything to do."""
        is_busy = False
        while self._work:
            self._work.popleft()()
            is_busy = True
        for engine, deliver in self._engines:
            if engine.is_busy:
                is_busy = True
                if events := engine.step():
                    self._loop.call_soon_threadsafe(deliver, events)
        return is_busy


class ServedModel:
    """A model that answers. For the event loop's thread only."""

    def __init__(self, name: str, loaded: LoadedModel, engine: Engine, thread: EngineThread, limits: Limits) -> None:
        self.name = name
        self.loaded = loaded
        self.engine = engine
        self.limits = limits
        self._thread = thread
        self._queues: dict[Generation, asyncio.Queue[Event | None]] = {}
        thread.add(engine, self._deliver, self._fail)

    @asynccontextmanager
    async def generations(self, requests: Sequence[Request], field: str) -> AsyncIterator["Running"]:
        """Requests under way. What has not ended when the context is left is cancelled, and freed before the next step.

        Raises RefusedError, which names the field, when one of them can never be answered, or when too many wait.
        """
        self._check_room(len(requests))
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        started: list[Generation] = []
        try:
            for request in requests:
                started.append(self.engine.submit(request))
                self._queues[started[-1]] = queue
            self._thread.wake()
            yield Running(started, queue, self)
        except RequestError as error:
            raise _refusal(error, field) from error
        finally:
            for generation in started:
                if self._queues.pop(generation, None):
                    self.cancel(generation)

    def cancel(self, generation: Generation) -> None:
        """End a generation; nothing more is heard of it."""
        self._queues.pop(generation, None)
        self.engine.cancel(generation)
        self._thread.wake()

    def check(self) -> None:
        """Raises RefusedError when the model answers no more."""
        if self._thread.failure:
            raise RefusedError(self._thread.failure, status=503)

    def _check_room(self, count: int) -> None:
        self.check()
        waiting = self.engine.waiting
        if waiting and waiting + count > self.limits.max_queue:
            raise RefusedError(f"{waiting} texts wait already; try again later.", status=429, code="queue_full")

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            queue = self._queues.get(event.generation)
            if queue is not None:
                queue.put_nowait(event)
                if event.reason is not None:
                    del self._queues[event.generation]

    def _fail(self) -> None:
        for queue in set(self._queues.values()):
            queue.put_nowait(None)


@dataclass(frozen=True)
class Running:
    """Generations under way, in the order of their requests."""

    generations: list[Generation]
    _queue: asyncio.Queue[Event | None]
    _model: ServedModel

    async def event(self) -> Event:
        """The next event of any. Raises RefusedError, with status 503, when there will be none or it is an error's."""
        event = await self._queue.get()
        if event is None:
            self._model.check()
            raise AssertionError("the thread has not failed")
        if event.reason == "error":
            raise RefusedError(event.generation.message, status=503)
        return event

    def stop(self, generation: Generation) -> None:
        """This one has said enough."""
        self._model.cancel(generation)


class Models:
    """Models by name. For the event loop's thread only, but for `open`."""

    def __init__(self, backend: Backend, limits: Limits, names: Sequence[str]) -> None:
        self._backend = backend
        self._limits = limits
        """Raises AlphaError when there is no such checkpoint."""
        self._paths: dict[str, Path] = {}
        for name in names:
            found = resolve(name)
            path = checkpoint.find(found)
            if self._paths.setdefault(_id_of(found), path) != path:
                raise AlphaError(f"Two checkpoints would have the same name, {_id_of(found)}; name only one of them.")
        self._served: dict[str, ServedModel] = {}
        self._thread: EngineThread | None = None

    async def start(self) -> None:
        """Load what was named. Raises AlphaError when a checkpoint cannot be used."""
        self._thread = EngineThread(asyncio.get_running_loop())
        for name, path in self._paths.items():
            loaded, engine = await self._thread.call(functools.partial(self._load, path))
            self._served[name] = ServedModel(name, loaded, engine, self._thread, self._limits)

    def close(self) -> None:
        """End the thread."""
        if self._thread:
            self._thread.close()

    @property
    def names(self) -> list[str]:
        return list(self._paths)

    def listed(self) -> list[ServedModel]:
        return list(self._served.values())

    async def get(self, name: str) -> ServedModel:
        """The model of this name; the only one where none is given. Raises RefusedError when there is none."""
        if not name and len(self._served) == 1:
            return next(iter(self._served.values()))
        if not name:
            raise RefusedError(f"model is missing. {nearest('', self._served)}", "model")
        if name not in self._served:
            raise RefusedError(
                f"There is no model {name[:100]!r}. {nearest(name[:100], self._served)}",
                "model",
                404,
                "model_not_found",
            )
        return self._served[name]

    def _load(self, path: Path) -> tuple[LoadedModel, Engine]:
        loaded = load_model(str(path), self._backend)

        def reload() -> GPT:
            return load_model(str(path), self._backend).model

        engine = Engine(
            loaded.model,
            max_sequences=self._limits.max_batch,
            cache_tokens=self._limits.cache_tokens,
            threads=ThreadChoice(self._backend, self._limits.threads),
            reload=reload,
        )
        return loaded, engine


def _id_of(path: Path) -> str:
    """A model's name: that of the run's folder, and of one of its checkpoints, with the step: `RUN@500`."""
    try:
        path = path.resolve()
    except OSError as error:
        raise AlphaError(f"Cannot read {path}: {error.strerror}.") from error
    if path.is_dir():
        return path.name
    return f"{path.parent.name}@{path.stem.removeprefix('checkpoint-')}"


def _refusal(error: RequestError, prompt: str) -> RefusedError:
    text = str(error)
    field = next((name for name in ("max_tokens", "logprobs", "seed") if text.startswith(name)), prompt)
    return RefusedError(text, field, code="context_length_exceeded" if "context holds" in text else None)
