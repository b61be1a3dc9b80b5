"""A connection to a client: JSON in and out, within limits of size and time, while the client is there."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Send

from alpha.server_fields import Fields, RefusedError, read_fields

BODY_LIMIT = 8 << 20
BODY_SECONDS = 30.0
"""How long a request's body may take to arrive."""

SEND_SECONDS = 60.0
"""How long a client may take to read what was sent, before it counts as gone."""

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""Of server-sent events, which nothing on their way may keep for later."""


class Answer(Response):
    """JSON in ASCII: a text may hold half of a surrogate pair, which UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


async def read_body(request: Request) -> Fields:
    """The fields of the body. Raises RefusedError when it is too large, too slow or not JSON."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > BODY_LIMIT:
                    raise RefusedError(f"The body is larger than {BODY_LIMIT >> 20} MiB.", status=413)
    except TimeoutError:
        raise RefusedError(f"The body took longer than {BODY_SECONDS:.0f} seconds.", status=408) from None
    return read_fields(bytes(content))


async def while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and leave it when the client has gone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done = working.done()
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait((working, leaving))
    if is_done:
        try:
            working.result()
        except (ClientDisconnect, OSError):  # it had gone before it was noticed, or did not read
            return


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def in_time(send: Send) -> Callable[[Message], Awaitable[None]]:
    """`send`, which raises TimeoutError when the client does not read."""

    async def sent(message: Message) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)

    return sent
