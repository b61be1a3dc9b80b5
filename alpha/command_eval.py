"""`alpha eval`: a trained model's loss on a text."""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, EVAL_ITERS_HELP, PRECISIONS, THREADS_HELP
from alpha.errors import AlphaError, percent
from alpha.option import option
from alpha.terminal import print_json, print_note, print_text, print_warning


@dataclass(frozen=True)
class EvalOptions:
    """The options of `alpha eval`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    data: str = option(
        "",
        "Text: a file, folder or glob, several separated by commas; or - for standard input.",
        metavar="PATHS",
        required=True,
    )
    batch: int = option(
        16, "Windows read at a time, or somewhat more; changes no bit of the result.", minimum=1, maximum=1 << 16
    )
    text_field: str = option(
        "", "Key of the text in JSON lines; otherwise each line says by its keys what it is.", metavar="KEY"
    )
    skip_bad_lines: bool = option(False, "Count bad JSON lines instead of refusing the first.")
    loss_on: str = option(
        "as-trained",
        "What counts in conversations: all, or the assistant's text and the marker that ends it.",
        choices=("as-trained", "all", "assistant"),
    )
    eval_iters: int = option(50, EVAL_ITERS_HELP, minimum=0, aliases=("nBatches",))
    backend: str = option("auto", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, minimum=0, maximum=1024)
    json: bool = option(False, "Print JSON.")


OPTIONS = (EvalOptions,)
DETAILS = """
The text is read from its beginning, as the validation data of alpha train --valData, and each
token but the first is predicted from those before it in its window of block tokens, or in its
document, for a model in whose training documents shared windows. The loss is the mean over all
that count in nats. Bits per byte is per byte of UTF-8 text, so that models with
different tokenizers can be compared: the loss of the predicted tokens over their bytes, both
without the ends of text between documents. Where tokens are unknown to the model, text is
lost, and there is none.
"""


def run(given: dict[str, Any]) -> None:
    """Evaluate and print."""
    from alpha import backends, chat_format, corpus_files, dataset, token_cache
    from alpha.evaluation import Evaluator
    from alpha.loss_mask import LossMask
    from alpha.model_loading import load_model
    from alpha.packing import PackedDocuments
    from alpha.progress import StageProgress
    from alpha.thread_choice import ThreadChoice

    options = EvalOptions(**given)
    data = corpus_files.find(options.data, options.text_field, options.skip_bad_lines)
    backend = backends.create(options.backend, options.device, options.dtype)
    loaded = load_model(options.checkpoint, backend)
    if options.backend == "auto":
        print_note(backends.choice(backend.name))
    with contextlib.closing(StageProgress()) as progress:
        write = chat_format.writer(loaded.tokenizer, loaded.training.domain, loaded.chat_template)
        file = dataset.encode_whole(data, loaded.tokenizer, token_cache.folder(), progress, print_warning, write)
    if len(file.tokens) < 2:
        raise AlphaError(f"There is nothing to predict in {options.data}: it is one token long.")
    loss_on = loaded.training.loss_on if options.loss_on == "as-trained" else options.loss_on
    mask = LossMask(file.flips, len(file.tokens)) if loss_on == "assistant" else None
    documents = None
    if loaded.training.pack_documents:
        documents = PackedDocuments(file, loaded.model.config.block, loaded.tokenizer, mask)
    threads = ThreadChoice(backend, options.threads)
    start = time.perf_counter()
    evaluator = Evaluator(loaded.model, loaded.tokenizer, threads)
    result = evaluator.file(file, options.batch, options.eval_iters, mask=mask, documents=documents)
    seconds = time.perf_counter() - start
    if not result.tokens:
        raise AlphaError(f"Nothing that was read of {options.data} is an assistant's text; give --lossOn=all.")
    unknown = result.unknown / result.tokens
    if unknown:
        print_warning(
            f"{percent(unknown)} of the tokens are unknown to this model. Their text is lost, so there are no bits per "
            f"byte, and loss and perplexity cannot be compared with those of a model that knows them."
        )
    if options.json:
        print_json(
            {
                "checkpoint": str(loaded.path),
                "step": loaded.step,
                "loss": result.loss,
                "perplexity": result.perplexity,
                "bitsPerByte": result.bits_per_byte,
                "bytes": result.text_bytes,
                "tokens": result.tokens,
                "unknownShare": unknown,
                "lossOn": loss_on,
                "tokensInText": len(file.tokens),
                "tokensPerSec": result.tokens / seconds,
            }
        )
        return
    rate = f"{result.tokens / seconds:,.0f} tokens/s"
    predicted = len(file.tokens) - 1 if mask is None else mask.total()
    part = "" if result.tokens >= predicted else f" of {predicted:,}; --evalIters=0 takes all"
    bits = "" if result.bits_per_byte is None else f"   bits per byte {result.bits_per_byte:.4f}"
    print_text(
        f"loss {result.loss:.4f}   perplexity {result.perplexity:.3f}{bits}\n"
        f"{result.tokens:,} tokens{part}   {rate}   step {loaded.step} of {loaded.path}"
    )
