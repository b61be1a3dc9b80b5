"""A server for tests: the real one, on a port of its own, and requests to it."""

import asyncio
import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exchange_models import make_checkpoint

from alpha import backends
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.server import Access, serve
from alpha.server_models import Limits, Models
from alpha.server_runs import RunPages

SECONDS = 60.0


class FailingBackend(CpuRef):
    """Computes nothing any more after so many reads."""

    reads_left = math.inf

    def to_numpy(self, array: Any) -> Any:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise MemoryError("the device is gone")
        return super().to_numpy(array)


class SlowBackend(CpuRef):
    """Takes some time for each read."""

    def to_numpy(self, array: Any) -> Any:
        time.sleep(0.05)
        return super().to_numpy(array)


class Serving:
    """A server under way."""

    def __init__(self, models: Models, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.models = models
        self.loop = loop
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, content, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a request that is accepted."""
        status, _, content = self.ask(path, body)
        assert status == 200, content
        return json.loads(content)

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream; that it is closed as it should be is asserted."""
        status, headers, content = self.ask(path, body | {"stream": True})
        assert status == 200, content
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, last, rest = content.decode().split("\n\n")
        assert (last, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def refused(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error that a request is answered with."""
        actual, _, content = self.ask(path, body)
        assert actual == status, content
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@contextmanager
def serving(
    folder: Path,
    access: Access | None = None,
    limits: Limits | None = None,
    backend: Backend | None = None,
    root: Path | None = None,
    block: int = 24,
    allow_edit: bool = False,
) -> Iterator[Serving]:
    """A server of one small model with random weights, which knows the markers of chats; or of the runs in `root`."""
    names = [] if root else [str(make_checkpoint(folder, "gpt2", block))]
    models = Models(backend or backends.create("cpu_ref"), limits or Limits(threads=1), names, root)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    ready, ended = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    task: list[asyncio.Task[None]] = []
    errors: list[BaseException] = []

    runs = RunPages(root, allow_edit) if root else None

    async def run() -> None:
        task.append(asyncio.ensure_future(serve(models, access or Access(), listening, ready.set, runs)))
        await asyncio.wait(task)

    def thread() -> None:
        try:
            loop.run_until_complete(run())
            if not task[0].cancelled() and (error := task[0].exception()):
                errors.append(error)
        finally:
            ready.set()
            ended.set()
            loop.close()

    threading.Thread(target=thread, daemon=True).start()
    assert ready.wait(SECONDS)
    assert not errors
    try:
        yield Serving(models, port, loop)
    finally:
        loop.call_soon_threadsafe(task[0].cancel)
        assert ended.wait(SECONDS)
        listening.close()
    assert not errors
