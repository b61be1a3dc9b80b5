"""Generation: decoding with the cache against the whole forward pass, sampling against its definition, beam search."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from definitions import initial_values
from test_engine import random_number

from alpha import generation, rng
from alpha.backend_cpu_ref import CpuRef
from alpha.choice import choose
from alpha.config import ARCHITECTURES, ModelConfig, resolve_model
from alpha.engine_steps import Step, Steps
from alpha.errors import AlphaError
from alpha.generation import Generator, Timing
from alpha.gpt import GPT
from alpha.sampling import SamplingOptions
from alpha.scheduler import Piece
from alpha.thread_choice import ThreadChoice

VOCABULARY = 13
BLOCK = 8
GREEDY = SamplingOptions(temperature=0.0)
every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)


def model_of(arch: str = "gpt2", vocabulary: int = VOCABULARY, **options: Any) -> GPT:
    """A model with weights large enough that what it writes depends on all that it has read."""
    shape = {"block": BLOCK, "layers": 2, "dim": 16, "heads": 2}
    config = resolve_model(ModelConfig(**(shape | ARCHITECTURES[arch] | {"arch": arch} | options)))
    model = GPT(CpuRef(), config, vocabulary)
    values = {}
    for spec in model.parameters.specs:
        noise = rng.normal(spec.size, 1, rng.stream_of("test", spec.name)).reshape(spec.shape)
        values[spec.name] = (initial_values(spec) + 0.3 * noise).astype(np.float32)
    model.parameters.load(values)
    return model


def ids_of(count: int, name: str = "prompt", vocabulary: int = VOCABULARY) -> list[int]:
    return [int(bits) % vocabulary for bits in rng.random_bits(count, 2, rng.stream_of(name))]


def last_logits(model: GPT, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Logits [V] after some ids, by the whole forward pass without a cache."""
    logits: npt.NDArray[np.float64] = model.logits(np.array([ids], np.int32)).data[0, -1].astype(np.float64)
    return logits


