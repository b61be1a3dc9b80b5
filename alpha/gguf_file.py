"""Reading and writing GGUF, the file format of llama.cpp: metadata by key, and tensors in float32, 16 bits or Q8_0.

Format: "GGUF", the version, the counts of tensors and keys, the keys with typed values, name, shape (fastest axis
first), type and place of each tensor, and from the next multiple of the alignment on the tensors, each aligned. Q8_0 is
blocks of 32 numbers: a scale in float16, and 32 signed bytes. Source: docs/gguf.md in the ggml repository.

Not the gguf package, for the reasons that ARCHITECTURE.md gives; the tests hold this module against files that the
package wrote and llama.cpp computed with.
"""

import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from alpha.errors import AlphaError
from alpha.files import open_regular, replacing
from alpha.safetensors_file import Array, TensorEntry, from_bfloat16, to_bfloat16

Value = str | bool | int | float | list[str] | list[int] | list[float]
"""What a key can have; whole numbers are written as uint32, in lists as int32, and others as float32."""

_MAGIC = b"GGUF"
_VERSION = 3
_READ_VERSIONS = (2, 3)
_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_HEADER_LIMIT = 1 << 28
_MOST_KEYS = _MOST_TENSORS = 1 << 16
_MOST_DIMENSIONS = 4
_BLOCK = 32
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("numbers", "i1", (_BLOCK,))])

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
_NAMES = {number: name for name, number in TYPES.items()}
_BITS = {"f32": 32, "f16": 16, "bf16": 16}


