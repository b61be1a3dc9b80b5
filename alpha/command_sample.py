"""`alpha sample`: continue a prompt with a trained model."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpha.config import (
    BACKEND_HELP,
    BACKENDS,
    DEVICE_HELP,
    DTYPE_HELP,
    PRECISIONS,
    THREADS_HELP,
    DrawingOptions,
)
from alpha.errors import UsageError
from alpha.option import option, options_of
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
    interactive: bool = option(
        False, "Converse: a chat in the model's own format, or a text that you and it go on with in turn."
    )
    beam: int = option(
        1, "Hypotheses of a search for the likeliest text, instead of drawing; 1 = draw.", minimum=1, maximum=256
    )
    n: int = option(1, "Texts to make.", minimum=1, maximum=4096)
    stop: tuple[str, ...] = option((), "Stop before this text; may be given several times.")
    stop_at_end: bool = option(True, "Stop where the model ends the text or, in a chat, its turn.")
    slide: bool = option(True, "Where the model's context is full, go on from its newer half; false = stop there.")
    backend: str = option("auto", BACKEND_HELP, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, choices=PRECISIONS)
    threads: int = option(0, THREADS_HELP, minimum=0, maximum=1024)
    json: bool = option(False, "Print JSON.")


OPTIONS = (SampleOptions, DrawingOptions)
DETAILS = """
Special tokens of the model's tokenizer, such as <|user|>, may be spelled in the prompt. A space
at its end is taken as the beginning of the next word. The text goes to standard output: into a
file or a pipe as the model wrote it, on a terminal with control characters made visible. What
is said about it, such as the speed, goes to standard error.

A text may be longer than the model's context: where that is full, its newer half is read anew, and
what is before it does not count any more (--slide=false ends there). Several texts, and the
hypotheses of --beam, are computed side by side; the speed is that of all of them together.

With --interactive, what you type is answered: by a chat model in its own format, where an answer
ends by itself and --prompt is the first thing that is said; by another model as one text that
both of you write. An entry is a line; one that ends with \\ goes on with the next, and several
stand between \"\"\" and \"\"\". Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands. Through
a pipe, each line is an entry, and the answers alone go to standard output.

Examples:
  alpha sample --checkpoint=runs/20261123-101500-3f2a1b --prompt="Once "
  alpha sample --checkpoint=checkpoint-5000.safetensors --n=3 --temp=1 --topp=0.95
  alpha sample --checkpoint=chat --prompt="<|user|>Hello!<|end|><|assistant|>" --stop="Bye"
  alpha sample --checkpoint=chat --interactive
"""


def run(given: dict[str, Any]) -> None:
    """Generate and print; one text is shown while it is made."""
    from alpha import backends
    from alpha.generation import Generator
    from alpha.model_loading import load_model
    from alpha.text_stream import continuation, known_prompts
    from alpha.thread_choice import ThreadChoice

    names = {each.name for each in options_of(DrawingOptions)}
    drawing = DrawingOptions(**{name: value for name, value in given.items() if name in names})
    options = SampleOptions(**{name: value for name, value in given.items() if name not in names})
    _check(options, drawing)
    backend = backends.create(options.backend, options.device, options.dtype)
    start = time.perf_counter()
    loaded = load_model(options.checkpoint, backend)
    seconds = time.perf_counter() - start
    if options.backend == "auto":
        print_note(backends.choice(backend.name))
    generator = Generator(loaded.model, threads=ThreadChoice(backend, options.threads))
    if options.interactive:
        _converse(options, drawing, given, loaded, generator, seconds)
        return
    prompt = options.prompt if "prompt" in given else known_prompts(loaded.tokenizer, [options.prompt])[0]
    asked = continuation(loaded.tokenizer, prompt, loaded.training.domain, options.stop_at_end, options.stop)
    for warning in _warnings(loaded, asked.ids):
        print_warning(warning)
    if not options.slide:
        block = loaded.model.config.block
        room = block + 1 - min(block, len(asked.ids))  # the last token is not read
        drawing = dataclasses.replace(drawing, steps=min(drawing.steps, room))
    texts = _texts(options, drawing, generator, asked)
    if options.json:
        _print_json(prompt, loaded, [*texts], generator.timing)
        return
    for number, text in enumerate(texts):
        if options.n > 1:
            print_text(f"--- {number + 1} of {options.n} ---")
        _print(prompt, text)
    _print_timing(generator.timing)


def _check(options: SampleOptions, drawing: DrawingOptions) -> None:
    """Raises UsageError for options that do not go together."""
    if options.beam > 1 and drawing.repetition_penalty != 1:
        raise UsageError("--beam searches for the likeliest text as it is; leave out --repetitionPenalty, or --beam.")
    if options.beam > 1 and options.n > 1:
        raise UsageError("--beam searches for one text; leave out --n, or --beam.")
    if "" in options.stop:
        raise UsageError("--stop must be text of at least one character.")
    if options.interactive and (options.beam > 1 or options.n > 1 or options.json or not options.slide):
        raise UsageError("--interactive does not go together with --beam, --n, --json and --slide=false.")


def _converse(
    options: SampleOptions,
    drawing: DrawingOptions,
    given: Mapping[str, Any],
    loaded: "LoadedModel",
    generator: "Generator",
    seconds: float,
) -> None:
    """A conversation with a model that took so many seconds to load."""
    from alpha import interactive
    from alpha.conversation import Chat, conversation
    from alpha.engine import Engine, affordable_tokens
    from alpha.model_loading import load_model
    from alpha.scheduler import BLOCK_TOKENS

    model = loaded.model
    context = min(model.config.block, max(BLOCK_TOKENS, affordable_tokens(model)))
    generator.engine = Engine(
        model,
        max_sequences=1,
        request_tokens=context,
        threads=generator.threads,
        reload=lambda: load_model(options.checkpoint, model.backend.replacement()).model,
    )
    talk = conversation(loaded, context, options.stop_at_end, options.stop)
    if isinstance(talk, Chat) and "steps" not in given:
        drawing = dataclasses.replace(drawing, steps=context)
    print_note(f"{loaded.path} was loaded in {seconds:.1f} s.")
    print_note(f"{model.parameters.size_in_all:,} parameters, {context:,} tokens of context. This is {talk.form}.")
    print_note("/help says what can be typed; Ctrl-D ends.")
    interactive.begin(talk, generator, drawing, options.prompt if "prompt" in given else "")
    if generator.timing.prefill_tokens:
        _print_timing(generator.timing)


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


def _texts(
    options: SampleOptions, drawing: DrawingOptions, generator: "Generator", asked: "Continuation"
) -> Iterator[Iterator[str]]:
    """Each text as an iterator over its parts; a single one is made while it is read."""
    from alpha.generation import sampling_of

    if options.beam > 1:
        tokens, _ = generator.beam_search(asked.ids, drawing.steps, options.beam, asked.ends, asked.first)
        yield asked.parts(tokens)
        return
    drawn = generator.generate(asked.ids, drawing.steps, sampling_of(drawing), options.n, asked.ends, asked.first)
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


def _print_timing(timing: "Timing") -> None:
    print_aside(f"prefill {_rate(timing.prefill_tokens, timing.prefill_seconds)}   "
                f"decode {_rate(timing.decode_tokens, timing.decode_seconds)}")  # fmt: skip


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.0f} tokens/s ({tokens:,} in {seconds:.2f} s)" if tokens else "0 tokens"