def greedy_by_definition(model: GPT, prompt: Sequence[int], steps: int) -> list[int]:
    """The likeliest next id again and again, from the last `block` ids; where these would be more, half is dropped."""
    block = model.config.block
    ids = list(prompt)
    start = max(0, len(ids) - block)
    for _ in range(steps):
        if len(ids) - start > block:
            start = len(ids) - max(1, block // 2)
        ids.append(int(np.argmax(last_logits(model, ids[start:]))))
    return ids[len(prompt) :]


def ending_with(stop: Sequence[int]) -> generation.Ends:
    return lambda ids: ids[-1] in stop


def generated(
    model: GPT,
    prompt: Sequence[int],
    steps: int,
    sampling: SamplingOptions = GREEDY,
    sequences: int = 1,
    stop: Sequence[int] = (),
) -> list[list[int | None]]:
    """What each sequence got: [sequences][steps]."""
    drawn = list(Generator(model).generate(prompt, steps, sampling, sequences, ending_with(stop)))
    return [list(row) for row in zip(*drawn, strict=True)]


# --- decoding ---------------------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("length", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_greedy_decoding_equals_the_argmax_of_the_whole_forward_pass(arch: str, length: int) -> None:
    model, prompt = model_of(arch), ids_of(length)
    steps = 3 * BLOCK + 1  # the context is full several times
    expected = greedy_by_definition(model, prompt, steps)
    assert len(set(expected)) > 1
    assert generated(model, prompt, steps) == [expected]
    assert generated(model, prompt, steps, sequences=3) == [expected] * 3


@every_architecture
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_token_is_chosen_by_the_logits_of_the_whole_forward_pass(
    arch: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows that differ, and that do not repeat themselves as greedy decoding does.
    rows, steps = 3, 3 * BLOCK
    script = [ids_of(steps, f"row {row}") for row in range(rows)]
    seen: dict[tuple[int, int], npt.NDArray[np.floating[Any]]] = {}
    places = {random_number(SamplingOptions(), row, step): (row, step) for row in range(rows) for step in range(steps)}
    assert len(places) == rows * steps

    def choose_by_script(_: CpuRef, logits: Any, options: Any, top_k: Any) -> Any:
        chosen = np.zeros(len(logits), np.int32)
        for index, number in enumerate(options[:, 3].tolist()):
            if number in places:
                row, step = places[number]
                seen[row, step] = logits[index].copy()
                chosen[index] = script[row][step]
        return chosen

    monkeypatch.setattr(CpuRef, "choose", choose_by_script)
    model, prompt = model_of(arch), ids_of(length)
    assert generated(model, prompt, steps, SamplingOptions(), sequences=rows) == script
    for row in range(rows):
        ids, start = list(prompt), max(0, length - BLOCK)
        for step in range(steps):
            if len(ids) - start > BLOCK:
                start = len(ids) - BLOCK // 2
            np.testing.assert_allclose(seen[row, step], last_logits(model, ids[start:]), rtol=1e-4, atol=1e-4)
            ids.append(script[row][step])


@every_architecture
@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_smallest_contexts_are_enough(arch: str, block: int) -> None:
    model = model_of(arch, block=block)
    assert generated(model, [5, 7], 7) == [greedy_by_definition(model, [5, 7], 7)]


def test_the_prompt_is_left_as_it_is() -> None:
    prompt = ids_of(3)
    before = list(prompt)
    generated(model_of(), prompt, 5)
    assert prompt == before


@every_architecture
def test_a_seed_fixes_every_row_whatever_the_number_of_rows(arch: str) -> None:
    model, prompt = model_of(arch), ids_of(4)
    sampling = SamplingOptions(temperature=1.0, top_k=0, seed=9)
    four, eight = (generated(model, prompt, 20, sampling, sequences=count) for count in (4, 8))
    assert eight[:4] == four
    assert generated(model, prompt, 20, sampling) == four[:1]
    assert generated(model, prompt, 20, sampling, sequences=8) == eight
    assert len({tuple(row) for row in eight}) == 8
    other = SamplingOptions(temperature=1.0, top_k=0, seed=10)
    assert generated(model, prompt, 20, other) != four[:1]


def test_longer_texts_begin_with_the_shorter_ones() -> None:
    model, prompt = model_of(), ids_of(4)
    sampling = SamplingOptions(temperature=1.0)
    assert generated(model, prompt, 20, sampling)[0][:7] == generated(model, prompt, 7, sampling)[0]


def test_a_sequence_ends_with_a_stop_id_and_the_others_go_on() -> None:
    model, prompt = model_of(), ids_of(4)
    sampling = SamplingOptions(temperature=1.5, top_k=0)
    free = generated(model, prompt, 30, sampling, sequences=4)
    stop = [3, 4]
    first = [next(step for step, token in enumerate(row) if token in stop) for row in free]
    assert len(set(first)) > 1
    stopped = generated(model, prompt, 30, sampling, 4, stop)
    length = max(first) + 1
    assert stopped == [row[: end + 1] + [None] * (length - end - 1) for row, end in zip(free, first, strict=True)]


def test_the_time_and_the_tokens_of_both_phases_are_counted() -> None:
    writer = Generator(model_of())
    list(writer.generate(ids_of(5), 4, GREEDY, sequences=3))
    timing = writer.timing
    assert (timing.prefill_tokens, timing.decode_tokens) == (15, 9)
    assert timing.prefill_seconds > 0 < timing.decode_seconds


def test_a_step_counts_when_its_tokens_come_and_for_what_it_was_made_of() -> None:
    timing = Timing()
    timing.add(0.5, 0, 0)  # given to a device, and not done yet
    timing.add(0.25, 30, 10)
    timing.add(1.0, 0, 5)
    assert (timing.prefill_tokens, timing.decode_tokens) == (30, 15)
    assert (timing.prefill_seconds, timing.decode_seconds) == (0.5625, 1.1875)


def test_a_beam_counts_a_token_for_each_hypothesis() -> None:
    writer = Generator(model_of(block=32))
    writer.beam_search(ids_of(20), 7, beams=3)
    assert (writer.timing.prefill_tokens, writer.timing.decode_tokens) == (20, 3 * 6)


@pytest.mark.parametrize("under_way", [1, 3])
def test_many_texts_are_made_side_by_side(under_way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuRef, "steps_in_flight", under_way)
    model, rows, steps = model_of(block=40), 200, 6
    sizes: list[int] = []
    give = Steps.give

    def noting(self: Steps, pieces: Sequence[Piece], *rest: Any) -> Step:
        sizes.append(len(pieces))
        return give(self, pieces, *rest)

    monkeypatch.setattr(Steps, "give", noting)
    writer = Generator(model)
    drawn = list(writer.generate(ids_of(20), steps, SamplingOptions(1.0, 0), rows))
    assert all(token is not None for step in drawn for token in step)
    assert sizes.count(rows) >= steps - 2
    assert len(sizes) <= steps + 4
    # The prompt is read once, and its last block by each.
    assert writer.timing.prefill_tokens == 20 + (rows - 1) * 4
    assert writer.timing.decode_tokens == rows * (steps - 1)


def test_sequences_that_have_ended_are_not_counted() -> None:
    writer = Generator(model_of())
    sampling = SamplingOptions(temperature=1.5, top_k=0)
    drawn = list(writer.generate(ids_of(1), BLOCK, sampling, 4, ending_with([3, 4, 5])))
    real = sum(token is not None for step in drawn[1:] for token in step)
    assert real < 4 * len(drawn[1:])
    assert (writer.timing.prefill_tokens, writer.timing.decode_tokens) == (4, real)


def test_the_first_ids_are_drawn_among_those_that_are_allowed() -> None:
    model, prompt = model_of(), ids_of(4)
    allowed = np.array([2, 7, 11])
    for sampling in (GREEDY, SamplingOptions(temperature=3.0, top_k=2), SamplingOptions(temperature=3.0, top_p=0.9)):
        drawn = list(Generator(model).generate(prompt, 3, sampling, 64, first=allowed))
        likeliest = sorted(allowed.tolist(), key=lambda token: -last_logits(model, prompt)[token])
        count = 1 if sampling.temperature == 0 else sampling.top_k or 3
        assert set(drawn[0]) <= set(likeliest[:count])
        assert sampling.temperature == 0 or len(set(drawn[0])) > 1
        assert not set(drawn[1]) <= set(allowed.tolist()) or sampling.temperature == 0
    for beams in (1, 5):
        ids, mean = Generator(model).beam_search(prompt, 3, beams, first=allowed)
        assert ids[0] in allowed
        assert math.isfinite(mean)


def test_beams_end_where_the_caller_says() -> None:
    model, prompt = model_of(), ids_of(4)
    ids, _ = Generator(model).beam_search(prompt, 12, 3, ends=lambda ids: len(ids) == 2)
    assert len(ids) == 2
    ids, _ = Generator(model).beam_search(prompt, 12, 3, ends=lambda ids: len(ids) == 3 or ids[-1] != 5)
    assert set(ids[:-1]) <= {5}


def test_a_model_whose_training_went_wrong_is_refused() -> None:
    model = model_of()
    model.parameters["ln_f.weight"].data[2] = np.nan
    with pytest.raises(AlphaError, match="not finite"):
        generated(model, [1], 3)
    with pytest.raises(AlphaError, match="not finite"):
        Generator(model).beam_search([1], 3, beams=2)


# --- sampling ---------------------------------------------------------------------------------------------------------

LOGITS = np.array([1.0, -0.5, 2.0, 0.3, 2.0, -3.0, 0.9, 1.4], np.float32)
CASES = [
    SamplingOptions(temperature=1.0, top_k=0),
    SamplingOptions(temperature=0.3, top_k=0),
    SamplingOptions(temperature=5.0, top_k=0),
    SamplingOptions(temperature=1.0, top_k=3),
    SamplingOptions(temperature=1.0, top_k=1),
    SamplingOptions(temperature=1.0, top_k=100),
    SamplingOptions(temperature=1.0, top_k=0, top_p=0.7),
    SamplingOptions(temperature=2.0, top_k=0, top_p=0.95),
    SamplingOptions(temperature=1.0, top_k=0, top_p=0.0),
    SamplingOptions(temperature=0.8, top_k=5, top_p=0.6),
]


def distribution(sampling: SamplingOptions) -> list[float]:
    """The probability of each id, step by step as in the papers; of equal logits the first id counts as likelier."""
    weights = {token: math.exp(float(logit) / sampling.temperature) for token, logit in enumerate(LOGITS)}
    ranked = sorted(weights, key=lambda token: -weights[token])
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    total = sum(weights[token] for token in ranked)
    nucleus, mass = [], 0.0
    for token in ranked:
        nucleus.append(token)
        mass += weights[token] / total
        if mass >= sampling.top_p:
            break
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(LOGITS))]


