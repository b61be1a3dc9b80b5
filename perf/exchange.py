"""How long importing and exporting a model of a given size takes, and how much memory.

    .venv/bin/python perf/exchange.py --gigabytes=1

Makes a folder as transformers writes it (llama, random weights), imports it, exports the checkpoint in every format,
and prints seconds, and the largest resident memory of each command beside the size of the model. Each command is a
process of its own. Files stay in the page cache; they are in a temporary folder of --dir.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from alpha import exchange, tokenizer_registry
from alpha.config import ModelConfig, resolve_model
from alpha.exchange_weights import pieces
from alpha.safetensors_file import write_in_turn

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 32_000
SHAPE = {"dim": 1024, "heads": 16, "norm": "rmsnorm", "position": "rope", "activation": "swiglu", "bias": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--dir", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        size = make_model(folder / "model", options.gigabytes, options.dtype)
        print(f"{size / 1e9:.2f} GB, {options.dtype}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
        measure(size, "import", f"--from={folder / 'model'}", f"--out={folder / 'imported'}")
        for kind in ("hf", "gguf"):
            out = folder / ("out" if kind == "hf" else "out.gguf")
            measure(size, "export", f"--checkpoint={folder / 'imported'}", f"--format={kind}", f"--out={out}")
        measure(size, "import", f"--from={folder / 'out.gguf'}", f"--out={folder / 'again'}")


def make_model(folder: Path, gigabytes: float, dtype: str) -> int:
    """Writes the folder; returns the bytes of its weights."""
    itemsize = 4 if dtype == "float32" else 2
    architecture = exchange.ARCHITECTURES["llama"]
    sizes = [_parameters(layers) * itemsize for layers in range(1, 200)]
    layers = 1 + min(range(len(sizes)), key=lambda index: abs(sizes[index] - gigabytes * 1e9))
    config = resolve_model(ModelConfig(layers=layers, **SHAPE))  # type: ignore[arg-type]
    declared = {piece.name: (dtype, piece.shape) for piece in pieces(config, VOCABULARY, architecture.weights)}
    draw = np.random.Generator(np.random.PCG64(1))

    def make(name: str) -> np.ndarray:
        array = 0.02 * draw.standard_normal(declared[name][1], np.float32)
        return array.astype(np.float16) if dtype == "float16" else array

    write_in_turn(folder / "model.safetensors", declared, make, lambda: {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(exchange.to_config(architecture, config, VOCABULARY)))
    tokenizer = tokenizer_registry.build("bpe", ["The cat sees the dog. " * 50])
    tokenizer_registry.save_tokenizer_json(folder / "tokenizer.json", tokenizer)
    return sizes[layers - 1]


def _parameters(layers: int) -> int:
    config = resolve_model(ModelConfig(layers=layers, **SHAPE))  # type: ignore[arg-type]
    return sum(
        int(np.prod(piece.shape)) for piece in pieces(config, VOCABULARY, exchange.ARCHITECTURES["llama"].weights)
    )


def measure(size: int, *arguments: str) -> None:
    """Run a command and print what it took."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(ROOT / "alpha.py"), *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"alpha {' '.join(arguments)} failed")
    memory = usage.ru_maxrss * 1024
    what = f"{arguments[0]} {next((each for each in arguments if each.startswith('--format')), '')}".strip()
    print(f"{what:<22} {seconds:6.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of processor)   "
          f"{memory / 1e6:7.0f} MB, {memory / size:.2f} of the model")  # fmt: skip


if __name__ == "__main__":
    main()
