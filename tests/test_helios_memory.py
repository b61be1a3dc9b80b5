"""Device memory: views of arrays against numpy's, ranges that never overlap, plans of recorded programs, barriers."""

import itertools
import math
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import backend_helios_array as arrays
from alpha.backend_helios_array import HeliosArray, Storage, contiguous_strides
from alpha.backend_helios_folding import forward_copies
from alpha.backend_helios_kernels import Field, Kernel
from alpha.backend_helios_memory import ALIGNMENT, FreeRanges, aligned
from alpha.backend_helios_planner import LOOK_AHEAD, Dispatch, arrange, needs_barrier, plan_arena

SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=4)


def array_of(shape: tuple[int, ...], address: int = 0) -> HeliosArray:
    return HeliosArray(Storage(4 * math.prod(shape), address), shape, contiguous_strides(shape), "f32")


def elements(x: HeliosArray) -> Any:
    """What a view shows of a storage that holds 0, 1, 2 ..."""
    flat = np.arange(x.storage.nbytes // 4)
    strides = [8 * each for each in x.strides]
    return np.lib.stride_tricks.as_strided(flat[x.offset :], x.shape, strides) if x.size else np.empty(x.shape)


@st.composite
def viewed(draw: Any) -> tuple[HeliosArray, Any]:
    """A view made by a few operations, and numpy's view made by the same."""
    shape = tuple(draw(SHAPES))
    x, y = array_of(shape), np.arange(math.prod(shape)).reshape(shape)
    for _ in range(draw(st.integers(0, 4))):
        operation = draw(st.sampled_from(["transpose", "narrow", "expand", "reshape"]))
        if operation == "transpose":
            axes = draw(st.permutations(range(y.ndim)))
            x, y = arrays.transposed(x, axes), y.transpose(axes)
        elif operation == "narrow" and y.ndim:
            axis = draw(st.integers(0, y.ndim - 1))
            start = draw(st.integers(0, y.shape[axis]))
            length = draw(st.integers(0, y.shape[axis] - start))
            index = [slice(None)] * y.ndim
            index[axis] = slice(start, start + length)
            x, y = arrays.narrowed(x, axis, start, length), y[tuple(index)]
        elif operation == "expand":
            wanted = (*draw(st.lists(st.integers(1, 3), max_size=1)), *(3 if each == 1 else each for each in y.shape))
            x, y = arrays.expanded(x, wanted), np.broadcast_to(y, wanted)
        elif operation == "reshape":
            wanted = tuple(draw(st.permutations(_factors(draw, y.size))))
            view = arrays.reshaped(x, wanted)
            if view is not None:
                x, y = view, y.reshape(wanted)
    return x, y


def _factors(draw: Any, size: int) -> list[int]:
    if not size:
        return [0, 3]
    parts = [1]
    for divisor in (2, 3):
        if size % divisor == 0 and draw(st.booleans()):
            parts.append(divisor)
            size //= divisor
    return [*parts, size]


@given(viewed())
def test_views_show_what_numpys_views_show(pair: tuple[HeliosArray, Any]) -> None:
    x, y = pair
    assert x.shape == y.shape
    assert np.array_equal(elements(x), y)
    if x.size:
        assert x.is_contiguous == (elements(x).reshape(-1).tolist() == list(range(x.offset, x.offset + x.size)))
        start, end, *_ = x.byte_range
        assert (start, end) == (4 * int(y.min()), 4 * int(y.max()) + 4)


def test_a_reshape_that_numpy_does_without_a_copy_is_a_view() -> None:
    x = arrays.transposed(array_of((4, 6, 5)), (1, 0, 2))
    assert arrays.reshaped(x, (2, 3, 4, 5)) is not None
    assert arrays.reshaped(x, (6, 2, 2, 5)) is not None
    assert arrays.reshaped(x, (24, 5)) is None
    assert arrays.reshaped(x, (6, 20)) is None
    with pytest.raises(ValueError, match="120 elements"):
        arrays.reshaped(x, (7, 5))


def test_impossible_views_are_refused() -> None:
    x = array_of((2, 3))
    for shape in ((3,), (2, 4), (2, 2, 4)):
        with pytest.raises(ValueError, match="broadcast"):
            arrays.expanded(x, shape)
    for start, length in ((0, 4), (2, 2), (-1, 1)):
        with pytest.raises(ValueError, match="axis of length 3"):
            arrays.narrowed(x, 1, start, length)


def test_no_element_is_made_up_for_float64() -> None:
    with pytest.raises(ValueError, match="float64"):
        arrays.element_of(np.float64)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=60))
