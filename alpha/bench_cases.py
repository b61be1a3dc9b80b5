"""What `alpha bench` measures of whole models and of tokenizers; and the table of all cases, in suites.

Rates count what is needed at least, as in `bench_operations`.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from alpha import datagen, rng, tokenizer_registry
from alpha.activation import ACTIVATIONS
from alpha.backend import Backend
from alpha.bench import Case, Work
from alpha.bench_operations import (
    Works,
    activation,
    adamw_update,
    add,
    attention,
    attention_products,
    cross_entropy,
    cross_entropy_products,
    dropout,
    embedding,
    layer_norm,
    linear,
    linear_products,
    position,
    rms_norm,
    split_heads,
    sum_of_squares,
)
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.engine import Engine, Request
from alpha.generation import Generator
from alpha.gpt import GPT, parameter_specs
from alpha.optimizer import make_optimizer
from alpha.sampler import inputs_and_targets
from alpha.sampling import SamplingOptions
from alpha.token_file import Tokens
from alpha.training_step import StepResult, TrainingStep

# --- whole models, and tokenizers -------------------------------------------------------------------------------------


LEARNING_RATE = 3e-4
DECODED_TOKENS = 64
CONTINUED_TOKENS = 400
"""Of texts that nothing else is done for, so that beginning and end count for little; as in PyTorch's loop."""

TEXT_BYTES = 1_000_000

_SEED = 42
_BATCHES = 4
_DRAWN, _LIKELIEST = SamplingOptions(), SamplingOptions(temperature=0.0)


@dataclass(frozen=True)
class Subject:
    """The shape of a model, with the batch it is trained on and the size of its vocabulary."""

    layers: int
    heads: int
    dim: int
    block: int
    batch: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch * self.block

    @property
    def config(self) -> ModelConfig:
        return resolve_model(ModelConfig(layers=self.layers, heads=self.heads, dim=self.dim, block=self.block))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(spec.size for spec in parameter_specs(self.config, self.vocabulary))

    def __str__(self) -> str:
        return (
            f"L={self.layers} H={self.heads} C={self.dim} T={self.block} B={self.batch} V={self.vocabulary}, "
            f"{self.parameters:,} parameters"
        )

    def model(self, backend: Backend, trained: bool = True) -> GPT:
        """A new model of this shape; one that is not `trained` is stored as one that is loaded."""
        dtype = None if trained else backend.weight_dtype
        model = GPT(backend, self.config, self.vocabulary, _SEED, trained=lambda spec: trained, matrix_dtype=dtype)
        model.parameters.initialize()
        return model

    def random_tokens(self, count: int) -> Tokens:
        """Token ids of the vocabulary."""
        return rng.random_bits(count, _SEED, rng.stream_of("bench")) % np.uint32(self.vocabulary)


def training_step(subject: Subject) -> Work:
    """A whole step with AdamW and clipping, on a few batches in turn, its result read back as late as in training."""

    def prepare(backend: Backend) -> Callable[[], object]:
        training = resolve_training(TrainingConfig(batch=subject.batch, lr=LEARNING_RATE))
        model = subject.model(backend)
        step = TrainingStep(model, make_optimizer(model.parameters, training), training)
        shape = (_BATCHES, 1, subject.batch, subject.block + 1)
        batches = subject.random_tokens(_BATCHES * subject.batch * (subject.block + 1)).reshape(shape)
        batch = itertools.cycle(batches)
        under_way: deque[StepResult] = deque()

        def run() -> object:
            under_way.append(step.run(*inputs_and_targets(next(batch)), LEARNING_RATE))
            return under_way.popleft().read() if len(under_way) >= backend.steps_in_flight else None

        return run

    return Work(str(subject), subject.tokens, "tokens/s", prepare)


def evaluation(subject: Subject) -> Work:
    """The losses of one batch, as `evaluation` has them."""

    def prepare(backend: Backend) -> Callable[[], object]:
        model = subject.model(backend)
        tokens = subject.random_tokens(subject.tokens + 1).astype(np.int32)
        batch = [each.reshape(subject.batch, subject.block) for each in (tokens[:-1], tokens[1:])]
        losses = backend.record(model.losses)
        return lambda: backend.to_numpy(losses(*map(backend.from_numpy, batch)))

    return Work(str(subject), subject.tokens, "tokens/s", prepare)


def prefill(subject: Subject) -> Work:
    """The first token after a prompt that fills the context."""

    def prepare(backend: Backend) -> Callable[[], object]:
        engine = Generator(subject.model(backend, trained=False))
        prompt = subject.random_tokens(subject.block).tolist()
        return lambda: list(engine.generate(prompt, 1, SamplingOptions()))

    return Work(f"{subject.block} tokens", subject.block, "tokens/s", prepare)