def chosen(logits: npt.NDArray[np.float32], sampling: SamplingOptions, number: float) -> int:
    return choose(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, number)


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_every_id_has_its_share_of_the_random_numbers(sampling: SamplingOptions) -> None:
    # Evenly spaced numbers in place of random ones, so that shares are exact but for one draw.
    draws = 500
    counts = [0] * len(LOGITS)
    for step in range(draws):
        counts[chosen(LOGITS, sampling, (step + 0.5) / draws)] += 1
    for count, probability in zip(counts, distribution(sampling), strict=True):
        assert abs(count - draws * probability) <= 1.0
        assert (count == 0) == (probability == 0) or probability < 1 / draws


def test_draws_are_as_spread_as_their_distribution() -> None:
    sampling = SamplingOptions(temperature=1.0, top_k=0)
    draws = 1500
    numbers = [random_number(sampling, step % 5, step // 5) for step in range(draws)]
    counts = np.bincount([chosen(LOGITS, sampling, number) for number in numbers], minlength=8)
    expected = draws * np.array(distribution(sampling))
    chi_square = float(np.sum((counts - expected) ** 2 / expected))
    assert chi_square < 24.3  # the 99.9 % quantile for 7 degrees of freedom


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-9])
def test_temperatures_near_zero_take_the_likeliest_id(temperature: float) -> None:
    logits = LOGITS.copy()
    logits[4] += 0.001
    sampling = SamplingOptions(temperature=temperature)
    assert {chosen(logits, sampling, number) for number in np.arange(20) / 20} == {4}


