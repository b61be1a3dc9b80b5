"""Tiles of matrix products that are measured on a device: candidates give equal bits, and a table may be damaged."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from helios_device import helios
from test_device_report import BUNDLE, CPU, H200, PLAIN

from alpha import backend_helios_matmul, backend_helios_tiles, backend_helios_tuning
from alpha.backend_helios import Helios, open_helios
from alpha.backend_helios_array import HeliosArray
from alpha.backend_helios_tiles import TILED, Division, Hardware, Problem, candidates, choose
from alpha.backend_helios_tuning import Table, Tuning, rivals, tuning_for
from alpha.errors import AlphaError, UsageError

GPU = Hardware(32, 49152, 1024, (16, 16, 16), 132)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for tables; and the tiles of GPUs on a driver that computes on the processor, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ALPHA_TUNE", raising=False)
    monkeypatch.setitem(backend_helios_tiles._CPU_TILES, "matmul_tiled", TILED[3:])
    monkeypatch.setattr(backend_helios_tuning, "LEAST_OPERATIONS", 1e5)
    monkeypatch.setattr(backend_helios_tuning, "_WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(backend_helios_tuning, "_ROUNDS", 1)
    monkeypatch.setattr(backend_helios_tuning, "MOST_SECONDS", 100.0)
    for each in (rivals, choose):
        each.cache_clear()
    folder = tmp_path / "alpha" / "pipelines"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def backend() -> Helios:
    """One of its own, without a tuning."""
    helios()  # or skipped
    return open_helios()


def operand(backend: Helios, rows: int, columns: int, swapped: bool, seed: int) -> HeliosArray:
    values = np.random.default_rng(seed).standard_normal((columns, rows) if swapped else (rows, columns))
    array = backend.from_numpy(values.astype(np.float32))
    return backend.transpose(array, (1, 0)) if swapped else array


def bits(backend: Helios, array: HeliosArray) -> list[int]:
    return [*backend.to_numpy(array).view(np.uint32).reshape(-1)]


@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize(("layout", "splits"), [("nn", 1), ("nt", 2), ("tn", 1)])
def test_all_rivals_give_the_same_bits(precision: str, layout: str, splits: int) -> None:
    backend = helios(precision)
    device = backend.hardware
    a, b = operand(backend, 70, 300, layout[0] == "t", 1), operand(backend, 300, 75, layout[1] == "t", 2)
    problem = Problem(1, 70, 75, 300, 32, 32, a_vectors=layout[0] == "n", b_vectors=layout[1] == "t")
    division = next(each for each in candidates(problem, device) if each.splits == splits)
    divisions = rivals(division, problem, device)
    assert (len(divisions) > 1) == (device.fragment is None)
    wanted = bits(backend, backend.product(a, b, forced=divisions[0]))
    for each in divisions[1:]:
        assert bits(backend, backend.product(a, b, forced=each)) == wanted, each


@pytest.mark.parametrize("fragment", [(16, 16, 16), None])
def test_rivals_divide_sums_as_the_estimate_does(fragment: tuple[int, int, int] | None) -> None:
    device = dataclasses.replace(GPU, fragment=fragment)
    for rows, columns, depth in itertools.product((64, 1000, 8192), (96, 768), (100, 768, 8192)):
        problem = Problem(1, rows, columns, depth, 16, 16)
        for division in candidates(problem, device):
            found = rivals(division, problem, device)
            assert found[0] == division
            assert len(set(found)) == len(found) <= (4 if fragment is None else 1)
            for each in found:
                assert (each.splits, each.part) == (division.splits, 0)
                assert each.splits == 1 or each.split_depth == division.split_depth
                assert each.split_depth % each.tile.k == 0


def test_a_recorded_program_is_measured_before_it_runs_and_once(backend: Helios, capfd: pytest.CaptureFixture[str],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    a, b = operand(backend, 70, 60, False, 1), operand(backend, 60, 64, False, 2)
    plain = bits(backend, backend.record(backend.matmul)(a, b))
    # The last of the rivals is the fastest.
    monkeypatch.setattr(backend_helios_tuning, "_times", lambda device, rivals, *_, **__: [*range(len(rivals), 0, -1)])
    table = Table(backend.device_info, BUNDLE)
    backend.tuning = Tuning(table)
    ran: list[str] = []
    monkeypatch.setattr(backend, "say_choice", ran.append)
    assert bits(backend, backend.record(backend.matmul)(a, b)) == plain
    assert capfd.readouterr().err.count("timing tiles of 1 matrix products") == 1
    assert len(table.read()) == 1
    assert ran[0] != ran[-1]
    assert ran[-1].endswith(next(iter(table.read().values())))
    for tuning in (backend.tuning, Tuning(table)):
        backend.tuning = tuning
        assert bits(backend, backend.record(backend.matmul)(a, b)) == plain
        assert ran.pop() not in (ran[0], "")
    assert not capfd.readouterr().err
    backend.tuning = Tuning(table, anew=True)
    backend.record(backend.matmul)(a, b)
    assert "timing tiles" in capfd.readouterr().err


@pytest.mark.parametrize("layout", ["nt", "tn"])
def test_times_are_taken_on_operands_that_lie_as_those_of_the_product(backend: Helios, layout: str) -> None:
    """Batches and a slice, with the device's own clock."""
    tuning = backend.tuning = Tuning(Table(backend.device_info, BUNDLE))
    a = operand(backend, 70, 60, layout[0] == "t", 1)
    b = backend.narrow(operand(backend, 60, 128, layout[1] == "t", 2), 1, 5, 64)
    backend.record(backend.matmul)(a, b)
    backend.record(lambda x, y: backend.matmul(backend.expand(x, (3, 70, 60)), y))(
        a, backend.from_numpy(np.ones((3, 60, 64), np.float32))
    )
    assert len(Table(backend.device_info, BUNDLE).read()) == 2
    assert tuning.measure(backend) is False


