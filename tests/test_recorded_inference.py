"""Steps of inference that the reference backend records: they give what running them anew gives, bit for bit."""

import inspect
from typing import Any

import numpy as np
import pytest

from alpha import backend_cpu_ref_program as recording
from alpha import backend_cpu_ref_sidecar as sidecar
from alpha import rng
from alpha.backend_cpu_ref import CpuRef

ROWS, DIM, HEADS, WIDTH = 3, 32, 4, 8


def numbers(*shape: int, name: str) -> Any:
    return rng.normal(int(np.prod(shape)), 7, rng.stream_of(name)).reshape(shape)


class Program:
    """Every kind of operation, of operands that lie in order and of some that do not; keeps state as a cache does."""

    def __init__(self, backend: CpuRef, dtype: type) -> None:
        self.backend, self.runs = backend, 0
        self.weight, self.gated, self.head, self.bias = (
            numbers(*shape, name=name).astype(dtype)
            for name, shape in (("w", (DIM, 3 * DIM)), ("g", (DIM, 2 * DIM)), ("h", (11, DIM)), ("b", (DIM,)))
        )
        self.store = np.zeros((2, 8, HEADS, WIDTH), dtype)

    def __call__(self, x: Any, ids: Any, tables: Any) -> Any:
        self.runs += 1
        backend = self.backend
        first = backend.layer_norm(x, self.bias, self.bias, 1e-5)[0]
        qkv = backend.linear(first, self.weight)[0]
        narrow = backend.narrow(qkv, 1, DIM, DIM)  # its rows lie apart
        normed = backend.rms_norm(narrow, self.bias, 1e-5)[0]
        heads = backend.reshape(qkv, (1, ROWS, 3 * HEADS, WIDTH))
        half = backend.expand(backend.narrow(self.bias, 0, 0, WIDTH // 2), (ROWS, WIDTH // 2))
        turned = backend.rotary(backend.narrow(heads, 2, 0, HEADS), half, half)
        query = backend.reshape(backend.narrow(heads, 2, HEADS, HEADS), (ROWS, HEADS, WIDTH))
        rows = backend.reshape(self.store, (16, HEADS, WIDTH))
        backend.put_rows(rows, ids, backend.reshape(turned, (ROWS, HEADS, WIDTH)))
        attended = backend.cached_attention(query, self.store, self.store, backend.minimum(ids, 0), ids, tables, 2.0)
        out = backend.linear(backend.reshape(attended, (ROWS, DIM)), self.gated, None, "swiglu", x)[0]
        out = backend.add(out, backend.linear(narrow, self.gated)[0][:, :DIM])
        out = backend.add(out, backend.activation(normed, "gelu")[0])
        total = backend.zeros((ROWS, DIM), x.dtype)
        backend.add_into(total, out)
        logits = backend.linear(total, backend.transpose(self.head, (1, 0)))[0]
        chosen = backend.choose(logits, np.tile(np.float32([1, 0.9, 0.01, 0.3]), (ROWS, 1)), ids)
        return backend.concatenate([logits, backend.cast(backend.reshape(chosen, (ROWS, 1)), x.dtype)], 1)


def operands(turn: int, dtype: type) -> list[Any]:
    ids = (np.arange(ROWS, dtype=np.int32) * 5 + turn) % 15
    return [numbers(ROWS, DIM, name=f"x{turn}").astype(dtype), ids, np.array([[turn % 2, 1 - turn % 2]], np.int32)]


@pytest.mark.parametrize(("dtype", "is_native"), [(np.float32, True), (np.float32, False), (np.float64, True)])
def test_a_recorded_step_gives_what_running_it_gives(
    dtype: type, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_native:
        monkeypatch.setattr(sidecar, "library", lambda: None)
    plain, watched = (Program(CpuRef(), dtype) for _ in range(2))
    recorded = watched.backend.record_inference(watched)
    results = []
    for turn in range(6):
        watched.backend.threads = 1 + turn // 2 % 2
        results.append(recorded(*operands(turn, dtype)))
        np.testing.assert_array_equal(results[-1], plain(*operands(turn, dtype)), strict=True)
    assert watched.runs == 2  # once for each number of threads
    np.testing.assert_array_equal(watched.store, plain.store)
    assert len({each.tobytes() for each in results}) == 6, "a result changes when its step runs again"
    assert not set(vars(watched.backend)) & {"linear", "add", "run_parts"}


def test_a_step_with_large_results_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_BYTES", 1000)
    program = Program(CpuRef(), np.float32)
    recorded = program.backend.record_inference(program)
    for turn in range(3):
        recorded(*operands(turn, np.float32))
    assert program.runs == 3


def test_a_step_that_fails_while_it_is_recorded_leaves_the_backend_as_it_was() -> None:
    program = Program(CpuRef(), np.float32)
    x, ids, tables = operands(0, np.float32)
    with pytest.raises(ValueError, match="shape"):
        program.backend.record_inference(program)(x[:, 1:], ids, tables)
    assert not set(vars(program.backend)) & {"linear", "add", "run_parts"}


def test_every_operation_is_one_that_is_watched_or_one_that_inference_has_not() -> None:
    watched = {*recording.VIEWS, *recording.CHANGES, *recording.IN_PARTS, *recording.OTHERS}
    of_training = {"adapted_linear", "attention", "copy_into_if", "cross_entropy", "decayed_step", "dropout"}
    of_training |= {"orthogonalize", "random_uint16", "row_losses", "self_attention", "sum_of_squares"}
    composed = {"split_heads"}  # of what is watched
    no_operations = {"batch_parts", "memory_in_use", "plan", "record", "record_inference", "run_parts", "shared_zeros"}
    no_operations |= {"replacement", "side_by_side", "thread_choices", "from_numpy", "to_numpy", "empty"}
    every = {name for name in dir(CpuRef) if not name.startswith("_") and inspect.isfunction(getattr(CpuRef, name))}
    every = {name for name in every if not name.endswith(("_backward", "_update"))}
    assert watched <= every
    assert every - watched == of_training | composed | no_operations
