"""`alpha devices`: what there is to compute on, what Alpha uses of it, and what is missing."""

import os
from dataclasses import dataclass
from typing import Any

from alpha import machine
from alpha.errors import AlphaError
from alpha.option import option
from alpha.terminal import print_json, print_table, print_text, print_warning


@dataclass(frozen=True)
class DevicesOptions:
    """The options of `alpha devices`."""

    json: bool = option(False, "Print JSON.")


OPTIONS = (DevicesOptions,)
DETAILS = "The number of a Vulkan device is what --device of other commands takes."


def run(given: dict[str, Any]) -> None:
    """Print the CPU's properties and those of each Vulkan device."""
    from alpha import device_report
    from alpha.backend_helios_device import NoVulkan, list_devices
    from alpha.backend_helios_kernels import Bundle, read_bundle

    notes = []
    try:
        devices = list_devices()
        notes.append(device_report.choice(devices))
    except NoVulkan as error:
        devices = ()
        notes += [str(error), *device_report.closed_nodes()]
    try:
        bundle = read_bundle()
    except AlphaError as error:
        bundle = Bundle({})
        notes.append(str(error))
    if DevicesOptions(**given).json:
        described = [_cpu_json(), *(device_report.device_json(each, bundle) for each in devices)]
        print_json({"devices": described, "note": " ".join(notes)})
    else:
        print_table(("cpu_ref", ""), _cpu_rows())
        for each in devices:
            print_text("")
            print_table((f"helios {each.index}", ""), device_report.device_rows(each, bundle))
        print_text("\n" + "\n".join(notes))
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if forced:
        print_warning(f"OPENBLAS_CORETYPE={forced} is set: OpenBLAS uses those kernels, whatever this CPU can do.")


def _cpu_json() -> dict[str, Any]:
    import numpy

    total, available = machine.memory()
    return {
        "backend": "cpu_ref",
        "processor": machine.processor(),
        "cores": machine.usable_cores(),
        "memoryBytes": total,
        "availableBytes": available,
        "numpy": numpy.__version__,
        "blas": [
            {"name": each.name, "version": each.version, "coreType": each.core_type, "threads": each.threads}
            for each in machine.blas_libraries()
        ],
    }


def _cpu_rows() -> list[list[str]]:
    import numpy

    total, available = machine.memory()
    rows = [
        ["processor", machine.processor()],
        ["cores", f"{machine.usable_cores():g}"],
        ["memory", f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"],
        ["numpy", numpy.__version__],
    ]
    for each in machine.blas_libraries():
        threads = f"{each.threads} thread" + ("s" if each.threads != 1 else "")
        rows.append(["BLAS", f"{each.name} {each.version}, {each.core_type} kernels, {threads}"])
    return rows
