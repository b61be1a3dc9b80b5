"""Rounds that follow each other without barriers: they give the same bits; and what happens when one does not hold."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from helios_device import helios
from test_engine import GREEDY, VOCABULARY, alone, ids_of, result
from test_gpt import SMALL_SET, VARIANTS, model_of
from test_helios_engine import stored_model

from alpha import backend_helios_relay, backend_helios_tiles, rng
from alpha.backend_helios import Helios
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_matmul import Epilogue
from alpha.backend_helios_planner import Dispatch, needs_barrier
from alpha.backend_helios_program import RecordedProgram
from alpha.backend_helios_relay import FRESH, Relay, RelayBroken, Relays, asked_relays, await_rows, relayed
from alpha.backend_helios_tiles import FEW_ROWS, Division, Problem, choose
from alpha.config import ModelConfig, resolve_model
from alpha.engine import Engine, Request
from alpha.gpt import GPT
from alpha.sampling import SamplingOptions

LONG = 140  # positions: attention to more than one part of them


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Helios:
    """One that has relays, whatever its device is."""
    found = helios()
    monkeypatch.setattr(found, "relays", Relays(wanted=True))
    return found


def small(backend: Helios, name: str = "gpt2", block: int = LONG) -> GPT:
    config = resolve_model(ModelConfig(**(VARIANTS[name].__dict__ | {"block": block})))
    return model_of(config, np.float32, backend, VOCABULARY)


def programs_of(engine: Engine) -> list[RecordedProgram]:
    return [each for each in engine._steps._programs.values() if isinstance(each, RecordedProgram)]


def counted(program: RecordedProgram) -> int:
    """How many dispatches of a program wait by themselves."""
    return sum(each.waits for each in program._dispatches)


@pytest.mark.parametrize("name", SMALL_SET)
def test_a_relay_gives_the_bits_of_barriers(name: str, backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(backend, name)
    asked = Request(ids_of(3), LONG - 8, SamplingOptions(seed=3), logprobs=2)
    found = []
    for wanted in (False, True):
        monkeypatch.setattr(backend, "relays", Relays(wanted))
        engine = Engine(model, max_sequences=1)
        made = engine.submit(asked)
        while engine.is_busy:
            engine.step()
        found.append(result(made))
        waiting = [counted(each) for each in programs_of(engine)]
        assert any(waiting) == wanted
    assert found[0] == found[1]


@pytest.mark.matrix_units
@pytest.mark.parametrize(("precision", "width"), [("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16)])
def test_a_relay_gives_the_bits_of_barriers_in_sixteen_bits(
    precision: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where attention is on matrix units, as it is with heads of 16."""
    _, model = stored_model(precision, block=LONG, heads=2, kv_heads=1, head_dim=width)
    found = []
    for wanted in (False, True):
        monkeypatch.setattr(model.backend, "relays", Relays(wanted))
        found.append(result(alone(model, Request(ids_of(3), LONG - 8, GREEDY, logprobs=2), max_sequences=1)))
    assert found[0] == found[1]


