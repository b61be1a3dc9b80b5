"""What the sidecar makes of Vulkan calls that fail: an error that names the call, nothing leaked, nothing crashed."""

import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exchange_models import make_checkpoint
from small_training import bits_of, newest, resume, rows_of, train, write_corpus
from test_training_step import MODEL

from alpha.backend_helios_device import NoVulkan, list_devices
from alpha.option import camel_case

TESTS = Path(__file__).resolve().parent
NATIVE = TESTS.parent / "native"

BEGINNING = """
import os, sys
from pathlib import Path
sys.path.insert(0, %r)
from spirv_kernel import PUSH, assemble
from alpha import backend_helios_device
from alpha.backend_helios_device import *

backend_helios_device._LONGEST_WATCH = 0.0  # so that each wait sleeps, whatever the device is

def fault(text):
    os.environ["VULKAN_FAULT"] = text

def failure(action, *arguments):
    try:
        action(*arguments)
    except VulkanError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"

def use(path=None):
    with Device(choose_device(), validate=False, pipeline_cache=path) as device:
        pipeline = device.pipeline(assemble(), push_bytes=PUSH.size)
        memory = device.allocate(4096, MemoryKind.UPLOAD)
        one = dispatch_command(pipeline, (16, 1, 1), PUSH.pack(memory.address, memory.address, 1024, 1.0))
        program = device.create_program(one, timestamps=True)
        value = device.submit(program)
        device.wait(value)
        device.completed()
        device.timestamps(program, 1)
        device.save_pipelines()
""" % str(TESTS)  # noqa: UP031  (the text has braces)

Run = Callable[[str], str]

OPTIONS: dict[str, Any] = {
    "backend": "helios", "iters": 4, "batch": 4, "eval_interval": 0, "checkpoint_interval": 2, "sample_interval": 0,
}  # fmt: skip
"""How the runs here are trained, on the model of the tests of training."""

LINES = [
    "--tokenizer=char", "--lr=0.01", "--minTokensPerParam=0", "--threads=1", "--evalIters=2",
    *(f"--{camel_case(name)}={value}" for name, value in OPTIONS.items()),
    *(f"--{name}={getattr(MODEL, name)}" for name in ("block", "layers", "dim", "heads")),
]  # fmt: skip
"""The same for the command line."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a script in a process whose Vulkan loader fails when VULKAN_FAULT says so; returns what it prints."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("NO C COMPILER, so failing Vulkan calls are not tested here")
    try:
        list_devices()
    except NoVulkan as error:
        pytest.skip(f"NO VULKAN DEVICE, so failing Vulkan calls are not tested here: {error}")
    folder = tmp_path_factory.mktemp("loader")
    library = folder / "libvulkan.so.1"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{NATIVE}"]
    subprocess.run([compiler, *flags, "-o", library, TESTS / "faulty_vulkan.c", "-ldl"], check=True)
    maps = Path("/proc/self/maps").read_text().splitlines()
    real = next(line.split()[-1] for line in maps if "/libvulkan.so" in line)
    search = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"

    def run_script(script: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", BEGINNING + script],
            env={**os.environ, "LD_LIBRARY_PATH": search, "REAL_VULKAN": real},
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    return run_script


CALLS = (
    *("CreateInstance", "EnumeratePhysicalDevices", "EnumerateDeviceExtensionProperties", "CreateDevice"),
    *("CreateSemaphore", "CreateCommandPool", "CreatePipelineCache", "CreatePipelineLayout", "CreateShaderModule"),
    *("CreateComputePipelines", "CreateBuffer", "AllocateMemory", "BindBufferMemory", "MapMemory", "CreateQueryPool"),
    *("AllocateCommandBuffers", "BeginCommandBuffer", "EndCommandBuffer", "QueueSubmit2", "WaitSemaphores"),
    *("GetSemaphoreCounterValue", "GetQueryPoolResults", "GetPipelineCacheData"),
)


def test_each_call_may_fail_and_is_named(run: Run, tmp_path: Path) -> None:
    script = f"""
path = Path({str(tmp_path / "pipelines")!r})
for number, call in enumerate({CALLS}):
    fault(f"vk{{call}}:{{(-1, -2, -13)[number % 3]}}")
    print(failure(use, path))
    path.unlink(missing_ok=True)
