"""The core of the Vulkan backend: memory, views, and how dispatches reach the device.

Operations outside a recorded program are collected and submitted together when a value is asked for, or when there are
many. Inside one they are only written down. `Profile` shows where the device's time goes; see `ALPHA_DEBUG`. Knows
nothing about what the kernels compute.
"""

from __future__ import annotations

import atexit
import functools
import math
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from alpha import backend_helios_array as views
from alpha import environment
from alpha.backend import Backend
from alpha.backend_helios_array import ELEMENTS, HeliosArray, Storage, contiguous_strides, element_of
from alpha.backend_helios_device import Device, DeviceInfo, VulkanError
from alpha.backend_helios_forward import forward_parts_for
from alpha.backend_helios_kernels import Pipelines, read_bundle
from alpha.backend_helios_layout import THREADS, Rows, power_of_two, rows_where_they_lie
from alpha.backend_helios_memory import DeviceMemory
from alpha.backend_helios_planner import Argument, Dispatch, needs_barrier
from alpha.backend_helios_program import RecordedProgram, commands
from alpha.backend_helios_relay import Relays
from alpha.backend_helios_stages import stages_for
from alpha.backend_helios_tiles import Hardware, hardware

LARGEST_UPLOAD = 32 << 20
"""Bytes that pass through one range of host memory."""

SHOW_DEVICE, SHOW_TIMES, SHOW_PLANS, SHOW_DISPATCHES = 1, 2, 3, 4
"""Levels of ALPHA_DEBUG."""


@dataclass
class KernelTime:
    """Sums over the runs of one kernel."""

    runs: int = 0
    nanoseconds: int = 0
    nbytes: int = 0
    operations: float = 0.0


