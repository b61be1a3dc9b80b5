"""The native sidecar, used for real on the first Vulkan device there is (lavapipe in continuous integration)."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy
import numpy.typing
import pytest
from spirv_kernel import KERNEL, PUSH, assemble

from alpha import backend_helios_device as sidecar
from alpha import backends
from alpha.backend_helios_device import (
    BARRIER,
    COMMAND,
    Device,
    DeviceInfo,
    Memory,
    MemoryKind,
    NoVulkan,
    OutOfDeviceMemory,
    VulkanError,
    choose_device,
    dispatch_command,
    has_gpu,
    list_devices,
)
from alpha.errors import UsageError

Floats = numpy.typing.NDArray[numpy.float32]
Open = Callable[..., Device]
COUNT = 1000
SOURCES = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def info() -> DeviceInfo:
    try:
        return choose_device()
    except NoVulkan as error:
        pytest.skip(f"NO VULKAN DEVICE, so the sidecar is not tested here: {error}")


@pytest.fixture(scope="module")
def can_validate(info: DeviceInfo) -> bool:
    try:
        Device(info, validate=True).close()
    except VulkanError as error:
        assert "VK_LAYER_KHRONOS_validation" in str(error)
        return False
    return True


@pytest.fixture
def open_device(info: DeviceInfo, can_validate: bool) -> Iterator[Open]:
    """Opens devices, validated where the layers are installed; in the end there must be no message."""
    opened = []

    def open_one(**options: Path) -> Device:
        opened.append(Device(info, validate=can_validate, **options))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def device(open_device: Open) -> Device:
    return open_device()


def pipeline_of(device: Device, addend: float = 0.0, threads: int = 64) -> int:
    """y = factor * x + addend."""
    return device.pipeline(assemble(), {0: threads, 1: addend}, PUSH.size)


def command(pipeline: int, x: Memory, y: Memory, factor: float, count: int = COUNT) -> bytes:
    return dispatch_command(pipeline, (-(-count // 64), 1, 1), PUSH.pack(x.address, y.address, count, factor))


def floats(memory: Memory) -> Floats:
    assert memory.view is not None
    return numpy.frombuffer(memory.view, numpy.float32)


def mapped(device: Device, kind: MemoryKind = MemoryKind.UPLOAD, count: int = COUNT) -> Memory:
    memory = device.allocate(4 * count, kind)
    floats(memory)[:] = numpy.arange(count)
    return memory


def long_program(device: Device) -> int:
    """One that takes long enough to be caught running: it adds 1 to many numbers, many times."""
    count, times = (1 << 17, 50) if device.info.kind == "cpu" else (1 << 20, 200)
    memory = device.allocate(4 * count)
    one = command(pipeline_of(device, 1.0), memory, memory, 1.0, count)
    return device.create_program((one + BARRIER) * times)


# --- describing -----------------------------------------------------------------------------------------------------


def test_the_description_is_plausible(info: DeviceInfo) -> None:
    assert info in list_devices() or info.heaps != list_devices()[info.index].heaps  # the use of memory may change
    assert info.name
    assert info.driver_name
    assert tuple(map(int, info.api_version.split("."))) >= (1, 3)
    assert info.kind in {"discrete", "integrated", "virtual", "cpu", "other"}
    assert info.memory_bytes >= 1 << 28
    assert info.subgroup_size_min <= info.subgroup_size <= info.subgroup_size_max
    assert info.shared_memory >= 16384
    assert info.max_workgroup_invocations >= 128
    assert min(info.max_workgroup_count) >= 65535
    assert info.max_push_constants >= sidecar.PUSH_BYTES
    assert len(info.pipeline_cache_uuid) == 32
    for feature in ("cooperative_matrix_f16", "workgroup_matrix_f16"):
        assert feature not in info.features or "float16" in info.features
    has_product = any(each[3:] == ("f16", "f16", "f32", "f32") for each in info.cooperative_matrices)
    assert has_product == ("cooperative_matrix_f16" in info.features)


def test_a_device_is_chosen_by_number_or_by_kind(info: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    heap = sidecar.Heap(bytes=1 << 30, budget=0, usage=0, device_local=True, host_visible=True)
    kinds = ("cpu", "integrated", "discrete", "discrete", "discrete")
    devices = [dataclasses.replace(info, index=i, kind=kind, heaps=(heap,)) for i, kind in enumerate(kinds)]
    devices[2] = dataclasses.replace(devices[2], missing=("Vulkan 1.3", "shaderInt64"), name="Old")
    devices[4] = dataclasses.replace(devices[4], heaps=(dataclasses.replace(heap, bytes=2 << 30),))
    monkeypatch.setattr(sidecar, "list_devices", lambda: tuple(devices))
    monkeypatch.setenv("ALPHA_DEVICE", "3")
    assert choose_device().index == 3
    assert choose_device(0).index == 0
    monkeypatch.setenv("ALPHA_DEVICE", "7")
    with pytest.raises(UsageError, match=r"There is no Vulkan device 7; alpha devices lists"):
        choose_device()
    monkeypatch.delenv("ALPHA_DEVICE")
    assert choose_device().index == 4
    assert has_gpu()
    with pytest.raises(UsageError, match=r"There is no Vulkan device 5; alpha devices lists"):
        choose_device(5)
    with pytest.raises(UsageError, match=r"device 2, Old, cannot be used, .* lacks Vulkan 1\.3, shaderInt64; a newer"):
        choose_device(2)
    monkeypatch.setattr(sidecar, "list_devices", lambda: tuple(devices[:1]))
    assert choose_device().kind == "cpu"
    assert not has_gpu()


def test_the_automatic_choice_takes_a_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it computes on the CPU; one that there is not is an error where it is opened."""
    monkeypatch.setattr("alpha.backend_helios_device.has_gpu", lambda: False)
    monkeypatch.delenv("ALPHA_DEVICE", raising=False)
    assert backends.resolve("auto") == "cpu_ref"
    assert backends.resolve("auto", device=0) == "helios"
    monkeypatch.setenv("ALPHA_DEVICE", "9")
    assert backends.resolve("auto") == "helios"
    with pytest.raises(UsageError, match="There is no Vulkan device 9"):
        backends.create("auto")