@pytest.mark.matrix_units
@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_a_relay_of_many_rows_gives_the_bits_of_barriers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, of which attention takes so many rows together, and texts."""
    _, model = stored_model("f16", name, block=LONG, heads=2, kv_heads=2, head_dim=8)
    asked = [Request(ids_of(LONG - 20, letter), 3, GREEDY, logprobs=2) for letter in "abc"]
    found = []
    for wanted in (False, True):
        monkeypatch.setattr(model.backend, "relays", Relays(wanted))
        engine = Engine(model, max_sequences=4)
        generations = [engine.submit(each) for each in asked]
        while engine.is_busy:
            engine.step()
        found.append(list(map(result, generations)))
        waiting = {each.kernel.name for program in programs_of(engine) for each in program._dispatches if each.waits}
        if model.backend.hardware.fragment is not None:
            assert ("matmul_matrix" in waiting) == ("norm" in waiting) == wanted
    assert found[0] == found[1]


def test_a_step_has_fewer_barriers(backend: Helios) -> None:
    model = small(backend)
    engine = Engine(model, max_sequences=1)
    generation = engine.submit(Request(ids_of(1), 8, GREEDY))
    while engine.is_busy:
        engine.step()
    (program,) = programs_of(engine)
    recorded = program._dispatches
    # Of five dispatches a layer none is behind a barrier, nor is the choice; ids, the first round of a relay, are.
    assert sum(needs_barrier(recorded)) == 1
    assert counted(program) >= 5 * model.config.layers
    assert generation.reason == "length"


def small_rounds(backend: Helios) -> tuple[dict[str, HeliosArray], list[list[Dispatch]]]:
    """Rounds that gather rows by the ids of the round before, a and then b from the table; and c, newest ids from b."""
    arrays = {name: backend.zeros((4, 1), np.int32) for name in ("table", "ids", "a", "b", "c")}

    def gather(table: str, ids: str, y: str) -> list[Dispatch]:
        return [
            backend.make_dispatch(
                "gather_rows", "bits32", 1, {}, table=arrays[table], ids=arrays[ids], addend=None, y=arrays[y],
                relay=None, count=4, width=1, stride=1, rows=4, addend_units=0,
            )
        ]  # fmt: skip

    newest = backend.make_dispatch(
        "newest_ids", "i32", 1, {}, newest=arrays["b"], slots=arrays["ids"], given=arrays["ids"], y=arrays["c"],
        relay=None, count=4, slot_count=4,
    )  # fmt: skip
    return arrays, [gather("table", "ids", "a"), gather("table", "a", "b"), [newest]]


def test_what_is_read_early_is_not_of_the_relay(backend: Helios) -> None:
    _, rounds = small_rounds(backend)
    made, relay = relayed(backend, rounds)
    # The third round reads through caches, so as if before it waits, what the second one writes: there is a barrier.
    assert relay is not None
    assert [[each.waits for each in dispatches] for dispatches in made] == [[False], [True], [False]]
    assert [each.constants.get("RELAY", 0) for dispatches in made for each in dispatches] == [1, 1, 0]
    assert needs_barrier([each for dispatches in made for each in dispatches]) == [False, False, True]


def test_a_relay_waits_at_a_barrier_for_what_is_not_of_it(backend: Helios) -> None:
    arrays, rounds = small_rounds(backend)
    made, _ = relayed(backend, rounds[:2])
    first, second = (each for dispatches in made for each in dispatches)
    others = {"other": backend.zeros((4, 1), np.int32), "table": arrays["table"]}
    copy = backend.copy_dispatch(others["other"], others["table"])
    assert needs_barrier([copy, first, second]) == [False, False, False]
    writes_b = backend.copy_dispatch(arrays["b"], others["other"])  # where the second round writes
    assert needs_barrier([writes_b, first, second]) == [False, False, True]


@pytest.mark.parametrize("kernel", FRESH)
def test_what_a_round_before_may_have_written_is_read_past_caches(kernel: str) -> None:
    """No test can show it on lavapipe, which has one cache."""
    folder, files = Path(__file__).parent.parent / "kernels", [f"{kernel}.comp"]
    seen: set[str] = set()
    while files:
        name = files.pop()
        if name in seen or not (folder / name).exists():  # kernel.glsl is made for each variant
            continue
        seen.add(name)
        source = re.sub("//.*", "", (folder / name).read_text())
        files += re.findall(r'#include "([^"]+)"', source)
        for field in FRESH[kernel]:
            assert not re.search(rf"\b{field}\.at\[", source), (name, field)


def test_the_first_round_of_a_relay_shares_its_counter_without_a_barrier(backend: Helios) -> None:
    _, (first, second, _) = small_rounds(backend)
    other = backend.zeros((4, 1), np.int32)
    beside = dataclasses.replace(first[0], arguments=first[0].arguments | {"y": other})
    made, _ = relayed(backend, [[*first, beside], second])
    dispatches = [each for dispatches in made for each in dispatches]
    assert [each.leg for each in dispatches] == [1, 1, 2]
    assert needs_barrier(dispatches) == [False] * 3


def test_a_product_that_reads_its_residual_number_by_number_is_of_no_relay(backend: Helios) -> None:
    def products(x: HeliosArray) -> HeliosArray:
        for _ in range(3):
            x = backend.linear(x, weight, None, "", x)[0]
        return x

    for width, legs in ((7, []), (8, [1, 2, 3])):
        weight = backend.from_numpy(np.eye(width, dtype=np.float32))
        program = backend.record_inference(products)
        program(backend.from_numpy(np.ones((1, width), np.float32)))
        assert [each.leg for each in program._dispatches if each.kernel.name == "matmul_few" and each.leg] == legs


@pytest.mark.matrix_units
def test_split_products_and_their_sums_are_of_a_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parts and the sums of these, 15 of them, with a residual that was only now written."""
    backend, rows, width = helios("f16"), 70, 15 * 32
    tile = choose(Problem(1, rows, width, width), backend.hardware).tile
    numbers = rng.normal((width + 1 + rows) * width, 1, rng.stream_of("split")).astype(np.float32).reshape(-1, width)
    weight, bias = backend.from_numpy(0.1 * numbers[:width]), backend.from_numpy(numbers[width])

    def products(x: HeliosArray) -> HeliosArray:
        for _ in range(3):
            y = backend.new((rows, width), "f32")
            backend.product(x, weight, y, Epilogue(bias, "gelu", None, x), forced=Division(tile, 15, 32))
            x = y
        return x

    x = backend.from_numpy(numbers[width + 1 :])
    found = []
    for wanted in (False, True):
        monkeypatch.setattr(backend, "relays", Relays(wanted))
        program = backend.record_inference(products)
        found += [backend.to_numpy(program(x)).tobytes() for _ in range(3)]
        waiting = [each.kernel.name for each in program._dispatches if each.waits]
        assert waiting.count("matmul_reduce") == (3 if wanted and tile.kernel == "matmul_matrix" else 0)
    assert len(set(found)) == 1


