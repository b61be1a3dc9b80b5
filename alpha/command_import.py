"""`alpha import`: make a checkpoint of weights that exist."""

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import UsageError
from alpha.option import option
from alpha.terminal import print_json, print_text

OUT_HELP = "What to write: a new NAME.safetensors, or a folder for it."


@dataclass(frozen=True)
class ImportOptions:
    """The options of `alpha import`."""

    from_: str = option(
        "",
        "A folder of Hugging Face's transformers or of PEFT, or a GGUF file.",
        metavar="PATH",
        required=True,
    )
    out: str = option("", OUT_HELP, metavar="CHECKPOINT", required=True)
    base: str = option(
        "", "The model that an adapter of PEFT adapts; the default is the one that it names.", metavar="MODEL"
    )
    json: bool = option(False, "Print JSON.")


OPTIONS = (ImportOptions,)
DETAILS = """
Reads gpt2, llama, qwen3, arcee and apertus in float32, float16, bfloat16 or Q8_0. What Alpha would
compute otherwise is refused, by the name of what is in the way. The checkpoint is in float32, and
samples, evaluates and is exported like any other.

An adapter of PEFT (LoRA) becomes one of Alpha's, which is used and merged like any other.

Examples:
  alpha import --from=SmolLM2-135M --out=smol
  alpha import --from=my-adapter --base=smol --out=tuned
  alpha sample --checkpoint=smol --prompt="Once "
"""


def run(given: dict[str, Any]) -> None:
    """Import and print what was written."""
    import_model(ImportOptions(**given))


def import_model(options: ImportOptions) -> None:
    """The same for options that another command made."""
    from alpha import checkpoint, exchange_peft
    from alpha.checkpoint import Checkpoint
    from alpha.config import TrainingConfig
    from alpha.exchange_weights import made_ahead
    from alpha.model_source import foreign_model
    from alpha.progress import StageProgress

    start = time.monotonic()
    path = checkpoint.new_path(options.out)
    if exchange_peft.is_adapter(Path(options.from_)):
        _import_adapter(options, path, start)
        return
    if options.base:
        raise UsageError(f"--base is for adapters, and {options.from_} is none; leave it out.")
    with foreign_model(Path(options.from_)) as source, contextlib.closing(StageProgress()) as progress:
        imported = source.model()
        shapes = imported.weights.shapes
        total = sum(map(math.prod, shapes.values()))
        done = 0

        def make(name: str) -> Any:
            nonlocal done
            array = made(name)
            done += array.size
            progress("importing", 4 * done, 4 * total)
            return array

        training = TrainingConfig(tokenizer=imported.tokenizer.kind)
        saved = Checkpoint(0, imported.model, training, imported.tokenizer.to_mapping(), {}, imported.state)
        # In the order of their names, as they are all of one dtype.
        with made_ahead(imported.weights.made, sorted(shapes)) as made:
            checkpoint.write_in_turn(path, saved, {name: ("float32", shape) for name, shape in shapes.items()}, make)
    _report(options, path, total, imported.tokenizer.vocab_size, start)


def _import_adapter(options: ImportOptions, path: Path, start: float) -> None:
    from alpha import checkpoint, exchange_peft, tokenizer_registry

    saved = exchange_peft.read_folder(Path(options.from_), options.base)
    checkpoint.write(path, saved)
    vocab_size = tokenizer_registry.from_mapping(saved.tokenizer, str(path)).vocab_size
    _report(options, path, sum(array.size for array in saved.tensors.values()), vocab_size, start)


def _report(options: ImportOptions, path: Path, parameters: int, vocab_size: int, start: float) -> None:
    seconds = time.monotonic() - start
    if options.json:
        print_json(
            {
                "from": options.from_,
                "out": str(path),
                "parameters": parameters,
                "vocabSize": vocab_size,
                "seconds": round(seconds, 3),
            }
        )
    else:
        print_text(f"Wrote {path}: {parameters:,} parameters, {vocab_size:,} tokens, in {seconds:.1f} s.")
