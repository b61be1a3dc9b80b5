"""alpha serve under load: beside its own engine, beside llama.cpp's server, and with clients that come and go.

    python perf/serving.py speed [--peer=PYTHON] [--rounds=3]     PYTHON has the package xllamacpp
    python perf/serving.py soak [--seconds=600] [--clients=200]

Prints JSON. Everything that is compared runs in turn, in each round, on one model with random weights in GPT-2's shape.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
from alpha.model_loading import load_model
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 48
CLIENTS = (1, 8, 64)
PROMPT = "The cat sees the dog."
PEER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 64 * 256, 64, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
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


async def first_seconds(port: int, number: int, bias: dict[str, float]) -> float:
    """Until the first event has come whole; the bias makes its token one that is a text by itself."""
    content = json.dumps(body(number, 4) | {"logit_bias": bias}).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    await reader.readuntil(b"data: ")
    await reader.readuntil(b"\n\n")
    spent = time.perf_counter() - start
    await reader.read()
    writer.close()
    return spent


async def streams(port: int, clients: int) -> float:
    """Tokens a second of so many streams at a time."""
    start = time.perf_counter()
    for answer in await asyncio.gather(*(exchange(port, body(number)) for number in range(clients))):
        assert b"data: [DONE]" in answer[-50:], answer[-300:]
    return clients * TOKENS / (time.perf_counter() - start)


def of_server(port: int, bias: dict[str, float]) -> dict[str, float]:
    async def measured() -> dict[str, float]:
        await streams(port, 8)
        firsts = [await first_seconds(port, 1000 + number, bias) for number in range(15)]
        rates = {f"tokensPerSecond{clients}": await streams(port, clients) for clients in CLIENTS}
        return {"firstMs": 1e3 * statistics.median(firsts), **rates}

    return asyncio.run(measured())


def of_engine(engine: Engine, encode: Any) -> dict[str, float]:
    def run(count: int, tokens: int) -> float:
        requests = [Request(encode(body(number)["prompt"]), tokens) for number in range(count)]
        start = time.perf_counter()
        for request in requests:
            engine.submit(request)
        while engine.is_busy:
            engine.step()
        return time.perf_counter() - start

    run(8, TOKENS)
    firsts = [run(1, 1) for _ in range(15)]
    rates = {f"tokensPerSecond{count}": count * TOKENS / run(count, TOKENS) for count in CLIENTS}
    return {"firstMs": 1e3 * statistics.median(firsts), **rates}


def speed(peer: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder) / "run")
        loaded = load_model(str(path), backends.create("cpu_ref"))
        serve = [sys.executable, str(ROOT / "alpha.py"), "serve", f"--checkpoint={path}", "--port=0", "--maxBatch=64",
                 "--backend=cpu_ref"]  # fmt: skip
        bias = {str(loaded.tokenizer.encode("x")[0]): 100.0}
        found: dict[str, list[dict[str, float]]] = {"engine": [], "server": [], "llama.cpp": []}
        gguf = Path(folder) / "model.gguf"
        export = ["export", f"--checkpoint={path}", f"--out={gguf}", "--format=gguf", "--dtype=f32"]
        if peer:
            subprocess.run([sys.executable, str(ROOT / "alpha.py"), *export], check=True, stdout=subprocess.DEVNULL)
        for _ in range(rounds):
            # One after another, so that none takes time from another.
            found["engine"].append(of_engine(Engine(loaded.model, 64), loaded.tokenizer.encode))
            with started(serve) as (_process, port):
                found["server"].append(of_server(port, bias))
            if peer:
                with started([peer, "-c", PEER, str(gguf)]) as (_process, port):
                    found["llama.cpp"].append(of_server(port, bias))
    return {
        who: {key: round(statistics.median(each[key] for each in values), 2) for key in values[0]}
        for who, values in found.items()
        if values
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
