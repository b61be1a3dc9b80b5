"""`alpha sample`: continue a prompt with a trained model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, PRECISIONS, THREADS_HELP
from alpha.errors import UsageError
from alpha.option import option
from alpha.terminal import print_json, print_note, print_part, print_text, print_warning

if TYPE_CHECKING:
    from alpha.engine import Engine, Timing
    from alpha.model_loading import LoadedModel


@dataclass(frozen=True)
class SampleOptions:
    """The options of `alpha sample`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    prompt: str = option("The ", "Text to continue.")
    steps: int = option(200, "Tokens to add, at most.", minimum=1)
    temp: float = option(0.8, "Temperature; 0 = always the likeliest token.", minimum=0)
    topk: int = option(40, "Choose among this many likeliest tokens; 0 = all.", minimum=0)
    topp: float = option(1.0, "Choose among the likeliest tokens of this total probability.", minimum=0, maximum=1)
    beam: int = option(
        1, "Hypotheses of a search for the likeliest text, instead of drawing; 1 = draw.", minimum=1, maximum=256
    )
    n: int = option(1, "Texts to make.", minimum=1, maximum=4096)
    seed: int = option(42, "Seed of every random choice.", minimum=0, maximum=(1 << 64) - 1)
    stop_at_end: bool = option(True, "Stop where the model ends the text.")
    backend: str = option("auto", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, minimum=0, maximum=1024)
    json: bool = option(False, "Print JSON.")


OPTIONS = (SampleOptions,)
DETAILS = """
Special tokens of the model's tokenizer, such as <|user|>, may be spelled in the prompt.

Examples:
  alpha sample --checkpoint=runs/20261123-101500-3f2a1b --prompt="Once "
  alpha sample --checkpoint=checkpoint-5000.safetensors --n=3 --temp=1 --topp=0.95
"""


def run(given: dict[str, Any]) -> None:
    """Generate and print; one text is shown while it is made."""
    from alpha import backends
    from alpha.engine import Engine
    from alpha.model_loading import load_model
    from alpha.thread_choice import ThreadChoice

    options = SampleOptions(**given)
    if options.beam > 1 and options.n > 1:
        raise UsageError("--beam searches for one text; leave out --n, or --beam.")
    backend = backends.create(options.backend, options.device, options.dtype)
    loaded = load_model(options.checkpoint, backend)
    if options.backend == "auto":
        print_note(backends.choice(backend.name))
    prompt = loaded.tokenizer.encode(options.prompt, allow_special=True)
    if unknown := loaded.tokenizer.count_unknown(prompt):
        print_warning(f"{unknown} of the prompt's {len(prompt)} tokens are unknown to this model.")
    engine = Engine(loaded.model, threads=ThreadChoice(backend, options.threads))
    # With nothing to continue, a text begins where another ended.
    texts = _texts(options, loaded, engine, prompt or [loaded.tokenizer.end_of_text])
    if options.json:
        _print_json(options, loaded, [*texts], engine.timing)
        return
    for number, text in enumerate(texts):
        if options.n > 1:
            print_text(f"--- {number + 1} of {options.n} ---")
        print_part(options.prompt)
        for part in text:
            print_part(part)
        print_text("")
    timing = engine.timing
    print_text(f"\nprefill {_rate(timing.prefill_tokens, timing.prefill_seconds)}   "
               f"decode {_rate(timing.decode_tokens, timing.decode_seconds)}")  # fmt: skip


def _texts(
    options: SampleOptions, loaded: "LoadedModel", engine: "Engine", prompt: list[int]
) -> Iterator[Iterator[str]]:
    """Each text as an iterator over its parts; a single one is made while it is read."""
    from alpha.engine import SamplingOptions
    from alpha.text_stream import TextStream

    end = loaded.tokenizer.end_of_text
    stop = {end} if options.stop_at_end else set()
    if options.beam > 1:
        tokens, _ = engine.beam_search(prompt, options.steps, options.beam, stop)
        yield iter([loaded.tokenizer.decode([token for token in tokens if token not in stop])])
        return
    sampling = SamplingOptions(options.temp, options.topk, options.topp, options.seed)
    drawn = engine.generate(prompt, options.steps, sampling, options.n, stop)
    if options.n == 1:
        yield TextStream(loaded.tokenizer).parts(token for [token] in drawn if token is not None and token not in stop)
        return
    rows = list(drawn)
    for row in range(options.n):
        tokens = [token for step in rows if (token := step[row]) is not None and token not in stop]
        yield iter([loaded.tokenizer.decode(tokens)])


def _print_json(options: SampleOptions, loaded: "LoadedModel", texts: list[Iterator[str]], timing: "Timing") -> None:
    print_json(
        {
            "checkpoint": str(loaded.path),
            "step": loaded.step,
            "prompt": options.prompt,
            "texts": ["".join(text) for text in texts],
            "prefillTokensPerSec": timing.prefill_tokens / timing.prefill_seconds,
            "decodeTokensPerSec": timing.decode_tokens / timing.decode_seconds if timing.decode_tokens else None,
        }
    )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.0f} tokens/s ({tokens:,} in {seconds:.2f} s)" if tokens else "0 tokens"