def test_ranges_in_use_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    total = 24 * ALIGNMENT
    ranges, taken = FreeRanges(total), []
    for is_take, units in steps:
        if is_take:
            start = ranges.take(units * ALIGNMENT)
            if start is None:
                continue
            assert all(start + units * ALIGNMENT <= other or end <= start for other, end in taken)
            assert 0 <= start <= total - units * ALIGNMENT
            taken.append((start, start + units * ALIGNMENT))
        elif taken:
            start, end = taken.pop(units % len(taken))
            ranges.give_back(start, end - start)
        assert ranges.free == total - sum(end - start for start, end in taken)
    for start, end in taken:
        ranges.give_back(start, end - start)
    assert ranges.take(total) == 0


def kernel(*directions: str) -> Kernel:
    fields = tuple(Field(f"x{index}", "f32", each, 8 * index) for index, each in enumerate(directions))
    return Kernel("test", "f32", fields, (), (), b"")


def run(*uses: tuple[str, HeliosArray], is_copy: bool = False) -> Dispatch:
    arguments: Any = {f"x{index}": array for index, (_, array) in enumerate(uses)}
    return Dispatch(kernel(*(direction for direction, _ in uses)), Future(), (1, 1, 1), arguments, is_copy)


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=3), max_size=30), st.integers(0, 11))
def test_storages_in_use_at_the_same_time_lie_apart(uses: list[list[int]], kept: int) -> None:
    storages = [Storage(ALIGNMENT * (1 + index % 4) - 3) for index in range(12)]
    views = [HeliosArray(each, (1,), (1,), "f32") for each in storages]
    dispatches = [run(*(("inout", views[index]) for index in each)) for each in uses]
    size, offsets = plan_arena([[each] for each in dispatches], storages, storages[kept])
    alive = {}
    for index in {each for use in uses for each in use}:
        positions = [position for position, use in enumerate(uses) if index in use]
        alive[index] = (positions[0], len(uses) if index == kept else positions[-1])
    for index, (first, last) in alive.items():
        assert 0 <= offsets[index] <= size - storages[index].nbytes
        for other, (other_first, other_last) in alive.items():
            if other != index and first <= other_last and other_first <= last:
                ends = [offsets[each] + storages[each].nbytes for each in (index, other)]
                assert ends[0] <= offsets[other] or ends[1] <= offsets[index]


def test_a_chain_of_operations_needs_the_memory_of_one_of_them() -> None:
    storages = [Storage(1 << 20) for _ in range(100)]
    views = [HeliosArray(each, (1 << 18,), (1,), "f32") for each in storages]
    dispatches = [run(("in", a), ("out", b)) for a, b in itertools.pairwise(views)]
    size, _ = plan_arena(arrange(dispatches), storages)
    assert size == 2 * aligned(1 << 20)


