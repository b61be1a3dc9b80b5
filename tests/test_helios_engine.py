"""The engine on the Vulkan backend: against the full forward pass of the reference, and against itself in company."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import NoReturn

import numpy as np
import pytest
from helios_device import helios
from test_engine import (
    CHANGING,
    DRAWN,
    GREEDY,
    VARIANTS,
    VOCABULARY,
    alone,
    assert_not_finite_outputs_end_one_request,
    ids_of,
    random_number,
    requests_of,
    result,
    run,
    true_log_probs,
)
from test_gpt import SMALL_SET, model_of

from alpha import backend_helios_inference, backend_helios_matmul, backend_helios_tiles, rng
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.backend_cpu_ref_primitives import NumpyPrimitives
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_core import HeliosCore
from alpha.backend_helios_kernels import Kernel, Pipelines
from alpha.backend_helios_planner import Dispatch, needs_barrier
from alpha.backend_helios_relay import Relays
from alpha.backend_helios_tiles import FEW_ROWS, MOST_FEW_ROWS, Division, Hardware, Problem, in_parts
from alpha.config import ModelConfig, resolve_model
from alpha.engine import Engine, Request
from alpha.gpt import GPT
from alpha.sampling import SamplingOptions
from alpha.sampling_device import changed_logits, count_tokens

H200 = Hardware(32, 49152, 1024, (16, 16, 16), 132)


class Steps:
    """What was recorded: the dispatches of each program, in order."""

    def __init__(self) -> None:
        self.programs: list[list[Dispatch]] = []

    @property
    def dispatches(self) -> list[Dispatch]:
        return [dispatch for each in self.programs for dispatch in each]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The recorded steps of a test, as the device gets them."""
    noted, made = Steps(), HeliosCore.make_program

    def make_program(backend: HeliosCore, dispatches: Sequence[Dispatch], repeated: bool = True) -> int:
        if repeated and len(dispatches) > 1 and not any(each.kernel.name == "relay_trial" for each in dispatches):
            noted.programs.append(list(dispatches))
        return made(backend, dispatches, repeated)

    monkeypatch.setattr(HeliosCore, "make_program", make_program)
    return noted


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


def stored_model(precision: str, name: str = "gpt2", **shape: int) -> tuple[GPT, GPT]:
    """A model whose matrices have a precision's bits, and the same numbers on the reference."""
    backend = helios(precision)
    config = resolve_model(ModelConfig(**(VARIANTS[name].__dict__ | {"block": 70} | shape)))
    model = GPT(backend, config, VOCABULARY, trained=lambda spec: False, matrix_dtype=backend.weight_dtype)
    model.parameters.load(model_of(config, np.float32, None, VOCABULARY).parameters.to_numpy())
    reference = GPT(CpuRef(), config, VOCABULARY)
    reference.parameters.load({name: each.astype(np.float32) for name, each in model.parameters.to_numpy().items()})
    return reference, model


@pytest.mark.parametrize("precision", ["f16", "bf16"])
@pytest.mark.parametrize("name", SMALL_SET)
def test_matrices_are_stored_in_sixteen_bits_and_read_so(name: str, precision: str, steps: Steps) -> None:
    reference, model = stored_model(precision, name)
    backend = model.backend
    for spec in model.parameters.specs:
        assert model.parameters[spec.name].data.itemsize == (2 if spec.decay else 4), spec.name
    asked = Request(ids_of(40), 20, DRAWN, logprobs=3, prompt_logprobs=2)
    made = alone(model, asked, step_tokens=16, max_sequences=1)
    expected = true_log_probs(reference, ids := [*asked.prompt, *made.ids])
    error = max(
        abs(noted.chosen - expected[place - 1, ids[place]])
        for place, noted in enumerate([*made.prompt_logprobs, *made.logprobs])
        if noted
    )
    assert error < {"f16": 0.02, "bf16": 0.15}[precision]
    # A full forward pass reads the same numbers.
    whole = backend.to_numpy(model.logits(backend.from_numpy(np.array([ids], np.int32))).data)[0]
    wanted = reference.logits(np.array([ids], np.int32)).data[0]
    assert np.abs(whole - wanted).max() < {"f16": 0.02, "bf16": 0.15}[precision] * np.abs(wanted).max()
    products = [each for each in steps.dispatches if each.kernel.name.startswith("matmul_") and "b" in each.arguments]
    assert products
    assert {each.arguments["b"].itemsize for each in products} == {2}  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["f16", "bf16"])
