"""The compiled kernels of the Vulkan backend: reading their bundle, packing their arguments, making their pipelines.

The bundle is a zip file with the modules (SPIR-V) and a description of each: the fields of its push constants with
their offsets, its specialization constants, and what it requires of a device. Knows nothing about arrays or programs.
"""

import hashlib
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from alpha import files, installation
from alpha.errors import AlphaError
from alpha.workers import task_threads

FORMAT = 1
DESCRIPTION = "manifest.json"
SUBGROUP_SIZE = "SUBGROUP_SIZE"
"""A constant of this name is also the subgroup size that its pipeline asks the device for, unless it is 0."""

_LARGEST = 1 << 26
_LARGEST_BUNDLE = 1 << 28
_DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError,
           KeyError, TypeError, AttributeError, ValueError)  # fmt: skip
"""What reading a damaged bundle raises; RuntimeError: encrypted, of another version, nested too deeply."""
_DIRECTIONS = ("", "in", "out", "inout")
_SCALARS = {"uint": "I", "int": "i", "float": "f"}


class PipelineMaker(Protocol):
    """What is needed of a device to make pipelines."""

    def pipeline(self, spirv: bytes, constants: dict[int, int], push_bytes: int, subgroup_size: int) -> int: ...


@dataclass(frozen=True)
class Field:
    """A push-constant field: an address (`direction` "in", "out" or "inout", `type` an element type such as "f32" or
    "f32x4"), or a number (`direction` "", `type` "uint", "int" or "float"). `offset` is in bytes."""

    name: str
    type: str
    direction: str
    offset: int

    def __post_init__(self) -> None:
        """Raises ValueError for what describes no field."""
        known = self.type in _SCALARS if self.direction == "" else isinstance(self.type, str)
        if not (known and self.direction in _DIRECTIONS and isinstance(self.name, str) and type(self.offset) is int):
            raise ValueError(f"{self} is no field")

    @property
    def is_address(self) -> bool:
        return self.direction != ""

    @property
    def format(self) -> str:
        """Of `struct`."""
        return "Q" if self.is_address else _SCALARS[self.type]


@dataclass(frozen=True)
class Constant:
    """A specialization constant: `type` is "uint" or "float"."""

    name: str
    type: str
    default: float

    def __post_init__(self) -> None:
        """Raises ValueError for what describes no constant, TypeError for a default that is not of its type."""
        if not isinstance(self.name, str) or self.type not in ("uint", "float"):
            raise ValueError(f"{self} is no constant")
        self.bits(self.default)

    def bits(self, value: float) -> int:
        """The 32 bits of a value. Raises TypeError when it is not one of this type."""
        if self.type == "float":
            try:
                return int.from_bytes(struct.pack("<f", value), "little")
            except (struct.error, OverflowError) as error:
                raise TypeError(f"constant {self.name} is a 32-bit number, not {value!r}") from error
        if not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise TypeError(f"constant {self.name} is a 32-bit unsigned integer, not {value!r}")
        return int(value)


@dataclass(frozen=True)
class Kernel:
    """One variant of a kernel, as compiled."""

    name: str
    variant: str
    fields: tuple[Field, ...]
    constants: tuple[Constant, ...]
    requires: tuple[str, ...]
    spirv: bytes

    def __post_init__(self) -> None:
        """Raises ValueError where offsets are not those of the packed fields, or what it requires are not names."""
        offset = 0
        for field in self.fields:
            if field.offset != offset:
                raise ValueError(f"{self.name}: the field {field.name} is not where it is packed, at {offset}")
            offset += struct.calcsize(field.format)
        if not all(isinstance(feature, str) for feature in self.requires):
            raise ValueError(f"{self.name} requires {list(self.requires)}")

    @property
    def is_plain(self) -> bool:
        """Whether it does without matrix units."""
        return not any("_matrix_" in feature for feature in self.requires)

    @cached_property
    def push_bytes(self) -> int:
        """The size of the push constants."""
        return self._layout.size

    @cached_property
    def _layout(self) -> struct.Struct:
        return struct.Struct("<" + "".join(field.format for field in self.fields))

    def pack(self, arguments: Mapping[str, Any]) -> bytes:
        """The push constants, from a value for every field: an address or a number; an address of None is 0.

        Raises TypeError when a field is missing, unknown, or not of its type.
        """
        names = [field.name for field in self.fields]
        if arguments.keys() != set(names):
            wrong = sorted(arguments.keys() ^ set(names))
            raise TypeError(f"kernel {self.name} takes the arguments {names}; missing or unknown: {wrong}")
        values = [arguments[name] for name in names]
        try:
            return self._layout.pack(*[0 if value is None else value for value in values])
        except struct.error as error:
            raise TypeError(f"kernel {self.name}: {dict(arguments)} does not fit its fields: {error}") from error

    def constant_values(self, given: Mapping[str, float]) -> dict[int, int]:
        """The 32 bits of every constant by id, or of its default. Raises TypeError for an unknown name."""
        unknown = given.keys() - {constant.name for constant in self.constants}
        if unknown:
            raise TypeError(f"kernel {self.name} has no constant {sorted(unknown)}")
        return {
            index: constant.bits(given.get(constant.name, constant.default))
            for index, constant in enumerate(self.constants)
        }