def size_of(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor. ValueError when its rows are not whole blocks."""
    if kind != "q8_0":
        return math.prod(shape) * _BITS[kind] // 8
    if not shape or shape[-1] % _BLOCK:
        raise ValueError(f"rows of {shape[-1:]} numbers are not whole blocks of {_BLOCK}")
    return math.prod(shape) // _BLOCK * _BLOCK_TYPE.itemsize


def write_in_turn(
    path: Path,
    metadata: Mapping[str, Value],
    declared: Mapping[str, tuple[str, tuple[int, ...]]],
    make: Callable[[str], Array],
) -> None:
    """Atomically and durably write tensors that are made one after another: `make(name)` is float32, of its shape.

    `declared` has type and shape of each. Raises AlphaError when the operating system refuses, and what was there
    before is then still there.
    """
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(declared), len(metadata))]
    for key, value in metadata.items():
        parts += [_packed_text(key), _packed(value)]
    place = 0
    for name, (kind, shape) in declared.items():
        parts += [_packed_text(name), struct.pack("<I", len(shape)), struct.pack(f"<{len(shape)}Q", *shape[::-1])]
        parts.append(struct.pack("<IQ", TYPES[kind], place))
        place += _aligned(size_of(kind, shape))
    header = b"".join(parts)
    with replacing(path) as file:
        file.write(header.ljust(_aligned(len(header)), b"\0"))
        for name, (kind, shape) in declared.items():
            array = make(name)
            if array.shape != shape or array.dtype != np.float32:
                raise TypeError(f"Tensor {name} is {array.dtype} {array.shape}, not float32 {shape}.")
            content = _encoded(array, kind)
            file.write(content.view(np.uint8).data)
            file.write(b"\0" * (_aligned(content.nbytes) - content.nbytes))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _packed_text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content


def _packed(value: Value) -> bytes:
    """A value behind its type."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed_text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    kind = _STRING if isinstance(value[0], str) else _INT32 if isinstance(value[0], int) else _FLOAT32
    head = struct.pack("<IIQ", _ARRAY, kind, len(value))
    if kind == _STRING:
        return head + b"".join(_packed_text(str(each)) for each in value)
    return head + struct.pack(f"<{len(value)}{_NUMBERS[kind]}", *value)


def _encoded(array: Array, kind: str) -> Array:
    """Float32 numbers as they are stored, one axis."""
    flat = np.ascontiguousarray(array, "<f4").reshape(-1)
    if kind == "f32":
        return flat
    if kind == "f16":
        return flat.astype("<f2")
    if kind == "bf16":
        return to_bfloat16(flat)
    blocks = flat.reshape(-1, _BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        scaled = blocks * np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    result = np.empty(len(blocks), _BLOCK_TYPE)
    result["scale"] = scales[:, 0]
    # Halves are rounded away from zero, as in C.
    result["numbers"] = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return result


class GgufFile:
    """A file open for reading, its header checked: `metadata`, and `entries` by name. Use it in a `with` statement.

    The dtype of an entry is one of TYPES, and its shape has the slowest axis first.
    Raises AlphaError for anything that is not a whole and valid file, or has a tensor of another type than TYPES.
    Nothing is allocated that is larger than the file, but a tensor, which is float32 in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise self._cannot_read(error) from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.metadata, self.entries = self._read_header()
        except OSError as error:
            self._file.close()
            raise self._cannot_read(error) from error
        except (ValueError, struct.error) as error:
            self._file.close()
            raise AlphaError(f"{path} is not a whole GGUF file that Alpha reads: {str(error)[:200]}.") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, name: str) -> Array:
        """A tensor as float32, in memory of its own."""
        entry = self.entries[name]
        try:
            content = np.empty(entry.size, np.uint8)
            self._file.seek(entry.start)
            count = self._file.readinto(content.data)
            if count != entry.size:
                raise AlphaError(f"{self.path} became shorter while it was read.")
            return _decoded(content, entry.dtype).reshape(entry.shape)
        except OSError as error:
            raise self._cannot_read(error) from error
        except MemoryError as error:
            raise AlphaError(f"Tensor {name!r} of {self.path} needs more memory than is free.") from error

    def _cannot_read(self, error: OSError) -> AlphaError:
        return AlphaError(f"Cannot read {self.path}: {error.strerror or error}.")

    def _read_header(self) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
        if self._take(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, keys = self._unpack("<IQQ")
        if version not in _READ_VERSIONS:
            raise ValueError(f"its version is {version}")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise ValueError(f"it says that it has {tensors:,} tensors and {keys:,} keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            if key in metadata:
                raise ValueError(f"the key {key!r} occurs twice")
            metadata[key] = self._value(self._unpack("<I")[0])
        found = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get(_ALIGNMENT_KEY, _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r}")
        start = -(-self._file.tell() // alignment) * alignment
        return metadata, self._placed(found, start)

    def _placed(self, found: list[tuple[str, TensorEntry]], start: int) -> dict[str, TensorEntry]:
        """The entries by name, with their places in the file, which must not overlap."""
        end = start
        entries: dict[str, TensorEntry] = {}
        for name, entry in sorted(found, key=lambda item: item[1].start):
            place = start + entry.start
            if name in entries:
                raise ValueError(f"the tensor {name!r} occurs twice")
            if place < end or place + entry.size > self._size:
                raise ValueError(f"the tensor {name!r} is not in a place of its own in the file")
            end = place + entry.size
            entries[name] = TensorEntry(entry.dtype, entry.shape, place, entry.size)
        return entries

    def _tensor(self) -> tuple[str, TensorEntry]:
        name = self._text()
        (count,) = self._unpack("<I")
        if not 0 < count <= _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} has {count} axes")
        shape = self._unpack(f"<{count}Q")[::-1]
        number, place = self._unpack("<IQ")
        if number not in _NAMES:
            raise ValueError(f"the tensor {name!r} has type {number}; take the file in one of {', '.join(TYPES)}")
        if not all(shape):
            raise ValueError(f"the tensor {name!r} has shape {list(shape)}")
        return name, TensorEntry(_NAMES[number], shape, place, size_of(_NAMES[number], shape))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _NUMBERS:
            return self._unpack("<" + _NUMBERS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"a key has a value of type {kind}")
        kind, count = self._unpack("<IQ")
        if kind == _STRING:
            self._require(8 * count)
            return [self._text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"a key has a list of values of type {kind}")
        self._require(count * struct.calcsize(_NUMBERS[kind]))
        return list(self._unpack(f"<{count}{_NUMBERS[kind]}"))

    def _text(self) -> str:
        return self._take(self._unpack("<Q")[0]).decode()

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, count: int) -> bytes:
        self._require(count)
        return self._file.read(count)

    def _require(self, count: int) -> None:
        place = self._file.tell()
        if count > self._size - place or count + place > _HEADER_LIMIT:
            raise ValueError("its header does not end")


def _decoded(content: Array, kind: str) -> Array:
    """The float32 numbers that bytes stand for, one axis."""
    if kind == "f32":
        return content.view("<f4")
    if kind == "f16":
        return content.view("<f2").astype(np.float32)
    if kind == "bf16":
        return from_bfloat16(content.view("<u2"))
    blocks = content.view(_BLOCK_TYPE)
    return (blocks["scale"].astype(np.float32)[:, None] * blocks["numbers"].astype(np.float32)).reshape(-1)