@pytest.mark.parametrize("width", [8, 7])
def test_rows_are_put_in_sixteen_bits(precision: str, width: int) -> None:
    backend = helios(precision)
    values = backend.from_numpy(rng.normal(5 * 24, 1, 1).reshape(5, 24).astype(np.float32))
    ids = backend.from_numpy(np.array([8, 0, 3, 2, -1], np.int32))
    for rows in (values, backend.cast(values, backend.weight_dtype)):
        target = backend.zeros((9, width), backend.weight_dtype)
        part = backend.narrow(rows, 1, 8, width)
        backend.put_rows(target, ids, part)
        expected = np.zeros((9, width), np.float32)
        expected[[8, 0, 3, 2]] = backend.to_numpy(backend.cast(part, backend.weight_dtype))[:4]
        np.testing.assert_array_equal(backend.to_numpy(target), expected)


@pytest.mark.matrix_units
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize(("rows", "is_split"), [(4, False), (40, False), (80, False), (80, True)])
@pytest.mark.parametrize(("query", "width"), [(16, 8), (4, 4), (8, 12), (4, 10)])
def test_products_write_keys_and_values_where_they_are_kept(
    precision: str, rows: int, is_split: bool, query: int, width: int, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few rows and of many, whether a dispatch adds the parts of sums up or the product does; but not where the four
    or eight neighbours that are written at a time would be a key's and a value's. A row whose slot there is not goes
    nowhere."""
    backend = helios(precision)

    def chosen(problem: Problem, device: Hardware, part: int, _: bool) -> Division:
        return next(each for each in in_parts(problem, device, part) if (each.splits > 1) == is_split)

    monkeypatch.setattr(backend_helios_matmul, "choose", chosen)
    monkeypatch.setattr(backend_helios_tiles, "_CPU_FEW_ROWS", MOST_FEW_ROWS)
    depth, columns = 96, query + 2 * width
    x, weight, bias = (
        backend.from_numpy(rng.normal(int(np.prod(shape)), 5, stream).reshape(shape).astype(np.float32))
        for stream, shape in enumerate([(rows, depth), (depth, columns), (columns,)])
    )
    weight = backend.cast(weight, backend.weight_dtype)
    slots = np.arange(rows, dtype=np.int32)[::-1] + 1
    slots[1:3] = -1, rows + 2
    keys, values = (backend.zeros((rows + 3, width), backend.activation_dtype or np.float32) for _ in range(2))

    def program(x: HeliosArray, slots: HeliosArray) -> HeliosArray:
        made = backend.linear(x, weight, bias)[0]
        for store, first in ((keys, query), (values, query + width)):
            backend.put_rows(backend.narrow(store, 0, 0, rows + 2), slots, backend.narrow(made, 1, first, width))
        return backend.multiply(backend.narrow(made, 1, 0, query), 2.0)

    found = []
    for run_it in (program, backend.record(program)):
        for store in (keys, values):
            backend.fill(store, 7.0)
        result = run_it(x, backend.from_numpy(slots))
        found.append([backend.to_numpy(each).tobytes() for each in (result, keys, values)])
    assert found[0] == found[1]
    names = [each.kernel.name for each in steps.programs[-1]]
    vector = next(each.constants["C_VECTOR"] for each in reversed(steps.programs[-1]) if "c" in each.arguments)
    assert names.count("put_rows") == (2 if width % vector else 0)
    assert ("matmul_reduce" in names) == is_split
    has_blocks = precision == "f16" and backend.hardware.fragment is not None
    assert ("matmul_few" in names) == (rows <= (MOST_FEW_ROWS if has_blocks else FEW_ROWS))


def test_a_prompt_s_keys_and_values_are_written_by_products(steps: Steps) -> None:
    """Also where of the last layer only some rows go on; and the newest tokens by their choice."""
    _, model = stored_model("f16", layers=2)
    engine = Engine(model, 1)
    engine.submit(Request(ids_of(40), 1, GREEDY))
    run(engine)
    names = [each.kernel.name for each in steps.programs[0]]
    assert sum(name.startswith("attention_cached") for name in names) == 2
    assert names.count("put_rows") == 0


@pytest.mark.parametrize(("name", "each"), [("gpt2", 5), ("modern", 8)])
def test_a_layer_of_a_decode_step_is_few_dispatches(name: str, each: int, steps: Steps) -> None:
    """Norms, and the end of attention that is divided, are computed by the products that read them; keys and values are
    written where they are kept by the product that makes them, where nothing else is done with them."""
    counts = []
    for layers in (1, 2):
        _, model = stored_model("f16", name, layers=layers, block=512)
        engine = Engine(model, 1)
        engine.submit(Request([1], 2, GREEDY))
        run(engine)
        recorded = [dispatch.kernel.name for dispatch in steps.programs[-1]]
        assert recorded.count("matmul_few") == 4 * layers + 1
        assert not {"attention_combine", "matmul_reduce", "matmul_tiled", "matmul_matrix"} & set(recorded)
        assert "norm" not in recorded
        assert recorded.count("query_key") == (layers if name == "modern" else 0)
        counts.append(len(recorded))
    assert counts[1] - counts[0] == each


def test_a_decode_step_has_few_rounds_beside_its_layers(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that were drawn are taken, beside rows for positions; rows for tokens; the layer; the outputs, which are not
    gathered first; a choice, which goes where the host reads it, and where the next step does."""
    _, model = stored_model("f16", layers=1)
    monkeypatch.setattr(model.backend, "relays", Relays(wanted=False))
    engine = Engine(model, 1)
    engine.submit(Request([1], 2, GREEDY))
    run(engine)
    recorded = steps.programs[-1]
    assert sum(needs_barrier(recorded)) == 2 + 5 + 2
    assert [each.kernel.name for each in recorded].count("gather_rows") == 2


class Recorded(Exception):  # noqa: N818  (a condition)
    """A step was recorded."""


@pytest.mark.matrix_units
def test_a_layer_of_a_prompt_on_a_large_gpu_is_six_dispatches_beside_its_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bias, activation, residual and the places of keys and values are the products' own. The step is recorded as for
    an H200, and not run."""
    counts: list[Counter[str]] = []

    def give(backend: HeliosCore, dispatches: Sequence[Dispatch], repeated: bool = True) -> NoReturn:
        counts.append(Counter(each.kernel.name.partition("_cached")[0] for each in dispatches))
        raise Recorded

    def uncompiled(
        pipelines: Pipelines, kernel: str, variant: str, _: Mapping[str, float]
    ) -> tuple[Kernel, Future[int]]:
        return pipelines.kernel(kernel, variant), Future()

    backend = helios("f16")
    monkeypatch.setattr(backend, "relays", Relays(wanted=False))  # which would be tried first
    for layers in (2, 3):
        config = resolve_model(ModelConfig(layers=layers, heads=12, dim=768, block=512))
        model = GPT(backend, config, VOCABULARY, trained=lambda spec: False, matrix_dtype=backend.weight_dtype)
        engine = Engine(model, 1)
        engine.submit(Request(ids_of(300), 1, GREEDY))
        backend.synchronize()
        with monkeypatch.context() as patched, pytest.raises(Recorded):
            patched.setitem(backend.__dict__, "hardware", H200)
            patched.setattr(HeliosCore, "make_program", give)
            patched.setattr(Pipelines, "get", uncompiled)
            engine.step()
    layer = counts[1] - counts[0]
    assert layer - Counter(dict.fromkeys(("attention", "attention_combine"), 1)) == Counter(norm=2, matmul_matrix=4)
    assert counts[0]["elementwise"] == 1, "operands are copied, and nothing else"


@pytest.mark.parametrize("dim", [128, 24])  # parts of a sum are whole, or not
def test_a_norm_has_the_same_bits_in_a_product_and_as_a_dispatch(
    dim: int, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products whose workgroups have more than `MOST_NORMS` rows leave their norms to one dispatch."""
    found = []
    for most, norms in ((backend_helios_inference.MOST_NORMS, 0), (0, 5)):
        monkeypatch.setattr(backend_helios_inference, "MOST_NORMS", most)
        _, model = stored_model("f16", layers=2, dim=dim)
        found.append(result(alone(model, Request([1], 8, SamplingOptions(1.0, 0, seed=5), logprobs=2))))
        assert [each.kernel.name for each in steps.programs[-1]].count("norm") == norms
    assert found[0] == found[1]


@pytest.mark.matrix_units
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("position", [5, 200])
def test_parts_of_attention_without_keys_are_neither_written_nor_read(precision: str, position: int) -> None:
    """The memory of a step is full of what is no number; a product puts attention together."""
    backend = helios(precision)
    heads, width, tokens, pages = 2, 8, 16, 24  # three parts, of which one or two have keys

    def normal(number: int, *shape: int) -> HeliosArray:
        return backend.from_numpy(rng.normal(math.prod(shape), 0, number).reshape(shape).astype(np.float32))

    query, keys, values = normal(1, 1, heads, width), *(normal(each, pages, tokens, heads, width) for each in (2, 3))
    weight = backend.cast(normal(4, heads * width, heads * width), backend.weight_dtype)
    places = [[position], [0], np.arange(pages).reshape(1, -1)]
    positions, sequences, tables = (backend.from_numpy(np.array(each, np.int32)) for each in places)

    def attend(query: HeliosArray) -> HeliosArray:
        attended = backend.cached_attention(query, keys, values, sequences, positions, tables)
        return backend.linear(backend.reshape(attended, (1, heads * width)), weight)[0]

    expected = backend.to_numpy(attend(query))
    program = backend.record_inference(attend)
    made = [backend.to_numpy(program(query))]
    arena = program._kept[0]
    memory = HeliosArray(arena, (arena.nbytes // 4,), (1,), "i32")
    backend.copy_into(memory, backend.from_numpy(np.full(memory.size, -1, np.int32)))
    made.append(backend.to_numpy(program(query)))
    assert "attention_combine" not in [each.kernel.name for each in program._dispatches]
    assert [each.tobytes() for each in made] == [expected.tobytes()] * 2


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "f32") for name in SMALL_SET), ("gpt2", "f16"), ("modern-all", "f16"),
                            ("modern", "bf16")]
)  # fmt: skip
@pytest.mark.parametrize("logprobs", [None, 2])  # without, several steps are under way
def test_a_request_has_the_bits_that_it_has_alone(name: str, precision: str, logprobs: int | None) -> None:
    _, model = stored_model(precision, name)
    assert_the_same_in_company(model, Request(ids_of(37), 30, SamplingOptions(1.0, 0, seed=5), logprobs=logprobs), 6)


