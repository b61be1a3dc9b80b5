"""The Python face of the native sidecar (`native/helios.h`): Vulkan devices, memory, pipelines and programs.

Turns return codes into errors and structures into bytes; every method is one call of the C library. Knows nothing about
arrays, kernels or models. The library opens the Vulkan loader when it is first used, so importing this module needs
neither.
"""

import ctypes
import functools
import json
import math
import os
import struct
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alpha import environment
from alpha.errors import AlphaError, UsageError
from alpha.installation import library_files

PUSH_BYTES = 128
"""The largest push constants of a dispatch."""
COMMAND = struct.Struct(f"=I3IQII{PUSH_BYTES}s")
"""One command of a program, `helios_command`: kind, groups (3), pipeline, push bytes, 0, push constants."""
BARRIER = COMMAND.pack(1, 0, 0, 0, 0, 0, 0, b"")
"""The command after which dispatches see what those before it wrote."""
MOST_GROUPS = 65535
"""Workgroups along one axis of a dispatch that every device allows."""

_OUT_OF_DEVICE_MEMORY = -2
_DEVICE_LOST = -4
_TIMEOUT = -5
_NO_LOADER = -6
_NO_DEVICE = -7
_VALIDATE = 1
_REPEATED = 1
_TIMESTAMPS = 2
_LONGEST_WAIT = 1.0  # seconds in which Python does not look for signals
_LONGEST_WATCH = 0.005
"""Seconds in which a wait looks at the timeline before it sleeps: to be woken takes up to 0.1 ms, in which a processor
also becomes slow and forgets; beside what takes longer than this, that is little."""
_KINDS = ("discrete", "integrated", "virtual", "other", "cpu")  # in the order of preference

_INSTALL_LOADER = (
    "Install it: libvulkan1 on Debian and Ubuntu, vulkan-loader on Fedora, vulkan-icd-loader on Arch; and a driver for "
    "your GPU."
)
INSTALL_DRIVER = (
    "Install the driver of your GPU: for AMD and Intel mesa-vulkan-drivers on Debian, Ubuntu and Fedora, vulkan-radeon "
    "or vulkan-intel on Arch; for NVIDIA the manufacturer's driver (nvidia-driver on Debian, nvidia-driver-NNN on "
    "Ubuntu, akmod-nvidia on Fedora, nvidia-utils on Arch)."
)
"""What to do where there is a GPU that Vulkan does not see."""
_INSTALL_LAVAPIPE = " Without a GPU, mesa-vulkan-drivers (vulkan-swrast on Arch) computes on the CPU."
_INSTALL_SIDECAR = (
    "Alpha was installed without its native part, because there was no C compiler, so it uses no GPU and is slower on "
    "the CPU. Install gcc (Debian, Ubuntu, Fedora and Arch have a package of that name) and then install Alpha again, "
    "or run build_scripts/native in its sources."
)


class VulkanError(AlphaError):
    """A Vulkan call failed or was refused; the message names the call, its result and what to do."""


class OutOfDeviceMemory(VulkanError, MemoryError):  # noqa: N818  (a condition, named as Vulkan names it)
    """The device has not as much memory free as was asked for; it can still be used."""


class DeviceLost(VulkanError):  # noqa: N818  (a condition, named as Vulkan names it)
    """The device stopped; nothing but closing it is of use any more."""

    may_pass = True


class NoVulkan(VulkanError):  # noqa: N818  (a condition, named as Vulkan names it)
    """The sidecar, the loader or a driver is missing; the message says what to install."""


class MemoryKind(IntEnum):
    """Where memory is and who touches it."""

    DEVICE = 0
    UPLOAD = 1
    READ_BACK = 2


@dataclass(frozen=True)
class Heap:
    """One heap of a device's memory: its size, what this process may use of it, and uses, in bytes."""

    bytes: int
    budget: int
    usage: int
    device_local: bool
    host_visible: bool