class Bundle:
    """The kernels in a bundle, by name and variant."""

    def __init__(self, kernels: Mapping[tuple[str, str], Kernel]) -> None:
        self.kernels = dict(kernels)

    def __getitem__(self, key: tuple[str, str]) -> Kernel:
        """Raises KeyError naming the variants that there are."""
        if key not in self.kernels:
            variants = [variant for name, variant in self.kernels if name == key[0]]
            raise KeyError(f"there is no kernel {key[0]!r} in variant {key[1]!r}; variants: {variants}")
        return self.kernels[key]

    def needed(self, precision: str) -> set[str]:
        """The features without which a device cannot compute in a precision: for each kernel, what all of its plain
        variants require.

        A kernel's variant is named by the precision, alone or with the bits of its operands behind it.
        """
        needed: dict[str, set[str]] = {}
        for kernel in self.kernels.values():
            if kernel.is_plain and kernel.variant.partition("_")[0] == precision:
                needed[kernel.name] = needed.get(kernel.name, set(kernel.requires)) & set(kernel.requires)
        return set().union(*needed.values())


class Pipelines:
    """Pipelines of one device, made when first asked for and kept as long as the device.

    They are compiled on all processors while whoever asked goes on: a pipeline is a future of its handle.
    """

    def __init__(self, device: PipelineMaker, features: frozenset[str], bundle: Bundle) -> None:
        self._device = device
        self._features = features
        self._bundle = bundle
        self._made: dict[tuple[str, str, tuple[tuple[str, float], ...]], tuple[Kernel, Future[int]]] = {}
        self._compilers = task_threads("alpha-compiler")

    def kernel(self, name: str, variant: str) -> Kernel:
        """What the bundle says of a kernel."""
        return self._bundle[name, variant]

    def get(self, kernel: str, variant: str, constants: Mapping[str, float]) -> tuple[Kernel, Future[int]]:
        """The kernel and its pipeline with these specialization constants."""
        key = (kernel, variant, tuple(sorted(constants.items())))
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(self._bundle[kernel, variant], constants)
        return found

    def finish(self, pipelines: Iterable[Future[int]]) -> None:
        """Wait until these are compiled; somebody at a terminal is told, in each second, how many are.

        Raises the error of one that cannot be compiled.
        """
        wanted = {each for each in pipelines if not each.done()}
        waiting = wanted
        while waiting:
            done, waiting = wait(waiting, 1.0, FIRST_EXCEPTION)
            for each in done:
                each.result()
            if waiting and sys.stderr.isatty():
                print(f"helios: compiled {len(wanted - waiting)} of {len(wanted)} kernels.", file=sys.stderr)

    def give_up(self) -> None:
        """Compile nothing more of what was asked for, after an error: the end of the process would wait for it."""
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._compilers = task_threads("alpha-compiler")
        self._made = {key: made for key, made in self._made.items() if not made[1].cancelled()}

    def _make(self, kernel: Kernel, constants: Mapping[str, float]) -> tuple[Kernel, Future[int]]:
        missing = set(kernel.requires) - self._features
        if missing:
            raise AlphaError(
                f"The kernel {kernel.name} ({kernel.variant}) needs {', '.join(sorted(missing))}, which this Vulkan "
                "device does not have; choose another device or precision."
            )
        values = kernel.constant_values(constants)
        names = [constant.name for constant in kernel.constants]
        subgroup_size = values[names.index(SUBGROUP_SIZE)] if SUBGROUP_SIZE in names else 0
        compile_it = self._device.pipeline
        return kernel, self._compilers.submit(compile_it, kernel.spirv, values, kernel.push_bytes, subgroup_size)


def pipelines_folder() -> Path:
    """Where compiled pipelines, and what is measured of them, stay from run to run."""
    return files.cache_folder() / "pipelines"


def read_bundle(path: Path | None = None) -> Bundle:
    """The bundle at `path`, or this package's own. Raises AlphaError when it is missing or damaged."""
    path = path or installation.FILES / "kernels.zip"
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            content = json.loads(_read(archive, DESCRIPTION))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, not {FORMAT}")
            return Bundle(dict(_kernels(archive, content["kernels"])))
    except FileNotFoundError:
        raise AlphaError(
            f"The kernels of the Vulkan backend, {path}, are missing; install Alpha again, or run "
            "build_scripts/kernels."
        ) from None
    except _DAMAGE as error:
        raise AlphaError(
            f"The kernels of the Vulkan backend, {path}, cannot be read ({error}); install Alpha again, or run "
            "build_scripts/kernels."
        ) from error


def _kernels(archive: zipfile.ZipFile, described: dict[str, Any]) -> list[tuple[tuple[str, str], Kernel]]:
    kernels = []
    size = 0
    for name, entry in described.items():
        constants = tuple(Constant(**constant) for constant in entry["constants"])
        for variant, details in entry["variants"].items():
            spirv = _read(archive, details["file"])
            if hashlib.sha256(spirv).hexdigest() != details["sha256"]:
                raise ValueError(f"{details['file']} is damaged")
            size += len(spirv)
            if size > _LARGEST_BUNDLE:
                raise ValueError("its kernels are larger than kernels can be")
            fields = tuple(Field(**field) for field in details["fields"])
            kernel = Kernel(name, variant, fields, constants, tuple(details["requires"]), spirv)
            kernels.append(((name, variant), kernel))
    return kernels


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.file_size > _LARGEST:
        raise ValueError(f"{name} is larger than a kernel can be")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by a method that is not used here")
    return archive.read(entry)