class Profile:
    """Adds up the times of dispatches."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelTime] = {}

    def add(self, dispatches: Sequence[Dispatch], times: Sequence[tuple[int, int]]) -> None:
        """Take note of one run of a program, given the begin and end of each dispatch in nanoseconds."""
        for dispatch, (begin, end) in zip(dispatches, times, strict=True):
            kernel = self.kernels.setdefault(f"{dispatch.kernel.name}.{dispatch.kernel.variant}", KernelTime())
            kernel.runs += 1
            kernel.nanoseconds += end - begin
            kernel.nbytes += sum(array.nbytes for _, array in dispatch.arrays())
            kernel.operations += dispatch.operations

    def text(self) -> str:
        """A line for each kernel, the one with the most time first, in aligned columns."""
        total = sum(each.nanoseconds for each in self.kernels.values()) or 1
        lines = [f"{'kernel':<36}{'runs':>9}{'ms':>11}{'share':>8}{'us each':>10}{'GB/s':>9}{'TFLOP/s':>9}"]
        for name, each in sorted(self.kernels.items(), key=lambda item: -item[1].nanoseconds):
            nanoseconds = max(1, each.nanoseconds)
            rate = f"{each.operations / nanoseconds / 1e3:9.2f}" if each.operations else ""
            lines.append(
                f"{name:<36}{each.runs:>9,}{each.nanoseconds / 1e6:>11,.2f}{100 * each.nanoseconds / total:>7.1f}%"
                f"{nanoseconds / each.runs / 1e3:>10,.1f}{each.nbytes / nanoseconds:>9,.0f}{rate}"
            )
        return "\n".join(lines)


class HeliosCore(Backend):
    """Memory, views and dispatching; the operations are in the subclasses.

    precision "f32" computes in float32 throughout; with "f16" and "bf16" matrix products round their operands to that
    type and accumulate in float32. Where there are matrix units for it, `activation_element` is that type, too: that of
    what linear layers, norms and attention write for each other; the sums behind residual connections stay float32.
    """

    name = "helios"

    def __init__(self, device: Device, precision: str = "f32") -> None:
        self.device = device
        self.precision = precision
        has_matrix_units = f"cooperative_matrix_{precision}" in device.info.features
        self.activation_element = precision if has_matrix_units else "f32"
        self.weight_dtype = ELEMENTS[precision].dtype
        self.pipelines = Pipelines(device, device.info.features, read_bundle())
        self.memory = DeviceMemory(device)
        self.stages = stages_for(self.hardware)
        self.forward_parts = forward_parts_for(self.hardware)
        self.relays = Relays(wanted=False)
        self._pending: list[Dispatch] = []
        self._most_pending = environment.read("ALPHA_ADAPTIVE_SYNC_PENDING_THRESHOLD")
        self._traced: list[Dispatch] | None = None
        self._planned: list[Storage] = []
        self.derived: WeakKeyDictionary[Storage, tuple[HeliosArray, str]] = WeakKeyDictionary()
        """What whole storages were made of, or made into, and how, until something is written to them."""
        self.norms: WeakKeyDictionary[Storage, Callable[[], HeliosArray]] = WeakKeyDictionary()
        """What computes a norm's result, by its storage, once more, until something is written to it."""
        self._running: deque[tuple[int, int]] = deque()  # programs to be freed at a value of the timeline
        self._uploads: list[Storage] = []
        self._most_upload_bytes = environment.read("ALPHA_ADAPTIVE_SYNC_DEFERRED_THRESHOLD") << 20
        self._debug = environment.read("ALPHA_DEBUG")
        self._said: set[str] = set()
        self._timed: dict[int, Sequence[Dispatch]] = {}  # by program
        if self._debug >= SHOW_DEVICE:
            self._say(f"{device.info.name}, matrix products in {precision}")
        self.profile: Profile | None = None
        """Of all that has run, where ALPHA_DEBUG asks for it."""
        if self._debug >= SHOW_TIMES:
            self.profile = profile = Profile()
            atexit.register(lambda: self._say("times of kernels\n" + profile.text()))

    @property
    def device_info(self) -> DeviceInfo:
        return self.device.info

    @functools.cached_property
    def hardware(self) -> Hardware:
        """What the device has for products."""
        return hardware(self.device_info, self.precision)

    # --- memory -------------------------------------------------------------------------------------------------------

    def memory_in_use(self) -> tuple[int, int]:
        budget, usage = self.device.memory()
        return usage, budget

    def from_numpy(self, values: npt.NDArray[Any]) -> HeliosArray:
        element = element_of(values.dtype)
        stored = np.array(values, ELEMENTS[element].stored, order="C")  # a copy
        storage = Storage(stored.nbytes, pending=stored)
        return HeliosArray(storage, values.shape, contiguous_strides(values.shape), element)

    def to_numpy(self, array: HeliosArray) -> npt.NDArray[Any]:
        if self._traced is not None:
            raise RuntimeError("a recorded program reads no values")
        storage = array.storage
        if storage.pending is not None:
            return self._to_dtype(_view_of(storage.pending.reshape(-1), array), array.element)
        if storage.mapped is not None:
            self.device.wait(storage.ready)
            if storage.check is not None:
                storage.check()
            values = np.frombuffer(storage.mapped, ELEMENTS[array.element].stored)
            return self._to_dtype(_view_of(values, array), array.element)
        whole = self.contiguous(array)
        parts = []
        length = LARGEST_UPLOAD // whole.itemsize
        for start in range(0, whole.size, length):
            part = whole.view((min(length, whole.size - start),), (1,), start)
            target = self.memory.read_back_space(part.nbytes)
            self._pending.append(self.copy_dispatch(HeliosArray(target, part.shape, (1,), part.element), part))
            self.synchronize()
            assert target.mapped is not None
            parts.append(np.frombuffer(target.mapped, ELEMENTS[array.element].stored).copy())
        flat = np.concatenate(parts) if parts else np.empty(0, ELEMENTS[array.element].stored)
        return self._to_dtype(flat.reshape(array.shape), array.element)

    def _to_dtype(self, stored: npt.NDArray[Any], element: str) -> npt.NDArray[Any]:
        if element == "bf16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(ELEMENTS[element].dtype)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> HeliosArray:
        return self.new(shape, element_of(dtype))

    def new(self, shape: Sequence[int], element: str) -> HeliosArray:
        """A new contiguous array whose values are undefined."""
        shape = tuple(shape)
        nbytes = math.prod(shape) * ELEMENTS[element].itemsize
        if self._traced is None:
            storage = self.memory.allocate(nbytes)
        else:
            storage = Storage(nbytes)
            self._planned.append(storage)
        return HeliosArray(storage, shape, contiguous_strides(shape), element)

    def contiguous(self, x: HeliosArray) -> HeliosArray:
        """`x` itself when its elements lie in order without gaps, otherwise a copy for which they do."""
        if x.is_contiguous:
            return x
        copy = self.new(x.shape, x.element)
        self.copy_into(copy, x)
        return copy

    # --- views --------------------------------------------------------------------------------------------------------

    def reshape(self, x: HeliosArray, shape: Sequence[int]) -> HeliosArray:
        view = views.reshaped(x, shape)
        if view is not None:
            return view
        copy = self.contiguous(x)
        return copy.view(shape, contiguous_strides(shape))

    def transpose(self, x: HeliosArray, axes: Sequence[int]) -> HeliosArray:
        return views.transposed(x, axes)

    def narrow(self, x: HeliosArray, axis: int, start: int, length: int) -> HeliosArray:
        return views.narrowed(x, axis, start, length)

    def expand(self, x: HeliosArray, shape: Sequence[int]) -> HeliosArray:
        return views.expanded(x, shape)

    def rows_of(self, x: HeliosArray) -> Rows:
        """The rows of `x`, or of a copy when they cannot be addressed where they are."""
        rows = rows_where_they_lie(x)
        return self.rows_of(self.contiguous(x)) if rows is None else rows

    # --- dispatching --------------------------------------------------------------------------------------------------

    def copy_dispatch(self, target: HeliosArray, source: HeliosArray) -> Dispatch:
        """The dispatch, marked `is_copy`, that copies `source` to `target`, of the same shape and element."""
        raise NotImplementedError

    def dispatch(
        self,
        kernel: str,
        variant: str,
        groups: int | tuple[int, int, int],
        constants: Mapping[str, int | float],
        operations: float = 0.0,
        /,
        **arguments: Argument,
    ) -> None:
        """Run a kernel after everything before it that it depends on; see `make_dispatch`."""
        made = self.make_dispatch(kernel, variant, groups, constants, operations, **arguments)
        if all(made.groups):
            self._add(made)

    def make_dispatch(
        self,
        kernel: str,
        variant: str,
        groups: int | tuple[int, int, int],
        constants: Mapping[str, int | float],
        operations: float = 0.0,
        /,
        **arguments: Argument,
    ) -> Dispatch:
        """A dispatch of a kernel's variant with its specialization constants and push-constant fields by name.

        `operations` is how many floating-point operations it is, for the rate that ALPHA_DEBUG shows.
        """
        extent = (groups, 1, 1) if isinstance(groups, int) else groups
        kernel_and_pipeline = self.pipelines.get(kernel, variant, constants)
        return Dispatch(*kernel_and_pipeline, extent, arguments, constants=constants, operations=operations)

    @property
    def activation_dtype(self) -> npt.DTypeLike | None:
        return None if self.activation_element == "f32" else ELEMENTS[self.activation_element].dtype

    def lanes_for(self, items: int, most: int) -> int:
        """Threads that share a row of `items` vectors: a subgroup at most, unless each would then have over `most`."""
        lanes = min(power_of_two(items), self.device_info.subgroup_size)
        while lanes * most < items and lanes < THREADS:
            lanes *= 2
        return lanes

    def _add(self, dispatch: Dispatch) -> None:
        for kind, array in dispatch.arrays():
            if array.storage.pending is not None:
                self._upload(array.storage)
            if kind != "in" and array.storage.mapped is not None:
                raise RuntimeError("the result of a recorded program cannot be changed in place")
            if kind != "in" and (self.derived or self.norms):
                self.derived.pop(array.storage, None)
                self.norms.pop(array.storage, None)
        if self._traced is not None:
            self._traced.append(dispatch)
            return
        self._pending.append(dispatch)
        if len(self._pending) >= self._most_pending:
            self.flush()

    def _upload(self, storage: Storage) -> None:
        """Give a storage that holds values of the host its place on the device."""
        assert storage.pending is not None
        values = storage.pending.reshape(-1)
        place = self.memory.allocate(values.nbytes)
        storage.address, storage.release, place.release = place.address, place.release, None
        storage.pending = None
        if values.itemsize == 2:  # whole words; the range is long enough for one more
            values = np.resize(values, -(-values.size // 2) * 2)
        words = values.view(np.int32)
        for start in range(0, words.size, LARGEST_UPLOAD // 4):
            part = words[start : start + LARGEST_UPLOAD // 4]
            source = self.memory.upload(part)
            self._uploads.append(source)
            target = HeliosArray(storage, part.shape, (1,), "i32", start)
            self._pending.append(self.copy_dispatch(target, HeliosArray(source, part.shape, (1,), "i32")))
            if sum(each.nbytes for each in self._uploads) >= self._most_upload_bytes:
                self.flush()

    def flush(self) -> None:
        """Submit the dispatches collected so far."""
        if not self._pending:
            return
        program = self.make_program(self._pending, repeated=False)
        value = self.submit([program])
        self._pending.clear()
        self._running.append((value, program))
        self._uploads.clear()

    def make_program(self, dispatches: Sequence[Dispatch], repeated: bool = True) -> int:
        """The dispatches as a program of the device; `repeated` ones may be submitted more than once."""
        if self._debug >= SHOW_DISPATCHES:
            for position, (each, waits) in enumerate(zip(dispatches, needs_barrier(dispatches), strict=True)):
                self._say(f"{position:5} {'wait' if waits else '    '} {each}")
        is_timed = self._debug >= SHOW_TIMES
        try:
            self.pipelines.finish(each.pipeline for each in dispatches)
        except BaseException:
            self.pipelines.give_up()
            raise
        program = self.device.create_program(commands(dispatches), repeated=repeated, timestamps=is_timed)
        if is_timed:
            self._timed[program] = list(dispatches)
        return program

    def submit(self, programs: Sequence[int]) -> int:
        """Run programs one after the other; returns the value that the device's timeline will have then."""
        if self._running or self.memory.is_waiting:  # which in a steady run of recorded steps neither is
            self._collect(self.device.completed())
        value = self.device.submit(*programs)
        if self.profile is not None:
            self.device.wait(value)
            for program in programs:
                dispatches = self._timed[program]
                self.profile.add(dispatches, self.device.timestamps(program, len(dispatches)))
        return value

    def _collect(self, completed: int) -> None:
        """Take back what was only needed up to a value of the timeline."""
        self.memory.collect(completed)
        while self._running and self._running[0][0] <= completed:
            _, program = self._running.popleft()
            self.device.free_program(program)
            self._timed.pop(program, None)

    def _say(self, text: str) -> None:
        print(f"helios: {text}", file=sys.stderr)

    def say_choice(self, text: str) -> None:
        """Show how something is divided, once, when ALPHA_DEBUG asks for it."""
        if self._debug >= SHOW_PLANS and text not in self._said:
            self._said.add(text)
            self._say(text)

    def synchronize(self) -> None:
        """Wait until everything asked for has been done."""
        self.flush()
        self.device.wait(self.device.submitted)
        if self.device.validate and (messages := self.device.messages()):
            raise VulkanError("The Vulkan validation layers report: " + "; ".join(messages))

    # --- recording ----------------------------------------------------------------------------------------------------

    def plan(self, program: Callable[..., HeliosArray], *operands: HeliosArray) -> int:
        if not isinstance(program, RecordedProgram):
            raise TypeError("only a program made by `record` has a plan")
        needed = program.prepare(*operands)
        if self._debug >= SHOW_PLANS:
            self._say(str(needed))
        return needed.arena + needed.operands

    def record(self, program: Callable[..., HeliosArray]) -> RecordedProgram:
        return RecordedProgram(self, program)

    def record_inference(self, program: Callable[..., HeliosArray]) -> RecordedProgram:
        return RecordedProgram(self, program, in_relays=True)

    @property
    def is_tracing(self) -> bool:
        """Whether dispatches are only written down, for a recorded program."""
        return self._traced is not None

    def tune(self) -> bool:
        """Measure what the last trace asked to be measured; whether a trace will now make other choices."""
        raise NotImplementedError

    def trace(self, program: Callable[[], HeliosArray]) -> tuple[HeliosArray, list[Dispatch], list[Storage]]:
        """Run a program without running its dispatches: its result, contiguous, the dispatches, and new storages."""
        if self._traced is not None:
            raise RuntimeError("a recorded program records no other")
        self._traced, self._planned = [], []
        self.derived.clear()
        self.norms.clear()
        try:
            result = self.contiguous(program())
            return result, self._traced, self._planned
        except BaseException:
            self.pipelines.give_up()
            raise
        finally:
            self._traced, self._planned = None, []
            self.derived.clear()
            self.norms.clear()


def _view_of(flat: npt.NDArray[Any], array: HeliosArray) -> npt.NDArray[Any]:
    """The elements of an array, given those of its whole storage."""
    if not array.size:
        return np.empty(array.shape, flat.dtype)
    if array.is_contiguous:
        return flat[array.offset : array.offset + array.size].reshape(array.shape)
    strides = [stride * flat.itemsize for stride in array.strides]
    return np.lib.stride_tricks.as_strided(flat[array.offset :], array.shape, strides)
