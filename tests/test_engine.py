"""The engine against the full forward pass, and against itself in other company."""

import itertools
import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_gpt import VARIANTS, main_variants, model_of

from alpha import backend_cpu_ref_sidecar, rng
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ModelConfig, resolve_model
from alpha.engine import Engine, Event, Generation, Request, RequestError
from alpha.errors import AlphaError
from alpha.gpt import GPT
from alpha.sampling import SamplingOptions, random_numbers, random_stream

VOCABULARY = 29
GREEDY = SamplingOptions(temperature=0.0)
DRAWN = SamplingOptions(temperature=1.0, top_k=0)
every_variant = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(autouse=True, params=[(1, True), (3, True), (1, False)], ids=["one-step", "three-steps", "no-sidecar"])
def steps_under_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps may be under way as on a CPU, and as on a GPU; and numpy may have to do without the sidecar."""
    steps, is_native = request.param
    monkeypatch.setattr(CpuRef, "steps_in_flight", steps)
    if not is_native:
        monkeypatch.setattr(backend_cpu_ref_sidecar, "library", lambda: None)


def small_model(name: str = "gpt2", block: int = 70, dtype: npt.DTypeLike = np.float32, **options: Any) -> GPT:
    config = ModelConfig(**(VARIANTS[name].__dict__ | {"block": block} | options))
    return model_of(resolve_model(config), dtype, vocabulary=VOCABULARY)


def ids_of(count: int, name: str | int = "prompt") -> list[int]:
    return [int(bits) % VOCABULARY for bits in rng.random_bits(count, 2, rng.stream_of(name))]


def run(engine: Engine) -> list[Event]:
    events = []
    while engine.is_busy:
        events += engine.step()
    return events


def alone(model: GPT, request: Request, **options: Any) -> Generation:
    engine = Engine(model, **options)
    generation = engine.submit(request)
    run(engine)
    return generation


def true_log_probs(model: GPT, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """[len(ids), V], by the full forward pass."""
    logits = model.logits(np.array([ids], np.int32)).data[0].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def random_number(sampling: SamplingOptions, row: int, step: int) -> float:
    """The number with which a step of a sequence is drawn."""
    words = (sampling.seed, random_stream(row), step)
    return float(random_numbers(*(np.array([each], np.uint64) for each in words))[0])


# --- the model's probabilities ----------------------------------------------------------------------------------------


@every_variant
def test_log_probabilities_are_those_of_the_full_forward_pass(name: str) -> None:
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-4)):
        model = small_model(name, dtype=dtype)
        for length in (1, 15, 16, 17, 40):
            asked = Request(ids_of(length, length), 20, DRAWN, logprobs=3, prompt_logprobs=2)
            made = alone(model, asked, step_tokens=7, max_sequences=1)
            assert made.reason == "length"
            assert len(made.ids) == len(made.logprobs) == 20
            assert len(made.prompt_logprobs) == length
            assert made.prompt_logprobs[0] is None
            ids = [*asked.prompt, *made.ids]
            expected = true_log_probs(model, ids)
            for place, noted in enumerate([*made.prompt_logprobs, *made.logprobs]):
                if noted is not None:
                    row, count = expected[place - 1], 2 if place < length else 3
                    assert noted.chosen == pytest.approx(row[ids[place]], abs=tolerance)
                    assert noted.values == pytest.approx(sorted(row, reverse=True)[:count], abs=tolerance)
                    assert [row[each] for each in noted.ids] == pytest.approx(noted.values, abs=tolerance)


def test_the_chosen_token_has_the_value_it_has_among_the_likeliest() -> None:
    made = alone(small_model(), Request(ids_of(9), 20, GREEDY, logprobs=1, prompt_logprobs=VOCABULARY))
    assert all(noted.chosen == noted.values[0] and noted.ids == [token] for noted, token in
               zip(made.logprobs, made.ids, strict=True))  # fmt: skip
    for noted, token in zip(made.prompt_logprobs[1:], ids_of(9)[1:], strict=True):
        assert noted is not None
        assert noted.chosen == noted.values[noted.ids.index(token)]


# --- the same bits in any company -------------------------------------------------------------------------------------


def result(generation: Generation) -> tuple[object, ...]:
    return generation.reason, generation.ids, generation.logprobs, generation.prompt_logprobs


def requests_of(crowd: int, count: int, block: int) -> list[Request]:
    """Requests of all kinds; some begin alike. Every other crowd wants no probabilities, so that several steps may be
    under way."""
    numbers = [int(bits) for bits in rng.random_bits(8 * count, 3, rng.stream_of("crowd", crowd))]
    made = []
    for a, b, c, d, e, f, g, h in np.array(numbers).reshape(count, 8).tolist():
        prompt = ids_of(a % 3 * 16, "shared")[: block - 1] + ids_of(1 + b % 20, c)
        sampling = (
            GREEDY,
            SamplingOptions(temperature=1.3, top_k=0, seed=d),
            SamplingOptions(temperature=0.9, top_k=5, top_p=0.9, min_p=0.01, seed=d),
            SamplingOptions(
                1.0, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2, logit_bias={3: -1}, seed=d
            ),
        )[e % 4]
        noted, asked = (1, 2 if f % 4 == 0 else None) if crowd % 2 else (None, None)
        made.append(
            Request(prompt, 1 + g % 25, sampling, frozenset({h % VOCABULARY}), logprobs=noted, prompt_logprobs=asked)
        )
    return made


@main_variants
@pytest.mark.parametrize("crowds", [range(0, 25), range(25, 50)], ids=["first", "second"])
def test_a_request_has_the_bits_that_it_has_alone(config: ModelConfig, crowds: range) -> None:
    block = 70
    model = model_of(resolve_model(ModelConfig(**(config.__dict__ | {"block": block}))), np.float32, None, VOCABULARY)
    subjects = [Request(ids_of(37), 30, SamplingOptions(1.0, 0, seed=5), logprobs=count) for count in (None, 2)]
    results = [result(alone(model, each)) for each in subjects]
    for crowd in crowds:
        subject, expected = subjects[crowd % 2], results[crowd % 2]
        others = requests_of(crowd, 1 + crowd % 7, block)
        # Few sequences, small steps and a cache so small that requests interrupt each other.
        engine = Engine(model, 2 + crowd % 4, 5 + 13 * (crowd % 3), cache_tokens=96 + 16 * (crowd % 5))
        place = crowd % (len(others) + 1)
        generations = [engine.submit(each) for each in [*others[:place], subject, *others[place:]]]
        for step in itertools.count():
            if not engine.is_busy:
                break
            engine.step()
            if step % 9 == 5 and (other := (place + step) % len(generations)) != place:
                engine.cancel(generations[other])
        assert result(generations[place]) == expected


def test_an_interrupted_request_goes_on_with_the_same_bits() -> None:
    model = small_model()
    requests = [Request(ids_of(20, name), 40, DRAWN, logprobs=1, prompt_logprobs=1) for name in "ab"]
    expected = [result(alone(model, each)) for each in requests]
    engine = Engine(model, 2, cache_tokens=6 * 16)
    generations = [engine.submit(each) for each in requests]
    run(engine)
    assert engine.read_tokens > 2 * 20, "nobody was interrupted"
    assert [result(each) for each in generations] == expected


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_shared_prompt_is_computed_once_and_changes_no_bit(logprobs: int | None) -> None:
    model = small_model(block=80)
    prompt = ids_of(64)
    requests = [Request(prompt, 8, SamplingOptions(1.0, 0, seed=seed), logprobs=logprobs) for seed in range(8)]
    expected = [result(alone(model, each)) for each in requests]
    engine = Engine(model, 8, 16)
    generations = [engine.submit(each) for each in requests]
    run(engine)
    assert [result(each) for each in generations] == expected
    assert engine.reused_tokens == 7 * 63
    assert (engine.read_tokens, engine.continued_tokens) == (64 + 7, 8 * 7)


def test_a_prompt_of_512_tokens_that_32_share_is_read_about_once() -> None:
    engine = Engine(small_model(block=520), 32)
    asked = [engine.submit(Request(ids_of(512), 8, SamplingOptions(1.0, 0, seed=seed))) for seed in range(32)]
    run(engine)
    assert [len(each.ids) for each in asked] == [8] * 32
    assert 512 < engine.read_tokens <= 1.1 * 512
    assert engine.continued_tokens == 32 * 7


def test_a_text_that_goes_on_finds_its_beginning() -> None:
    model = small_model()
    engine = Engine(model)
    first = engine.submit(Request(ids_of(20), 30, DRAWN))
    run(engine)
    longer = Request([*first.request.prompt, *first.ids, 5], 5, DRAWN, logprobs=1)
    second = engine.submit(longer)
    run(engine)
    assert engine.reused_tokens == 48
    assert result(second) == result(alone(model, longer))


def test_after_other_weights_nothing_is_found_again() -> None:
    model, other = small_model(), small_model()
    request = Request(ids_of(40), 10, DRAWN, logprobs=1)
    weights = other.parameters.to_numpy()
    engine = Engine(model, 2)
    first, left = engine.submit(request), engine.submit(Request(ids_of(9), 20, DRAWN))
    while first.reason is None:
        engine.step()
    with pytest.raises(RuntimeError, match="under way"):
        engine.forget()
    engine.cancel(left)
    model.parameters.load({name: 1.5 * weights[name] for name in model.parameters.to_numpy()})
    engine.forget()
    again = engine.submit(request)
    run(engine)
    assert engine.reused_tokens == 0
    assert result(again) == result(alone(model, request)) != result(first)


def test_threads_change_no_bit() -> None:
    request = Request(ids_of(40), 20, DRAWN, logprobs=1)
    model = small_model()
    expected = result(alone(model, request))
    model.backend.threads = 3
    assert result(alone(model, request)) == expected


# --- sampling options -------------------------------------------------------------------------------------------------


def test_each_request_has_its_own_options() -> None:
    model = small_model()
    prompt = ids_of(10)
    biased = Request(prompt, 6, SamplingOptions(temperature=0.0, logit_bias={7: 1000.0}))
    all_but_one = dict.fromkeys(range(1, VOCABULARY), -1000.0)
    banned = Request(prompt, 6, SamplingOptions(temperature=0.0, logit_bias=all_but_one))
    engine = Engine(model)
    one, two, three = (engine.submit(each) for each in (biased, banned, Request(prompt, 6, GREEDY)))
    run(engine)
    assert one.ids == [7] * 6
    assert two.ids == [0] * 6
    assert three.ids == alone(model, Request(prompt, 6, GREEDY)).ids


def test_penalties_keep_tokens_from_coming_again() -> None:
    model = small_model()
    plain = alone(model, Request(ids_of(5), 28, GREEDY))
    assert len(set(plain.ids)) < 20
    for options in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        made = alone(model, Request(ids_of(5), 28, SamplingOptions(temperature=0.0, **options)))
        assert len(set(made.ids)) == 28, "a token came twice"
    repeated = alone(model, Request(ids_of(5), 20, SamplingOptions(temperature=0.0, repetition_penalty=1e6)))
    assert not set(repeated.ids) & set(ids_of(5))


CHANGING = (
    SamplingOptions(0.0, repetition_penalty=1.3, logit_bias={3: 0.5, 11: -1.0}),
    SamplingOptions(0.0, presence_penalty=0.4, frequency_penalty=0.2),
    SamplingOptions(0.0, repetition_penalty=0.8, presence_penalty=-0.2, frequency_penalty=0.5, logit_bias={0: -2.0}),
)


def changed(logits: npt.NDArray[Any], sampling: SamplingOptions, prompt: Sequence[int], text: Sequence[int]) -> Any:
    """Logits after bias and penalties, by definition."""
    made = []
    for token, logit in enumerate(logits.astype(np.float64).tolist()):
        value, count = logit + sampling.logit_bias.get(token, 0.0), text.count(token)
        if token in prompt or count:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        made.append(value - sampling.frequency_penalty * count - sampling.presence_penalty * (count > 0))
    return np.array(made)


def test_logits_are_changed_by_definition_also_after_an_interruption() -> None:
    model, prompt = small_model(), ids_of(20)
    # So few blocks that the second one is interrupted, and one more that changes nothing.
    engine = Engine(model, 3, cache_tokens=112)
    made = [engine.submit(Request(prompt, 30, sampling, logprobs=0)) for sampling in (*CHANGING, GREEDY)]
    run(engine)
    assert made[3].ids == alone(model, Request(prompt, 30, GREEDY)).ids
    for generation, sampling in zip(made, CHANGING, strict=False):
        ids = [*prompt, *generation.ids]
        logits = model.logits(np.array([ids], np.int32)).data[0]
        for place in range(len(prompt), len(ids)):
            text = ids[len(prompt) : place]
            assert ids[place] == np.argmax(changed(logits[place - 1], sampling, prompt, text))
        assert generation.ids == alone(model, Request(prompt, 30, sampling)).ids
        # The model's own probabilities are told, not the changed ones.
        own = true_log_probs(model, ids)
        for place, noted in enumerate(generation.logprobs, len(prompt)):
            assert noted.chosen == pytest.approx(own[place - 1, ids[place]], abs=2e-4)


def test_a_bias_may_be_as_large_as_numbers_are() -> None:
    sampling = SamplingOptions(0.0, logit_bias={5: 1e300, 7: -1e300}, frequency_penalty=1e300, presence_penalty=-1e300)
    made = alone(small_model(), Request(ids_of(5), 6, sampling))
    assert made.reason == "length"
    assert made.ids[0] == 5


def test_rows_of_a_seed_are_different_and_the_first_token_can_be_restricted() -> None:
    model = small_model()
    rows = [alone(model, Request(ids_of(5), 12, DRAWN, row=row)).ids for row in range(4)]
    assert len({tuple(row) for row in rows}) == 4
    allowed = np.array([2, 9])
    firsts = {alone(model, Request(ids_of(5), 1, DRAWN, first=allowed, row=row)).ids[0] for row in range(20)}
    assert firsts <= {2, 9}
    # Also by a bias, which is none for the second token.
    biased = SamplingOptions(0.0, logit_bias={4: 1000.0, 9: 10.0})
    assert alone(model, Request(ids_of(5), 3, biased, first=allowed)).ids == [9, 4, 4]
    # The second half of a text is drawn as if it had been drawn at once.
    whole = alone(model, Request(ids_of(5), 12, DRAWN)).ids
    half = alone(model, Request([*ids_of(5), *whole[:6]], 6, DRAWN, first_step=6)).ids
    assert half == whole[6:]


def test_only_outputs_that_are_wanted_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = small_model(), ids_of(50)
    full, rows = alone(model, Request(prompt, 3, GREEDY)), []
    logits_of_rows = model.logits_of_rows

    def counted(hidden: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        rows.append(len(hidden))
        return logits_of_rows(hidden)

    monkeypatch.setattr(model, "logits_of_rows", counted)
    assert alone(model, Request(prompt, 3, GREEDY), step_tokens=20, max_sequences=1).ids == full.ids
    assert rows == [0, 1, 1]  # as steps were recorded: of 20 rows, twice, of 10, and of one


def test_a_step_takes_few_calls_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    if backend_cpu_ref_sidecar.library() is None:
        pytest.skip("numpy alone computes each row by calls of its own")
    monkeypatch.setattr(
        CpuRef, "choose", lambda self, logits, *_: np.zeros(len(logits), np.int32)
    )  # a call for each row

    def calls(requests: int) -> float:
        """Calls of functions in a step that continues so many texts, on the average."""
        engine, counted, steps = Engine(small_model(block=200), requests), 0, 100

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        for row in range(requests):
            engine.submit(Request([1], row=row))
        for _ in range(4):
            engine.step()
        sys.setprofile(count)
        for _ in range(steps):
            engine.step()
        sys.setprofile(None)
        return counted / steps

    few, many = calls(16), calls(64)
    assert (many - few) / 48 < 30


# --- how a request ends -----------------------------------------------------------------------------------------------


def test_a_request_ends_with_a_stop_id_or_its_length_or_the_context() -> None:
    model = small_model()
    free = alone(model, Request(ids_of(60), None, DRAWN))
    assert (free.reason, len(free.ids)) == ("length", 11)
    stop = free.ids[4]
    stopped = alone(model, Request(ids_of(60), None, DRAWN, frozenset({stop})))
    assert (stopped.reason, stopped.ids) == ("stop", free.ids[: free.ids.index(stop) + 1])
    full = alone(model, Request(ids_of(70), 5, DRAWN))
    assert (full.reason, len(full.ids)) == ("length", 1)
    assert alone(model, Request(ids_of(60), 3, DRAWN)).ids == free.ids[:3]


def test_a_prompt_can_be_scored_without_drawing_anything() -> None:
    model = small_model()
    engine = Engine(model, step_tokens=16)
    scored = engine.submit(Request(ids_of(50), 0, prompt_logprobs=0))
    events = run(engine)
    assert [(event.token, event.reason) for event in events] == [(None, "length")]
    expected = true_log_probs(model, ids_of(50))
    values = [noted.chosen for noted in scored.prompt_logprobs if noted]
    assert values == pytest.approx([expected[i, token] for i, token in enumerate(ids_of(50)[1:])], abs=2e-4)


def test_events_tell_each_token_once_and_the_end_with_the_last() -> None:
    engine = Engine(small_model(), 2)
    generations = [engine.submit(Request(ids_of(3, name), 5, DRAWN, logprobs=0)) for name in "abc"]
    events = run(engine)
    for generation in generations:
        own = [event for event in events if event.generation is generation]
        assert [event.token for event in own] == generation.ids
        assert [event.logprobs for event in own] == generation.logprobs
        assert [event.reason for event in own] == [None] * 4 + ["length"]
    assert engine.step() == []


def test_a_request_can_be_cancelled_at_any_step() -> None:
    model = small_model()
    expected = alone(model, Request(ids_of(30), 10, DRAWN)).ids
    for steps in range(14):
        engine = Engine(model, 2, 8)
        subject = engine.submit(Request(ids_of(30), 10, DRAWN))
        others = [engine.submit(Request(ids_of(20, name), 12, DRAWN)) for name in "ab"]
        for _ in range(steps):
            engine.step()
        was_done = subject.reason is not None
        engine.cancel(subject)
        engine.cancel(subject, "stop")  # the first one counts
        events = [event for event in run(engine) if event.generation is subject]
        assert subject.reason == ("length" if was_done else "cancelled")
        assert [event.reason for event in events] == ([] if was_done else ["cancelled"])
        assert subject.ids == expected[: len(subject.ids)]
        assert [each.ids for each in others] == [alone(model, each.request).ids for each in others]
        assert engine.running == engine.waiting == 0


def test_a_caller_can_say_that_a_text_is_complete() -> None:
    engine = Engine(small_model())
    subject = engine.submit(Request(ids_of(3), 10, DRAWN))
    while not subject.ids:
        engine.step()
    engine.cancel(subject, "stop")
    run(engine)
    assert (subject.reason, len(subject.ids)) == ("stop", 1)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request([]), "prompt is empty"),
        (Request([0] * 71), "71 tokens, but the model's context holds 70"),
        (Request([VOCABULARY]), "no token 29"),
        (Request([-1]), "no token -1"),
        (Request([1, 1 << 40]), "no token 1099511627776"),
        (Request([1], 0), "max_tokens is 0, but must be at least 1"),
        (Request([1], 5, logprobs=-1), "logprobs is -1"),
        (Request([1], 5, SamplingOptions(temperature=-1)), "temperature is -1"),
        (Request([1], 5, SamplingOptions(temperature=math.nan)), "finite"),
        (Request([1], 5, SamplingOptions(top_p=1.5)), "top_p is 1.5"),
        (Request([1], 5, SamplingOptions(repetition_penalty=0)), "repetition_penalty is 0"),
        (Request([1], 5, SamplingOptions(logit_bias={99: 1.0})), "no token 99"),
        (Request([1] * 40, 20), "59 tokens, and the cache holds 48"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_never_be_done_is_refused_at_once(request_: Request, words: str) -> None:
    engine = Engine(small_model(), 4, cache_tokens=48)
    with pytest.raises(RequestError, match=words) as caught:
        engine.submit(request_)
    is_sampling = request_.sampling.problem() or request_.sampling.logit_bias
    fields = [name for name in ("max_tokens", "logprobs") if name in words or "cache" in words]
    assert caught.value.field == ("sampling" if is_sampling else fields[0] if fields else "prompt")
    assert not engine.is_busy


# --- faults -----------------------------------------------------------------------------------------------------------


def test_not_finite_outputs_end_one_request_only() -> None:
    assert_not_finite_outputs_end_one_request(small_model(tied=False))


def assert_not_finite_outputs_end_one_request(model: GPT) -> None:
    """Of a model whose head is not its embedding."""
    weights = {name: values.copy() for name, values in model.parameters.to_numpy().items()}
    weights["wte.weight"][7] = np.nan  # what reads this token is lost
    model.parameters.load(weights)
    fine = [token for token in range(VOCABULARY) if token != 7]
    others = [Request([3, 4, 5, *fine[:name]], 12, SamplingOptions(0.0, logit_bias={7: -1e9})) for name in range(3)]
    expected = [alone(model, each).ids for each in others]
    engine = Engine(model, 4, cache_tokens=4 * 32)
    for prompt in ([7], [1, 2, 7], [1, 7, 2], [*fine[:20], 7, 3]):
        bad = [engine.submit(Request(prompt, 10, GREEDY, prompt_logprobs=asked)) for asked in (None, 1)]
        good = [engine.submit(each) for each in others]
        run(engine)
        for each in bad:
            assert each.reason == "error"
            assert "not finite" in each.message
            assert each.ids == []
        # The blocks that held what is not finite serve others now.
        assert [each.ids for each in good] == expected


class Failing:
    """Lets the model's device fail at some call."""

    def __init__(self, model: GPT, at: int) -> None:
        self.calls = 0
        record = model.backend.record_inference

        def record_inference(program: Callable[..., Any]) -> Callable[..., Any]:
            step = record(program)

            def run_step(*operands: Any) -> Any:
                self.calls += 1
                if self.calls >= at:
                    raise AlphaError("the device was lost")
                return step(*operands)

            return run_step

        model.backend.record_inference = record_inference  # type: ignore[method-assign]


