"""Many clients of a server at a time, some of which go away in the middle: what they got, and what was left."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass
class Load:
    """What clients are to ask, with the texts that are right, and what happened."""

    port: int
    asked: list[tuple[Body, list[str]]]
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Body, Any]] = field(default_factory=list)


async def exchange(port: int, body: Body, leave_after: int | None = None) -> bytes:
    """The bytes of an answer; of one that is left, the first so many at least."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        await writer.drain()
        if leave_after is None:
            return await reader.read()
        got = b""
        while len(got) < leave_after and (part := await reader.read(leave_after)):
            got += part
        return got
    finally:
        writer.transport.abort()


def texts_of(answer: bytes) -> tuple[int, list[str]]:
    """The status and the texts of an answer's choices, however it came."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        return status, []
    if b"text/event-stream" not in head:
        return status, [choice["text"] for choice in json.loads(content)["choices"]]
    *events, last, _ = content.decode().split("\n\n")
    if last != "data: [DONE]":
        return status, []
    texts: dict[int, str] = {}
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return status, [texts[index] for index in sorted(texts)]


async def client(load: Load, number: int, until: float) -> None:
    """Asks one thing after another, and leaves about a third of the answers somewhere on the way."""
    chance = random.Random(number)
    while time.monotonic() < until:
        body, expected = chance.choice(load.asked)
        body = body | {"stream": chance.random() < 0.7}
        leaves = chance.random() < 0.35
        answer = await exchange(load.port, body, chance.choice((0, 1, 300, 700)) if leaves else None)
        if leaves:
            load.outcomes["left"] += 1
            continue
        status, texts = texts_of(answer)
        load.outcomes[str(status)] += 1
        if status == 429:
            await asyncio.sleep(chance.random())
        elif (status, texts) != (200, expected):
            load.wrong.append((body, answer[:2000]))


async def soak(port: int, clients: int, seconds: float) -> Load:
    """So many clients for so long; what each asks was asked alone before."""
    asked: list[tuple[Body, list[str]]] = []
    for number in range(24):
        body = {"prompt": "The cat sees the dog. " * (number % 4) + f"{number}", "seed": number, "n": 1 + number % 2,
                "max_tokens": 4 + number % 17, "temperature": 0.9, "ignore_eos": number % 3 == 0}  # fmt: skip
        asked.append((body, texts_of(await exchange(port, body))[1]))
    load = Load(port, asked)
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(load, number, until) for number in range(clients)))
    return load
