import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import read_only_folder, tiny_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from small_checkpoint import MODEL, TRAINING, assert_equal, small_checkpoint, tensors

from alpha import checkpoint, files
from alpha.config import ModelConfig
from alpha.errors import AlphaError
from alpha.option import to_mapping
from alpha.safetensors_file import SafetensorsFile, write


def forged(path: Path, arrays: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A file that anyone could make: written by the package, its digests computed here from their definition."""
    arrays = tensors() if arrays is None else arrays
    metadata = {
        "alphaCheckpoint": "1",
        "step": "10",
        "model": json.dumps(to_mapping(MODEL)),
        "training": json.dumps(to_mapping(TRAINING)),
        "tokenizer": "{}",
        "state": "{}",
        "digests": json.dumps({name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}),
    }
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    table = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
    canonical = json.dumps([metadata, table], sort_keys=True).encode()
    save_file(arrays, path, {"digest": hashlib.sha256(canonical).hexdigest()} | metadata)
    return path


def test_a_checkpoint_is_read_back_bit_for_bit(tmp_path):
    saved = small_checkpoint(step=10, val_loss=2.25)
    path = checkpoint.save(tmp_path, saved)
    assert path == tmp_path / "checkpoint-10.safetensors"
    loaded = checkpoint.load(path)
    assert_equal(loaded, saved)
    assert all(array.flags.writeable for array in loaded.tensors.values())
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(saved.tensors)
        assert file.metadata()["step"] == "10"
        assert json.loads(file.metadata()["tokenizer"]) == saved.tokenizer


def test_weights_stored_in_bfloat16_are_float32_when_loaded(tmp_path):
    """Alpha writes none, but the digests are those of the bytes as they are stored."""
    path = checkpoint.save(tmp_path, small_checkpoint())
    with SafetensorsFile(path) as file:
        metadata, stored = dict(file.metadata), {name: file.read(name) for name in file.entries}
    half = np.array([0x3F81, 0xBF7F], "<u2")
    values = np.resize((half.astype("<u4") << 16).view("<f4"), stored["wte.weight"].shape)
    digests = json.loads(metadata["digests"])
    digests["wte.weight"] = hashlib.sha256(np.resize(half, values.shape).tobytes()).hexdigest()
    metadata["digests"] = json.dumps(digests)
    shapes = {name: (array.dtype.name, array.shape) for name, array in stored.items()}
    metadata["digest"] = checkpoint._header_digest(metadata, shapes | {"wte.weight": ("bfloat16", values.shape)})
    write(path, stored | {"wte.weight": values}, metadata, bfloat16=["wte.weight"])
    np.testing.assert_array_equal(checkpoint.load(path).tensors["wte.weight"], values, strict=True)


def test_a_file_made_from_the_description_of_the_digests_is_a_checkpoint(tmp_path):
    loaded = checkpoint.load(forged(tmp_path / "forged.safetensors"))
    assert loaded.model == MODEL
    np.testing.assert_array_equal(loaded.tensors["wte.weight"], tensors()["wte.weight"])


def test_numbers_that_json_does_not_have_become_none(tmp_path):
    state = {"valLoss": math.nan, "best": [np.float32(np.inf), np.int64(3)], "elapsed": np.float64(0.5)}
    path = checkpoint.save(tmp_path, small_checkpoint(state=state))
    assert checkpoint.load(path).state == {"valLoss": None, "best": [None, 3], "elapsed": 0.5}


def test_weights_alone_are_loaded_without_reading_the_optimizer(tmp_path):
    saved = small_checkpoint()
    path = checkpoint.save(tmp_path, saved)
    entry = checkpoint.read_header(path).entries["optimizer.moment.wte.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start] ^= 1
    path.write_bytes(content)
    loaded = checkpoint.load(path, weights_only=True)
    assert set(loaded.tensors) == {name for name in saved.tensors if not name.startswith("optimizer.")}
    with pytest.raises(AlphaError, match=r"damaged: the content of tensor 'optimizer\.moment\.wte\.weight'"):
        checkpoint.load(path)


def test_the_header_is_read_without_the_tensors(tmp_path):
    saved = small_checkpoint()
    path = checkpoint.save(tmp_path, saved)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:start] + bytes(path.stat().st_size - start))
    header = checkpoint.read_header(path)
    assert (header.step, header.model, header.tokenizer, header.state) == (10, MODEL, saved.tokenizer, saved.state)
    assert header.entries["wpe.weight"].shape == (4, 8)
    assert header.entries["wpe.weight"].dtype == "float16"


def test_a_flipped_bit_in_any_byte_is_found(tmp_path):
    path = checkpoint.save(tmp_path, small_checkpoint())
    content = path.read_bytes()
    descriptor = os.open(path, os.O_WRONLY)
    for place, byte in enumerate(content):
        os.pwrite(descriptor, bytes([byte ^ 1 << (5 * place % 8)]), place)
        with pytest.raises(AlphaError):
            checkpoint.load(path)
        os.pwrite(descriptor, bytes([byte]), place)
    os.close(descriptor)
    checkpoint.load(path)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "overwrite", "truncate", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8) | st.sampled_from([b'"', b"0", b"\\u0061", b",", b"{}", b"\x00" * 8]),
    ),
    min_size=1,
    max_size=3,
)


def mutate(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, value in edits:
        start = int(place * len(content))
        if kind == "flip" and content:
            content = content[:start] + bytes([content[start] ^ 1 << value[0] % 8]) + content[start + 1 :]
        elif kind == "insert":
            content = content[:start] + value + content[start:]
        elif kind == "delete":
            content = content[:start] + content[start + value[0] :]
        elif kind == "overwrite":
            content = content[:start] + value + content[start + len(value) :]
        elif kind == "truncate":
            content = content[:start]
        elif kind == "swap":
            half = len(content) // 2
            content = content[:start] + content[half : half + 8] + content[start + 8 :]
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("whole"), small_checkpoint()).read_bytes()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(edits=EDITS, keep_header_size=st.booleans())
def test_mutations_are_refused_or_change_nothing(tmp_path_factory, whole, edits, keep_header_size):
    path, content = tmp_path_factory.getbasetemp() / "mutated.safetensors", whole
    if keep_header_size:
        mutated = mutate(content, edits)
    else:  # an editor of headers, who corrects the size
        size = 8 + int.from_bytes(content[:8], "little")
        header = mutate(content[8:size], edits)
        mutated = len(header).to_bytes(8, "little") + header + content[size:]
    path.write_bytes(mutated)
    try:
        loaded = checkpoint.load(path)
    except AlphaError:
        return
    assert_equal(loaded, small_checkpoint())


def hostile_cases() -> dict[str, tuple[dict[str, Any], str]]:
    model, training = to_mapping(MODEL), to_mapping(TRAINING)
    digests = dict.fromkeys(tensors(), "0" * 64)
    return {
        "format missing": ({"alphaCheckpoint": None}, "is a safetensors file, but not an Alpha checkpoint"),
        "format of the future": ({"alphaCheckpoint": "2"}, "has format '2'; this version of Alpha reads '1'"),
        "state missing": ({"state": None}, "damaged: its metadata are not complete"),
        "more metadata": ({"more": "1"}, "damaged: its metadata are not complete"),
        "negative step": ({"step": "-1"}, "wrong types"),
        "boolean step": ({"step": "true"}, "wrong types"),
        "step not JSON": ({"step": "ten"}, "damaged: Expecting value"),
        "state not an object": ({"state": "[]"}, "wrong types"),
        "deep state": ({"state": '{"a":' + "[" * 200_000}, "damaged: maximum recursion"),
        "NaN": ({"state": '{"a":NaN}'}, "NaN is not JSON"),
        "duplicate": ({"state": '{"a":1,"a":1}'}, "a key occurs twice"),
        "half a character": ({"tokenizer": '{"a":"\\ud800"}'}, "surrogates not allowed"),
        "huge number": ({"state": '{"a":' + "9" * 5000 + "}"}, "too large"),
        "digests of others": ({"digests": '{"x":"0"}'}, "its digests are not those of its tensors"),
        "wrong digests": ({"digests": json.dumps(digests)}, "the content of tensor '.*' does not match its digest"),
        "digests not text": ({"digests": json.dumps(digests | {"wte.weight": 7})}, "does not match its digest"),
        "unknown option": ({"model": json.dumps(model | {"width": 3})}, "cannot be used .* Unknown key 'width'"),
        "option of a wrong type": ({"training": json.dumps(training | {"iters": []})}, "'iters' in .* must be a whole"),
        "option out of range": ({"model": json.dumps(model | {"layers": 10**9})}, "at most 1024"),
        "options contradict": ({"model": json.dumps(model | {"heads": 3})}, "is not a multiple of"),
        "model is wider": ({"model": json.dumps(model | {"dim": 16})}, "wte.weight has shape .*, but the model is 16"),
        "model is longer": ({"model": json.dumps(model | {"block": 5})}, "wpe.weight does not have the shape"),
        "model is deeper": ({"model": json.dumps(model | {"layers": 2})}, "weights of 1 blocks, but the model has 2"),
    }


@pytest.mark.parametrize("case", hostile_cases())
def test_a_hostile_checkpoint_with_a_valid_digest_is_refused(tmp_path, case):
    changes, message = hostile_cases()[case]
    path = forged(tmp_path / "x.safetensors", **changes)
    with pytest.raises(AlphaError, match=message) as caught:
        checkpoint.load(path)
    assert caught.value.exit_code == 1
    assert len(str(caught.value)) < 400 + 2 * len(str(path))


def test_a_checkpoint_without_embeddings_is_refused(tmp_path):
    path = forged(tmp_path / "x.safetensors", {"h.0.x": np.ones(2)})
    with pytest.raises(AlphaError, match=r"wte\.weight has shape \(\)"):
        checkpoint.load(path)


def test_a_rotary_model_has_no_position_embedding(tmp_path):
    arrays = {name: array for name, array in tensors().items() if name != "wpe.weight"}
    model = ModelConfig(block=4, layers=1, dim=8, heads=2, position="rope")
    path = checkpoint.save(tmp_path, small_checkpoint(model=model, tensors=arrays))
    assert checkpoint.load(path).model == model


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    save_file({"wte.weight": np.ones((2, 2))}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(AlphaError, match="is a safetensors file, but not an Alpha checkpoint"):
        checkpoint.load(tmp_path / "model.safetensors")


def test_the_newest_checkpoint_is_found_by_its_number(tmp_path):
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, small_checkpoint(step))
    for name in (".checkpoint-500.safetensors.77.tmp", "checkpoint-0900.safetensors", "checkpoint-٩٠٠.safetensors"):
        (tmp_path / name).touch()
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path)] == [9, 20, 100]
    assert checkpoint.find(tmp_path).name == "checkpoint-100.safetensors"
    assert checkpoint.find(tmp_path / "checkpoint-9.safetensors").name == "checkpoint-9.safetensors"


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(AlphaError, match="holds no checkpoint"):
        checkpoint.find(tmp_path)
    with pytest.raises(AlphaError, match="Cannot list the folder"):
        checkpoint.list_checkpoints(tmp_path / "missing")
    with pytest.raises(AlphaError, match="File name too long"):
        checkpoint.find(tmp_path / ("x" * 300))


def test_a_damaged_checkpoint_names_the_next_older_one(tmp_path):
    paths = [checkpoint.save(tmp_path, small_checkpoint(step)) for step in (5, 9, 10)]
    for path in paths[1:]:
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(AlphaError, match=r"is damaged: .*\. Use the older .*/checkpoint-9\.safetensors\.$"):
        checkpoint.load(checkpoint.find(tmp_path))
    with pytest.raises(AlphaError, match=r"Use the older .*/checkpoint-5\.safetensors\.$"):
        checkpoint.read_header(paths[1])
    os.truncate(paths[0], 4)
    with pytest.raises(AlphaError, match=r"not a whole safetensors file\. There is no older one beside it\.$"):
        checkpoint.load(paths[0])


@pytest.mark.parametrize("place", ["open", "fsync", "rename"])
def test_a_disk_that_fills_loses_nothing(tmp_path, monkeypatch, place):
    saved = small_checkpoint()
    path = checkpoint.save(tmp_path, saved)
    before = path.read_bytes()

    def refuse(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "rename":
            patch.setattr(Path, "replace", refuse)
        else:
            patch.setattr(files.os, place, refuse)
        with pytest.raises(AlphaError, match=r"Cannot write .*checkpoint-10\.safetensors: No space left on device\.$"):
            checkpoint.save(tmp_path, small_checkpoint(tensors=tensors(seed=1)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_loses_nothing(tmp_path):
    with tiny_disk(tmp_path / "disk", "256k") as disk:
        saved = small_checkpoint()
        path = checkpoint.save(disk, saved)
        with pytest.raises(AlphaError, match=r"Cannot write .*checkpoint-11\.safetensors: No space left on device\.$"):
            checkpoint.save(disk, small_checkpoint(11, tensors=tensors(rows=10_000)))
        assert [entry.name for entry in disk.iterdir()] == [path.name]
        assert_equal(checkpoint.load(checkpoint.find(disk)), saved)


def test_a_read_only_folder_is_an_error_and_its_checkpoint_can_be_used(tmp_path):
    saved = small_checkpoint()
    with read_only_folder(checkpoint.save(tmp_path, saved)) as folder:
        with pytest.raises(AlphaError, match=r"Cannot write .*checkpoint-11\.safetensors: Permission denied\.$"):
            checkpoint.save(folder, small_checkpoint(11))
        assert_equal(checkpoint.load(checkpoint.find(folder)), saved)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from small_checkpoint import small_checkpoint, tensors
from alpha import checkpoint, files

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

folder, instant = Path(sys.argv[1]), sys.argv[2]
arrays = tensors(rows=30_000)
checkpoint.save(folder, small_checkpoint(1, tensors=arrays))
print("saved", flush=True)
if instant == "before fsync":
    files.os.fsync = die
elif instant == "before rename":
    Path.replace = die
elif instant == "after rename":
    files.sync_folder = die
for step in range(2, 1000):
    checkpoint.save(folder, small_checkpoint(step, tensors=arrays))
"""


def test_a_process_killed_while_saving_leaves_a_whole_newest_checkpoint(tmp_path):
    instants = ["before fsync", "before rename", "after rename", "0.00", "0.03", "0.07", "0.11", "0.16"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    writers = []
    for instant in instants:
        (tmp_path / instant).mkdir()
        command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / instant), instant]
        writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
    torn = 0
    for instant, writer in zip(instants, writers, strict=True):
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"saved\n"
        if instant[0].isdigit():
            time.sleep(float(instant))
            writer.kill()
        assert writer.wait(60) == -signal.SIGKILL
        writer.stdout.close()
        newest = checkpoint.load(checkpoint.find(tmp_path / instant))
        assert newest.step == 2 or (newest.step == 1 and instant.startswith("before")) or instant[0].isdigit()
        np.testing.assert_array_equal(newest.tensors["wte.weight"], tensors(rows=30_000)["wte.weight"])
        torn += any(name.name.startswith(".") for name in (tmp_path / instant).iterdir())
    assert torn >= 2, "no writer was killed in the middle"
