"""`alpha eval`: a trained model's loss on a text."""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, PRECISIONS
from alpha.errors import AlphaError
from alpha.option import option
from alpha.terminal import print_json, print_text


@dataclass(frozen=True)
class EvalOptions:
    """The options of `alpha eval`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    data: str = option("", "Text: a file, folder or glob; several separated by commas.", metavar="PATHS", required=True)
    batch: int = option(4, "Sequences per batch (B).", minimum=1, maximum=1 << 16)
    n_batches: int = option(50, "Batches to evaluate; 0 = the whole text.", minimum=0)
    backend: str = option("cpu_ref", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, "CPU threads; 0 = the number that the first batches show to be fastest.", minimum=0)
    json: bool = option(False, "Print JSON.")


OPTIONS = (EvalOptions,)
DETAILS = """
The loss is the mean over the tokens in nats. Bits per byte is per byte of UTF-8 text,
so that models with different tokenizers can be compared.
"""


def run(given: dict[str, Any]) -> None:
    """Evaluate and print."""
    from alpha import backends, corpus_files, dataset, token_cache
    from alpha.evaluation import evaluate
    from alpha.model_loading import load_model
    from alpha.progress import StageProgress
    from alpha.terminal import print_warning
    from alpha.thread_choice import ThreadChoice

    options = EvalOptions(**given)
    data = corpus_files.find(options.data)
    backend = backends.create(options.backend, options.device, options.dtype)
    loaded = load_model(options.checkpoint, backend)
    with contextlib.closing(StageProgress()) as progress:
        file = dataset.encode_whole(data, loaded.tokenizer, token_cache.folder(), progress, print_warning)
    if len(file.tokens) < 2:
        raise AlphaError(f"There is nothing to predict in {options.data}: it is one token long.")
    threads = ThreadChoice(backend, options.threads)
    start = time.perf_counter()
    result = evaluate(loaded.model, file, options.batch, options.n_batches, threads)
    seconds = time.perf_counter() - start
    if options.json:
        print_json(
            {
                "checkpoint": str(loaded.path),
                "step": loaded.step,
                "loss": result.loss,
                "perplexity": result.perplexity,
                "bitsPerByte": result.bits_per_byte,
                "tokens": result.tokens,
                "tokensInText": len(file.tokens),
                "tokensPerSec": result.tokens / seconds,
            }
        )
        return
    rate = f"{result.tokens / seconds:,.0f} tokens/s"
    part = "" if result.tokens >= len(file.tokens) - 1 else f" of {len(file.tokens):,}; --nBatches=0 takes all"
    print_text(
        f"loss {result.loss:.4f}   perplexity {result.perplexity:.3f}   bits per byte {result.bits_per_byte:.4f}\n"
        f"{result.tokens:,} tokens{part}   {rate}   step {loaded.step} of {loaded.path}"
    )
