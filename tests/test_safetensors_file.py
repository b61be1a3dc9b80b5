import json
import math
import os
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from disk import read_only_folder, tiny_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from alpha import safetensors_file
from alpha.errors import AlphaError
from alpha.safetensors_file import HEADER_LIMIT, InvalidFileError, SafetensorsFile, parse_json, to_storable, write

CODES = {"U8": "u1", "I16": "<i2", "F32": "<f4", "F64": "<f8"}
ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def file_of(path: Path, header: Any, data: bytes = b"xy", size: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if size is None else size).to_bytes(8, "little") + content + data)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    with SafetensorsFile(path) as file:
        return {name: file.read(name) for name in file.entries}


def by_the_package(path: Path) -> dict[str, np.ndarray]:
    """All tensors; the package's bytes of a BF16 one with two of zero before each two, which makes them float32."""
    tensors = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        data, dtype = bytes(entry["data"]), CODES.get(entry["dtype"], "<f4")
        if entry["dtype"] == "BF16":
            data = b"".join(b"\0\0" + data[place : place + 2] for place in range(0, len(data), 2))
        tensors[name] = np.frombuffer(data, dtype).reshape(entry["shape"])
    return tensors


def test_every_dtype_and_shape_is_read_back_and_the_package_agrees(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {}
    names = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]
    for number, name in enumerate(names):
        shape = [(), (3,), (2, 3), (1, 2, 1, 3)][number % 4]
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(name)
        tensors[name] = to_storable(name, array)
    write(path, tensors, {"key": "väl\nue"})
    with SafetensorsFile(path) as file:
        assert file.metadata == {"key": "väl\nue"}
        assert list(file.entries) == sorted(tensors)
    for loaded in (read_all(path), load_file(path)):
        assert set(loaded) == set(tensors)
        for name, array in tensors.items():
            assert loaded[name].dtype == array.dtype
            np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_arrays_in_another_order_or_byte_order_keep_their_values(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"transposed": matrix.T, "strided": matrix[:, ::2], "big_endian": matrix.astype(">f4")}
    path = tmp_path / "x.safetensors"
    write(path, {name: to_storable(name, array) for name, array in arrays.items()}, {})
    loaded = read_all(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_an_array_that_can_be_written_as_it_is_is_not_copied():
    array = np.ones((2, 3), np.float32)
    assert np.shares_memory(to_storable("x", array), array)


@pytest.mark.parametrize(
    "array", [np.zeros(2, bool), np.zeros(2, complex), np.array([None]), np.zeros((2, 0)), np.zeros((1,) * 9)]
)
def test_arrays_that_the_reader_would_refuse_are_not_written(array):
    with pytest.raises(TypeError, match="Tensor x cannot be stored"):
        to_storable("x", array)


def test_a_file_has_the_permissions_that_the_umask_says(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "x.safetensors", {"a": np.ones(2)}, {})
    finally:
        os.umask(old)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


HOSTILE = {
    "empty": (b"", b""),
    "not an object": (b"[1, 2]", b""),
    "not JSON": (b'{"a": ', b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), b""),
    "deep": (b'{"a":' + b"[" * 200_000, b""),
    "deep objects": (b'{"a":' * 200_000, b""),
    "NaN": (b'{"a": NaN}', b""),
    "half a character": (b'{"\\ud800": {"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xy"),
    "duplicate": (b'{"a":%b,"a":%b}' % ((json.dumps(ENTRY).encode(),) * 2), b"xy"),
    "duplicate metadata": (b'{"__metadata__":{"a":"1","a":"2"},"a":%b}' % json.dumps(ENTRY).encode(), b"xy"),
    "metadata not text": ({"__metadata__": {"a": 1}, "a": ENTRY}, b"xy"),
    "metadata not an object": ({"__metadata__": ["a"], "a": ENTRY}, b"xy"),
    "entry not an object": ({"a": 3}, b"xy"),
    "unknown field": ({"a": ENTRY | {"z": 1}}, b"xy"),
    "missing field": ({"a": {"dtype": "U8", "shape": [2]}}, b"xy"),
    "unknown dtype": ({"a": ENTRY | {"dtype": "U9"}}, b"xy"),
    "dtype not text": ({"a": ENTRY | {"dtype": ["U8"]}}, b"xy"),
    "numpy lacks it": ({"a": ENTRY | {"dtype": "F8_E4M3"}}, b"xy"),
    "BF16 of a wrong size": ({"a": ENTRY | {"dtype": "BF16"}}, b"xy"),
    "empty tensor": ({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, b""),
    "hidden overflow": ({"a": {"dtype": "U8", "shape": [0, 2**63, 7], "data_offsets": [0, 0]}}, b""),
    "negative shape": ({"a": ENTRY | {"shape": [-1, -2]}}, b"xy"),
    "fractional shape": ({"a": ENTRY | {"shape": [2.0]}}, b"xy"),
    "boolean shape": ({"a": ENTRY | {"shape": [True, 2]}}, b"xy"),
    "too many dimensions": ({"a": ENTRY | {"shape": [2] + [1] * 99}}, b"xy"),
    "shape not a list": ({"a": ENTRY | {"shape": 2}}, b"xy"),
    "huge number": (b'{"a":{"dtype":"U8","shape":[%b],"data_offsets":[0,2]}}' % (b"9" * 9000), b"xy"),
    "three offsets": ({"a": ENTRY | {"data_offsets": [0, 1, 2]}}, b"xy"),
    "negative offsets": ({"a": ENTRY | {"data_offsets": [-2, 0]}}, b"xy"),
    "reversed offsets": ({"a": ENTRY | {"data_offsets": [2, 0]}}, b"xy"),
    "shape and offsets differ": ({"a": ENTRY | {"shape": [3]}}, b"xy"),
    "outside the file": ({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"xy"),
    "far outside the file": ({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}, b"xy"),
    "hole before": ({"a": ENTRY | {"data_offsets": [1, 3]}}, b"xyz"),
    "bytes after": ({"a": ENTRY}, b"xyz"),
    "overlap": ({"a": ENTRY, "b": ENTRY | {"data_offsets": [1, 3]}}, b"xyz"),
    "same place twice": ({"a": ENTRY, "b": ENTRY}, b"xy"),
    "same place twice, the size right": ({"a": ENTRY, "b": ENTRY}, b"wxyz"),
    "hole between, the size right": ({"a": ENTRY, "b": ENTRY | {"data_offsets": [3, 5]}}, b"wxyz"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path, case):
    path = file_of(tmp_path / "x.safetensors", *HOSTILE[case])
    with pytest.raises(InvalidFileError, match=r"x\.safetensors is (damaged: .+|not a whole safetensors file)\.$"):
        SafetensorsFile(path)


@pytest.mark.parametrize("size", [0, 1, 2**32, 2**62, 2**64 - 1])
def test_a_wrong_header_size_is_refused(tmp_path, size):
    path = file_of(tmp_path / "x.safetensors", {"a": ENTRY}, size=size)
    with pytest.raises(InvalidFileError):
        SafetensorsFile(path)


def test_a_header_over_the_limit_is_refused_without_reading_it(tmp_path):
    path = file_of(tmp_path / "x.safetensors", b"{", b"", size=HEADER_LIMIT + 1)
    os.truncate(path, 8 + HEADER_LIMIT + 1 + 2)
    with pytest.raises(InvalidFileError, match="more than the"):
        SafetensorsFile(path)
    with pytest.raises(AlphaError, match="its metadata are over"):
        write(tmp_path / "y.safetensors", {"a": np.ones(1)}, {"a": "é" * (HEADER_LIMIT // 4)})


def test_hostile_files_do_not_make_large_allocations(tmp_path):
    cases = [file_of(tmp_path / f"{number}.safetensors", *HOSTILE[case]) for number, case in enumerate(HOSTILE)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in cases:
        with pytest.raises(InvalidFileError):
            SafetensorsFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "zip.safetensors", "pickle.safetensors"])
def test_a_pickle_is_named_as_such(tmp_path, name):
    starts = {"zip": b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "pickle": b"\x80\x02}q\x00(X\x03\x00\x00\x00"}
    (tmp_path / name).write_bytes(starts.get(name.split(".")[0], b"anything"))
    with pytest.raises(AlphaError, match="looks like a PyTorch pickle; Alpha reads safetensors only"):
        SafetensorsFile(tmp_path / name)


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("a\0b"), "no file can have this name"),
    ):
        with pytest.raises(AlphaError, match=message):
            SafetensorsFile(path)


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, {"a": np.ones(100_000)}, {})
    with SafetensorsFile(path) as file:
        os.truncate(path, 100_000)
        with pytest.raises(InvalidFileError, match="became shorter"):
            file.read("a")


def test_a_tensor_larger_than_the_memory_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write(path, {"a": np.ones(2)}, {})

    def refuse(*_args: Any, **_keywords: Any) -> None:
        raise MemoryError

    with SafetensorsFile(path) as file:
        monkeypatch.setattr(np, "empty", refuse)
        with pytest.raises(AlphaError, match=r"Tensor 'a' of .* needs 16 bytes of memory, more than is free"):
            file.read("a")


def test_a_full_disk_is_an_error_and_the_old_file_stays(tmp_path):
    with tiny_disk(tmp_path / "disk", "256k") as disk:
        path = disk / "x.safetensors"
        write(path, {"a": np.ones(4000)}, {})
        before = path.read_bytes()
        with pytest.raises(AlphaError, match=r"Cannot write .*x\.safetensors: No space left on device\.$"):
            write(path, {"a": np.ones(100_000)}, {})
        assert path.read_bytes() == before
        assert os.listdir(disk) == [path.name]  # noqa: PTH208


def test_a_read_only_folder_is_an_error(tmp_path):
    write(tmp_path / "x.safetensors", {"a": np.ones(4)}, {})
    with read_only_folder(tmp_path / "x.safetensors") as folder:
        with pytest.raises(AlphaError, match=r"Cannot write .*/x\.safetensors: Permission denied\.$"):
            write(folder / "x.safetensors", {"a": np.ones(9)}, {})
        assert read_all(folder / "x.safetensors")["a"].size == 4
        assert len(list(folder.iterdir())) == 1


def written_as_bfloat16(path: Path, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored halves by the package, and what is read back."""
    write(path, {"x": to_storable("x", values)}, {}, bfloat16=["x"])
    ((name, entry),) = safetensors.deserialize(path.read_bytes())
    assert (name, entry["dtype"], entry["shape"]) == ("x", "BF16", list(values.shape))
    return np.frombuffer(bytes(entry["data"]), "<u2").reshape(values.shape), read_all(path)["x"]


EVERY_HALF = np.arange(1 << 16, dtype="<u2")
HALVES = np.stack([np.zeros_like(EVERY_HALF), EVERY_HALF], -1).view("<f4").reshape(-1)
"""Every number of bfloat16, at the place of its bits."""


def test_every_bfloat16_is_read_and_written_with_the_same_bits(tmp_path):
    header = {"x": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 1 << 17]}}
    path = file_of(tmp_path / "x.safetensors", header, EVERY_HALF.tobytes())
    loaded = read_all(path)["x"]
    np.testing.assert_array_equal(loaded, HALVES.reshape(256, 256), strict=True)
    stored, _ = written_as_bfloat16(path, loaded)
    quiet = np.where(np.isnan(HALVES), EVERY_HALF | 0x40, EVERY_HALF)  # a signalling NaN becomes a quiet one
    np.testing.assert_array_equal(stored.reshape(-1), quiet)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(bits=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 2**16 - 1).map(lambda half: half << 16 | 0x8000)))
def test_rounding_to_bfloat16_is_to_the_nearest_and_ties_go_to_the_even(tmp_path_factory, bits):
    values = np.array([*bits, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, 1, 0x8000, 0x8001], "<u4").view("<f4")
    stored, loaded = written_as_bfloat16(tmp_path_factory.getbasetemp() / "half.safetensors", values)
    np.testing.assert_array_equal(loaded, HALVES[stored], strict=True)
    for value, half in zip(values.tolist(), stored.tolist(), strict=True):
        if math.isnan(value):
            assert np.isnan(HALVES[half])
            continue
        assert half >> 15 == (math.copysign(1, value) < 0)
        # As IEEE 754 rounds: 2^128 stands for infinity as if it were a number. Sizes have the order of bits.
        finite = 2.0**128 if half & 0x7FFF == 0x7F80 else abs(float(HALVES[half]))
        error = abs(min(abs(value), 2.0**128) - finite)
        for other in ((half & 0x7FFF) - 1, (half & 0x7FFF) + 1):
            if 0 <= other <= 0x7F80:
                distance = abs(min(abs(value), 2.0**128) - (2.0**128 if other == 0x7F80 else float(HALVES[other])))
                assert error < distance or (error == distance and half % 2 == 0)


def test_a_large_tensor_of_bfloat16_is_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_ROUNDED_TOGETHER", 7)
    values = HALVES[1000:1100].reshape(4, 25)
    path = tmp_path / "x.safetensors"
    write(path, {"a": values, "b": np.ones(3), "c": np.ones(3, np.uint8)}, {}, bfloat16={"a"})
    for name, array in read_all(path).items():
        np.testing.assert_array_equal(array, {"a": values, "b": np.ones(3), "c": np.ones(3)}[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_only_float32_is_written_as_bfloat16(tmp_path, dtype):
    with pytest.raises(TypeError, match="Tensor x cannot be stored as BF16: its dtype is"):
        write(tmp_path / "x.safetensors", {"x": np.ones(2, dtype)}, {}, bfloat16=["x"])
    assert not list(tmp_path.iterdir())


JSON_TEXTS = ['{"a":1,"a":1}', "NaN", "-Infinity", "1e999", "9" * 21, '"\\ud800"', '["\\udc00x"]', '{"\\ud83d":1}', "{"]


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_strict_json_refuses(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_strict_json_accepts_what_is_json():
    value = {"a": [1, -2.5, True, None, "é🙂\x00"], "b": {"c": 18446744073709551615}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False)) == value


SIZES = {"U8": 1, "I16": 2, "F32": 4, "F64": 8, "BF16": 2, "U9": 1}
TENSORS = st.lists(
    st.tuples(
        st.sampled_from([*SIZES] + ["U8", "I16", "F32"] * 4),
        st.lists(st.sampled_from([1, 2, 3, 1, 2, 3, 1, 2, 3, 0]), max_size=4),
    ),
    min_size=1,
    max_size=4,
)
WRONG = st.tuples(
    st.sampled_from([None, None, "shape", "data_offsets"]), st.integers(0, 3), st.sampled_from([-1, 1, 8])
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    tensors=TENSORS,
    order=st.randoms(use_true_random=False),
    wrong=WRONG,
    extra=st.sampled_from([0, 0, 0, -1, 1, 8]),
    indent=st.sampled_from([None, 0, 3]),
)
def test_what_this_reader_accepts_the_package_accepts_too(tmp_path_factory, tensors, order, wrong, extra, indent):
    entries, end = [], 0
    for dtype, shape in tensors:
        start, end = end, end + int(np.prod(shape, dtype=int)) * SIZES[dtype]
        entries.append({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
    field, place, change = wrong
    if field and (values := entries[place % len(entries)][field]):
        values[place % len(values)] += change
    order.shuffle(entries)
    header = {"__metadata__": {"k": "v"}} | {f"t{number}": entry for number, entry in enumerate(entries)}
    data = np.arange(max(0, end + extra)).astype(np.uint8).tobytes()
    path = tmp_path_factory.getbasetemp() / "made.safetensors"
    file_of(path, json.dumps(header, indent=indent).encode(), data)
    try:
        loaded = read_all(path)
    except AlphaError:
        # Nothing is refused without a reason: it is wrong, empty, or of an unknown dtype.
        assert field or extra or any(0 in shape or dtype == "U9" for dtype, shape in tensors)
        return
    expected = by_the_package(path)
    assert set(loaded) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_what_the_package_writes_is_read(tmp_path_factory, seed, count):
    generator = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "package.safetensors"
    arrays = {}
    for _ in range(count):
        shape = [generator.randint(1, 4) for _ in range(generator.randint(0, 4))]
        name = "".join(generator.choice('aé"\\\n🙂.') for _ in range(generator.randint(0, 5)))
        dtype = generator.choice([np.float16, np.float32, np.int64, np.uint8])
        arrays[name] = np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
    save_file(arrays, path, {"é\n": '"\\'})
    loaded = read_all(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_the_package_still_accepts_what_this_reader_is_stricter_about(tmp_path):
    """The reason for a reader of our own; when this fails, look whether the package's will do."""
    path = file_of(tmp_path / "x.safetensors", *HOSTILE["duplicate"])
    with safetensors.safe_open(path, framework="np") as file:
        assert list(file.keys()) == ["a"]