@pytest.mark.matrix_units
@pytest.mark.parametrize("precision", ["f16", "bf16"])
@pytest.mark.parametrize("width", [16, 32])
def test_attention_on_matrix_units_has_one_result_however_a_prompt_is_divided(precision: str, width: int) -> None:
    """In tiles of rows and row by row, alone and beside others, in parts, and where a prompt's beginning is known."""
    reference, model = stored_model(precision, layers=2, block=300, heads=2, kv_heads=1, head_dim=width)
    asked = Request(ids_of(270), 12, DRAWN, logprobs=2, prompt_logprobs=1)
    generation = alone(model, asked, step_tokens=300, max_sequences=1)
    wanted, ids = result(generation), [*asked.prompt, *generation.ids]
    expected = true_log_probs(reference, ids)
    for place, noted in enumerate([*generation.prompt_logprobs, *generation.logprobs]):
        if noted is not None:
            assert abs(noted.chosen - expected[place - 1, ids[place]]) < {"f16": 0.02, "bf16": 0.15}[precision]
    for step_tokens in (37, 140):
        engine = Engine(model, 3, step_tokens)
        others = [engine.submit(Request(ids_of(length, name), 20, DRAWN)) for length, name in ((150, "a"), (9, "b"))]
        first = engine.submit(asked)
        run(engine)
        second = engine.submit(dataclasses.replace(asked, prompt_logprobs=None))
        run(engine)
        assert all(each.reason == "length" for each in others)
        assert result(first) == wanted
        assert (second.ids, second.logprobs) == (generation.ids, generation.logprobs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_a_request_has_its_bits_in_two_hundred_crowds_on_a_gpu(precision: str) -> None:
    _, model = stored_model(precision)
    if helios(precision).device_info.kind == "cpu":
        pytest.skip("TWO HUNDRED CROWDS ARE TESTED ON A GPU ONLY: a processor computes for minutes")
    assert_the_same_in_company(model, Request(ids_of(37), 30, SamplingOptions(1.0, 0, seed=5)), 200)


def assert_the_same_in_company(model: GPT, subject: Request, crowds: int) -> None:
    expected = result(alone(model, subject))
    for crowd in range(crowds):
        others = requests_of(crowd, 1 + crowd % 7, 70)
        engine = Engine(model, 2 + crowd % 4, 5 + 13 * (crowd % 3), cache_tokens=96 + 16 * (crowd % 5))
        place = crowd % (len(others) + 1)
        generations = [engine.submit(each) for each in [*others[:place], subject, *others[place:]]]
        run(engine)
        assert result(generations[place]) == expected, crowd


def test_logits_are_changed_on_the_device_and_only_tokens_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = models("gpt2")
    backend = model.backend
    monkeypatch.setattr(backend, "steps_in_flight", 3)
    requests = [Request(ids_of(9), 30, sampling) for sampling in CHANGING]
    expected = [alone(reference, each).ids for each in requests]
    alone(model, requests[0])  # a process's first program may read how a trial of relays ended
    engine, read, under_way, whole = Engine(model, 4), [], [], backend.to_numpy
    monkeypatch.setattr(backend, "to_numpy", lambda array: (read.append(array.shape), whole(array))[1])
    made = [engine.submit(each) for each in requests]
    while engine.is_busy:
        engine.step()
        under_way.append(len(engine._under_way))
    assert [each.ids for each in made] == expected
    assert max(under_way) == 2
    assert set(read) == {(4,)}


def test_log_probabilities_come_back_without_logits_while_other_steps_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, model = models("gpt2")
    backend = model.backend
    monkeypatch.setattr(backend, "steps_in_flight", 3)
    engine, read, under_way, whole = Engine(model, 2, 8), [], [], backend.to_numpy
    monkeypatch.setattr(backend, "to_numpy", lambda array: (read.append(array.shape[1]), whole(array))[1])
    made = [engine.submit(Request(ids_of(9, name), 30, DRAWN, logprobs=5, prompt_logprobs=2)) for name in "ab"]
    while engine.is_busy:
        engine.step()
        under_way.append(len(engine._under_way))
    assert [len(each.logprobs) for each in made] == [30, 30]
    assert [len(each.prompt_logprobs) for each in made] == [9, 9]
    assert max(under_way) == 2
    assert set(read) <= {1 + 2 * 2 + 1, 1 + 2 * 8 + 1}


def test_logits_are_changed_with_the_bits_of_the_reference() -> None:
    draw = np.random.default_rng(1)
    slots, tokens = np.array([2, 0, 3, 3], np.int32), np.array([4, 1, 6, -1], np.int32)
    logits, state = 9 * draw.normal(size=(4, 7)).astype(np.float32), draw.integers(0, 3, (4, 21)).astype(np.float32)
    state[3] = 0  # nobody's
    penalties = np.array([[1.3, 1 / 1.3, 0.1, 0.7], [0.6, 1 / 0.6, -0.3, 0], [1, 1, 0, 0], [1, 1, 0, 0]], np.float32)
    bits = []
    for backend in (CpuRef(), helios()):
        arrays = [backend.from_numpy(each) for each in (logits, state, slots, penalties, tokens)]
        made = backend.to_numpy(changed_logits(backend, *arrays[:4]))
        np.testing.assert_array_equal(made[2:], logits[2:])
        count_tokens(backend, arrays[1], arrays[2], arrays[4])
        bits.append((made.tobytes(), backend.to_numpy(arrays[1]).tobytes()))
    assert bits[0] == bits[1]
    state[2, 14 + 4] += 1
    state[0, 14 + 1] += 1
    assert bits[0][1] == state.tobytes()


@pytest.mark.matrix_units
@pytest.mark.parametrize("most", [16, 64])
def test_few_rows_have_the_bits_of_many_through_a_whole_model(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor has a kernel of their own for eight rows, too, here; the prompt alone is more, in tiles or blocks."""
    _, model = stored_model("f16", "gpt2", layers=1)
    subject = Request(ids_of(37), 9, SamplingOptions(1.0, 0, seed=5), logprobs=2, prompt_logprobs=1)
    expected = result(alone(model, subject))
    monkeypatch.setattr(backend_helios_tiles, "_CPU_FEW_ROWS", most)
    if most > 16:
        assert result(alone(model, subject)) == expected
    engine = Engine(model, 1, 7)
    generation = engine.submit(subject)
    run(engine)
    assert result(generation) == expected


def test_not_finite_outputs_end_one_request_only() -> None:
    assert_not_finite_outputs_end_one_request(models("gpt2-untied")[1])


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


@pytest.mark.parametrize("make", [CpuRef, helios])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(1.0, 0),
        SamplingOptions(0.7, 12),
        SamplingOptions(1.3, 0, top_p=0.8),
        SamplingOptions(1.0, 0, min_p=0.08),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_are_likely(make: Callable[[], Backend], sampling: SamplingOptions) -> None:
    draws, vocabulary, backend = 3_000, 24, make()
    logits = 2 * rng.normal(vocabulary, 1, 0).astype(np.float32)
    fixed = sampling.temperature, sampling.top_p, sampling.min_p
    options = np.array([[*fixed, random_number(sampling, 0, step)] for step in range(draws)], np.float32)
    operands = np.tile(logits, (draws, 1)), options, np.full(draws, sampling.top_k, np.int32)
    ids = backend.to_numpy(backend.choose(*map(backend.from_numpy, operands)))
    ranked = np.argsort(-logits)
    weights = np.exp(logits[ranked].astype(np.float64) / sampling.temperature)
    shares = weights / weights.sum()
    kept = np.cumsum(shares) - shares < sampling.top_p  # up to the one with which the sum reaches it
    kept &= shares >= sampling.min_p * shares[0]
    kept[sampling.top_k or vocabulary :] = False
    likely, expected = ranked[kept], draws * shares[kept] / shares[kept].sum()
    assert sampling == SamplingOptions(1.0, 0) or 2 < len(likely) < vocabulary
    counts = np.bincount(ids, minlength=vocabulary)
    assert counts[likely].sum() == draws
    # The sum of squares has a mean of its degrees of freedom, and a deviation of the root of twice as many.
    freedom = len(likely) - 1
    assert ((counts[likely] - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_choosing_from_many_logits_takes_what_the_cpu_takes() -> None:
    """Of rows far from zero, with many equal logits, and with options that look at few logits and at many."""
    width, turns = 5_003, 4
    rows, options, top_k = [], [], []
    for shift, scale in ((0.0, 1.0), (-90.0, 3.0), (300.0, 40.0)):
        for step, (temperature, top, top_p, min_p) in enumerate(
            (
                *(
                    (0.0, 0, 1.0, 0.0),
                    (1.0, 0, 1.0, 0.0),
                    (0.7, 40, 1.0, 0.0),
                    (1.0, 1, 1.0, 0.0),
                    (1.3, 900, 1.0, 0.0),
                ),
                *(
                    (1.0, 0, 0.2, 0.0),
                    (1.0, 0, 0.9999, 0.0),
                    (0.9, 50, 0.9, 0.0),
                    (1.0, 0, 0.0, 0.0),
                    (1.0, 0, 1.0, 0.1),
                ),
                *((1e-30, 40, 0.9, 0.0), (50.0, 0, 0.5, 0.0), (1.0, 4_000, 0.95, 0.02)),
            )
        ):
            for turn in range(turns):
                values = scale * rng.normal(width, 1, 17 * step + turn) + shift
                rows.append(np.round(values, 1) if turn % 2 else values)
                options.append([temperature, top_p, min_p, (turn + 0.37) / turns])
                top_k.append(top)
    logits, numbers, tops = np.array(rows, np.float32), np.array(options, np.float32), np.array(top_k, np.int32)
    logits[-1, 77] = np.inf
    backend = helios()
    got = backend.to_numpy(backend.choose(*map(backend.from_numpy, (logits, numbers, tops))))
    wanted = NumpyPrimitives().choose(logits, numbers, tops)
    assert wanted[-1] == -1
    np.testing.assert_array_equal(got, wanted)
