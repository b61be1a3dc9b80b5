"""What a model writes while it trains."""

import logging
from collections.abc import Callable, Iterator, Sequence

from alpha import domain
from alpha.config import TrainingConfig
from alpha.engine import Engine
from alpha.errors import AlphaError
from alpha.generation import Generator
from alpha.gpt import GPT
from alpha.sampling import SamplingOptions
from alpha.text_stream import BEGINNING, Continuation, continuation, known_prompts
from alpha.tokenizer import Tokenizer

SAMPLE_TOKENS = 100

_logger = logging.getLogger(__name__)


class TrainingSamples:
    """Continues all `prompts`, each as it is shown and as it is asked; where there are none, one of the domain's each
    time, in turn. What keeps a prompt from being continued is a warning."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        training: TrainingConfig,
        prompts: Sequence[tuple[str, Continuation]],
        warn: Callable[[str], None],
    ) -> None:
        self._model, self._tokenizer, self._training, self._warn = model, tokenizer, training, warn
        self._asked = tuple(prompts)
        known = domain.get(training.domain).prompts if training.domain else [BEGINNING]
        self._known = () if prompts else known_prompts(tokenizer, known)
        self._engine: Engine | None = None  # kept from the first sample on

    def texts(self, step: int) -> Iterator[tuple[str, str]]:
        """Prompts of this step with what the model writes after each, up to the first that has no text."""
        prompts = self._asked
        if not prompts:
            turn = self._known[step // self._training.sample_interval % len(self._known)]
            prompts = ((turn, continuation(self._tokenizer, turn, self._training.domain)),)
        for prompt, asked in prompts:
            try:
                text = self._continued(asked)
            except AlphaError as error:
                _logger.warning("No sample after step %d. %s", step, error)
                self._warn(f"No sample after step {step}. {error}")
                return
            yield prompt, text

    def _continued(self, asked: Continuation) -> str:
        sampling = SamplingOptions(seed=self._training.seed)
        if self._engine is None:
            self._engine = Engine(self._model, max_sequences=1)
        self._engine.forget()
        generator = Generator(self._model, engine=self._engine)
        drawn = generator.generate(asked.ids, SAMPLE_TOKENS, sampling, ends=asked.ends, first=asked.first)
        return asked.text(token for [token] in drawn if token is not None)