def test_what_has_no_time_or_memory_keeps_its_estimate(backend: Helios, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = operand(backend, 70, 60, False, 1), operand(backend, 60, 64, False, 2)
    plain = bits(backend, backend.record(backend.matmul)(a, b))
    for name, value in (("_MEMORY_SHARE", 1 << 60), ("MOST_SECONDS", 1e-6)):
        with monkeypatch.context() as patch:
            patch.setattr(backend_helios_tuning, name, value)
            backend.tuning = Tuning(Table(backend.device_info, BUNDLE))
            assert bits(backend, backend.record(backend.matmul)(a, b)) == plain
        assert not Table(backend.device_info, BUNDLE).read()


def test_sums_of_columns_and_few_rows_and_small_products_are_not_measured(backend: Helios) -> None:
    tuning = backend.tuning = Tuning(Table(backend.device_info, BUNDLE))
    a, b = operand(backend, 70, 60, False, 1), operand(backend, 60, 64, False, 2)
    sums = backend.new((64,), "f32")
    backend.trace(lambda: backend.product(a, b, few_rows=True))
    backend.trace(lambda: backend.product(a, b, column_sums=sums))
    backend.trace(lambda: backend.matmul(backend.narrow(a, 0, 0, 4), b))
    assert tuning.measure(backend) is False


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"madeFor": [], "products": {"a": "b"}}', b"\xff", b"[" * 100_000, b'{"products": {"a": 1}}'],
)
def test_a_damaged_or_foreign_table_is_none(content: bytes, cache: Path) -> None:
    table = Table(H200, BUNDLE)
    table.write({"a": "64x64x32/1x2"})
    (path,) = cache.glob("*.tiles.json")
    assert table.read() == {"a": "64x64x32/1x2"}
    path.write_bytes(content)
    assert table.read() == {}
    table.write({"b": "c"})
    assert table.read() == {"b": "c"}


def test_a_table_is_of_one_device_driver_and_build(cache: Path) -> None:
    Table(H200, BUNDLE).write({"a": "b"})
    (path,) = cache.iterdir()
    for info in (dataclasses.replace(H200, driver_info="1"), dataclasses.replace(H200, name="other"), PLAIN):
        other = Table(info, BUNDLE)
        assert other.read() == {}
        other.write({})
        for each in cache.iterdir():
            each.write_bytes(path.read_bytes())
        assert other.read() == {}


def test_a_name_that_is_no_rival_is_passed_over(backend: Helios) -> None:
    tuning = Tuning(Table(backend.device_info, BUNDLE))
    problem = Problem(1, 70, 64, 60)
    device = backend.hardware
    estimated = choose(problem, device)

    class Product:
        key = "key"

        def alone(self, division: Division) -> HeliosArray:
            raise AssertionError

    product = Product()
    product.problem = problem  # type: ignore[attr-defined]
    for name in ("", "1x1x1/1x1", 3, None, ["x"]):
        tuning._products["key"] = name  # type: ignore[assignment]
        assert tuning.division(product, device, estimated, False) == estimated  # type: ignore[arg-type]


def test_two_tables_are_merged_and_one_that_cannot_be_written_says_so(cache: Path) -> None:
    first, second = Table(H200, BUNDLE), Table(H200, BUNDLE)
    first.write({"a": "b"})
    second.write({"c": "d"})
    assert first.read() == {"a": "b", "c": "d"}
    (path,) = cache.iterdir()
    path.unlink()
    path.mkdir()
    assert first.read() == {}
    with pytest.raises(AlphaError, match="tiles"):
        first.write({})


def test_who_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with_clock = {
        each.name: dataclasses.replace(each, features=each.features | {"timestamps"}) for each in (H200, PLAIN)
    }
    h200, plain = with_clock.values()
    for text, expected in (("", (False, True)), ("auto", (False, True)), ("off", (False, False)), ("on", (True, True)),
                           ("again", (True, True))):  # fmt: skip
        monkeypatch.setenv("ALPHA_TUNE", text)
        assert tuple(tuning_for(each, BUNDLE) is not None for each in (h200, plain)) == expected
        assert (
            tuning_for(PLAIN, BUNDLE) is tuning_for(dataclasses.replace(CPU, features=plain.features), BUNDLE) is None
        )
    monkeypatch.setenv("ALPHA_TUNE", "1")
    with pytest.raises(UsageError, match="must be auto, off, on or again, not '1'"):
        tuning_for(plain, BUNDLE)
    assert backend_helios_matmul.Products.tuning is None
