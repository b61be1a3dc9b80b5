"""The models of a server: one thread computes for all of them, and what it draws reaches the event loop in queues.

A backend is used by one thread only, which takes the weights of a model that is loaded between steps, one after
another; its file is read elsewhere. Everything else happens on the event loop, so that nothing here needs a lock.
"""

import asyncio
import threading
import traceback
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alpha import checkpoint
from alpha.backend import Backend
from alpha.engine import Engine, Event, Generation, Request, RequestError, token_bytes
from alpha.errors import AlphaError
from alpha.gpt import GPT
from alpha.model_loading import LoadedModel, SharedModels, load_model, place_in_turn, read_parts
from alpha.option import nearest
from alpha.run_reader import find_run, folder_of, id_of, list_runs, resolve
from alpha.scheduler import BLOCK_TOKENS
from alpha.server_fields import RefusedError
from alpha.thread_choice import ThreadChoice

T = TypeVar("T")

RETRY_SECONDS = 1
"""What a client is told to wait when the queue is full."""

SENDING_SECONDS = 0.005
"""How long the next step waits, at most, for first tokens to be on their way."""


@dataclass(frozen=True)
class Limits:
    """How much a server takes on: texts that are computed at a time and that wait, bytes of each cache,
    models."""

    max_batch: int = 16
    max_queue: int = 256
    cache_memory: int | None = None
    threads: int = 0
    max_models: int = 4


class EngineThread:
    """The thread that steps engines, and does other work with the backend between steps."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wake = threading.Event()
        self._work: deque[Callable[[], None]] = deque()
        self._engines: tuple[tuple[Engine, Callable[[list[Event]], None]], ...] = ()
        self._is_closing = False
        self.failure = ""
        """Why there are no answers any more."""
        self._on_failure: dict[Engine, Callable[[], None]] = {}
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
        self._on_failure[engine] = on_failure

    def remove(self, engine: Engine) -> None:
        """Step this engine no more."""
        self._engines = tuple(each for each in self._engines if each[0] is not engine)
        del self._on_failure[engine]

    def free(self, objects: list[object]) -> None:
        """Forget objects between two steps: to give back a model's memory takes some time."""
        self._work.append(objects.clear)
        self.wake()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def refuse(self, failure: str) -> None:
        """Answer nothing any more; whoever waits is told. For the event loop's thread."""
        self.failure = failure
        for tell in self._on_failure.values():
            tell()

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
            self._loop.call_soon_threadsafe(self.refuse, self.failure)

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
                    if any(len(event.generation.ids) == 1 for event in events):
                        self._let_send()
        return is_busy

    def _let_send(self) -> None:
        """Let the event loop send what it was given: beside a step that takes all cores, it is woken late."""
        sent = threading.Event()
        # Whoever waits for an event goes on in the loop's next turn, before what is asked for in this one.
        self._loop.call_soon_threadsafe(lambda: self._loop.call_soon(sent.set))
        sent.wait(SENDING_SECONDS)


