"""Writing golden files byte for byte the same each time, and comparing them with a fresh computation.

Knows nothing about what the tensors mean. Needs torch and safetensors, as the generators here do; no test imports it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
TOLERANCE = 1e-12
"""Largest difference, absolute and relative, that another processor's rounding may make in float64."""

Golden = tuple[dict[str, Tensor], dict[str, object]]
"""Tensors by name, and metadata values that become one JSON text each."""


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> bytes:
    """A safetensors file. The library orders metadata keys at random, so the header is written again, in our order."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, texts)
    data_start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_start])
    header["__metadata__"] = texts
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[data_start:]


def difference(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    """What differs between a committed file and fresh values, or an empty text when nothing does."""
    if path.read_bytes() == encode(tensors, metadata):
        return ""
    with safe_open(path, framework="pt") as file:
        if {key: json.loads(text) for key, text in file.metadata().items()} != metadata:
            return "the metadata differs"
        if set(file.keys()) != set(tensors):
            return f"the tensor names differ: {sorted(set(file.keys()) ^ set(tensors))}"
        for name, fresh in tensors.items():
            stored = file.get_tensor(name)
            if stored.shape != fresh.shape or stored.dtype != fresh.dtype:
                return f"{name} is {stored.dtype}{list(stored.shape)}, fresh {fresh.dtype}{list(fresh.shape)}"
            if not torch.allclose(stored, fresh, rtol=TOLERANCE, atol=TOLERANCE):
                return f"{name} differs by {(stored - fresh).abs().max():.3g}"
    return ""


def main(description: str, generators: Mapping[str, Callable[[], Golden]]) -> None:
    """Write each golden file, or with `--check` compare each with what is here: exit code 1 if any differs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="compare the committed files with a fresh computation")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    failures = 0
    for name, generate in generators.items():
        path = FOLDER / name
        tensors, metadata = generate()
        if check:
            reason = difference(path, tensors, metadata)
            failures += bool(reason)
            print(f"{name}: {reason or 'as committed'}")
        else:
            path.write_bytes(encode(tensors, metadata))
            print(f"{name}: {path.stat().st_size:,} bytes")
    sys.exit(1 if failures else 0)
