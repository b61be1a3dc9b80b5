"""Reading and writing files of named arrays in the safetensors format, with text metadata in their header.

Format: 8 bytes with the size of the header, the header (JSON: dtype, shape and place of each tensor), the tensors one
after another. BF16, which numpy lacks, is float32 in memory.

Not the safetensors package, which maps the file it reads into memory (so that a file cut short meanwhile kills the
process), accepts duplicate names and fields it does not know, gives up with other exceptions on what numpy cannot hold,
and writes under temporary names of its own. What this reader accepts, the package accepts too.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from alpha.errors import AlphaError
from alpha.files import open_regular, replacing

Array = npt.NDArray[Any]

HEADER_LIMIT = 1 << 26
"""Bytes of header that are accepted; the vocabulary in a checkpoint's metadata is most of it."""

_METADATA_KEY = "__metadata__"
BFLOAT16 = "bfloat16"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BF16": BFLOAT16,
}  # fmt: skip
_CODES = {name: code for code, name in _DTYPES.items()}
_STORED = {name: np.dtype("uint16" if name == BFLOAT16 else name).newbyteorder("<") for name in _CODES}
_ROUNDED_TOGETHER = 1 << 20
_MOST_DIMENSIONS = 8
_ALIGNMENT = 8
_LONGEST_INTEGER = 20
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class InvalidFileError(AlphaError):
    """The file is not a whole safetensors file, or not what its writer wrote."""


@dataclass(frozen=True)
class TensorEntry:
    """What a tensor is (`dtype` by its format's name: here numpy's, or BFLOAT16) and its place in the file in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def to_storable(name: str, array: Array) -> Array:
    """The array as it is written: little-endian and contiguous, a copy only where it is not so already.

    TypeError for what the reader does not accept: other dtypes, empty tensors, more than 8 dimensions.
    """
    if array.dtype.name not in _CODES or array.size == 0 or array.ndim > _MOST_DIMENSIONS:
        raise TypeError(f"Tensor {name} cannot be stored: dtype {array.dtype}, shape {array.shape}.")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def write(path: Path, tensors: dict[str, Array], metadata: dict[str, str], bfloat16: Collection[str] = ()) -> None:
    """Atomically and durably write arrays that `to_storable` gave.

    Those named in `bfloat16`, float32 in memory, are written as BF16, rounded to the nearest, ties to even. TypeError
    when one of them is not float32. Raises AlphaError when the operating system refuses, and what was there before is
    then still there.
    """
    for name in bfloat16:
        if tensors[name].dtype != np.float32:
            raise TypeError(f"Tensor {name} cannot be stored as BF16: its dtype is {tensors[name].dtype}.")
    declared = {
        name: (BFLOAT16 if name in bfloat16 else array.dtype.name, array.shape) for name, array in tensors.items()
    }
    write_in_turn(path, declared, tensors.__getitem__, lambda: metadata)


def write_in_turn(
    path: Path,
    declared: Mapping[str, tuple[str, tuple[int, ...]]],
    make: Callable[[str], Array],
    metadata: Callable[[], dict[str, str]],
) -> None:
    """The same for arrays that are made one after another, each of the dtype and shape declared for its name.

    `metadata` is asked twice, before the first and after the last array; what it says must be equally long.
    """
    # The widest elements first: then every tensor is aligned to its own.
    names = sorted(declared, key=lambda name: (-_STORED[declared[name][0]].itemsize, name))
    header = _header(path, names, declared, metadata())
    with replacing(path) as file:
        file.write(header)
        for name in names:
            array, (dtype, shape) = make(name), declared[name]
            if array.dtype.name != ("float32" if dtype == BFLOAT16 else dtype) or array.shape != shape:
                raise TypeError(
                    f"Tensor {name} cannot be stored as {dtype} {shape}: it is {array.dtype} {array.shape}."
                )
            flat = array.reshape(-1)
            if dtype != BFLOAT16:
                file.write(flat.view(np.uint8).data)
                continue
            for start in range(0, flat.size, _ROUNDED_TOGETHER):
                file.write(to_bfloat16(flat[start : start + _ROUNDED_TOGETHER]).view(np.uint8).data)
        final = _header(path, names, declared, metadata())
        if len(final) != len(header):
            raise TypeError("The metadata after the tensors are not as long as before them.")
        file.seek(0)
        file.write(final)


def _header(
    path: Path, names: list[str], declared: Mapping[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    """The beginning of a file: the length of its header, and that."""
    if len(json.dumps(metadata, ensure_ascii=False).encode()) > HEADER_LIMIT // 2:
        raise AlphaError(f"Cannot write {path}: its metadata are over {HEADER_LIMIT // 2:,} bytes.")
    table: dict[str, Any] = {_METADATA_KEY: metadata} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = declared[name]
        start, end = end, end + math.prod(shape) * _STORED[dtype].itemsize
        table[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def to_bfloat16(values: Array) -> Array:
    """The upper halves of float32 numbers [n], rounded to the nearest, ties to even; uint16. NaN stays NaN."""
    bits = values.view("<u4")
    upper = bits >> 16
    # What is added carries over into the upper half from its middle on, at the middle only where that is odd.
    rounded = (bits + (upper & 1) + 0x7FFF) >> 16
    return np.where(np.isnan(values), upper | 0x0040, rounded).astype("<u2")


def from_bfloat16(upper: Array) -> Array:
    """The float32 numbers that bfloat16 numbers [n], as uint16, stand for."""
    bits = upper.astype("<u4")
    bits <<= 16
    return bits.view("<f4")


class SafetensorsFile:
    """A file open for reading, its header checked: `metadata`, and `entries` by name in the order of the names.

    Raises InvalidFileError for anything that is not a whole and valid file, and AlphaError when it cannot be read.
    Nothing is allocated that is larger than the file, or for BF16 twice as large.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise self._cannot_read(error) from error
        try:
            self.metadata, self.entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str) -> Array:
        """A tensor, in memory of its own."""
        return self.tensor(name, self.content(name))

    def tensor(self, name: str, content: Array) -> Array:
        """A tensor whose `content` was read; in the same memory, but for BF16, which becomes float32."""
        entry = self.entries[name]
        stored = content.view(_STORED[entry.dtype])
        try:
            return (from_bfloat16(stored) if entry.dtype == BFLOAT16 else stored).reshape(entry.shape)
        except MemoryError as error:
            raise self._too_large(name, 2 * entry.size) from error

    def content(self, name: str) -> Array:
        """The bytes of a tensor as they are stored, uint8."""
        entry = self.entries[name]
        try:
            content = np.empty(entry.size, dtype=np.uint8)
            self._file.seek(entry.start)
            count = self._file.readinto(content.data)
        except MemoryError as error:
            raise self._too_large(name, entry.size) from error
        except OSError as error:
            raise self._cannot_read(error) from error
        if count != entry.size:
            raise self.invalid("it became shorter while it was read")
        return content

    def invalid(self, reason: str) -> InvalidFileError:
        """The error for a file whose content is wrong."""
        return InvalidFileError(f"{self.path} is damaged: {reason}.")

    def _too_large(self, name: str, size: int) -> AlphaError:
        return AlphaError(f"Tensor {name!r} of {self.path} needs {size:,} bytes of memory, more than is free.")

    def _cannot_read(self, error: OSError) -> AlphaError:
        return AlphaError(f"Cannot read {self.path}: {error.strerror or error}.")

    def _read_header(self) -> tuple[dict[str, str], dict[str, TensorEntry]]:
        try:
            file_size = os.fstat(self._file.fileno()).st_size
            start = self._file.read(9)
            header_size = int.from_bytes(start[:8], "little")
            if start[8:] != b"{" or header_size > file_size - 8:
                raise self._not_safetensors(start)
            if header_size > HEADER_LIMIT:
                raise self.invalid(f"its header has {header_size:,} bytes, more than the {HEADER_LIMIT:,} accepted")
            content = start[8:] + self._file.read(header_size - 1)
        except OSError as error:
            raise self._cannot_read(error) from error
        try:
            table = parse_json(content.decode())
            metadata = table.pop(_METADATA_KEY, {})
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("its metadata are not text")
            return metadata, _entries(table, 8 + header_size, file_size)
        except (ValueError, RecursionError) as error:
            raise self.invalid(str(error)[:200].rstrip(".")) from error

    def _not_safetensors(self, start: bytes) -> AlphaError:
        if start.startswith(_PICKLE_STARTS) or self.path.suffix in PICKLE_SUFFIXES:
            return AlphaError(
                f"{self.path} looks like a PyTorch pickle; Alpha reads safetensors only, as pickles can run code."
            )
        return InvalidFileError(f"{self.path} is not a whole safetensors file.")