@dataclass(frozen=True)
class DeviceInfo:
    """What a device and its driver offer.

    `kind` is discrete, integrated, virtual, cpu or other. `missing` names what Alpha requires and the device lacks;
    only with nothing missing can it be opened. `multiprocessors` (NVIDIA's word; compute units of AMD) is 0 where the
    driver does not say. `features` are: float16, bfloat16, int8, int16, cooperative_matrix_f16,
    cooperative_matrix_bf16, cooperative_matrix_2 (conversions, reductions, functions of elements),
    workgroup_matrix_f16, workgroup_matrix_bf16, subgroup_size_control, memory_budget, timestamps.
    `cooperative_matrices` lists the shapes of the matrix units at subgroup scope as (M, N, K, elements of A, B, C,
    result); `workgroup_matrices` those at workgroup scope as (invocations, granularity of M, N, K, elements of A, B, C,
    result).
    """

    index: int
    name: str
    kind: str
    vendor_id: int
    device_id: int
    driver_name: str
    driver_info: str
    api_version: str
    pipeline_cache_uuid: str
    missing: tuple[str, ...]
    heaps: tuple[Heap, ...]
    multiprocessors: int
    subgroup_size: int
    subgroup_size_min: int
    subgroup_size_max: int
    shared_memory: int
    max_workgroup_invocations: int
    max_workgroup_count: tuple[int, int, int]
    max_push_constants: int
    features: frozenset[str]
    cooperative_matrices: tuple[tuple[int, int, int, str, str, str, str], ...]
    workgroup_matrices: tuple[tuple[int, int, int, int, str, str, str, str], ...]

    def matrix_shapes(self, precision: str) -> list[tuple[int, int, int]]:
        """(M, N, K) of the subgroup's products of a precision's operands that are summed in float32."""
        if f"cooperative_matrix_{precision}" not in self.features:
            return []
        wanted = [precision, precision, "f32", "f32"]
        return [(m, n, k) for m, n, k, *elements in self.cooperative_matrices if elements == wanted]

    @property
    def memory_bytes(self) -> int:
        """The size of the largest heap of the device's own memory."""
        return self._largest_heap().bytes

    @property
    def available_bytes(self) -> int:
        """What this process could still have of that heap when the device was asked."""
        heap = self._largest_heap()
        return max(0, heap.budget - heap.usage)

    def _largest_heap(self) -> Heap:
        none = Heap(bytes=0, budget=0, usage=0, device_local=True, host_visible=False)
        return max((heap for heap in self.heaps if heap.device_local), key=lambda heap: heap.bytes, default=none)


@dataclass(frozen=True)
class Memory:
    """Memory of a device: where kernels find it, and for kinds other than DEVICE the host's view of it.

    `view` must not be touched after the memory was freed or the device closed.
    """

    id: int
    address: int
    bytes: int
    kind: MemoryKind
    view: memoryview | None


def list_devices() -> tuple[DeviceInfo, ...]:
    """All Vulkan devices of this machine. Raises NoVulkan when there is none or no way to ask."""
    library = _library()
    capacity = 1 << 16
    needed = ctypes.c_uint64()
    while True:
        text = ctypes.create_string_buffer(capacity)
        _check(library.helios_describe(text, capacity, ctypes.byref(needed)))
        if needed.value <= capacity:
            return tuple(_device_info(device) for device in json.loads(text.value)["devices"])
        capacity = needed.value


def choose_device(index: int = -1) -> DeviceInfo:
    """The device of this number; with -1 that of ALPHA_DEVICE, or the best, which is a GPU with memory of its own where
    there is one.

    Raises NoVulkan when there is none, UsageError when it is not there or lacks what Alpha requires.
    """
    devices = list_devices()
    if index < 0:
        index = environment.read("ALPHA_DEVICE")
    if index >= len(devices):
        raise UsageError(f"There is no Vulkan device {index}; alpha devices lists those that there are.")
    if index >= 0:
        chosen = devices[index]
    else:
        chosen = min(devices, key=lambda each: (bool(each.missing), _KINDS.index(each.kind), -each.memory_bytes))
    if chosen.missing:
        raise UsageError(
            f"The Vulkan device {chosen.index}, {chosen.name}, cannot be used, because it or its driver lacks "
            f"{', '.join(chosen.missing)}; a newer driver may help."
        )
    return chosen


def has_gpu() -> bool:
    """Whether there is a device that Alpha can use and that is more than a driver which computes on the CPU."""
    try:
        return any(not each.missing and each.kind != "cpu" for each in list_devices())
    except NoVulkan:
        return False


def dispatch_command(pipeline: int, groups: tuple[int, int, int], push: bytes) -> bytes:
    """The command that runs a pipeline on so many workgroups."""
    return COMMAND.pack(0, *groups, pipeline, len(push), 0, push)


