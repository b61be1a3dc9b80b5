"""Many clients of a server at a time, some of which go away in the middle: what they got, and what was left."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"


@dataclass
class Load:
    """What clients are to ask, of which path, with the texts that are right, and what happened."""

    port: int
    asked: list[tuple[str, Body, list[str]]]
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Body, Any]] = field(default_factory=list)


async def exchange(port: int, body: Body, leave_after: int | None = None, path: str = COMPLETIONS) -> bytes:
    """The bytes of an answer; of one that is left, the first so many at least."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
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
    """The status and the texts of an answer's choices, of whatever path and however it came."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        return status, []
    if b"text/event-stream" not in head:
        whole = json.loads(content)
        if "output" in whole:
            return status, [whole["output"][0]["content"][0]["text"]]
        return status, [each["text"] if "text" in each else each["message"]["content"] for each in whole["choices"]]
    events = [event.rpartition("data: ")[2] for event in content.decode().split("\n\n")[:-1]]
    if events[0].startswith('{"type"'):
        told = [json.loads(event) for event in events]
        texts = [event["delta"] for event in told if event["type"] == "response.output_text.delta"]
        return status, ["".join(texts)] if told[-1]["type"] in ("response.completed", "response.incomplete") else []
    if events.pop() != "[DONE]":
        return status, []
    by_choice: dict[int, str] = {}
    for event in events:
        for choice in json.loads(event)["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            by_choice[choice["index"]] = by_choice.get(choice["index"], "") + text
    return status, [by_choice[index] for index in sorted(by_choice)]


async def client(load: Load, number: int, until: float) -> None:
    """Asks one thing after another, and leaves about a third of the answers somewhere on the way."""
    chance = random.Random(number)
    while time.monotonic() < until:
        path, body, expected = chance.choice(load.asked)
        body = body | {"stream": chance.random() < 0.7}
        leaves = chance.random() < 0.35
        answer = await exchange(load.port, body, chance.choice((0, 1, 300, 700)) if leaves else None, path)
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
    asked: list[tuple[str, Body, list[str]]] = []
    for number in range(24):
        text = "The cat sees the dog. " * (number % 4) + f"{number}"
        path, of_path = (
            (COMPLETIONS, {"prompt": text, "n": 1 + number % 2, "ignore_eos": number % 3 == 0}),
            (CHAT, {"messages": [{"role": "user", "content": text}], "n": 1 + number % 2}),
            (RESPONSES, {"input": text}),
        )[number % 3]
        tokens = "max_output_tokens" if path == RESPONSES else "max_tokens"
        body = {**of_path, tokens: 4 + number % 17, "seed": number, "temperature": 0.9}
        asked.append((path, body, texts_of(await exchange(port, body, path=path))[1]))
    assert all(texts for _, _, texts in asked)
    load = Load(port, asked)
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(load, number, until) for number in range(clients)))
    return load
