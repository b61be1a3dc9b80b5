"""What Alpha uses of a Vulkan device, and why not more: sentences and tables for `alpha devices`.

Says only what follows from the device's description, the kernels that were built, and the choices that
`backend_helios_tiles` and `backend_helios_pieces` make. Opens no device.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alpha.backend_helios_device import INSTALL_DRIVER, DeviceInfo
from alpha.backend_helios_kernels import Bundle
from alpha.backend_helios_pieces import units_for
from alpha.backend_helios_tiles import hardware, units_of
from alpha.backend_helios_tuning import Table

PRECISIONS = ("f32", "f16", "bf16")

_FEATURES = {"float16": "16-bit floats (shaderFloat16, shaderInt16 and storageBuffer16BitAccess)"}
"""What a driver calls that which kernels require, where it has another name for it."""
_GPU_NODES = Path("/dev/dri")


def use_of_precision(info: DeviceInfo, precision: str, bundle: Bundle) -> str:
    """How matrices are multiplied in a precision on this device, and what keeps Alpha from doing it faster."""
    if precision == "f32":
        in_pieces = ", and matrix units for large products, of numbers in two pieces of f16 (ALPHA_SPLIT)"
        return f"plain kernels{in_pieces if units_for(info) else '; matrix units would round f32 operands'}"
    lacking = sorted(bundle.needed(precision) - info.features)
    if lacking:
        return f"not available: the driver has no {', '.join(_FEATURES.get(each, each) for each in lacking)}"
    matrices = f"cooperative_matrix_{precision}"
    if not any(matrices in kernel.requires for kernel in bundle.kernels.values()):
        return "plain kernels; these kernels were built without any for matrix units"
    fragment = hardware(info, precision).fragment
    if fragment is not None:
        has_more = f"workgroup_matrix_{precision}" in info.features
        more = "; there are no kernels for the workgroup scope" if has_more else ""
        return f"matrix units, {_product(fragment)} at subgroup scope{more}"
    if not info.cooperative_matrices:
        return "plain kernels; the driver offers no matrix units (VK_KHR_cooperative_matrix)"
    return f"plain kernels; the matrix units have no shape that multiplies {precision} and sums in f32"


def matrix_shapes(info: DeviceInfo) -> list[tuple[str, str]]:
    """The shapes of the matrix units: what is multiplied and summed, and the sizes M x N x K, for each kind once."""
    found: dict[str, list[str]] = {}
    for *size, a, b, _, result in info.cooperative_matrices:
        found.setdefault(f"{a} x {b} in {result}", []).append(_product(size))
    for invocations, *size, a, b, _, result in info.workgroup_matrices:
        limit = f"multiples of {_product(size)} by {invocations} invocations"
        found.setdefault(f"{a} x {b} in {result}, workgroup scope", []).append(limit)
    return [(kind, ", ".join(dict.fromkeys(sizes))) for kind, sizes in found.items()]


def device_rows(info: DeviceInfo, bundle: Bundle) -> list[list[str]]:
    """Two columns that describe a device for a person."""
    sizes = {info.subgroup_size_min, info.subgroup_size, info.subgroup_size_max}
    rows = [
        ["device", f"{info.name} ({_kind(info.kind)})"],
        ["driver", f"{info.driver_name} {info.driver_info}, Vulkan {info.api_version}"],
        ["memory", f"{info.memory_bytes / 2**30:.1f} GiB, {info.available_bytes / 2**30:.1f} GiB available"],
        ["multiprocessors", _multiprocessors(info)],
        ["subgroups", f"{' to '.join(map(str, sorted({min(sizes), max(sizes)})))} invocations"],
        ["workgroups", f"{info.max_workgroup_invocations} invocations, {info.shared_memory // 1024} KiB shared memory"],
        ["number types", ", ".join(number_types(info))],
    ]
    shapes = matrix_shapes(info)
    rows += [["matrix units", f"{kind}: {sizes}"] for kind, sizes in shapes] or [["matrix units", "none"]]
    if info.missing:
        return [*rows, ["use", f"none: it or its driver lacks {', '.join(info.missing)}; a newer driver may help"]]
    count = len(Table(info, bundle).read())
    rows.append(
        ["tiles", f"measured for {count} matrix products" if count else "estimated; none measured (ALPHA_TUNE)"]
    )
    return rows + [[f"use for {each}", use_of_precision(info, each, bundle)] for each in PRECISIONS]


def device_json(info: DeviceInfo, bundle: Bundle) -> dict[str, Any]:
    """The same for a program."""
    return {
        "backend": "helios",
        "device": info.index,
        "name": info.name,
        "kind": info.kind,
        "driver": f"{info.driver_name} {info.driver_info}",
        "apiVersion": info.api_version,
        "vendorId": info.vendor_id,
        "deviceId": info.device_id,
        "memoryBytes": info.memory_bytes,
        "availableBytes": info.available_bytes,
        "multiprocessors": info.multiprocessors or None,
        "subgroupSize": info.subgroup_size,
        "sharedMemoryBytes": info.shared_memory,
        "maxWorkgroupInvocations": info.max_workgroup_invocations,
        "numberTypes": number_types(info),
        "features": sorted(info.features),
        "matrixShapes": [
            {"m": m, "n": n, "k": k, "a": a, "b": b, "c": c, "result": result}
            for m, n, k, a, b, c, result in info.cooperative_matrices
        ],
        "workgroupMatrixShapes": [
            {"invocations": invocations, "m": m, "n": n, "k": k, "a": a, "b": b, "c": c, "result": result}
            for invocations, m, n, k, a, b, c, result in info.workgroup_matrices
        ],
        "measuredProducts": len(Table(info, bundle).read()),
        "missing": list(info.missing),
        "use": {} if info.missing else {each: use_of_precision(info, each, bundle) for each in PRECISIONS},
    }


def _multiprocessors(info: DeviceInfo) -> str:
    return str(info.multiprocessors or f"the driver does not say; products are divided for {units_of(info)}")


def number_types(info: DeviceInfo) -> list[str]:
    """The element types that kernels can compute with there."""
    types = {"f16": "float16", "bf16": "bfloat16", "i8": "int8", "i16": "int16"}
    return ["f32", "i32", *(name for name, feature in types.items() if feature in info.features)]


def choice(devices: Iterable[DeviceInfo]) -> str:
    """What --backend=auto takes, and what to do when that is no GPU."""
    usable = [device for device in devices if not device.missing]
    if any(device.kind != "cpu" for device in usable):
        return "--backend=auto computes on a GPU with helios."
    problem = "; ".join(closed_nodes())
    sentence = "--backend=auto computes with cpu_ref, because Vulkan sees no GPU that can be used. "
    if usable:
        sentence += f"--backend=helios computes on the CPU through {usable[0].driver_name}, which is slow. "
    return sentence + (problem or f"If there is a GPU: {INSTALL_DRIVER[0].lower()}{INSTALL_DRIVER[1:]}")


def closed_nodes() -> list[str]:
    """A sentence for each GPU that this user may not open."""
    return [
        f"There is a GPU that you may not use: to open {node} you must be in its group, {node.group()}."
        for node in sorted(_GPU_NODES.glob("renderD*"))
        if not os.access(node, os.R_OK | os.W_OK)
    ]


def _product(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _kind(kind: str) -> str:
    names = {"discrete": "GPU", "integrated": "integrated GPU", "virtual": "virtual GPU", "cpu": "computes on the CPU"}
    return names.get(kind, "other kind of device")