def test_barriers_stand_only_where_something_must_be_waited_for() -> None:
    a, b, c, d = (array_of((64,), 1024 * index) for index in range(4))
    half, other_half = arrays.narrowed(d, 0, 0, 32), arrays.narrowed(d, 0, 32, 32)
    steps = [
        (run(("in", a), ("out", b)), False),
        (run(("in", a), ("out", c)), False),  # reads the same
        (run(("in", b), ("out", half)), True),  # read after write
        (run(("in", c), ("out", other_half)), False),  # another part of the same storage
        (run(("in", d), ("out", a)), True),  # reads both parts
        (run(("out", d)), True),  # write after read
        (run(("out", d)), True),  # write after write
        (run(("inout", b)), False),  # nothing since the last barrier touches b
        (run(("in", b)), True),
    ]
    assert needs_barrier([dispatch for dispatch, _ in steps]) == [expected for _, expected in steps]


@given(st.data())
def test_arrays_that_share_an_element_meet(data: st.DataObject) -> None:
    """Parts of one packed array, along its axes."""
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    whole = array_of(shape, 4096)
    parts = []
    for _ in range(2):
        part = whole
        for axis, length in enumerate(shape):
            start = data.draw(st.integers(0, length - 1))
            part = arrays.narrowed(part, axis, start, data.draw(st.integers(1, length - start)))
        parts.append(arrays.transposed(part, data.draw(st.permutations(range(3)))))
    elements = [
        {each.offset + sum(map(math.prod, zip(index, each.strides, strict=True))) for index in np.ndindex(each.shape)}
        for each in parts
    ]
    assert parts[0].byte_range.meets(parts[1].byte_range) >= bool(elements[0] & elements[1])
    assert parts[0].span.meets(parts[1].span) == parts[1].span.meets(parts[0].span)


def test_parts_side_by_side_are_written_without_waiting() -> None:
    packed = array_of((3, 5, 6, 2), 4096)
    parts = [arrays.narrowed(packed, 2, start, length) for start, length in ((0, 4), (4, 1), (5, 1))]
    assert needs_barrier([run(("out", parts[1]), ("out", parts[2])), run(("out", parts[0]))]) == [False, False]
    assert needs_barrier([run(("out", parts[1])), run(("in", arrays.narrowed(packed, 2, 3, 2)))]) == [False, True]


def test_a_result_is_written_to_where_it_would_be_copied() -> None:
    there = array_of((64,), 4096)
    elsewhere = array_of((64,), 8192)

    def forwarded(*middle: Dispatch, target: HeliosArray = there, copied: int = 64) -> tuple[int, int, int | None]:
        made = HeliosArray(Storage(256), (64,), (1,), "f32")
        dispatches = [
            run(("in", elsewhere), ("out", made)),
            *(each if each else run(("in", made), ("out", elsewhere)) for each in middle),
            run(("in", arrays.narrowed(made, 0, 0, copied)), ("out", target), is_copy=True),
        ]
        left, planned = forward_copies(dispatches, [made.storage], Storage(1))
        return len(dispatches) - len(left), len(planned), made.storage.address

    assert forwarded() == (1, 0, 4096)
    assert forwarded(run(("in", elsewhere))) == (1, 0, 4096)
    assert forwarded(run(("in", there))) == (0, 1, None), "somebody still reads what was there before"
    assert forwarded(run(("out", there))) == (0, 1, None), "it would be overwritten"
    assert forwarded(target=arrays.narrowed(there, 0, 0, 32), copied=32) == (0, 1, None), "only a part is copied"
    assert forwarded(target=arrays.narrowed(array_of((64, 2), 4096), 1, 0, 1)) == (0, 1, None), "it would be spread out"
    unaligned = arrays.narrowed(array_of((65,), 4096), 0, 1, 64)
    assert forwarded(target=unaligned) == (0, 1, None), "kernels write four elements at a time to a new array"