def test_a_round_by_itself_is_no_relay(backend: Helios) -> None:
    _, rounds = small_rounds(backend)
    made, relay = relayed(backend, rounds[2:])
    assert relay is None and made == rounds[2:]


WIDTH = 64


def products_in_turn(
    monkeypatch: pytest.MonkeyPatch, bias: npt.NDArray[np.float32]
) -> tuple[Helios, RecordedProgram, npt.NDArray[np.float32]]:
    """Products of norms in 16 bits, each of the row that the one before makes, with this bias: a backend that has
    relays, the program of a row, and that row."""
    backend = helios("f16")
    monkeypatch.setattr(backend, "relays", Relays(wanted=True))

    def normal(*shape: int) -> HeliosArray:
        return backend.from_numpy(rng.normal(math.prod(shape), 0, len(shape)).reshape(shape).astype(np.float32))

    weight, scale, added = backend.cast(normal(WIDTH, WIDTH), np.float16), normal(WIDTH), backend.from_numpy(bias)

    def products(x: HeliosArray) -> HeliosArray:
        for _ in range(3):
            normalized = backend.rms_norm(x, scale, 1e-5)[0]
            x = backend.linear(normalized, weight, added, "", x)[0]
        return backend.add(x, 1.0)

    return backend, backend.record_inference(products), rng.normal(WIDTH, 0, 9).reshape(1, WIDTH).astype(np.float32)


def awaiting(program: RecordedProgram) -> list[bool]:
    """Of the products of a program, which wait for a row instead of a counter."""
    return [each.constants.get("RELAY") == 3 for each in program._dispatches if each.kernel.name == "matmul_few"]


@pytest.mark.matrix_units
def test_products_wait_for_the_row_that_the_one_before_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, program, x = products_in_turn(monkeypatch, np.ones(WIDTH, np.float32))
    made = [backend.to_numpy(program(backend.from_numpy(each))) for each in (x, 2 * x, x)]
    has_units = backend.hardware.fragment is not None
    assert awaiting(program) == [False, has_units, has_units]
    backend.relays.wanted = False
    expected = [backend.to_numpy(program(backend.from_numpy(each))) for each in (x, 2 * x)]
    assert not any(awaiting(program))
    assert [each.tobytes() for each in made] == [expected[0].tobytes(), expected[1].tobytes(), expected[0].tobytes()]


@pytest.mark.matrix_units
def test_a_row_that_something_else_writes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, program, x = products_in_turn(monkeypatch, np.ones(WIDTH, np.float32))
    backend.relays.wanted = False
    program.prepare(backend.from_numpy(x))
    monkeypatch.setattr(backend, "relays", Relays(wanted=True))
    rounds = [[each] for each in program._dispatches if each.kernel.name == "matmul_few"]
    row = rounds[0][0].arguments["c"]
    assert isinstance(row, HeliosArray)
    copy = backend.copy_dispatch(row, backend.zeros(row.shape, np.float32))
    for others, readers in (([], 1 if backend.hardware.fragment else 0), ([[copy]], 0)):
        _, rows = await_rows(backend, [*rounds, *others], [row.storage], program._result.storage)
        assert (0 if rows is None else len(rows.readers)) == readers


