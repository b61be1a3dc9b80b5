"""`alpha devices`: what there is to compute on."""

import os
from dataclasses import dataclass
from typing import Any

from alpha import machine
from alpha.option import option
from alpha.terminal import print_json, print_table, print_text, print_warning

_VULKAN_NOTE = "The Vulkan backend is not part of this version; cpu_ref is the only backend."


@dataclass(frozen=True)
class DevicesOptions:
    """The options of `alpha devices`."""

    json: bool = option(False, "Print JSON.")


OPTIONS = (DevicesOptions,)
DETAILS = ""


def run(given: dict[str, Any]) -> None:
    """Print the CPU backend's properties."""
    import numpy

    total, available = machine.memory()
    libraries = machine.blas_libraries()
    cores = machine.usable_cores()
    if DevicesOptions(**given).json:
        device = {
            "backend": "cpu_ref",
            "processor": machine.processor(),
            "cores": cores,
            "memoryBytes": total,
            "availableBytes": available,
            "numpy": numpy.__version__,
            "blas": [
                {"name": each.name, "version": each.version, "coreType": each.core_type, "threads": each.threads}
                for each in libraries
            ],
        }
        print_json({"devices": [device], "note": _VULKAN_NOTE})
    else:
        rows = [
            ["processor", machine.processor()],
            ["cores", f"{cores:g}"],
            ["memory", f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"],
            ["numpy", numpy.__version__],
        ]
        for each in libraries:
            threads = f"{each.threads} thread" + ("s" if each.threads != 1 else "")
            rows.append(["BLAS", f"{each.name} {each.version}, {each.core_type} kernels, {threads}"])
        print_table(("cpu_ref", ""), rows)
        print_text(f"\n{_VULKAN_NOTE}")
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if forced:
        print_warning(f"OPENBLAS_CORETYPE={forced} is set: OpenBLAS uses those kernels, whatever this CPU can do.")