def decode(subject: Subject, sequences: int) -> Work:
    """Sampling a text from its first token on, so that every token but that one is decoded with the cache."""
    steps = min(DECODED_TOKENS, subject.block - 1)

    def prepare(backend: Backend) -> Callable[[], object]:
        engine = Generator(subject.model(backend, trained=False))
        prompt = subject.random_tokens(1).tolist()
        return lambda: list(engine.generate(prompt, steps, SamplingOptions(), sequences))

    return Work(f"{sequences} x {steps} tokens", sequences * steps, "tokens/s", prepare)


def served(
    subject: Subject,
    requests: int,
    prompt: int,
    steps: int,
    is_shared: bool = False,
    every: int = 0,
    sampling: SamplingOptions = _DRAWN,
) -> Work:
    """Requests to an engine that is there already, each to read a prompt and to draw some tokens.

    All come at once, or one `every` few steps; all their prompts are one, or begin differently. What is counted are the
    tokens drawn, or those of all prompts where only one is drawn.
    """

    def prepare(backend: Backend) -> Callable[[], object]:
        engine = Engine(subject.model(backend, trained=False), requests)
        rounds, vocabulary = itertools.count(), subject.vocabulary
        text = (rng.random_bits(prompt, _SEED, rng.stream_of("bench")) % np.uint32(vocabulary)).tolist()

        def ids(number: int) -> list[int]:
            begin = [number % vocabulary, number // vocabulary % vocabulary][:prompt]
            return begin + text[len(begin) :]

        def run() -> None:
            first = next(rounds) * requests  # no prompt comes again, so that none is found computed
            prompts = [ids(first + (0 if is_shared else row)) for row in range(requests)]
            waiting = [Request(each, steps, sampling, row=row) for row, each in enumerate(prompts)]
            for step in itertools.count():
                if waiting and (not every or step % every == 0 or not engine.is_busy):
                    for _ in range(1 if every else requests):
                        engine.submit(waiting.pop(0))
                elif not engine.is_busy:
                    return
                engine.step()

        return run

    amount = requests * (prompt if steps == 1 else steps)
    how = ", one prompt" if is_shared else f", one in {every} steps" if every else ""
    return Work(f"{requests} x {prompt} + {steps} tokens{how}", amount, "tokens/s", prepare)


def tokenizer(name: str, text_bytes: int = TEXT_BYTES) -> Work:
    """Encoding prose with a tokenizer that remembers nothing yet: it is read from its artifact each time."""

    def prepare(backend: Backend) -> Callable[[], object]:
        texts = _prose(text_bytes)
        artifact = tokenizer_registry.build(name, texts).to_mapping()

        def run() -> object:
            fresh = tokenizer_registry.from_mapping(artifact, "the benchmark's tokenizer")
            return [fresh.encode_to_array(text) for text in texts]

        return run

    return Work(f"{text_bytes:,} bytes", text_bytes, "MB/s", prepare, dtype="uint32")


@functools.lru_cache(1)
def _prose(size: int) -> list[str]:
    """Rule-made documents of `size` bytes of ASCII in all."""
    texts: list[str] = []
    missing = size
    while missing:
        text = datagen.document("novels", len(texts), _SEED).encode("ascii", "replace")[:missing]
        texts.append(text.decode("ascii"))
        missing -= len(text)
    return texts


# --- the table of all cases -------------------------------------------------------------------------------------------


SUBJECTS = {
    "cpu-quickstart": Subject(layers=2, heads=4, dim=64, block=64, batch=8, vocabulary=96),
    "quickstart": Subject(layers=4, heads=4, dim=128, block=128, batch=16, vocabulary=96),
    "chars10m-b8": Subject(layers=6, heads=6, dim=384, block=256, batch=8, vocabulary=65),
}
GPU_SUBJECTS = {
    "chars10m": Subject(layers=6, heads=6, dim=384, block=256, batch=64, vocabulary=65),
    "gpt2-124m": Subject(layers=12, heads=12, dim=768, block=1024, batch=32, vocabulary=50304),
}
"""Models that are trained on a GPU only: on a CPU a single step would take minutes."""

MORE_GPU_SUBJECTS = {
    "gpt2-124m-b8": Subject(layers=12, heads=12, dim=768, block=1024, batch=8, vocabulary=50304),
    "gpt2-124m-block4096": Subject(layers=12, heads=12, dim=768, block=4096, batch=8, vocabulary=50304),
    "gpt2-350m": Subject(layers=24, heads=16, dim=1024, block=1024, batch=16, vocabulary=50304),
}
"""Other batches, blocks and sizes, of which only training steps are measured."""

TOKENIZERS = ("char", "word", "bpe")


def all_cases(backend: str = "cpu_ref") -> list[Case]:
    """Every case of every suite that a backend is measured with."""
    trained, more = (SUBJECTS, {}) if backend == "cpu_ref" else (SUBJECTS | GPU_SUBJECTS, MORE_GPU_SUBJECTS)
    return [
        *(case for name, subject in SUBJECTS.items() for case in operation_cases(name, subject)),
        *other_operation_cases("quickstart", SUBJECTS["quickstart"]),
        *(case for name, subject in SUBJECTS.items() for case in end_to_end_cases(name, subject)),
        *(Case(f"e2e/tokenizer/{name}", tokenizer(name)) for name in TOKENIZERS),
        *(case for name, subject in trained.items() for case in serving_cases(name, subject)),
        *(Case(f"train/{name}", training_step(subject)) for name, subject in (trained | more).items()),
    ]


def operation_cases(name: str, subject: Subject) -> list[Case]:
    """The operations that make up a training step, and then the bare matrix products that are part of them."""
    B, T, C, H, V, L = subject.batch, subject.block, subject.dim, subject.heads, subject.vocabulary, subject.layers
    M, D, F, P = B * T, C // H, 4 * C, subject.parameters
    table = [
        # what                            calls      work
        ("embedding",                     1,         embedding(M, C, V)),
        ("position",                      1,         position(B, T, C)),
        ("layer_norm",                    2 * L + 1, layer_norm(M, C)),
        ("attention_input",               L,         linear(M, C, 3 * C)),
        ("attention",                     L,         attention(B, T, H, D)),
        ("attention_output",              L,         linear(M, C, C, residual=True)),
        ("feed_forward_input",            L,         linear(M, C, F, "gelu")),
        ("feed_forward_output",           L,         linear(M, F, C, residual=True)),
        ("cross_entropy",                 1,         cross_entropy(M, C, V)),
        ("add_gradients",                 2 * L,     add(M, C)),
        ("gradient_norm",                 1,         sum_of_squares(P)),
        ("adamw_update",                  1,         adamw_update(P)),
        ("products/attention_input",      L,         linear_products(M, C, 3 * C)),
        ("products/attention",            L,         attention_products(B, T, H, D)),
        ("products/attention_output",     L,         linear_products(M, C, C)),
        ("products/feed_forward_input",   L,         linear_products(M, C, F)),
        ("products/feed_forward_output",  L,         linear_products(M, F, C)),
        ("products/cross_entropy",        1,         cross_entropy_products(M, C, V)),
    ]  # fmt: skip
    return _cases(name, table)


def other_operation_cases(name: str, subject: Subject) -> list[Case]:
    """The operations of other architectures, in the shapes that they would have here."""
    B, T, C, H = subject.batch, subject.block, subject.dim, subject.heads
    M, D, F = B * T, C // H, 4 * C
    table = [
        ("rms_norm",               0, rms_norm(M, C)),
        ("split_heads",            0, split_heads(B, T, H, D)),
        ("dropout",                0, dropout(M, C, 0.1)),
        *((f"activation/{kind}", 0, activation(M, F, kind)) for kind in ACTIVATIONS),
    ]  # fmt: skip
    return _cases(name, table)


def end_to_end_cases(name: str, subject: Subject) -> list[Case]:
    """What a user waits for beside training."""
    return [
        Case(f"e2e/{name}/prefill", prefill(subject)),
        Case(f"e2e/{name}/decode", decode(subject, sequences=1)),
        Case(f"e2e/{name}/decode_8", decode(subject, sequences=8)),
        Case(f"e2e/{name}/evaluate", evaluation(subject)),
    ]


def serving_cases(name: str, subject: Subject) -> list[Case]:
    """An engine at work: texts of few and of many requests, prompts as long as the block and half as long, all of which
    go on with the likeliest token; a prompt that many share, and a mixture."""
    half = max(1, subject.block // 2)
    steps, length = min(DECODED_TOKENS, half), min(CONTINUED_TOKENS, half)
    texts = {count: served(subject, count, 1, length, sampling=_LIKELIEST) for count in (1, 8, 16, 64)}
    return [
        *(Case(f"serve/{name}/decode_{count}", work) for count, work in texts.items()),
        Case(f"serve/{name}/prefill", served(subject, 1, subject.block, 1, sampling=_LIKELIEST)),
        Case(f"serve/{name}/prefill_half", served(subject, 1, half, 1, sampling=_LIKELIEST)),
        Case(f"serve/{name}/shared", served(subject, 32, half, 1, is_shared=True)),
        Case(f"serve/{name}/mixed", served(subject, 16, half, steps, every=4)),
    ]


def _cases(subject: str, table: Iterable[tuple[str, int, Works]]) -> list[Case]:
    return [
        Case(f"ops/{subject}/{what}" + (f".{half}" if half else ""), work, calls)
        for what, calls, works in table
        for half, work in works.items()
    ]
