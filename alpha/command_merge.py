"""`alpha merge`: an adapter and its base as one model."""

import time
from dataclasses import dataclass
from typing import Any

from alpha.errors import AlphaError, UsageError
from alpha.option import option, spelled
from alpha.terminal import print_json, print_text

TOLERANCE = 1e-4
"""How far logits may differ, of the largest one: rounding makes it a hundredth of that."""

POSITIONS = 128
"""Tokens that the logits are compared of."""


@dataclass(frozen=True)
class MergeOptions:
    """The options of `alpha merge`."""

    checkpoint: str = option("", "An adapter: its checkpoint, its run's folder or id.", metavar="RUN", required=True)
    out: str = option(
        "",
        "What to write: a new NAME.safetensors, or a folder for it.",
        metavar="CHECKPOINT",
        required=True,
    )
    base: str = option("", "The model it is an adapter to; the default is where that was.", metavar="MODEL")
    json: bool = option(False, "Print JSON.")


OPTIONS = (MergeOptions,)
DETAILS = """
Adds the adapter to the weights that it was trained beside, in float32, and compares the logits of
both models before it writes anything. What it writes needs neither of them any more.

Examples:
  alpha merge --checkpoint=runs/20261123-101500-3f2a1b --out=merged
  alpha merge --checkpoint=adapter.safetensors --base=gpt2 --out=merged.safetensors
"""


def run(given: dict[str, Any]) -> None:
    """Merge, compare, write, and print what was written."""
    import numpy as np

    from alpha import checkpoint
    from alpha.backend_cpu_ref import CpuRef
    from alpha.gpt import GPT
    from alpha.lora import lora_of
    from alpha.model_source import base_of, merged_checkpoint, read_model
    from alpha.rng import random_bits
    from alpha.run_reader import resolve

    options = MergeOptions(**given)
    start = time.monotonic()
    out = checkpoint.new_path(options.out)
    path = checkpoint.find(resolve(options.checkpoint))
    saved, tokenizer = read_model(path)
    lora = lora_of(saved.training)
    if lora is None:
        raise UsageError(f"{path} is a whole model and no adapter; there is nothing to merge.")
    weights = base_of(saved, path, options.base).weights_for(saved.model)
    merged = merged_checkpoint(saved, weights, lora)
    backend = CpuRef()
    vocabulary = tokenizer.vocab_size
    bits = random_bits(min(saved.model.block, POSITIONS), saved.training.seed, 0)
    ids = backend.from_numpy((bits % np.uint32(vocabulary)).astype(np.int32)[None])

    def logits(model: GPT) -> Any:
        return model.logits(ids).data

    model = GPT(backend, saved.model, vocabulary, trained=lambda spec: False)
    model.parameters.load(weights)
    adapted = model.adapted(lora, trained=False)
    adapted.parameters.load(saved.tensors)
    wanted = logits(adapted)
    model.parameters.load(merged.tensors)
    difference, largest = float(np.abs(logits(model) - wanted).max()), float(np.abs(wanted).max())
    if not difference <= TOLERANCE * largest:
        raise AlphaError(
            f"The logits of the merged model differ by {difference:.3g} from those with the adapter, of which the "
            f"largest is {largest:.3g}, so nothing was written: {spelled('loraAlpha', lora.alpha)} or the weights are "
            f"too large for float32."
        )
    checkpoint.write(out, merged)
    seconds = time.monotonic() - start
    if options.json:
        print_json(
            {
                "checkpoint": str(path),
                "out": str(out),
                "largestDifference": difference,
                "largestLogit": largest,
                "seconds": round(seconds, 3),
            }
        )
    else:
        print_text(
            f"Wrote {out}: its logits differ by at most {difference:.1e} from those with the adapter, of which the "
            f"largest is {largest:.3g}; in {seconds:.1f} s."
        )
