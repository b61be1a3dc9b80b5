"""The bundle of compiled kernels: current, valid, packed as described, refused when damaged."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import Future
from pathlib import Path

import pytest

from alpha.backend_helios_device import VulkanError
from alpha.backend_helios_kernels import Bundle, Constant, Kernel, Pipelines, read_bundle
from alpha.errors import AlphaError

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "alpha" / "kernels.zip"
KERNELS = read_bundle().kernels


def run_script(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "build_scripts" / "kernel_bundle.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of all that the bundle is made from, and of the bundle."""
    for folder in ("kernels", "build_scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "alpha").mkdir()
    for name in (BUNDLE.name, "activation.py"):
        shutil.copy(ROOT / "alpha" / name, tmp_path / "alpha")
    return tmp_path


def test_the_bundle_is_what_the_sources_give() -> None:
    result = run_script("--check")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("changed", ["common.glsl", "pick.comp"])
def test_a_bundle_of_other_sources_is_noticed(checkout: Path, changed: str) -> None:
    with (checkout / "kernels" / changed).open("a") as file:
        file.write("// changed\n")
    result = run_script("--check", root=checkout)
    assert result.returncode == 1
    assert "is not made from these sources" in result.stderr and "pick" in result.stderr


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('push = ["in i32 step"', 'push = ["uint early", "in i32 step"', "addresses come first"),
        ('push = ["in i32 step"', 'push = ["output i32 step"', "is neither"),
        ('constants = ["THREADS = 256"]', 'constants = ["threads = 256"]', "is not of the form"),
        (
            "[random_uint16.variants]\nu32 = {}",
            '[random_uint16.variants]\nu32 = { requires = ["magic"] }',
            "an unknown",
        ),
        ("[random_uint16.variants]\nu32 = {}", "", "has no variants"),
        ('push = ["in i32 step"', 'push = ["@absent", "in i32 step"', 'no "@absent" in [shared.push]'),
        ("[random_uint16.variants]\nu32 = {}", 'variants = "floats"', 'no "floats" in [shared.variants]'),
        ("[pick]", "[absent]\nvariants.f32 = {}\nconstants = ['THREADS = 1']\n[pick]", "is missing"),
    ],
)
def test_a_wrong_manifest_is_refused(checkout: Path, before: str, after: str, message: str) -> None:
    manifest = checkout / "kernels" / "manifest.toml"
    text = manifest.read_text()
    assert before in text
    manifest.write_text(text.replace(before, after))
    result = run_script("--check", root=checkout)
    assert result.returncode == 1
    assert message in result.stderr


FAKE_COMPILER = """#!/bin/sh
[ "$1" = --version ] && { echo shaderc 2000.1; exit; }
for word; do case $word in *.comp) source=$word ;; esac; done
case $source in *bfloat16*) exit 1 ;; esac
echo "$source" >>"$(dirname "$0")/compiled"
for word; do [ "$previous" != -o ] || echo "module of $(basename "$source")" >"$word"; previous=$word; done
"""


