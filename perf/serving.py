"""alpha serve under load: beside its own engine, beside llama.cpp's server, and with clients that come and go.

    python perf/serving.py speed [--peer=PYTHON] [--rounds=3]     PYTHON has the package xllamacpp
    python perf/serving.py soak [--seconds=600] [--clients=200]

Prints JSON. Everything that is compared runs in turn, in each round, on one model with random weights in GPT-2's shape.
"""

import argparse
import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server_load import exchange, soak

from alpha import backends, checkpoint
from alpha.checkpoint import Checkpoint
from alpha.config import ModelConfig, TrainingConfig, resolve_model
from alpha.engine import Engine, Request
from alpha.gpt import parameter_specs
from alpha.model_loading import LoadedModel, load_model
from alpha.sampling import SamplingOptions
from alpha.thread_choice import ThreadChoice
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 48
FIRSTS = 25
CLIENTS = (1, 8, 64)
PROMPT = "The cat sees the dog."
PEER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 64 * 256, 64, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
if sys.argv[2] == "f32":
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print("at", server.listening_address, flush=True)
time.sleep(1e6)
"""


def make_model(folder: Path) -> Path:
    model = resolve_model(ModelConfig(block=256, layers=6, dim=384, heads=6))
    tokenizer = build_bpe([f"{PROMPT} " * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))
    draw = np.random.Generator(np.random.PCG64(1))
    tensors = {}
    for spec in parameter_specs(model, tokenizer.vocab_size):
        around = float(len(spec.shape) == 1 and spec.name.endswith("weight"))
        tensors[spec.name] = (around + 0.05 * draw.normal(size=spec.shape)).astype(np.float32)
    return checkpoint.save(folder, Checkpoint(1, model, TrainingConfig(), tokenizer.to_mapping(), tensors, {}))


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server's process and port, which it says in a line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"at http://127\.0\.0\.1:(\d+)", line):
                    yield process, int(found[1])
                    return
            raise SystemExit(f"{command[0]} did not start")
        finally:
            process.terminate()


def body(number: int, tokens: int = TOKENS) -> dict[str, Any]:
    return {
        "prompt": f"{number} {PROMPT}", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "cache_prompt": False,
    }  # fmt: skip


def first_seconds(port: int, number: int, bias: dict[str, float]) -> float:
    """Until the first event has come whole; the bias makes its token one that is a text by itself."""
    content = json.dumps(body(number, 4) | {"logit_bias": bias}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content)
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + content)
        with connection.makefile("rb") as answer:
            while not answer.readline().startswith(b"data: "):
                pass
            spent = time.perf_counter() - start
            answer.read()
    return spent


async def streams(port: int, clients: int) -> float:
    """Tokens a second of so many streams at a time."""
    start = time.perf_counter()
    for answer in await asyncio.gather(*(exchange(port, body(number)) for number in range(clients))):
        assert b"data: [DONE]" in answer[-50:], answer[-300:]
    return clients * TOKENS / (time.perf_counter() - start)


def of_server(port: int, bias: dict[str, float], engine: Callable[[int], float] | None = None) -> dict[str, float]:
    """Of a server; beside its own engine, in turn, how much later its first tokens come."""
    asyncio.run(streams(port, 8))
    firsts, later = [], []
    for number in range(FIRSTS):
        own = engine(number) if engine else 0.0
        firsts.append(first_seconds(port, 1000 + number, bias))
        later.append(firsts[-1] - own)
    found = {"firstMs": 1e3 * statistics.median(firsts)}
    if engine:
        found["firstOverEngineMs"] = 1e3 * statistics.median(later)
    return found | {f"tokensPerSecond{clients}": asyncio.run(streams(port, clients)) for clients in CLIENTS}


class Own:
    """The engine by itself, as a server has it."""

    def __init__(self, loaded: LoadedModel, bias: dict[str, float]) -> None:
        self._encode = loaded.tokenizer.encode
        self._engine = Engine(loaded.model, 64, threads=ThreadChoice(loaded.model.backend))
        self._sampling = SamplingOptions(temperature=0, logit_bias={int(token): value for token, value in bias.items()})
        self._run([body(number) for number in range(8)], SamplingOptions(temperature=0))

    def first(self, number: int) -> float:
        """Seconds to the first token of a request as in `first_seconds`."""
        return self._run([body(2000 + number, 4)], self._sampling)[0]

    def rates(self) -> dict[str, float]:
        greedy = SamplingOptions(temperature=0)
        return {
            f"tokensPerSecond{count}": count * TOKENS / self._run([body(number) for number in range(count)], greedy)[1]
            for count in CLIENTS
        }

    def _run(self, bodies: list[dict[str, Any]], sampling: SamplingOptions) -> tuple[float, float]:
        """Seconds to the first token, and to the end."""
        start, first = time.perf_counter(), 0.0
        for each in bodies:
            self._engine.submit(Request(self._encode(each["prompt"]), each["max_tokens"], sampling))
        while self._engine.is_busy:
            if self._engine.step() and not first:
                first = time.perf_counter() - start
        return first, time.perf_counter() - start


def speed(peer: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder) / "run")
        loaded = load_model(str(path), backends.create("cpu_ref"))
        serve = [sys.executable, str(ROOT / "alpha.py"), "serve", f"--checkpoint={path}", "--port=0", "--maxBatch=64",
                 "--backend=cpu_ref"]  # fmt: skip
        bias = {str(loaded.tokenizer.encode("x")[0]): 100.0}
        found: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
        gguf = Path(folder) / "model.gguf"
        export = ["export", f"--checkpoint={path}", f"--out={gguf}", "--format=gguf", "--dtype=f32"]
        if peer:
            subprocess.run([sys.executable, str(ROOT / "alpha.py"), *export], check=True, stdout=subprocess.DEVNULL)
        for _ in range(rounds):
            # One after another, so that none takes time from another.
            own = Own(loaded, bias)
            found["engine"].append(own.rates())
            with started(serve) as (_process, port):
                found["server"].append(of_server(port, bias, own.first))
            for cache in ("f16", "f32") if peer else ():
                with started([peer, "-c", PEER, str(gguf), cache]) as (_process, port):
                    found[f"llama.cpp, {cache} keys and values"].append(of_server(port, bias))
    return {
        who: {key: round(statistics.median(each[key] for each in values), 2) for key in values[0]}
        for who, values in found.items()
    }


def memory(process: subprocess.Popen[str]) -> int:
    """MiB that the process has in memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) >> 10


async def metric(port: int, name: str) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return float(re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)[0])


def soaked(seconds: float, clients: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder) / "run")
        command = [sys.executable, str(ROOT / "alpha.py"), "serve", f"--checkpoint={path}", "--port=0",
                   "--backend=cpu_ref", "--maxQueue=128"]  # fmt: skip
        with started(command) as (process, port):
            mebibytes = []
            outcomes: dict[str, int] = {}
            wrong = 0
            for _ in range(5):
                load = asyncio.run(soak(port, clients, seconds / 5))
                wrong += len(load.wrong)
                outcomes = {key: outcomes.get(key, 0) + load.outcomes[key] for key in {*outcomes, *load.outcomes}}
                mebibytes.append(memory(process))
            time.sleep(2)
            names = ("alpha_running", "alpha_waiting", "alpha_cache_use_ratio")
            left = {name: asyncio.run(metric(port, name)) for name in names}
    return {"seconds": seconds, "outcomes": outcomes, "wrong": wrong, "mebibytes": mebibytes, "left": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "soak"))
    parser.add_argument("--peer", default="", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args()
    result = (
        speed(options.peer, options.rounds) if options.what == "speed" else soaked(options.seconds, options.clients)
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
