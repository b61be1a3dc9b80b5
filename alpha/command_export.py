"""`alpha export`: write a trained model as other programs read it."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import UsageError
from alpha.option import camel_case, option
from alpha.terminal import print_json, print_text


@dataclass(frozen=True)
class ExportOptions:
    """The options of `alpha export`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    out: str = option("", "What to write: a new folder, or a new file for gguf.", metavar="PATH", required=True)
    format: str = option(
        "hf",
        "hf: a folder for Hugging Face's transformers; gguf: a file for llama.cpp; peft: an adapter for PEFT.",
        choices=("hf", "gguf", "peft"),
    )
    dtype: str = option(
        "f32", "Numbers of the weights; q8_0, 8 bits in blocks, is for gguf.", choices=("f32", "f16", "bf16", "q8_0")
    )
    json: bool = option(False, "Print JSON.")


OPTIONS = (ExportOptions,)
DETAILS = """
The folder loads in transformers without code of its own, as gpt2, llama, qwen3, arcee or apertus,
whichever computes the same. Only soft caps need a small modeling file, and trust_remote_code there.
A model that no architecture is the same as is refused, with the options in the way; so is one of
which llama.cpp would compute something else. An adapter is written with its base, as one model, or
alone with --format=peft.

Examples:
  alpha export --checkpoint=runs/20261123-101500-3f2a1b --out=model
  alpha export --checkpoint=checkpoint-5000.safetensors --dtype=bf16 --out=model
  alpha export --checkpoint=chat --format=gguf --dtype=q8_0 --out=chat.gguf
"""


def run(given: dict[str, Any]) -> None:
    """Export and print what was written."""
    from alpha.exchange_modeling import FILE_NAME

    options = ExportOptions(**given)
    if options.format == "hf" and options.dtype == "q8_0":
        raise UsageError("--dtype=q8_0 is for --format=gguf; transformers reads f32, f16 and bf16.")
    if options.format == "peft" and options.dtype != "f32":
        raise UsageError(f"--dtype={options.dtype} is not for --format=peft, which keeps adapters in f32.")
    start = time.monotonic()
    path, architecture, caps = (_write_adapter if options.format == "peft" else _write_model)(options)
    seconds = time.monotonic() - start
    if options.json:
        print_json(
            {
                "checkpoint": str(path),
                "out": options.out,
                "format": options.format,
                "architecture": architecture,
                "needsRemoteCode": bool(caps),
                "dtype": options.dtype,
                "seconds": round(seconds, 3),
            }
        )
    else:
        print_text(f"Wrote {options.out}: {architecture}, {options.dtype}, in {seconds:.1f} s.")
        if caps:
            print_text(f"{FILE_NAME} in it adds {' and '.join(caps)}; load it with trust_remote_code=True.")


def _write_model(options: ExportOptions) -> tuple[Path, str, list[str]]:
    """Path of the checkpoint, name of the architecture, and the flags of soft caps."""
    from alpha.exchange import soft_caps
    from alpha.exchange_folder import write_folder
    from alpha.exchange_gguf import write_file
    from alpha.model_source import read_whole
    from alpha.progress import StageProgress

    path, saved = read_whole(options.checkpoint)
    with contextlib.closing(StageProgress()) as progress:
        write = write_folder if options.format == "hf" else write_file
        architecture = write(Path(options.out), saved, options.dtype, progress)
    return path, architecture, [f"--{camel_case(name)}" for name in soft_caps(saved.model)]


def _write_adapter(options: ExportOptions) -> tuple[Path, str, list[str]]:
    from alpha import checkpoint
    from alpha.exchange_peft import write_folder
    from alpha.lora import lora_of
    from alpha.model_source import read_model
    from alpha.run_reader import resolve

    path = checkpoint.find(resolve(options.checkpoint))
    saved, tokenizer = read_model(path)
    lora = lora_of(saved.training)
    if lora is None:
        raise UsageError(f"{path} is a whole model and no adapter; write it with --format=hf.")
    return path, write_folder(Path(options.out), saved, tokenizer, lora), []