fault("")
use(path)
"""
    results = (
        ("VulkanError", "VK_ERROR_OUT_OF_HOST_MEMORY"),
        ("OutOfDeviceMemory", "VK_ERROR_OUT_OF_DEVICE_MEMORY"),
        ("VulkanError", "VK_ERROR_UNKNOWN"),
    )
    printed = run(script).splitlines()
    assert len(printed) == len(CALLS)
    for line, call, (error, result) in zip(printed, CALLS, itertools.cycle(results), strict=False):
        assert line.startswith(f"{error}: vk{call} returned {result}; "), line
    assert (tmp_path / "pipelines").read_bytes().startswith(b"HELIOS1\0")


def test_what_kernels_need_of_subgroups_is_asked_for(run: Run) -> None:
    script = """
for operations in (4, 8, 16, 4 | 8 | 16):
    fault(f"vkGetPhysicalDeviceProperties2:{operations}")
    print(", ".join(list_devices()[0].missing))
    print(failure(Device, list_devices()[0]))
"""
    printed = run(script).splitlines()
    arithmetic, ballot, shuffle = "subgroup arithmetic", "subgroup ballot", "subgroup shuffle"
    assert printed[::2] == [arithmetic, ballot, shuffle, f"{arithmetic}, {ballot}, {shuffle}"]
    for missing, line in zip(printed[::2], printed[1::2], strict=True):
        assert f"cannot be used, because it or its driver lacks {missing}; a newer driver may help." in line


def test_the_multiprocessors_are_those_that_the_driver_counts(run: Run) -> None:
    script = """
print(list_devices()[0].multiprocessors)
for name in ("NV_shader_sm_builtins", "AMD_shader_core_properties", "AMD_shader_core_properties2"):
    os.environ["VULKAN_EXTENSION"] = f"VK_{name}"
    print(list_devices()[0].multiprocessors)
"""
    assert run(script).split() == ["0", "46", "40", "36"]


def test_one_instance_serves_a_process(run: Run) -> None:
    script = """
import ctypes
made = ctypes.c_size_t.in_dll(ctypes.CDLL("libvulkan.so.1"), "instances_made")
for _ in range(3):
    list_devices()
    use()
print(made.value)
"""
    assert run(script) == "1\n"


def test_damaged_and_foreign_files_of_pipelines_do_not_reach_the_driver(run: Run, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    script = f"""
import ctypes
path = Path({str(whole)!r})
given = ctypes.c_size_t.in_dll(ctypes.CDLL("libvulkan.so.1"), "initial_bytes")
for path in sorted(path.parent.iterdir()) or [path]:
    use(path)
    print(path.name, given.value, path.read_bytes()[:8] == b"HELIOS1\\0")
"""
    assert run(script) == "whole 0 True\n"
    saved = whole.read_bytes()
    assert run(script) == f"whole {len(saved) - 24} True\n"
    header, data = saved[:24], saved[24:]
    foreign = data[:12] + bytes([data[12] ^ 1]) + data[13:]
    contents = (
        *(b"", b"HELIOS1\0", header, data, bytes(len(saved)), saved[:-1], saved + b"x"),
        *(saved[:i] + bytes([saved[i] ^ 1]) + saved[i + 1 :] for i in (0, 8, 15, 16, 24, 40, len(saved) - 1)),
        struct.pack("=8sQQ", b"HELIOS1\0", len(foreign), fnv_1a(foreign)) + foreign,
        struct.pack("=8sQQ", b"HELIOS1\0", 31, fnv_1a(data[:31])) + data[:31],
    )
    for number, content in enumerate(contents):
        (tmp_path / f"damaged-{number}").write_bytes(content)
    printed = run(script).splitlines()
    assert len(printed) == len(contents) + 1
    assert printed.pop() == f"whole {len(data)} True"
    assert all(line.endswith(" 0 True") for line in printed), printed


def fnv_1a(data: bytes) -> int:
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 % 2**64
    return total


def test_a_lost_device_says_so_and_can_be_closed(run: Run) -> None:
    script = """
