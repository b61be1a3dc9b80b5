"""Whole models as work to be measured: training steps, evaluation, prefill and decoding; and tokenizers."""

import functools
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alpha import datagen_stories, rng, tokenizer_registry
from alpha.backend import Backend
from alpha.bench import Work
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.generation import Engine
from alpha.gpt import GPT, parameter_specs
from alpha.optimizer import make_optimizer
from alpha.sampling import SamplingOptions
from alpha.token_file import Tokens
from alpha.training_step import StepResult, TrainingStep

LEARNING_RATE = 3e-4
DECODED_TOKENS = 64
TEXT_BYTES = 1_000_000

_SEED = 42
_BATCHES = 4


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

    def model(self, backend: Backend) -> GPT:
        """A new model of this shape."""
        model = GPT(backend, self.config, self.vocabulary, _SEED)
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
            under_way.append(step.run(next(batch), LEARNING_RATE))
            return under_way.popleft().read() if len(under_way) >= backend.steps_in_flight else None

        return run

    return Work(str(subject), subject.tokens, "tokens/s", prepare)


def evaluation(subject: Subject) -> Work:
    """The loss of one batch."""

    def prepare(backend: Backend) -> Callable[[], object]:
        model = subject.model(backend)
        tokens = subject.random_tokens(subject.tokens + 1).astype(np.int32)
        ids, targets = (
            backend.from_numpy(each.reshape(subject.batch, subject.block)) for each in (tokens[:-1], tokens[1:])
        )
        return lambda: backend.to_numpy(model.loss(ids, targets).data)

    return Work(str(subject), subject.tokens, "tokens/s", prepare)


def prefill(subject: Subject) -> Work:
    """The first token after a prompt that fills the context."""

    def prepare(backend: Backend) -> Callable[[], object]:
        engine = Engine(subject.model(backend))
        prompt = subject.random_tokens(subject.block).tolist()
        return lambda: list(engine.generate(prompt, 1, SamplingOptions()))

    return Work(f"{subject.block} tokens", subject.block, "tokens/s", prepare)


def decode(subject: Subject, sequences: int) -> Work:
    """Sampling a text from its first token on, so that every token but that one is decoded with the cache."""
    steps = min(DECODED_TOKENS, subject.block - 1)

    def prepare(backend: Backend) -> Callable[[], object]:
        engine = Engine(subject.model(backend))
        prompt = subject.random_tokens(1).tolist()
        return lambda: list(engine.generate(prompt, steps, SamplingOptions(), sequences))

    return Work(f"{sequences} x {steps} tokens", sequences * steps, "tokens/s", prepare)


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
        text = datagen_stories.novel(len(texts), _SEED).encode("ascii", "replace")[:missing]
        texts.append(text.decode("ascii"))
        missing -= len(text)
    return texts