def _entries(table: dict[str, Any], start: int, end: int) -> dict[str, TensorEntry]:
    """The entries of tensors that cover the file from `start` to `end` exactly; ValueError when they do not."""
    entries = {name: _entry(name, table[name], start) for name in sorted(table)}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != start:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        start += entry.size
    if start != end:
        raise ValueError("its tensors do not end where the file ends")
    return entries


def _entry(name: str, values: Any, start: int) -> TensorEntry:
    if not isinstance(values, dict) or set(values) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of tensor {name!r} does not have the three fields it should have")
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {dtype!r}")
    if not _are_naturals(shape) or len(shape) > _MOST_DIMENSIONS or not all(shape):
        raise ValueError(f"tensor {name!r} has shape {shape!r}")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has offsets {offsets!r}")
    size = math.prod(shape) * _STORED[_DTYPES[dtype]].itemsize
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"tensor {name!r} has {size} bytes by its shape, but offsets {offsets!r}")
    return TensorEntry(_DTYPES[dtype], tuple(shape), start + offsets[0], size)


def _are_naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def parse_json(text: str) -> Any:
    """Like json.loads, but refuses (ValueError) duplicate keys, numbers that are not finite or over 20 digits long,
    and halves of characters but those that stand for odd bytes of file names. RecursionError when nested too deeply."""
    value = json.loads(
        text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite_float, parse_int=_short_integer
    )
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in its JSON")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number in its JSON is too large")
    return value


def _short_integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError("a whole number in its JSON is too large")
    return int(text)