class ServedModel:
    """A model that answers. For the event loop's thread only."""

    def __init__(self, name: str, loaded: LoadedModel, engine: Engine, thread: EngineThread, limits: Limits) -> None:
        self.name = name
        self.loaded = loaded
        self.engine = engine
        self.limits = limits
        self._thread = thread
        self._queues: dict[Generation, asyncio.Queue[Event | None]] = {}
        self._users = 0
        self._is_dropped = False
        weakref.finalize(self, thread.free, [loaded, engine]).atexit = False
        thread.add(engine, self._deliver, self._fail)

    @asynccontextmanager
    async def generations(self, requests: Sequence[Request], field: str) -> AsyncIterator["Running"]:
        """Requests under way. What has not ended when the context is left is cancelled, and freed before the next step.

        Raises RefusedError, which names the field, when one of them can never be answered, or when too many wait.
        """
        self._check_room(len(requests))
        if self._is_dropped and not self._users:  # for somebody else's model, while this request was read
            self._thread.add(self.engine, self._deliver, self._fail)
        self._users += 1
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
        except RefusedError:
            raise
        except AlphaError as error:
            raise RefusedError(str(error), status=503) from error
        finally:
            for generation in started:
                if generation in self._queues:
                    self.cancel(generation)
            self._users -= 1
            if self._is_dropped and not self._users:
                self._thread.remove(self.engine)

    def cancel(self, generation: Generation) -> None:
        """End a generation; nothing more is heard of it."""
        self._queues.pop(generation, None)
        self.engine.cancel(generation)
        self._thread.wake()

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return self._users > 0

    def close(self) -> None:
        """Answer no more, so that the memory is free; but what was asked before is answered."""
        self._is_dropped = True
        if not self._users:
            self._thread.remove(self.engine)

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
    """Models by name, loaded when they are first asked for. For the event loop's thread only.

    The name `RUN` means a run's newest checkpoint, whatever that is when it is asked for, and `RUN@500` the one of step
    500. Of more than `limits.max_models`, or when memory is short, the one that was idle for the longest time goes.
    """

    def __init__(self, backend: Backend, limits: Limits, names: Sequence[str], root: Path | None = None) -> None:
        """The checkpoints and runs that are named, else all runs in `root`. AlphaError when one does not exist."""
        self._backend = backend
        self._limits = limits
        self._root = root if not names else None
        self._named: dict[str, Path] = {}
        for name in names:
            path = resolve(name)
            checkpoint.find(path)
            if self._named.setdefault(_id_of(path), path) != path:
                raise AlphaError(f"Two checkpoints would have the same name, {_id_of(path)}; name only one of them.")
        self._served: dict[Path, ServedModel] = {}  # the one that was asked for last comes last
        self._thread: EngineThread | None = None
        self._loading = asyncio.Lock()
        self._shared: SharedModels = weakref.WeakValueDictionary()

    async def start(self) -> None:
        """Load what was named. Raises AlphaError when a checkpoint or the folder of runs cannot be used."""
        self._thread = EngineThread(asyncio.get_running_loop())
        for name, path in list(self._named.items())[: self._limits.max_models]:
            await self._loaded(name, checkpoint.find(path))
        if self._root is not None:
            list_runs(self._root)

    def close(self) -> None:
        """End the thread."""
        if self._thread:
            self._thread.close()

    def refuse(self, failure: str) -> None:
        """Answer nothing any more, for this reason; whoever waits is told."""
        if self._thread:
            self._thread.refuse(failure)

    def check(self) -> None:
        """Raises RefusedError when nothing is answered any more."""
        if self._thread and self._thread.failure:
            raise RefusedError(self._thread.failure, status=503)

    @property
    def loaded(self) -> list[ServedModel]:
        return list(self._served.values())

    @property
    def names(self) -> list[str]:
        """What can be asked for, the newest first. Raises AlphaError when the folder of runs cannot be read."""
        return list(self.steps())

    def steps(self) -> dict[str, list[int]]:
        """The same, with the steps of the checkpoints that can be asked for as `NAME@STEP`."""
        if self._root is None:
            folders = {name: path for name, path in self._named.items() if path.is_dir()}
            return {name: [step for step, _ in _checkpoints(folders[name])] if name in folders else []
                    for name in self._named}  # fmt: skip
        known = {run.run_id: [step for step, _ in _checkpoints(run.folder)] for run in list_runs(self._root)}
        return {name: steps for name, steps in known.items() if steps}

    async def get(self, name: str) -> ServedModel:
        """The model of this name; the only one where none is given.

        Raises RefusedError when there is none, or it cannot be loaded.
        """
        if not name and len(names := self.names) == 1:
            name = names[0]
        if not name:
            raise RefusedError(f"model is missing. {nearest('', self.names)}", "model")
        try:
            path = checkpoint.find(self._find(name))
        except AlphaError as error:
            raise RefusedError(str(error), "model", 404, "model_not_found") from error
        try:
            return await self._loaded(name, path)
        except AlphaError as error:
            raise RefusedError(f"The model {name} cannot be loaded. {error}", status=503) from error

    def _find(self, name: str) -> Path:
        """The run or the checkpoint that a name means; AlphaError when there is none."""
        if name in self._named:
            return self._named[name]
        if self._root is not None and (folder := folder_of(name, self._root)) is not None:
            return folder  # also one whose own name has an @
        run, _, step = name.rpartition("@") if "@" in name else (name, "", "")
        if self._root is not None:
            folder = find_run(run, self._root)
        elif run in self._named and self._named[run].is_dir():
            folder = self._named[run]
        else:
            raise AlphaError(f"There is no model {name[:100]!r}. {nearest(name[:100], self._named)}")
        if not step:
            return folder
        known = {str(number): path for number, path in checkpoint.list_checkpoints(folder)}
        if step not in known:
            raise AlphaError(
                f"The run {run} has no checkpoint of step {step[:20]}; it has {', '.join(known) or 'none'}."
            )
        return known[step]

    async def _loaded(self, name: str, path: Path) -> ServedModel:
        if path in self._served and self._served[path].engine.failure:  # whoever waits for it has been told
            self._served.pop(path).close()
        if path not in self._served:
            async with self._loading:
                if path not in self._served:
                    self._served[path] = await self._load(name, path)
        self._served[path] = self._served.pop(path)
        return self._served[path]

    async def _load(self, name: str, path: Path) -> ServedModel:
        assert self._thread is not None, "the models were started"
        while len(self._served) >= self._limits.max_models and self._drop_one():
            pass
        while True:
            try:
                return await self._loaded_now(self._thread, name, path)
            except MemoryError:
                if not self._drop_one():
                    raise AlphaError("There is not enough memory for it.") from None

    async def _loaded_now(self, thread: EngineThread, name: str, path: Path) -> ServedModel:
        """The model, whose files are read while the thread goes on with what others asked."""
        backend = await thread.call(self._backend.replacement)
        if backend is not self._backend:  # and what is shared went with its device
            self._backend, self._shared = backend, weakref.WeakValueDictionary()
        parts = await asyncio.to_thread(read_parts, path, self._shared)
        turns = place_in_turn(parts, self._backend, self._shared)

        def turn() -> LoadedModel | None:
            try:
                return next(turns)
            except StopIteration as end:
                return end.value

        while (loaded := await thread.call(turn)) is None:
            pass
        engine = await thread.call(lambda: self._engine(loaded))
        return ServedModel(name, loaded, engine, thread, self._limits)

    def _drop_one(self) -> bool:
        """Let the model go that was idle for the longest time; whether there was one."""
        for path, model in self._served.items():
            if not model.is_busy:
                del self._served[path]
                model.close()
                return True
        return False

    def _engine(self, loaded: LoadedModel) -> Engine:
        cache_tokens = None
        if (memory := self._limits.cache_memory) is not None:
            cache_tokens = memory // token_bytes(loaded.model)
            if cache_tokens < BLOCK_TOKENS:
                raise AlphaError(
                    f"Its keys and values need {BLOCK_TOKENS * token_bytes(loaded.model):,} bytes at least."
                )

        def reload() -> GPT:
            return load_model(str(loaded.path), loaded.model.backend.replacement()).model

        return Engine(
            loaded.model,
            max_sequences=self._limits.max_batch,
            cache_tokens=cache_tokens,
            threads=ThreadChoice(self._backend, self._limits.threads),
            reload=reload,
        )


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run; none where it is gone, or not ours to read."""
    try:
        return checkpoint.list_checkpoints(folder)
    except AlphaError:
        return []


def _id_of(path: Path) -> str:
    """A model's name: that of the run's folder, and of one of its checkpoints, with the step: `RUN@500`."""
    try:
        path = path.resolve()
    except OSError as error:
        raise AlphaError(f"Cannot read {path}: {error.strerror}.") from error
    if path.is_dir():
        return id_of(path)
    return f"{id_of(path.parent)}@{path.stem.removeprefix('checkpoint-')}"


def _refusal(error: RequestError, prompt: str) -> RefusedError:
    """The same of a request whose prompt stood in the field `prompt`."""
    is_prompt = error.field == "prompt"
    return RefusedError(
        str(error), prompt if is_prompt else error.field, code="context_length_exceeded" if error.is_too_long else None
    )
