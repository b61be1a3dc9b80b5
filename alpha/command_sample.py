"""`alpha sample`: continue a prompt with a trained model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpha.config import BACKEND_HELP, BACKENDS, DEVICE_HELP, DTYPE_HELP, PRECISIONS, THREADS_HELP
from alpha.errors import UsageError
from alpha.option import option
from alpha.terminal import TextPrinter, print_aside, print_json, print_note, print_text, print_warning

if TYPE_CHECKING:
    from alpha.generation import Generator, Timing
    from alpha.model_loading import LoadedModel
    from alpha.text_stream import Continuation


@dataclass(frozen=True)
class SampleOptions:
    """The options of `alpha sample`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    prompt: str = option("The ", "Text to continue; the default is nothing where the model does not know it.")
    steps: int = option(200, "Tokens to add, at most.", minimum=1)
    temp: float = option(0.8, "Temperature; 0 = always the likeliest token.", minimum=0)
    topk: int = option(40, "Choose among this many likeliest tokens; 0 = all.", minimum=0)
    topp: float = option(1.0, "Choose among the likeliest tokens of this total probability.", minimum=0, maximum=1)
    beam: int = option(
        1, "Hypotheses of a search for the likeliest text, instead of drawing; 1 = draw.", minimum=1, maximum=256
    )
    n: int = option(1, "Texts to make.", minimum=1, maximum=4096)
    seed: int = option(42, "Seed of every random choice.", minimum=0, maximum=(1 << 64) - 1)
    stop: tuple[str, ...] = option((), "Stop before this text; may be given several times.")
    stop_at_end: bool = option(True, "Stop where the model ends the text or, in a chat, its turn.")
    backend: str = option("auto", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, minimum=0, maximum=1024)
    json: bool = option(False, "Print JSON.")


OPTIONS = (SampleOptions,)
DETAILS = """
Special tokens of the model's tokenizer, such as <|user|>, may be spelled in the prompt. A space
at its end is taken as the beginning of the next word. The text goes to standard output: into a
file or a pipe as the model wrote it, on a terminal with control characters made visible. What
is said about it, such as the speed, goes to standard error.

Examples:
  alpha sample --checkpoint=runs/20261123-101500-3f2a1b --prompt="Once "
  alpha sample --checkpoint=checkpoint-5000.safetensors --n=3 --temp=1 --topp=0.95
  alpha sample --checkpoint=chat --prompt="<|user|>Hello!<|end|><|assistant|>" --stop="Bye"
"""


def run(given: dict[str, Any]) -> None:
    """Generate and print; one text is shown while it is made."""
    from alpha import backends
    from alpha.generation import Generator
    from alpha.model_loading import load_model
    from alpha.text_stream import continuation, known_prompts
    from alpha.thread_choice import ThreadChoice

    options = SampleOptions(**given)
    if options.beam > 1 and options.n > 1:
        raise UsageError("--beam searches for one text; leave out --n, or --beam.")
    if "" in options.stop:
        raise UsageError("--stop must be text of at least one character.")
    backend = backends.create(options.backend, options.device, options.dtype)
    loaded = load_model(options.checkpoint, backend)
    if options.backend == "auto":
        print_note(backends.choice(backend.name))
    prompt = options.prompt if "prompt" in given else known_prompts(loaded.tokenizer, [options.prompt])[0]
    asked = continuation(loaded.tokenizer, prompt, loaded.training.domain, options.stop_at_end, options.stop)
    for warning in _warnings(loaded, asked.ids):
        print_warning(warning)
    engine = Generator(loaded.model, threads=ThreadChoice(backend, options.threads))
    texts = _texts(options, engine, asked)
    if options.json:
        _print_json(prompt, loaded, [*texts], engine.timing)
        return
    for number, text in enumerate(texts):
        if options.n > 1:
            print_text(f"--- {number + 1} of {options.n} ---")
        _print(prompt, text)
    timing = engine.timing
    print_aside(f"prefill {_rate(timing.prefill_tokens, timing.prefill_seconds)}   "
                f"decode {_rate(timing.decode_tokens, timing.decode_seconds)}")  # fmt: skip


def _warnings(loaded: "LoadedModel", prompt: Sequence[int]) -> Iterator[str]:
    if unknown := loaded.tokenizer.count_unknown(prompt):
        yield f"{unknown} of the prompt's {len(prompt)} tokens are unknown to this model."
    left_out = len(prompt) - loaded.model.config.block
    if left_out > 0:
        yield (
            f"The prompt has {len(prompt):,} tokens and the model's context holds {loaded.model.config.block:,}, "
            f"so the first {left_out:,} do not count."
        )


def _print(prompt: str, text: Iterator[str]) -> None:
    printer = TextPrinter()
    try:
        printer.part(prompt)
        for part in text:
            printer.part(part)
    except KeyboardInterrupt:
        printer.close()  # what there is stays, and what is said next has a line of its own
        raise
    printer.close()


def _texts(options: SampleOptions, engine: "Generator", asked: "Continuation") -> Iterator[Iterator[str]]:
    """Each text as an iterator over its parts; a single one is made while it is read."""
    from alpha.sampling import SamplingOptions

    if options.beam > 1:
        tokens, _ = engine.beam_search(asked.ids, options.steps, options.beam, asked.ends, asked.first)
        yield asked.parts(tokens)
        return
    sampling = SamplingOptions(options.temp, options.topk, options.topp, seed=options.seed)
    drawn = engine.generate(asked.ids, options.steps, sampling, options.n, asked.ends, asked.first)
    rows = drawn if options.n == 1 else list(drawn)
    for row in range(options.n):
        yield asked.parts(token for step in rows if (token := step[row]) is not None)


def _print_json(prompt: str, loaded: "LoadedModel", texts: list[Iterator[str]], timing: "Timing") -> None:
    print_json(
        {
            "checkpoint": str(loaded.path),
            "step": loaded.step,
            "prompt": prompt,
            "texts": ["".join(text) for text in texts],
            "prefillTokensPerSec": timing.prefill_tokens / timing.prefill_seconds,
            "decodeTokensPerSec": timing.decode_tokens / timing.decode_seconds if timing.decode_tokens else None,
        }
    )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.0f} tokens/s ({tokens:,} in {seconds:.2f} s)" if tokens else "0 tokens"