for call in ("QueueSubmit2", "WaitSemaphores", "GetSemaphoreCounterValue"):
    device = Device(choose_device(), validate=False)
    memory = device.allocate(4096)
    program = device.create_program(b"", repeated=True)
    value = device.submit(program)
    fault(f"vk{call}:-4")
    action = {"QueueSubmit2": lambda: device.submit(program), "WaitSemaphores": lambda: device.wait(value)}
    print(failure(action.get(call, device.completed)))
    fault("")
    for later in (
        lambda: device.submit(program),
        lambda: device.wait(value),
        lambda: device.allocate(1),
        lambda: device.pipeline(assemble(), push_bytes=PUSH.size),
        lambda: device.create_program(b""),
        device.completed,
    ):
        assert failure(later).startswith("DeviceLost: The device "), failure(later)
        assert failure(later).endswith(" was lost before this call."), failure(later)
    device.close()
use()
"""
    printed = run(script).splitlines()
    assert [line.split(";")[0] for line in printed] == [
        f"DeviceLost: vk{call} returned VK_ERROR_DEVICE_LOST"
        for call in ("QueueSubmit2", "WaitSemaphores", "GetSemaphoreCounterValue")
    ]
    assert all("the system's log (dmesg) may say why" in line for line in printed[1:])


def test_what_was_submitted_last_is_watched(run: Run) -> None:
    script = """
import dataclasses
backend_helios_device._LONGEST_WATCH = 60.0
with Device(choose_device(), validate=False) as device:
    program = device.create_program(b"", repeated=True)
    first, last = device.submit(program), device.submit(program)
    for kind, value in (("discrete", last), ("discrete", first), ("cpu", last)):
        device.info = dataclasses.replace(device.info, kind=kind)
        fault("vkWaitSemaphores:-13")
        print(failure(device.wait, value))
        fault("vkGetSemaphoreCounterValue:-13")
        print(failure(device.wait, value))
    fault("")
"""
    watched, slept = (
        f"VulkanError: vk{call} returned VK_ERROR_UNKNOWN" for call in ("GetSemaphoreCounterValue", "WaitSemaphores")
    )
    said = [line.split(";")[0] for line in run(script).splitlines()]
    assert said == ["no error", watched, slept, "no error", slept, "no error"]


@pytest.mark.parametrize("call", ["vkQueueSubmit2", "vkWaitSemaphores"])
def test_an_engine_whose_device_is_lost_goes_on_once_with_the_device_opened_anew(
    call: str, run: Run, tmp_path: Path
) -> None:
    path = make_checkpoint(tmp_path, "gpt2")
    script = f"""
from alpha import backends
from alpha.engine import Engine, Request
from alpha.errors import AlphaError
from alpha.model_loading import load_model

def again():
    fault("")
    return load_model("{path}", backend.replacement()).model

def step(engine):
    list(map(tell, engine.step()))

def tell(event):
    if event.reason:
        print(event.reason, len(event.generation.ids), event.generation.message)

backend = backends.create("helios")
engine = Engine(load_model("{path}", backend).model, 1, reload=again)
whole = [engine.submit(Request([3, 4, 5], 6)) for _ in range(2)]
while engine.is_busy:
    step(engine)
hit, waiting = (engine.submit(Request([3, 4, 5], 6)) for _ in range(2))
step(engine)
fault("{call}:-4")
while hit.reason is None:
    step(engine)
while engine.is_busy:
    step(engine)
print(waiting.ids == whole[0].ids, engine.model.backend is not backend, backend.replacement() is engine.model.backend)
engine.submit(Request([3, 4, 5], 6))
fault("{call}:-4")
while engine.is_busy:
    step(engine)
fault("")
try:
    engine.submit(Request([3], 1))
except AlphaError as error:
    print(error)
"""
    lost = rf"The device failed while this was computed: {call} returned VK_ERROR_DEVICE_LOST; .*"
    expected = rf"length 6 \nlength 6 \nerror \d {lost}\nlength 6 \nTrue True True\nerror \d {lost}\n"
    ending = rf"The model cannot be used any more: {call} returned VK_ERROR_DEVICE_LOST; .*\n"
    assert re.fullmatch(expected + ending, run(script))


@pytest.mark.parametrize("call", ["vkQueueSubmit2", "vkWaitSemaphores"])
def test_a_run_whose_device_is_lost_ends_with_an_error_and_goes_on_when_resumed(
    call: str, run: Run, tmp_path: Path
) -> None:
    corpus, folder = write_corpus(tmp_path), tmp_path / "run"
    script = f"""