def test_only_what_changed_is_compiled_and_what_cannot_be_is_left_out(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in {"GLSLC": FAKE_COMPILER, "SPIRV_VAL": "#!/bin/sh\n"}.items():
        path = checkout / name
        path.write_text(script)
        path.chmod(0o755)
        monkeypatch.setenv(name, str(path))
    folder, log = checkout / "kernels", checkout / "compiled"
    for source in folder.glob("*.comp"):
        source.unlink()
    entry = "[{0}]\nconstants = ['THREADS = 64']\n[{0}.variants]\nplain = {{}}\n"
    special = "wide = { requires = ['bfloat16'] }\n"
    (folder / "manifest.toml").write_text(entry.format("one") + entry.format("two") + special)
    for name in ("one", "two"):
        (folder / f"{name}.comp").write_text(f"// {name}\n")

    def compiled() -> list[str]:
        log.write_text("")
        result = run_script(root=checkout)
        assert (result.returncode, result.stderr) == (0, "")
        assert "two is made without its variants wide: shaderc 2000.1 has no bfloat16\n" in result.stdout
        return sorted(Path(line).stem for line in log.read_text().splitlines() if Path(line).parent == folder)

    assert compiled() == ["one", "two"]
    first = (checkout / "alpha" / "kernels.zip").read_bytes()
    assert compiled() == []
    assert (checkout / "alpha" / "kernels.zip").read_bytes() == first
    (folder / "two.comp").write_text("// changed\n")
    assert compiled() == ["two"]
    result = run_script("--check", root=checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert "lacks variants of two, which shaderc 2000.1 could not compile" in result.stderr
    (folder / "manifest.toml").write_text(entry.format("one") + entry.format("two"))
    assert run_script(root=checkout).returncode == 0
    assert run_script("--check", root=checkout).returncode == 0
    path = checkout / "GLSLC"
    path.write_text(FAKE_COMPILER.replace("module of", "another module of"))
    shutil.rmtree(checkout / ".cache")
    result = run_script("--check", root=checkout)
    assert "has other bytes than shaderc 2000.1 gives" in result.stderr


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda each: f"{each.name}.{each.variant}")
def test_arguments_are_packed_where_the_fields_are(kernel: Kernel) -> None:
    values = {field.name: index + 1 for index, field in enumerate(kernel.fields)}
    packed = kernel.pack(values)
    assert len(packed) == kernel.push_bytes <= 128
    for field in kernel.fields:
        assert struct.unpack_from("<" + field.format, packed, field.offset) == (values[field.name],)
    assert kernel.spirv[:4] == struct.pack("<I", 0x07230203)
    assert kernel.constants[0].name == "THREADS"


def test_wrong_arguments_are_refused() -> None:
    kernel = KERNELS["sort_bounds", "i32"]
    good = {"ids": 1, "sorted": 2, "starts": 3, "count": 4, "rows": 5}
    assert kernel.pack({**good, "sorted": None}) == struct.pack("<QQQII", 1, 0, 3, 4, 5)
    for bad in ({"ids": 1, "count": 2}, {**good, "other": 1}, {**good, "count": -1}, {**good, "count": 0.5}):
        with pytest.raises(TypeError, match="sort_bounds"):
            kernel.pack(bad)


def test_constants_have_defaults_and_types() -> None:
    kernel = Kernel("k", "v", (), (Constant("THREADS", "uint", 256), Constant("SCALE", "float", 0.5)), (), b"")
    assert kernel.constant_values({}) == {0: 256, 1: 0x3F000000}
    assert kernel.constant_values({"THREADS": 64, "SCALE": 1.0}) == {0: 64, 1: 0x3F800000}
    for bad in ({"THREADS": 0.5}, {"THREADS": -1}, {"OTHER": 1}):
        with pytest.raises(TypeError):
            kernel.constant_values(bad)


def test_float32_needs_nothing_that_a_device_may_lack() -> None:
    bundle = read_bundle()
    assert [bundle.needed(each) for each in ("f32", "f16", "bf16")] == [set(), {"float16"}, {"float16"}]


class CountingDevice:
    def __init__(self) -> None:
        self.made: list[tuple[dict[int, int], int, int]] = []

    def pipeline(self, spirv: bytes, constants: dict[int, int], push_bytes: int, subgroup_size: int) -> int:
        self.made.append((constants, push_bytes, subgroup_size))
        return len(self.made)


def test_a_pipeline_is_made_once_for_its_constants() -> None:
    constants = (Constant("THREADS", "uint", 256), Constant("SUBGROUP_SIZE", "uint", 0))
    bundle = Bundle(
        {
            ("k", "v"): Kernel("k", "v", (), constants, (), b""),
            ("k", "half"): Kernel("k", "half", (), constants, ("float16",), b""),
        }
    )
    device = CountingDevice()
    pipelines = Pipelines(device, frozenset(), bundle)
    given = ({}, {"THREADS": 64}, {}, {"SUBGROUP_SIZE": 32})
    assert [pipelines.get("k", "v", constants)[1].result() for constants in given] == [1, 2, 1, 3]
    assert device.made == [({0: 256, 1: 0}, 0, 0), ({0: 64, 1: 0}, 0, 0), ({0: 256, 1: 32}, 0, 32)]
    assert pipelines.kernel("k", "half").requires == ("float16",)
    with pytest.raises(AlphaError, match="needs float16"):
        pipelines.get("k", "half", {})
    with pytest.raises(KeyError, match="variants"):
        pipelines.get("k", "other", {})


class SlowDevice(CountingDevice):
    """Compiles only two side by side, and nothing before `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.gate, self.begun = threading.Barrier(2, timeout=30), threading.Event(), threading.Semaphore(0)

    def pipeline(self, spirv: bytes, constants: dict[int, int], push_bytes: int, subgroup_size: int) -> int:
        self.begun.release()
        self.gate.wait()
        self.both.wait()
        if constants[0] == 13:
            raise VulkanError("cannot compile 13")
        return super().pipeline(spirv, constants, push_bytes, subgroup_size)


def test_pipelines_are_compiled_side_by_side_until_they_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpha.workers.available_cpus", lambda: 2)
    device = SlowDevice()
    bundle = Bundle({("k", "v"): Kernel("k", "v", (), (Constant("THREADS", "uint", 256),), (), b"")})
    pipelines = Pipelines(device, frozenset(), bundle)

    def of(*threads: int) -> list[Future[int]]:
        return [pipelines.get("k", "v", {"THREADS": each})[1] for each in threads]

    begun, queued = of(1, 2), of(3, 4)
    for _ in begun:
        device.begun.acquire()
    pipelines.give_up()
    device.gate.set()
    assert sorted(each.result() for each in begun) == [1, 2]
    assert all(each.cancelled() for each in queued)
    pipelines.finish(of(1, 3, 4))
    assert len(device.made) == 4
    with pytest.raises(VulkanError, match="cannot compile 13"):
        pipelines.finish(of(13, 5))


def test_a_missing_bundle_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match=r"are missing; install Alpha again"):
        read_bundle(tmp_path / "kernels.zip")


_WRONG: dict[str, tuple[str, str, object]] = {  # what of the description, which entry of it, and what it says
    "type of a number": ("fields", "type", "f64"),
    "type of an address": ("fields", "type", 4),
    "direction": ("fields", "direction", "up"),
    "offset": ("fields", "offset", 3),
    "offset that is a text": ("fields", "offset", "0"),
    "name of a field": ("fields", "name", ["x"]),
    "type of a constant": ("constants", "type", "double"),
    "default that is a text": ("constants", "default", "1"),
    "default below 0": ("constants", "default", -1),
    "default beyond 32 bits": ("constants", "default", 1 << 32),
    "name of a constant": ("constants", "name", None),
    "requirement": ("requires", "", 7),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_a_bundle_whose_description_has_other_types_is_refused(wrong: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(BUNDLE) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(files["manifest.json"])
    entry = next(each for each in description["kernels"].values() if each["constants"])
    variant = next(iter(entry["variants"].values()))
    part, key, value = _WRONG[wrong]
    if part == "requires":
        variant["requires"] = [value]
    elif part == "constants":
        entry["constants"][0] |= {"type": "uint"} | {key: value}
    else:
        number = wrong == "type of a number"
        next(each for each in variant["fields"] if (each["direction"] == "") is number)[key] = value
    files["manifest.json"] = json.dumps(description).encode()
    with zipfile.ZipFile(tmp_path / "kernels.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(AlphaError, match=r"cannot be read .*; install Alpha again"):
        read_bundle(tmp_path / "kernels.zip")


def test_a_default_beyond_float32_is_refused() -> None:
    with pytest.raises(TypeError, match="is a 32-bit number"):
        Constant("EPSILON", "float", 1e300)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.zip"
    content = BUNDLE.read_bytes()
    with zipfile.ZipFile(BUNDLE) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(files["manifest.json"])
    position = content.index(files["pick.bits32.spv"]) + 100
    flipped = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
    for damaged in (b"", content[:1000], content[: len(content) // 2], flipped):
        path.write_bytes(damaged)
        with pytest.raises(AlphaError, match="cannot be read"):
            read_bundle(path)
    other_module = {**files, "pick.bits32.spv": files["pick.bits32.spv"][::-1]}
    other_format = {**files, "manifest.json": json.dumps({**description, "format": 2}).encode()}
    no_module = {name: each for name, each in files.items() if name != "pick.bits32.spv"}
    for damaged_files in (other_module, other_format, no_module, {"manifest.json": b"[]"}, {"manifest.json": b"{"}):
        with zipfile.ZipFile(path, "w") as archive:
            for name, each in damaged_files.items():
                archive.writestr(name, each)
        with pytest.raises(AlphaError, match="cannot be read"):
            read_bundle(path)


# Places in the entry of a zip's directory and in that of the file itself, what to put there, and what is said of it.
OTHER_ZIPS = {
    "encrypted": (8, 6, 1, "encrypted"),
    "method": (10, 8, 99, "a method that is not used here"),
    "version": (6, 4, 255, "version"),
}


@pytest.mark.parametrize("case", OTHER_ZIPS)
def test_a_bundle_that_zipfile_cannot_read_is_refused(tmp_path: Path, case: str) -> None:
    in_directory, in_file, value, reason = OTHER_ZIPS[case]
    path = tmp_path / "kernels.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", b"{}")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + in_directory] = value
    content[content.index(b"PK\3\4") + in_file] = value
    path.write_bytes(content)
    with pytest.raises(AlphaError, match=f"cannot be read .*{reason}"):
        read_bundle(path)


def test_a_bundle_of_damaged_compressed_data_or_no_file_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"{}" * 500)
    content = bytearray(path.read_bytes())
    content[43] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(AlphaError, match="cannot be read"):
        read_bundle(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AlphaError, match="not a regular file"):
        read_bundle(path)