def test_a_result_that_is_used_after_its_copy_stays_where_it_is() -> None:
    there, made = array_of((64,), 4096), HeliosArray(Storage(256), (64,), (1,), "f32")
    dispatches = [run(("out", made)), run(("in", made), ("out", there), is_copy=True), run(("in", made))]
    assert forward_copies(dispatches, [made.storage], Storage(1)) == (dispatches, [made.storage])
    assert forward_copies(dispatches[:2], [made.storage], made.storage) == (dispatches[:2], [made.storage])


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["in", "out", "inout"]), st.integers(0, 7)), max_size=3), max_size=70)
)
def test_rounds_keep_the_order_of_what_depends_on_each_other(uses: list[list[tuple[str, int]]]) -> None:
    """Four arrays with an address, of which the last two overlap, and four without."""
    arrays_used = [array_of((64,), 1024 * index) for index in range(3)]
    arrays_used.append(array_of((64,), 1024 * 2 + 128))
    arrays_used += [HeliosArray(Storage(256), (64,), (1,), "f32") for _ in range(4)]
    dispatches = [run(*((direction, arrays_used[index]) for direction, index in each)) for each in uses]
    rounds = arrange(dispatches)
    number = {id(dispatch): index for index, each in enumerate(rounds) for dispatch in each}
    assert len(number) == len(dispatches)
    overlapping = {(index, index) for index in range(8)} | {(2, 3), (3, 2)}
    for later, second in enumerate(uses):
        for earlier, first in enumerate(uses[:later]):
            depends = any(
                (a, b) in overlapping and (mode_a, mode_b) != ("in", "in")
                for mode_a, a in first
                for mode_b, b in second
            )
            if depends:
                assert number[id(dispatches[earlier])] < number[id(dispatches[later])]
            if later - earlier >= LOOK_AHEAD:
                assert number[id(dispatches[earlier])] <= number[id(dispatches[later])]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(), st.lists(st.tuples(st.sampled_from(["in", "out", "inout"]), st.integers(0, 5)), max_size=3)
        ),
        max_size=50,
    )
)
def test_what_may_be_chained_shares_rounds_and_delays_nothing(uses: list[tuple[bool, list[tuple[str, int]]]]) -> None:
    arrays_used = [array_of((64,), 1024 * index) for index in range(6)]
    dispatches = [run(*((direction, arrays_used[index]) for direction, index in each)) for _, each in uses]
    chained = {id(dispatch) for dispatch, (is_chained, _) in zip(dispatches, uses, strict=True) if is_chained}
    rounds = arrange(dispatches, lambda dispatch: id(dispatch) in chained)
    assert all(rounds)
    assert len(rounds) <= len(arrange(dispatches))
    place = {id(dispatch): (index, at) for index, each in enumerate(rounds) for at, dispatch in enumerate(each)}
    assert len(place) == len(dispatches)
    for later, (_, second) in enumerate(uses):
        for earlier, (_, first) in enumerate(uses[:later]):
            if any(a == b and (mode_a, mode_b) != ("in", "in") for mode_a, a in first for mode_b, b in second):
                before, after = dispatches[earlier], dispatches[later]
                assert place[id(before)] < place[id(after)]
                if not {id(before), id(after)} <= chained:
                    assert place[id(before)][0] < place[id(after)][0]


def test_what_may_be_chained_is_in_as_few_rounds_as_can_be() -> None:
    a, b, c, d, e, f = (array_of((64,), 1024 * index) for index in range(6))
    early, long, longer = run(("in", a), ("out", b)), run(("in", a), ("out", c)), run(("in", c), ("out", d))
    late, needed = run(("in", d), ("out", e)), run(("in", b), ("in", e), ("out", f))
    rounds = arrange([early, long, longer, late, needed], lambda dispatch: dispatch in (early, late))
    assert rounds == [[long], [longer], [early, late], [needed]]


def test_what_is_independent_runs_side_by_side() -> None:
    a, b, c, d, e = (array_of((64,), 1024 * index) for index in range(5))
    chain = [run(("in", a), ("out", b)), run(("in", b), ("out", c))]
    beside = [run(("in", a), ("out", d)), run(("in", d), ("out", e))]
    assert arrange(chain + beside) == [[chain[0], beside[0]], [chain[1], beside[1]]]