def test_a_device_that_is_not_there_cannot_be_opened(info: DeviceInfo) -> None:
    with pytest.raises(NoVulkan, match=r"There is no device 99; this machine has \d+, counted from 0\. Install"):
        Device(dataclasses.replace(info, index=99))


# --- computing ------------------------------------------------------------------------------------------------------


def test_a_kernel_computes_with_its_constants(device: Device) -> None:
    x, y = mapped(device), mapped(device, MemoryKind.READ_BACK)
    for threads, addend in ((32, 0.5), (64, -2.0)):
        program = device.create_program(command(pipeline_of(device, addend, threads), x, y, 2.0)[:])
        assert device.wait(device.submit(program), seconds=60)
        done = COUNT if threads == 64 else -(-COUNT // 64) * 32
        numpy.testing.assert_array_equal(floats(y)[:done], floats(x)[:done] * 2 + addend)


def test_a_count_of_zero_groups_does_nothing(device: Device) -> None:
    x = mapped(device)
    nothing = dispatch_command(pipeline_of(device), (0, 1, 1), PUSH.pack(x.address, x.address, COUNT, 9.0))
    assert device.wait(device.submit(device.create_program(nothing), device.create_program(b"")), 60)
    numpy.testing.assert_array_equal(floats(x), numpy.arange(COUNT))


def test_dispatches_with_a_barrier_see_each_other(device: Device) -> None:
    inner = [device.allocate(4 * COUNT) for _ in range(2)]
    x, y = mapped(device), mapped(device, MemoryKind.READ_BACK)
    double = pipeline_of(device)
    chain = [x, *inner * 10, y]
    commands = [command(double, *pair, -1.0) for pair in pairwise(chain)]
    device.wait(device.submit(device.create_program(BARRIER.join(commands))))
    numpy.testing.assert_array_equal(floats(y), -floats(x))


def test_programs_of_one_submit_run_in_order_and_again(device: Device) -> None:
    x = mapped(device)
    double = device.create_program(command(pipeline_of(device), x, x, 2.0), repeated=True)
    add = device.create_program(command(pipeline_of(device, 1.0), x, x, 1.0), repeated=True)
    device.submit(double, add, double)
    last = device.submit(*[add] * 20, double)
    assert device.wait(last, 60)
    numpy.testing.assert_array_equal(floats(x), ((numpy.arange(COUNT) * 2 + 1) * 2 + 20) * 2)
    floats(x)[:] = 5  # what the host writes is seen by the next submit
    device.wait(device.submit(double))
    numpy.testing.assert_array_equal(floats(x), 10)


def test_the_timeline_counts_submits(device: Device) -> None:
    assert device.completed() == 0
    assert device.wait(0)
    program = device.create_program(b"", repeated=True)
    assert [device.submit(program) for _ in range(3)] == [1, 2, 3]
    assert device.wait(2, 60)
    assert device.completed() >= 2
    device.wait(3)
    assert device.completed() == 3
    with pytest.raises(VulkanError, match=r"Waiting for timeline value 4 would never end: the last submit was 3\."):
        device.wait(4)


@pytest.mark.parametrize("kind", ["cpu", "discrete"])
def test_a_wait_may_be_too_short(kind: str, device: Device) -> None:
    value = device.submit(long_program(device))
    device.info = dataclasses.replace(device.info, kind=kind)  # one is slept for, the other watched
    assert device.wait(value, seconds=0) is False
    assert device.wait(value, seconds=1e-4) is False
    assert device.completed() < value
    assert not device.is_complete(value)
    assert device.wait(value) is True
    assert device.is_complete(value)


def test_timestamps_surround_each_dispatch(device: Device) -> None:
    if "timestamps" not in device.info.features:
        pytest.skip("the device has no timestamps")
    x = mapped(device, count=1 << 20)
    one = command(pipeline_of(device, 1.0), x, x, 1.0, 1 << 20)
    program = device.create_program(BARRIER.join([one] * 5), repeated=True, timestamps=True)
    with pytest.raises(VulkanError, match="no timestamps yet"):
        device.timestamps(program, 5)
    device.wait(device.submit(program))
    first = device.timestamps(program, 5)
    times = [time for pair in first for time in pair]
    assert len(first) == 5
    assert times == sorted(times)
    assert all(begin < end for begin, end in first)
    assert times[-1] - times[0] < 60e9
    device.wait(device.submit(program))
    assert device.timestamps(program, 5)[0][0] >= times[-1]
    with pytest.raises(VulkanError, match="has 10 timestamps; there is room for 8"):
        device.timestamps(program, 4)
    with pytest.raises(VulkanError, match="takes no timestamps"):
        device.timestamps(device.create_program(one), 1)


def test_threads_share_a_device(device: Device) -> None:
    def work(number: int) -> bool:
        x = mapped(device)
        for i in range(10):
            program = device.create_program(command(pipeline_of(device, float(number)), x, x, 1.0))
            device.wait(device.submit(program))
            device.free_program(program)
            assert (floats(x) == numpy.arange(COUNT) + number * (i + 1)).all()
        device.free(x)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_is_aligned_counted_and_given_back(device: Device) -> None:
    budget, before = device.memory()
    assert before < budget <= device.info.memory_bytes
    sizes = [1, 255, 256, 257, 1 << 20, 100 << 20]
    held = [device.allocate(size, kind) for size in sizes for kind in MemoryKind]
    assert all(each.address % 256 == 0 for each in held)
    ranges = sorted((each.address, each.address + each.bytes) for each in held)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert [each.view is None for each in held] == [True, False, False] * len(sizes)
    assert all(each.view is None or len(each.view) == each.bytes for each in held)
    for each in held:
        device.free(each)
    assert device.memory()[0] > 0


def test_memory_that_is_freed_while_in_use_lives_as_long_as_that(device: Device) -> None:
    x, y = mapped(device), mapped(device, MemoryKind.READ_BACK)
    inner = device.allocate(4 * COUNT)
    first = device.create_program(command(pipeline_of(device), x, inner, 3.0))
    second = device.create_program(command(pipeline_of(device), inner, y, 1.0))
    device.submit(long_program(device))
    value = device.submit(first, second)
    device.free_program(first)
    device.free_program(second)
    device.free(inner)
    for _ in range(20):  # would be put where the freed memory was
        device.free(mapped(device))
    device.wait(value)
    numpy.testing.assert_array_equal(floats(y), floats(x) * 3)


def test_more_memory_than_there_is_is_refused(device: Device) -> None:
    # Which limit is met first, that of a buffer or that of a heap, differs from device to device.
    for size in (device.info.memory_bytes * 4, 1 << 62):
        with pytest.raises(OutOfDeviceMemory, match=r"^\d+ bytes are more than this device has"):
            device.allocate(size)
    assert device.wait(device.submit(device.create_program(command(pipeline_of(device), *[mapped(device)] * 2, 1.0))))


@pytest.mark.parametrize(("size", "kind", "message"), [(0, 0, "at least 1 byte"), (1, 3, "no kind of memory 3")])
def test_wrong_allocations_are_refused(device: Device, size: int, kind: int, message: str) -> None:
    with pytest.raises(VulkanError, match=message):
        device.allocate(size, kind)


# --- misuse ---------------------------------------------------------------------------------------------------------


def test_what_was_freed_is_refused(device: Device) -> None:
    memory = device.allocate(16)
    program = device.create_program(b"", repeated=True)
    device.free(memory)
    device.free_program(program)
    assert device.allocate(16).id != memory.id
    assert device.create_program(b"") != program
    for refused in (
        lambda: device.free(memory),
        lambda: device.free_program(program),
        lambda: device.submit(program),
        lambda: device.timestamps(program, 0),
    ):
        with pytest.raises(VulkanError, match=r"There is no (memory|program) 0x\w+.*; was it freed before\?"):
            refused()


def test_a_program_of_one_submit_is_refused_a_second(device: Device) -> None:
    program = device.create_program(b"")
    with pytest.raises(VulkanError, match="to be submitted once only"):
        device.submit(program, program)
    device.submit(program)
    with pytest.raises(VulkanError, match="to be submitted once only"):
        device.submit(program)
    with pytest.raises(VulkanError, match="no program to submit"):
        device.submit()


def test_wrong_commands_are_refused(device: Device) -> None:
    pipeline, push = pipeline_of(device), bytes(PUSH.size)
    most = device.info.max_workgroup_count[1]
    for commands, message in (
        (b"x" * 159, "multiple of 160 bytes long, not 159"),
        (COMMAND.pack(2, 1, 1, 1, pipeline, 0, 0, b""), "Command 0 is of the unknown kind 2"),
        (BARRIER + dispatch_command(pipeline + 1, (1, 1, 1), push), "Command 1: there is no pipeline 0x"),
        (dispatch_command(0, (1, 1, 1), push), "there is no pipeline 0"),
        (dispatch_command(pipeline, (1, 1, 1), push[4:]), "has 20 bytes of push constants; its pipeline takes 24"),
        (dispatch_command(pipeline, (1, most + 1, 1), push), f"1 x {most + 1} x 1 workgroups are more than"),
    ):
        with pytest.raises(VulkanError, match=message):
            device.create_program(commands)


def test_broken_modules_are_refused(device: Device) -> None:
    good = assemble()
    for module, message in (
        (b"", "not a SPIR-V module"),
        (good[:-2], "multiple of 4 bytes"),
        (good[:-4], "not a SPIR-V module|damaged"),
        (good[:20], "not a SPIR-V module"),
        (good[4:], "not a SPIR-V module"),
        (good[:12] + b"\xff\xff\xff\xff" + good[16:], "not a SPIR-V module"),
        (good[:12] + b"\x02\0\0\0" + good[16:], "out of bounds"),
        (good + bytes(4), "damaged"),
        (assemble(KERNEL.replace('"main"', '"other"')), "no compute kernel with the name main"),
        (assemble(KERNEL.replace("EntryPoint 5", "EntryPoint 4")), "no compute kernel with the name main"),
        (assemble("Capability 10\n" + KERNEL), "needs Float64, which .* does not have; choose another variant"),
    ):
        with pytest.raises(VulkanError, match=message):
            device.pipeline(module, push_bytes=PUSH.size)
    if "bfloat16" not in device.info.features:
        with pytest.raises(VulkanError, match="needs BFloat16TypeKHR"):
            device.pipeline(assemble("Capability 5116\n" + KERNEL), push_bytes=PUSH.size)
    for length in range(0, len(good) - 4, 4):
        with pytest.raises(VulkanError, match=r"SPIR-V module"):
            device.pipeline(good[:length], push_bytes=PUSH.size)


def test_impossible_pipelines_are_refused(device: Device) -> None:
    most = device.info.max_workgroup_invocations
    for threads, message in ((most * 2, f"{most * 2} x 1 x 1"), (0, "0 x 1 x 1"), (2**32 - 1, "4294967295 x 1 x 1")):
        with pytest.raises(VulkanError, match=message):
            pipeline_of(device, threads=threads)
    square = assemble(KERNEL.replace("%threads %one %one", "%threads %threads %one"))
    with pytest.raises(VulkanError, match=f"{most // 2} x {most // 2} x 1 is more than the {most} invocations of"):
        device.pipeline(square, {0: most // 2}, PUSH.size)
    for push_bytes in (132, 3):
        with pytest.raises(VulkanError, match=f"a multiple of 4 bytes and at most 128; not {push_bytes}"):
            device.pipeline(assemble(), push_bytes=push_bytes)
    for size in (3, device.info.subgroup_size_max * 2):
        with pytest.raises(VulkanError, match="subgroups"):
            device.pipeline(assemble(), push_bytes=PUSH.size, subgroup_size=size)


def test_the_size_of_subgroups_can_be_asked_for(device: Device) -> None:
    if "subgroup_size_control" not in device.info.features:
        pytest.skip("the size of subgroups cannot be chosen")
    size = device.info.subgroup_size_max
    pipeline = device.pipeline(assemble(), {0: size}, PUSH.size, size)
    x = mapped(device, count=size)
    push = PUSH.pack(x.address, x.address, size, 2.0)
    device.wait(device.submit(device.create_program(dispatch_command(pipeline, (1, 1, 1), push))))
    numpy.testing.assert_array_equal(floats(x), numpy.arange(size) * 2)


def test_a_closed_device_says_so(device: Device) -> None:
    program = device.create_program(b"")
    assert not device.closed
    device.close()
    assert device.closed
    device.close()
    for use in (lambda: device.submit(program), lambda: device.wait(0), device.completed, device.memory):
        with pytest.raises(VulkanError, match=r"^The device .* was closed\.$"):
            use()


def test_closing_while_programs_run_waits(open_device: Open) -> None:
    device = open_device()
    device.submit(long_program(device))
    device.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forgotten_device_is_closed_but_not_by_a_forked_process(
    info: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    library = sidecar._library()
    close, parent = library.helios_close, os.getpid()

    def note(handle: object) -> None:
        closed.append(handle)
        if os.getpid() == parent:
            close(handle)

    monkeypatch.setattr(library, "helios_close", note)
    device = Device(info, validate=False)
    child = os.fork()
    if child == 0:
        del device
        os._exit(len(closed))
    assert os.waitpid(child, 0)[1] == 0
    assert closed == []
    del device
    assert len(closed) == 1


# --- validation -----------------------------------------------------------------------------------------------------

GEOMETRY = "Capability 2\n" + KERNEL
"""Asks for a feature that is not enabled: an error that only the validation layers notice."""


def test_validation_messages_are_collected(info: DeviceInfo, can_validate: bool) -> None:
    if not can_validate:
        pytest.skip("THE VALIDATION LAYERS ARE MISSING OR TOO OLD, so nothing is validated here")
    with Device(info, validate=True) as device:
        assert device.messages() == []
        device.pipeline(assemble(GEOMETRY), push_bytes=PUSH.size)
        messages = device.messages()
        assert any(line.startswith("error: ") and "Geometry" in line for line in messages)
        assert device.messages() == []
    device = Device(info, validate=True)
    device.pipeline(assemble(GEOMETRY), push_bytes=PUSH.size)
    with pytest.raises(VulkanError, match=r"The Vulkan validation layers report: .*Geometry"):
        device.close()
    assert device.closed


def test_validation_follows_the_environment(info: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "1"):
        monkeypatch.setenv("ALPHA_VK_VALIDATE", value)
        try:
            with Device(info) as device:
                assert device.validate == (value == "1")
        except VulkanError as error:
            assert value == "1"
            assert re.search("install (the|newer) Vulkan validation layers", str(error))


# --- the file of compiled pipelines ---------------------------------------------------------------------------------


def test_compiled_pipelines_are_saved(open_device: Open, tmp_path: Path) -> None:
    path = tmp_path / "pipelines"
    device = open_device(pipeline_cache=path)
    device.save_pipelines()
    assert not path.exists()  # nothing was compiled
    pipeline_of(device)
    device.close()
    saved = path.read_bytes()
    assert saved.startswith(b"HELIOS1\0")
    assert device.info.pipeline_cache_uuid in saved.hex()
    assert list(tmp_path.iterdir()) == [path]
    again = open_device(pipeline_cache=path)
    again.save_pipelines()
    assert path.read_bytes() == saved
    pipeline_of(again, 4.0)
    again.save_pipelines()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(open_device: Open, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "pipelines"
    device = open_device(pipeline_cache=path)
    pipeline_of(device)
    with pytest.raises(VulkanError, match=f"Cannot write the compiled pipelines to {path}: No such file or directory"):
        device.save_pipelines()
    with pytest.raises(VulkanError, match="Cannot write the compiled pipelines"):
        device.close()
    assert device.closed
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("other")
    for name, reason in (("folder", "Is a directory"), ("pipe", "Invalid argument"), ("link", "symbolic links")):
        device = open_device(pipeline_cache=tmp_path / name)
        pipeline_of(device)
        with pytest.raises(VulkanError, match=f"Cannot write the compiled pipelines to .*{name}: .*{reason}"):
            device.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_compiled_pipelines_that_cannot_be_kept_are_one_line_at_the_end(tmp_path: Path) -> None:
    code = """
import os, sys
from alpha import files
from alpha.backend_helios import _pipeline_cache, open_helios
from alpha.backend_helios_device import choose_device
_pipeline_cache(choose_device()).mkdir()
left = files.cache_folder() / "pipelines" / f".alpha-{'0' * 32}.tmp"
left.touch()
open_helios()
assert not left.exists()
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"helios: Cannot write the compiled pipelines to \S+: Is a directory\.\n", result.stderr)


# --- what may be missing --------------------------------------------------------------------------------------------


def test_a_missing_sidecar_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sidecar._library.cache_clear()
    try:
        monkeypatch.setattr(sidecar, "library_files", lambda: [tmp_path / "_helios.so"])
        with pytest.raises(NoVulkan, match=r"without its native part, because there was no C compiler.*Install gcc"):
            list_devices()
        assert not has_gpu()
        (tmp_path / "_helios.so").write_bytes(b"not a library")
        with pytest.raises(NoVulkan, match=r"cannot be loaded \(.*_helios\.so: .*\); install Alpha again"):
            list_devices()
    finally:
        sidecar._library.cache_clear()


def listing_error(**variables: str) -> str:
    """What `list_devices` raises in a process with these environment variables."""
    script = "from alpha.backend_helios_device import *\ntry: list_devices()\nexcept NoVulkan as error: print(error)"
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        cwd=SOURCES,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_missing_loader_is_explained(tmp_path: Path) -> None:
    for name in ("libvulkan.so.1", "libvulkan.so"):
        (tmp_path / name).write_text("not a library")
    message = listing_error(LD_LIBRARY_PATH=str(tmp_path))
    assert message.startswith(
        "There is no Vulkan loader: neither libvulkan.so.1 nor libvulkan.so can be opened. Install"
    )
    for package in ("libvulkan1 on Debian and Ubuntu", "vulkan-loader on Fedora", "vulkan-icd-loader on Arch"):
        assert package in message


def test_a_missing_driver_is_explained(info: DeviceInfo, tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing.json")
    message = listing_error(VK_DRIVER_FILES=nothing, VK_ICD_FILENAMES=nothing)
    assert message.startswith("There is a Vulkan loader, but no driver")
    for package in ("mesa-vulkan-drivers on Debian, Ubuntu and Fedora", "vulkan-radeon", "nvidia-utils on Arch"):
        assert package in message
