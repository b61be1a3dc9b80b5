"""What `alpha devices` says about devices of several kinds, none of which this machine needs to have."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from alpha import backend_helios_device, device_report
from alpha.backend_helios_device import DeviceInfo, Heap, NoVulkan
from alpha.backend_helios_kernels import Bundle, Kernel
from alpha.cli import main
from alpha.errors import AlphaError

GIB = 1 << 30
F16 = ("f16", "f16", "f32", "f32")
BF16 = ("bf16", "bf16", "f32", "f32")

H200 = DeviceInfo(
    index=0,
    name="NVIDIA H200",
    kind="discrete",
    vendor_id=0x10DE,
    device_id=0x2335,
    driver_name="NVIDIA",
    driver_info="580.95.05",
    api_version="1.4.312",
    pipeline_cache_uuid="00" * 16,
    missing=(),
    heaps=(Heap(140 * GIB, 139 * GIB, GIB, True, True), Heap(200 * GIB, 200 * GIB, 0, False, True)),
    multiprocessors=132,
    subgroup_size=32,
    subgroup_size_min=32,
    subgroup_size_max=32,
    shared_memory=49152,
    max_workgroup_invocations=1024,
    max_workgroup_count=(2**31 - 1, 65535, 65535),
    max_push_constants=256,
    features=frozenset(
        {"float16", "bfloat16", "int8", "cooperative_matrix_f16", "cooperative_matrix_bf16", "workgroup_matrix_f16"}
    ),
    cooperative_matrices=((16, 16, 16, *F16), (16, 8, 16, *F16), (16, 16, 16, *F16), (16, 16, 16, *BF16)),
    workgroup_matrices=((256, 32, 32, 16, *F16),),
)
PLAIN = dataclasses.replace(
    H200, index=1, name="Small", kind="integrated", features=frozenset({"float16"}), cooperative_matrices=()
)
CPU = dataclasses.replace(PLAIN, index=2, name="llvmpipe", kind="cpu", driver_name="llvmpipe")
OLD = dataclasses.replace(PLAIN, index=3, name="Old", missing=("Vulkan 1.3", "shaderInt64"))


def bundle_of(requirements: Iterable[str]) -> Bundle:
    each = [Kernel("matmul", name, (), (), (name,), b"") for name in requirements]
    each += [Kernel("matmul_tiled", f"{name}_16_32", (), (), ("float16",), b"") for name in ("f16", "bf16")]
    return Bundle({(kernel.name, kernel.variant): kernel for kernel in each})


BUNDLE = bundle_of(["cooperative_matrix_f16", "cooperative_matrix_bf16"])


@pytest.mark.parametrize(
    ("info", "precision", "bundle", "sentence"),
    [
        (
            H200,
            "f32",
            BUNDLE,
            "plain kernels, and matrix units for large products, of numbers in two pieces of f16 (ALPHA_SPLIT)",
        ),
        (PLAIN, "f32", BUNDLE, "plain kernels; matrix units would round f32 operands"),
        (
            H200,
            "f16",
            BUNDLE,
            "matrix units, 16x16x16 at subgroup scope; there are no kernels for the workgroup scope",
        ),
        (H200, "bf16", BUNDLE, "matrix units, 16x16x16 at subgroup scope"),
        (
            H200,
            "bf16",
            bundle_of(["cooperative_matrix_f16"]),
            "plain kernels; these kernels were built without any for matrix units",
        ),
        (PLAIN, "f16", BUNDLE, "plain kernels; the driver offers no matrix units (VK_KHR_cooperative_matrix)"),
        (PLAIN, "bf16", BUNDLE, "plain kernels; the driver offers no matrix units (VK_KHR_cooperative_matrix)"),
        (
            dataclasses.replace(
                H200, features=frozenset({"float16"}), cooperative_matrices=((16, 16, 32, "i8", "i8", "i32", "i32"),)
            ),
            "f16",
            BUNDLE,
            "plain kernels; the matrix units have no shape that multiplies f16 and sums in f32",
        ),
        (
            dataclasses.replace(H200, features=frozenset()),
            "f16",
            BUNDLE,
            "not available: the driver has no 16-bit floats (shaderFloat16, shaderInt16 and storageBuffer16BitAccess)",
        ),
    ],
)
def test_what_a_precision_uses_and_why_not_more(
    info: DeviceInfo, precision: str, bundle: Bundle, sentence: str
) -> None:
    assert device_report.use_of_precision(info, precision, bundle) == sentence


def test_a_device_as_a_table() -> None:
    rows = device_report.device_rows(H200, BUNDLE)
    assert rows[:7] == [
        ["device", "NVIDIA H200 (GPU)"],
        ["driver", "NVIDIA 580.95.05, Vulkan 1.4.312"],
        ["memory", "140.0 GiB, 138.0 GiB available"],
        ["multiprocessors", "132"],
        ["subgroups", "32 invocations"],
        ["workgroups", "1024 invocations, 48 KiB shared memory"],
        ["number types", "f32, i32, f16, bf16, i8"],
    ]
    assert [row[1] for row in rows if row[0] == "matrix units"] == [
        "f16 x f16 in f32: 16x16x16, 16x8x16",
        "bf16 x bf16 in f32: 16x16x16",
        "f16 x f16 in f32, workgroup scope: multiples of 32x32x16 by 256 invocations",
    ]
    assert [row[0] for row in rows[-3:]] == ["use for f32", "use for f16", "use for bf16"]
    varying = dataclasses.replace(
        PLAIN, subgroup_size_min=8, subgroup_size_max=32, workgroup_matrices=(), multiprocessors=0
    )
    rows = device_report.device_rows(varying, BUNDLE)
    assert ["subgroups", "8 to 32 invocations"] in rows
    assert ["multiprocessors", "the driver does not say; products are divided for 32"] in rows
    assert ["matrix units", "none"] in rows
    assert device_report.device_rows(OLD, BUNDLE)[-1] == [
        "use",
        "none: it or its driver lacks Vulkan 1.3, shaderInt64; a newer driver may help",
    ]


def test_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_report, "_GPU_NODES", tmp_path)
    assert device_report.choice([CPU, PLAIN]) == "--backend=auto computes on a GPU with helios."
    assert device_report.choice([OLD]).startswith(
        "--backend=auto computes with cpu_ref, because Vulkan sees no GPU that can be used. If there is a GPU: install"
    )
    assert "--backend=helios computes on the CPU through llvmpipe, which is slow. If" in device_report.choice(
        [CPU, OLD]
    )
    node = tmp_path / "renderD128"
    node.touch()
    assert "If there is a GPU: install" in device_report.choice([CPU])
    monkeypatch.setattr(device_report.os, "access", lambda path, mode: False)
    assert device_report.choice([CPU]).endswith(
        f"There is a GPU that you may not use: to open {node} you must be in its group, {node.group()}."
    )


def test_the_command_prints_every_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backend_helios_device, "list_devices", lambda: (H200, PLAIN, OLD))
    assert main(["devices"]) == 0
    printed = capsys.readouterr().out
    assert all(f"helios {each.index}" in printed and each.name in printed for each in (H200, PLAIN, OLD))
    assert printed.endswith("\n--backend=auto computes on a GPU with helios.\n")
    assert main(["devices", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    first, old = described["devices"][1], described["devices"][3]
    assert (first["backend"], first["device"], first["availableBytes"]) == ("helios", 0, 138 * GIB)
    assert first["matrixShapes"][1] == {
        **{"m": 16, "n": 8, "k": 16},
        **{"a": "f16", "b": "f16", "c": "f32", "result": "f32"},
    }
    assert first["workgroupMatrixShapes"][0]["invocations"] == 256
    assert list(first["use"]) == ["f32", "f16", "bf16"]
    assert (old["missing"], old["use"]) == (["Vulkan 1.3", "shaderInt64"], {})


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_devices() -> None:
        raise NoVulkan("There is no Vulkan loader.")

    def no_bundle() -> None:
        raise AlphaError("The kernels are missing.")

    monkeypatch.setattr(backend_helios_device, "list_devices", no_devices)
    monkeypatch.setattr("alpha.backend_helios_kernels.read_bundle", no_bundle)
    assert main(["devices"]) == 0
    assert "\n\nThere is no Vulkan loader.\nThe kernels are missing.\n" in capsys.readouterr().out
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"].startswith("There is no Vulkan loader. The kernels are missing.")