# --- beam search ------------------------------------------------------------------------------------------------------


def log_probabilities(model: GPT, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    logits = last_logits(model, ids)
    shifted: npt.NDArray[np.float64] = logits - logits.max()
    return shifted - math.log(float(np.exp(shifted).sum()))


def best_by_exhaustion(model: GPT, prompt: list[int], steps: int, stop: Sequence[int]) -> tuple[list[int], float]:
    """The continuation of highest mean log-probability among all that end with a stop id or are `steps` long."""
    table = {
        ids: log_probabilities(model, [*prompt, *ids])
        for length in range(steps)
        for ids in itertools.product(range(model.vocab_size), repeat=length)
    }
    candidates = []
    for length in range(1, steps + 1):
        for ids in itertools.product(range(model.vocab_size), repeat=length):
            stops = [position for position, token in enumerate(ids) if token in stop]
            if stops == [length - 1] or (not stops and length == steps):
                mean = sum(table[ids[:position]][token] for position, token in enumerate(ids)) / length
                candidates.append((list(ids), float(mean)))
    return max(candidates, key=lambda each: each[1])


@every_architecture
def test_one_beam_is_greedy_decoding(arch: str) -> None:
    model, prompt = model_of(arch), ids_of(3)
    ids, _ = Generator(model).beam_search(prompt, 2 * BLOCK + 3, beams=1)
    assert ids == greedy_by_definition(model, prompt, 2 * BLOCK + 3)


@every_architecture
@pytest.mark.parametrize("stop", [(), (3,), (0, 2)])
def test_enough_beams_find_the_best_of_all_continuations(arch: str, stop: tuple[int, ...]) -> None:
    model = model_of(arch, vocabulary=4)
    for name in ("a", "b", "c"):
        prompt = ids_of(3, name, vocabulary=4)
        expected_ids, expected_mean = best_by_exhaustion(model, prompt, 4, stop)
        ids, mean = Generator(model).beam_search(prompt, 4, 64, ending_with(stop))
        assert ids == expected_ids
        assert mean == pytest.approx(expected_mean, abs=1e-5)


def test_more_beams_find_better_texts_than_one() -> None:
    model = model_of()
    gains = []
    for name in "abcdefgh":
        prompt = ids_of(4, name)
        gains.append(Generator(model).beam_search(prompt, 4, 6)[1] - Generator(model).beam_search(prompt, 4, 1)[1])
    assert min(gains) > -1e-6
    assert max(gains) > 0.01


def test_the_score_is_the_mean_log_probability_of_the_ids() -> None:
    model, prompt = model_of(), ids_of(3)
    ids, mean = Generator(model).beam_search(prompt, 5, beams=3)
    expected = [log_probabilities(model, [*prompt, *ids[:position]])[token] for position, token in enumerate(ids)]
    assert mean == pytest.approx(float(np.mean(expected)), abs=1e-5)


def test_the_number_of_threads_is_chosen_while_decoding_and_changes_nothing() -> None:
    model = model_of(block=32)
    backend, used = model.backend, []

    class Recording(ThreadChoice):
        @contextlib.contextmanager
        def measured(self) -> Iterator[None]:
            with super().measured():
                used.append(backend.threads)
                yield

    backend.thread_choices = lambda: [1, 2]  # type: ignore[method-assign]
    plain = list(Generator(model).generate([1, 2, 3], 12, SamplingOptions()))
    assert list(Generator(model, threads=Recording(backend)).generate([1, 2, 3], 12, SamplingOptions())) == plain
    assert used[:7] == [1, 1, 2, 1, 2, 1, 2]
    assert len(used) == 11  # all steps but the prefill