import contextlib, io
from test_helios_faults import OPTIONS, LINES
from alpha import cli
from alpha.trainer import Trainer

save = Trainer._save
def save_and_break(self, run):
    save(self, run)
    fault("{call}:-4")
Trainer._save = save_and_break
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
    code = cli.main(["train", "--data={corpus}", "--runDir={folder}", *LINES])
print(code, errors.getvalue().splitlines()[-1])
"""
    assert re.fullmatch(
        rf"1 alpha: error: {call} returned VK_ERROR_DEVICE_LOST; .* The run {folder} is saved up to step 2\. "
        rf"Continue with --resume={folder}\.\n",
        run(script),
    )
    assert [row["step"] for row in rows_of(folder)] == [1, 2]
    whole = train(corpus, tmp_path / "whole", model=MODEL, **OPTIONS)
    assert bits_of(resume(folder)) == bits_of(whole)


def test_two_runs_at_once_on_one_device(tmp_path: Path) -> None:
    try:
        list_devices()
    except NoVulkan as error:
        pytest.skip(f"NO VULKAN DEVICE, so two runs at once are not tested here: {error}")
    corpus, folders = write_corpus(tmp_path), [tmp_path / "first", tmp_path / "second"]
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS.parent / "alpha.py", "train", f"--data={corpus}", f"--runDir={folder}", *LINES],
            stdout=subprocess.DEVNULL,
        )
        for folder in folders
    ]
    assert [each.wait() for each in processes] == [0, 0]
    assert bits_of(folders[0]) == bits_of(folders[1])
    assert newest(folders[0]).step == OPTIONS["iters"]


def test_memory_that_the_driver_refuses_is_an_error_to_go_on_from(run: Run) -> None:
    script = """
with Device(choose_device(), validate=False) as device:
    held = [device.allocate(1 << 20) for _ in range(3)]
    fault("vkAllocateMemory:-2")
    print(failure(device.allocate, 2 << 20))
    fault("")
    for each in held:
        device.free(each)
    device.allocate(2 << 20)
"""
    message = (
        r"OutOfDeviceMemory: vkAllocateMemory returned VK_ERROR_OUT_OF_DEVICE_MEMORY; 2\.0 MiB more cannot be had; "
        r"\d+\.\d of the \d+\.\d MiB that this process may use are in use\.\n"
    )
    assert re.fullmatch(message, run(script))


def test_a_device_that_never_finishes_can_be_interrupted(run: Run) -> None:
    script = """
import signal
def interrupt(number, frame):
    raise KeyboardInterrupt
with Device(choose_device(), validate=False) as device:
    value = device.submit(device.create_program(b""))
    fault("vkWaitSemaphores:2")
    print(device.wait(value, seconds=0.01))
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        device.wait(value)
    except KeyboardInterrupt:
        print("interrupted")
"""
    assert run(script) == "False\ninterrupted\n"


def test_addresses_that_the_driver_aligns_less_are_rounded_up(run: Run) -> None:
    script = """
import ctypes
size = ctypes.c_size_t.in_dll(ctypes.CDLL("libvulkan.so.1"), "buffer_bytes")
with Device(choose_device(), validate=False) as device:
    for moved in (0, 64, 255):
        fault(f"vkGetBufferDeviceAddress:{moved}")
        memory = device.allocate(1000, MemoryKind.UPLOAD)
        host = ctypes.addressof(ctypes.c_char.from_buffer(memory.view))
        print(memory.address % 256, host % 64, size.value)
"""
    assert run(script) == "0 0 1000\n0 0 1256\n0 1 1256\n"


def test_no_device_at_all(run: Run) -> None:
    assert run('fault("vkCreateInstance:-9"); print(failure(list_devices))').startswith(
        "NoVulkan: There is a Vulkan loader, but no driver: vkCreateInstance returned VK_ERROR_INCOMPATIBLE_DRIVER."
    )
    assert run('fault("vkEnumeratePhysicalDevices:-3"); print(failure(list_devices))').startswith(
        "NoVulkan: There is a Vulkan loader, but no driver reports a device. Install the driver"
    )