class Device:
    """An open device. Closing it, or forgetting it, releases all that was made with it; it is also a context manager.

    A process that is forked from this one must not use it, and may forget it.
    `validate` turns on the validation layers, by default as ALPHA_VK_VALIDATE says; `pipeline_cache` is a file of
    compiled pipelines in a folder that exists, read now, written by `save_pipelines` and `close`. Raises VulkanError.
    """

    def __init__(self, info: DeviceInfo, *, validate: bool | None = None, pipeline_cache: Path | None = None) -> None:
        self.info = info
        self.validate = bool(environment.read("ALPHA_VK_VALIDATE")) if validate is None else validate
        self._library = _library()
        handle = ctypes.c_void_p()
        path = None if pipeline_cache is None else os.fsencode(pipeline_cache)
        flags = _VALIDATE if self.validate else 0
        _check(self._library.helios_open(info.index, flags, path, ctypes.byref(handle)))
        self._handle = handle
        self.submitted = 0
        """The timeline's value after everything that was submitted."""
        self._reached = 0  # the timeline's value when it was last asked for
        self._finalizer = weakref.finalize(self, _close, self._library, handle, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Wait for the device, write the file of compiled pipelines and release everything.

        Raises VulkanError, after that, when the file cannot be written or when validation messages are unread.
        """
        if self.closed:
            return
        try:
            self.save_pipelines()
        finally:
            messages = self.messages()
            self._finalizer()
        if messages:
            raise VulkanError("The Vulkan validation layers report: " + "; ".join(messages))

    def allocate(self, size: int, kind: MemoryKind = MemoryKind.DEVICE) -> Memory:
        """Memory of `size` bytes, at least 1, at an address that is a multiple of 256. Its contents are undefined."""
        identifier, address, mapped = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_void_p()
        self._call("helios_allocate", size, kind, ctypes.byref(identifier), ctypes.byref(address), ctypes.byref(mapped))
        view = None
        if mapped.value is not None:
            view = memoryview((ctypes.c_uint8 * size).from_address(mapped.value)).cast("B")
        return Memory(identifier.value, address.value, size, kind, view)

    def free(self, memory: Memory) -> None:
        """Give memory back; programs that were submitted before may still use it, and then it ends with them."""
        self._call("helios_free", memory.id)

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's own memory that this process may use in all, and that it uses now."""
        budget, usage = ctypes.c_uint64(), ctypes.c_uint64()
        self._call("helios_memory", ctypes.byref(budget), ctypes.byref(usage))
        return budget.value, usage.value

    def pipeline(
        self,
        spirv: bytes,
        constants: Mapping[int, int | float] | None = None,
        push_bytes: int = 0,
        subgroup_size: int = 0,
    ) -> int:
        """A compiled kernel, which lives as long as the device.

        `constants` gives specialization constants by id; `push_bytes` is the size of the push constants;
        `subgroup_size` 0 leaves the choice to the device. Threads that call this at the same time compile in parallel.
        """
        pairs = b"".join(struct.pack("=I", key) + _word(value) for key, value in (constants or {}).items())
        identifier = ctypes.c_uint64()
        self._call(
            "helios_pipeline",
            *(spirv, len(spirv), pairs, len(pairs) // 8, push_bytes, subgroup_size, ctypes.byref(identifier)),
        )
        return identifier.value

    def save_pipelines(self) -> None:
        """Write the file of compiled pipelines, if there are new ones. Raises VulkanError when that is not possible."""
        self._call("helios_save_pipelines")

    def create_program(self, commands: bytes | bytearray, *, repeated: bool = False, timestamps: bool = False) -> int:
        """Record commands (COMMAND, one after the other). Only a `repeated` program may be submitted more than once."""
        if len(commands) % COMMAND.size:
            raise VulkanError(f"A program is a multiple of {COMMAND.size} bytes long, not {len(commands)}.")
        flags = (_REPEATED if repeated else 0) | (_TIMESTAMPS if timestamps else 0)
        identifier = ctypes.c_uint64()
        count = len(commands) // COMMAND.size
        self._call("helios_program_create", bytes(commands), count, flags, ctypes.byref(identifier))
        return identifier.value

    def free_program(self, program: int) -> None:
        """Forget a program; if it still runs, it ends normally."""
        self._call("helios_program_free", program)

    def submit(self, *programs: int) -> int:
        """Start programs, to run one after the other; returns the timeline value that says they are complete."""
        value = ctypes.c_uint64()
        array = (ctypes.c_uint64 * len(programs))(*programs)
        self._call("helios_submit", array, len(programs), ctypes.byref(value))
        self.submitted = value.value
        return self.submitted

    def wait(self, timeline_value: int, seconds: float | None = None) -> bool:
        """Wait for a value that `submit` returned; False if that took longer than `seconds`. Raises DeviceLost.

        Waits in parts, so that Ctrl-C has an effect even when the device never finishes. What the device is to do last
        is watched for a moment: until this wait has ended it will get no more. A device that is the processor itself
        has better use for it.
        """
        end = math.inf if seconds is None else time.monotonic() + seconds
        watch = _LONGEST_WATCH if timeline_value == self.submitted and self.info.kind != "cpu" else 0.0
        while True:
            part = min(_LONGEST_WAIT, max(0.0, end - time.monotonic()))
            times = round(min(watch, part) * 1e9), round(part * 1e9)
            code = self._library.helios_wait(self._opened(), timeline_value, *times)
            if code != _TIMEOUT:
                _check(code)
                self._reached = max(self._reached, timeline_value)
                return True
            watch = 0.0
            if time.monotonic() >= end:
                return False

    def completed(self) -> int:
        """The timeline's present value: all submits up to it are complete."""
        value = ctypes.c_uint64()
        self._call("helios_completed", ctypes.byref(value))
        self._reached = max(self._reached, value.value)
        return value.value

    def is_complete(self, timeline_value: int) -> bool:
        """Whether all submits up to a value are complete."""
        return timeline_value <= self._reached or timeline_value <= self.completed()

    def timestamps(self, program: int, dispatches: int) -> list[tuple[int, int]]:
        """Begin and end of each of a program's dispatches in its last, complete submit, in nanoseconds."""
        times = (ctypes.c_uint64 * (2 * dispatches))()
        self._call("helios_timestamps", program, len(times), times)
        return list(zip(times[::2], times[1::2], strict=True))

    def messages(self) -> list[str]:
        """The validation messages since the last call."""
        capacity = 1
        needed = ctypes.c_uint64()
        while True:
            text = ctypes.create_string_buffer(capacity)
            self._call("helios_messages", text, capacity, ctypes.byref(needed))
            if needed.value <= capacity:
                return text.value.decode(errors="replace").splitlines()
            capacity = needed.value

    def _opened(self) -> ctypes.c_void_p:
        if self.closed:
            raise VulkanError(f"The device {self.info.name} was closed.")
        return self._handle

    def _call(self, function: str, *arguments: Any) -> None:
        _check(getattr(self._library, function)(self._opened(), *arguments))


def _close(library: ctypes.CDLL, handle: ctypes.c_void_p, process: int) -> None:
    """Release a device, but not in a process that was forked from the one that opened it, whose threads it lacks."""
    if os.getpid() == process:
        library.helios_close(handle)


def _word(value: int | float) -> bytes:
    """The bits of a specialization constant."""
    if isinstance(value, float):
        return struct.pack("=f", value)
    return struct.pack("=I", value & 0xFFFFFFFF)


def _device_info(described: dict[str, Any]) -> DeviceInfo:
    """DeviceInfo from a device in the JSON of helios_describe, with lists made tuples."""
    values = {field.name: _frozen(described[field.name]) for field in fields(DeviceInfo)}
    values["heaps"] = tuple(Heap(**heap) for heap in described["heaps"])
    values["features"] = frozenset(described["features"])
    return DeviceInfo(**values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def _check(code: int) -> None:
    """Raise the error of a return code, with the library's message."""
    if code == 0:
        return
    message = _library().helios_last_error().decode(errors="replace")
    if code in (_NO_LOADER, _NO_DEVICE):
        raise NoVulkan(f"{message} {_INSTALL_LOADER if code == _NO_LOADER else INSTALL_DRIVER + _INSTALL_LAVAPIPE}")
    raise {_OUT_OF_DEVICE_MEMORY: OutOfDeviceMemory, _DEVICE_LOST: DeviceLost}.get(code, VulkanError)(message)


@functools.cache
def _library() -> ctypes.CDLL:
    """The sidecar with its functions declared. Raises NoVulkan when it was not built."""
    path = next((each for each in library_files() if each.exists()), None)
    if path is None:
        raise NoVulkan(_INSTALL_SIDECAR)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoVulkan(
            f"Alpha's Vulkan part cannot be loaded ({error}); install Alpha again on this machine."
        ) from None
    handle, text, data, u32, u64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    signatures: dict[str, tuple[Any, ...]] = {
        "helios_describe": (text, u64, data),
        "helios_open": (u32, u32, text, data),
        "helios_save_pipelines": (handle,),
        "helios_allocate": (handle, u64, u32, data, data, data),
        "helios_free": (handle, u64),
        "helios_memory": (handle, data, data),
        "helios_pipeline": (handle, text, u64, text, u32, u32, u32, data),
        "helios_program_create": (handle, text, u64, u32, data),
        "helios_program_free": (handle, u64),
        "helios_submit": (handle, data, u32, data),
        "helios_wait": (handle, u64, u64, u64),
        "helios_completed": (handle, data),
        "helios_timestamps": (handle, u64, u64, data),
        "helios_messages": (handle, text, u64, data),
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.helios_close.argtypes, library.helios_close.restype = (handle,), None
    library.helios_last_error.argtypes, library.helios_last_error.restype = (), text
    return library