@pytest.mark.matrix_units
def test_a_row_that_is_not_written_is_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, program, x = products_in_turn(monkeypatch, np.ones(WIDTH, np.float32))
    if backend.hardware.fragment is None:
        pytest.skip("NO ROW IS WAITED FOR: the device has no matrix units")
    program.prepare(backend.from_numpy(x))
    unwritten = backend.zeros((1, WIDTH), np.float32)
    backend.copy_into(unwritten, backend.from_numpy(np.full((1, WIDTH), -1, np.int32).view(np.float32)))
    program._dispatches = [
        dataclasses.replace(each, arguments=each.arguments | {"a": unwritten})
        if each.constants.get("RELAY") == 3
        else each
        for each in program._dispatches
    ]
    program._slots = [program._slot()]
    with pytest.raises(RelayBroken, match="ALPHA_RELAY=off"):
        backend.to_numpy(program(backend.from_numpy(x)))
    assert np.isfinite(backend.to_numpy(program(backend.from_numpy(x)))).all()  # with barriers
    assert not any(awaiting(program))


@pytest.mark.matrix_units
def test_what_is_no_number_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bits of the bias are 1, as those of a row before it is there."""
    backend, program, x = products_in_turn(monkeypatch, np.full(WIDTH, -1, np.int32).view(np.float32))
    assert np.isnan(backend.to_numpy(program(backend.from_numpy(x)))).all()
    assert any(awaiting(program)) == (backend.hardware.fragment is not None)
    assert backend.relays.wanted


@pytest.mark.matrix_units
@pytest.mark.parametrize("workgroups", [0, 100])
def test_blocks_of_rows_have_the_bits_of_few_without_a_relay(workgroups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of products that follow each other in a relay, each behind a norm of its own; in turn or beside each other."""
    sizes = {"_CPU_FEW_ROWS": 64, "_FEW_PART": 32, "_MOST_FEW_TEAMS": 6, "_BLOCKS_WORKGROUPS": workgroups}
    for name, value in sizes.items():
        monkeypatch.setattr(backend_helios_tiles, name, value)
    backend = helios("f16")

    def normal(*shape: int) -> HeliosArray:
        return backend.from_numpy(rng.normal(math.prod(shape), 0, len(shape)).reshape(shape).astype(np.float32))

    wide, narrow = (backend.cast(normal(*shape), np.float16) for shape in ((72, 136), (136, 72)))
    bias, scale = normal(72), normal(72)

    def products(x: HeliosArray) -> HeliosArray:
        for _ in range(3):
            hidden = backend.linear(backend.rms_norm(x, scale, 1e-5)[0], wide, None, "gelu")[0]
            x = backend.linear(hidden, narrow, bias, "", x)[0]
        return backend.add(x, 1.0)

    def run(relays: bool, x: np.ndarray) -> tuple[list[bytes], int]:
        monkeypatch.setattr(backend, "relays", Relays(relays))
        program = backend.record_inference(products)
        made = [backend.to_numpy(program(backend.from_numpy(each))).tobytes() for each in (x, 2 * x, x)]
        return made, sum(each.constants.get("BLOCKS", 0) == 1 for each in program._dispatches)

    x = rng.normal(37 * 72, 0, 9).reshape(37, 72).astype(np.float32)
    blocks = 6 if backend.hardware.fragment else 0
    (without, count), (relayed, relayed_count) = run(False, x), run(True, x)
    assert without == relayed and (count, relayed_count) == (blocks, blocks) and backend.relays.wanted
    (few, count), line = run(False, x[:5]), 72 * 4
    assert [each[: 5 * line] for each in without] == few and count == 0


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each first round of a relay wait for a workgroup that there is not."""
    made = Relay.__init__

    def begin(relay: Relay, backend: backend_helios_relay.RelayMaker, counts: Sequence[int]) -> None:
        made(relay, backend, [count or 1 for count in counts])

    monkeypatch.setattr(Relay, "__init__", begin)


def test_a_device_whose_relay_does_not_hold_has_barriers(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rounds = small_rounds(backend)
    with monkeypatch.context() as context:
        broken(context)
        made, relay = relayed(backend, rounds)
    assert relay is None and made == rounds and not backend.relays.wanted


def test_what_is_under_way_when_a_wait_was_in_vain_is_computed_again_with_barriers(
    backend: Helios, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = small(backend, block=32)
    asked = [Request(ids_of(3, name), 20, SamplingOptions(seed=5), logprobs=1) for name in "ab"]
    wanted = [result(alone(model, each, max_sequences=1)) for each in asked]
    engine = Engine(model, max_sequences=1)
    generations = [engine.submit(each) for each in asked]
    while len(generations[0].ids) < 5:
        engine.step()
    assert any(map(counted, programs_of(engine))) and backend.relays.wanted
    for program in programs_of(engine):  # in the midst of a text, with several steps under way
        if program._relay is not None:
            assert program._relay._told.mapped is not None
            program._relay._told.mapped[0] = 1
    while engine.is_busy:
        engine.step()
    assert [each.reason for each in generations] == ["length"] * 2
    assert list(map(result, generations)) == wanted
    assert not any(map(counted, programs_of(engine))) and not backend.relays.wanted
    assert "ALPHA_RELAY=off" in caplog.text and "computed again" in caplog.text


def test_an_engine_whose_first_relay_does_not_hold_goes_on(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(backend, block=16)
    asked = Request(ids_of(3), 6, GREEDY)
    wanted = alone(model, asked, max_sequences=1)
    broken(monkeypatch)  # after the device was tried
    generation = alone(model, asked, max_sequences=1)
    assert not backend.relays.wanted
    assert generation.reason == "length" and result(generation) == result(wanted)


def test_a_program_that_is_kept_is_recorded_again(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [backend.from_numpy(rng.normal(64 * 64, 0, each).reshape(64, 64).astype(np.float32)) for each in range(3)]

    def products(x: HeliosArray) -> HeliosArray:
        for weight in weights:
            x = backend.linear(x, weight)[0]
        return x

    x = rng.normal(64, 0, 9).reshape(1, 64).astype(np.float32)
    kept = backend.record_inference(products)
    expected = backend.to_numpy(kept(backend.from_numpy(x)))
    with monkeypatch.context() as context:
        broken(context)
        program = backend.record_inference(products)
        with pytest.raises(RelayBroken, match="ALPHA_RELAY=off"):
            backend.to_numpy(program(backend.from_numpy(x)))
    for each in (program, kept):
        assert backend.to_numpy(each(backend.from_numpy(x))).tobytes() == expected.tobytes()
        assert counted(each) == 0


def test_what_nobody_computes_again_has_barriers(backend: Helios) -> None:
    """As the losses of an evaluation, whose windows may be as short as a decode step."""
    weight = backend.from_numpy(rng.normal(64 * 64, 0, 1).reshape(64, 64).astype(np.float32))
    x = backend.from_numpy(rng.normal(64, 0, 9).reshape(1, 64).astype(np.float32))
    for record, waits in ((backend.record, False), (backend.record_inference, True)):
        program = record(lambda x: backend.linear(backend.linear(x, weight)[0], weight)[0])
        backend.to_numpy(program(x))
        assert bool(counted(program)) == waits


@pytest.mark.parametrize("word", ["", "auto", "off", "on"])
def test_relays_are_for_whom_they_are_asked_for_and_for_gpus_that_have_shown_to_hold_them(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word:
        monkeypatch.setenv("ALPHA_RELAY", word)
    info = helios().device_info
    for driver, is_known in (("NVIDIA", True), ("NVK", False)):
        asked = asked_relays(dataclasses.replace(info, driver_name=driver))
        assert asked.wanted == (word == "on" or (word != "off" and is_known))


def test_a_relay_that_does_not_hold_is_said_once(
    backend: Helios, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "relays", Relays(wanted=True))
    broken(monkeypatch)
    assert not backend.relays.work(backend)
    assert "A trial shows that" in capsys.readouterr().err
    assert not backend.relays.work(backend)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("precision", ["f32", pytest.param("f16", marks=pytest.mark.matrix_units)])
def test_the_last_rows_of_a_prompt_see_all_of_its_keys_behind_a_barrier(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are fewer than those whose keys the product before them puts, and read early what is before their own."""
    monkeypatch.setattr(backend_helios_tiles, "_CPU_FEW_ROWS", FEW_ROWS)  # the prompt's products wait, as on a GPU
    _, model = stored_model(precision, block=LONG, heads=2, kv_heads=2, head_dim=16)
    monkeypatch.setattr(model.backend, "relays", Relays(wanted=True))
    engine = Engine(model, max_sequences=1)
    generation = engine.submit(Request(ids_of(3), 3, GREEDY, logprobs=2))
    while engine.is_busy:
        engine.step()
    assert generation.reason == "length"
    legs = [
        [(each.groups[2], each.leg) for each in program._dispatches if each.kernel.name.startswith("attention_cached")]
        for program in programs_of(engine)
    ]
    (prompt,), (step,) = ([each for each in legs if (each[0][0] > 1) == is_prompt] for is_prompt in (True, False))
    assert [rows for rows, _ in prompt] == [4, 1] and prompt[0][1] > 1 and prompt[1][1] == 1
    assert all(leg > 1 for _, leg in step)