def test_a_device_that_fails_is_replaced_once() -> None:
    broken, again = small_model(), small_model()
    Failing(broken, 4)
    Failing(again, 30)
    engine = Engine(broken, 2, reload=lambda: again)
    requests = [Request(ids_of(5, name), 12, DRAWN) for name in "abcd"]
    generations = [engine.submit(each) for each in requests]
    run(engine)
    assert [each.reason for each in generations] == ["error", "error", "length", "length"]
    assert "the device was lost" in generations[0].message
    assert generations[2].ids == alone(small_model(), requests[2]).ids
    later = [engine.submit(Request(ids_of(5), 25, DRAWN)) for _ in range(3)]
    run(engine)
    assert [each.reason for each in later] == ["error"] * 3  # also the one that waited
    with pytest.raises(AlphaError, match="cannot be used any more"):
        engine.submit(requests[0])


def test_requests_may_come_from_several_threads() -> None:
    engine = Engine(small_model(), 3)
    made: list[Generation] = []

    def ask(name: str) -> None:
        for count in range(5):
            made.append(engine.submit(Request(ids_of(4, name + str(count)), 6, DRAWN)))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.is_busy:
        engine.step()
    assert [each.reason for each in made] == ["length"] * 20
    assert all(each.ids == alone(engine.model, each.request).ids for each in made)
