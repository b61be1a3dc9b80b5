"""The engine on the Vulkan backend: against the full forward pass of the reference, and against itself in company."""

import numpy as np
import pytest
from helios_device import helios
from test_engine import DRAWN, VARIANTS, VOCABULARY, alone, ids_of, requests_of, result, run, true_log_probs
from test_gpt import SMALL_SET, model_of

from alpha import rng
from alpha.config import ModelConfig, resolve_model
from alpha.engine import Engine, Request
from alpha.gpt import GPT
from alpha.sampling import SamplingOptions, random_number


def models(name: str, block: int = 70) -> tuple[GPT, GPT]:
    """The same model on the reference and on the device."""
    config = resolve_model(ModelConfig(**(VARIANTS[name].__dict__ | {"block": block})))
    reference, model = (model_of(config, np.float32, backend, VOCABULARY) for backend in (None, helios()))
    return reference, model


@pytest.mark.parametrize("name", VARIANTS)
def test_log_probabilities_are_those_of_the_full_forward_pass(name: str) -> None:
    reference, model = models(name)
    asked = Request(ids_of(40), 20, DRAWN, logprobs=3, prompt_logprobs=2)
    made = alone(model, asked, step_tokens=16, max_sequences=1)
    ids = [*asked.prompt, *made.ids]
    expected = true_log_probs(reference, ids)
    for place, noted in enumerate([*made.prompt_logprobs, *made.logprobs]):
        if noted is not None:
            row = expected[place - 1]
            assert noted.chosen == pytest.approx(row[ids[place]], abs=5e-4)
            assert noted.values == pytest.approx(sorted(row, reverse=True)[: len(noted.values)], abs=5e-4)


@pytest.mark.parametrize("name", SMALL_SET)
@pytest.mark.parametrize("logprobs", [None, 2])  # without, several steps are under way
def test_a_request_has_the_bits_that_it_has_alone(name: str, logprobs: int | None) -> None:
    _, model = models(name)
    subject = Request(ids_of(37), 30, SamplingOptions(1.0, 0, seed=5), logprobs=logprobs)
    expected = result(alone(model, subject))
    for crowd in range(6):
        others = requests_of(crowd, 1 + crowd % 7, 70)
        engine = Engine(model, 2 + crowd % 4, 5 + 13 * (crowd % 3), cache_tokens=96 + 16 * (crowd % 5))
        place = crowd % (len(others) + 1)
        generations = [engine.submit(each) for each in [*others[:place], subject, *others[place:]]]
        run(engine)
        assert result(generations[place]) == expected, crowd


def test_ids_are_exact_where_logits_have_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = helios("f16")
    config = resolve_model(ModelConfig(layers=1, heads=1, dim=8, block=16))
    model = model_of(config, np.float32, backend, 5000)
    whole = model.logits_of_rows  # as matrix units give them
    monkeypatch.setattr(model, "logits_of_rows", lambda hidden: backend.cast(whole(hidden), np.float16))
    prompt = ids_of(4)
    ids, again = (alone(model, Request(prompt, 9, SamplingOptions(5.0, 0), logprobs=count)).ids for count in (None, 0))
    assert ids == again
    assert any(each > 2048 and each % 2 for each in ids)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    draws, vocabulary = 3_000, 24
    logits = 2 * rng.normal(vocabulary, 1, 0).astype(np.float32)
    for temperature, top_k in ((1.0, 0), (0.7, 12)):
        sampling = SamplingOptions(temperature, top_k)
        options = np.array([[temperature, 1, 0, random_number(sampling, 0, step)] for step in range(draws)], np.float32)
        backend = helios()
        operands = np.tile(logits, (draws, 1)), options, np.full(draws, top_k, np.int32)
        ids = backend.to_numpy(backend.choose(*map(backend.from_numpy, operands)))
        likely = np.argsort(-logits)[: top_k or None]
        weights = np.exp(logits[likely].astype(np.float64) / temperature)
        expected = draws * weights / weights.sum()
        counts = np.bincount(ids, minlength=vocabulary)
        assert counts[likely].sum() == draws
        # The sum of squares has a mean of its degrees of freedom, and a deviation of the root of twice as many.
        freedom = len(likely) - 1
        assert ((counts[likely] - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)
