"""The build of the executable: when it has nothing to do, what it says is missing, what it adds to Nuitka's work."""

import datetime
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build, working in a folder of the test."""
    monkeypatch.syspath_prepend(str(ROOT / "build_scripts"))
    import executable

    monkeypatch.setattr(executable, "DIST", tmp_path / "dist")
    monkeypatch.setattr(executable, "STAMP", tmp_path / "dist" / "build.json")
    monkeypatch.setattr(executable, "WORK", tmp_path / "work")
    monkeypatch.setattr(executable, "LOG", tmp_path / "work" / "log")
    return executable


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "build_scripts"))
    import executable_contents

    return executable_contents


def pretend_to_build(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Puts a single output in place of what Nuitka makes; returns the inputs of each build."""
    builds: list[Any] = []

    def install() -> dict[str, Any]:
        build.DIST.mkdir(exist_ok=True)
        (build.DIST / "alpha-onefile").write_text("program")
        return {
            "glibc": "2.35",
            "glibcOfFallback": "2.36",
            "bytes": {},
            "sha256": {"alpha-onefile": build.sha256(build.DIST / "alpha-onefile")},
        }

    monkeypatch.setattr(build, "compile_alpha", builds.append)
    monkeypatch.setattr(build, "install", install)
    monkeypatch.setattr(build, "check_tools", lambda: None)
    return builds


def test_what_is_up_to_date_is_not_built_again(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builds = pretend_to_build(build, monkeypatch)
    build.main([])
    build.main([])
    assert len(builds) == 1
    assert capsys.readouterr().out.endswith("exe: dist/alpha and dist/alpha-onefile are up to date\n")
    build.main(["--force"])
    assert len(builds) == 2


@pytest.mark.parametrize("damage", ["content", "missing", "stamp"])
def test_damaged_outputs_are_built_again(build: ModuleType, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    builds = pretend_to_build(build, monkeypatch)
    build.main([])
    if damage == "content":
        (build.DIST / "alpha-onefile").write_text("another")
    elif damage == "missing":
        (build.DIST / "alpha-onefile").unlink()
    else:
        build.STAMP.write_text("{")
    build.main([])
    assert len(builds) == 2


def test_another_input_is_built_again(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = pretend_to_build(build, monkeypatch)
    build.main([])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    build.main([])
    assert [each["date"] for each in builds[1:]] == ["2023-11-14T22:13:20+00:00"]
    assert {"alpha.py", "alpha/cli.py", "alpha/kernels.zip", "build_scripts/executable.py"} <= builds[0]["files"].keys()
    assert json.loads(build.STAMP.read_bytes())["inputs"] == builds[1]


def test_what_is_missing_is_named_with_the_packages_in_one_command(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as error:
        build.main([])
    packages = "gcc libc6-dev binutils libc-bin"
    assert str(error.value).startswith("exe: error: ")
    assert str(error.value).endswith(
        f"building needs gcc, objdump, ldd; on Debian or Ubuntu: sudo apt-get install {packages}."
    )
    # Debian's Python without its package of headers and static library.
    (tmp_path / "dpkg-query").write_text("#!/bin/sh\n")
    (tmp_path / "dpkg-query").chmod(0o755)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(build.sysconfig, "get_config_var", lambda name: str(tmp_path / "missing"))
    with pytest.raises(SystemExit, match=r"Python's headers; .* libc-bin python3\.\d+-dev\.$"):
        build.check_tools()


def test_a_python_without_a_static_library_is_refused_with_another_to_use(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(build.sysconfig, "get_config_var", {"LIBPL": str(tmp_path), "LIBRARY": "libpython3.13.a"}.get)
    (tmp_path / "Python.h").write_text("")
    with pytest.raises(SystemExit) as error:
        build.check_tools()
    assert f"the Python of {tmp_path} has no libpython3.13.a." in str(error.value)
    assert "PYTHON=/usr/bin/python3 VENV=.venv-exe build_scripts/exe" in str(error.value)


def test_a_failure_of_nuitka_is_shown(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nuitka", reason="NUITKA IS NOT INSTALLED: build_scripts/exe installs it")
    monkeypatch.setattr(build, "OPTIONS", ("--no-such-option",))
    build.WORK.mkdir()
    facts = {"version": "1", "commit": "abc", "date": "2026-11-25T12:00:00+00:00"}
    with pytest.raises(SystemExit, match=r"Nuitka failed with exit code [12]"):
        build.compile_alpha(facts)
    assert capsys.readouterr().err.strip()
    assert not build.DIST.exists()


def test_the_archive_has_the_same_bytes_each_time(build: ModuleType, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    build.DIST.mkdir()
    moment = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC)
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name / "alpha"
        (folder / "inner").mkdir(parents=True)
        (folder / "alpha").write_text("program")
        (folder / "alpha").chmod(0o700 if name == "a" else 0o755)
        (folder / "inner" / "data").write_text("data")
        build.write_archive(folder, moment)
        found.append((build.DIST / "alpha.tar.zst").read_bytes())
    assert found[0] == found[1]
    plain = tmp_path / "alpha.tar"
    plain.write_bytes(zstandard.decompress(found[0]))
    with tarfile.open(plain) as archive:
        modes = {entry.name: (entry.mode, entry.mtime) for entry in archive}
    second = round(moment.timestamp())
    assert modes == {
        "alpha": (0o755, second),
        "alpha/alpha": (0o755, second),
        "alpha/inner": (0o755, second),
        "alpha/inner/data": (0o644, second),
    }


# --- what is put beside Nuitka's work ---------------------------------------------------------------------------------


SHARED = ("-shared", "-fPIC", "-Wl,-soname")


def compile_c(path: Path, text: str, *arguments: str) -> Path:
    source = path.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["gcc", str(source), "-o", str(path), *arguments], check=True)
    source.unlink()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program that needs zlib and glibc."""
    if not (shutil.which("gcc") and shutil.which("objdump")):
        pytest.skip("gcc and objdump are not installed")
    made = tmp_path / "made"
    made.mkdir()
    return made


def test_libraries_that_a_bare_system_lacks_are_added(contents: ModuleType, folder: Path) -> None:
    libstdcxx = contents.system_library("libstdc++.so.6")
    compile_c(folder / "alpha", "int main(void) { return 0; }", "-Wl,--no-as-needed", str(libstdcxx))
    contents.add_missing_libraries(folder)
    assert sorted(path.name for path in folder.rglob("*.so*")) == ["libgcc_s.so.1", "libstdc++.so.6"]
    assert {path.parent.name for path in folder.rglob("*.so*")} == {"fallback"}
    assert [path.name for path in contents.shared_libraries(folder)] == ["libgcc_s.so.1", "libstdc++.so.6"]
    major, minor = map(int, contents.newest_glibc(contents.elf_files(folder)).split("."))
    assert major == 2
    assert 4 <= minor <= 60


def test_a_library_that_is_nowhere_is_an_error(contents: ModuleType, folder: Path) -> None:
    own = compile_c(folder / "libown.so", "int own(void) { return 1; }", "-shared", "-fPIC", "-Wl,-soname,libown.so")
    compile_c(folder / "alpha", "int own(void); int main(void) { return own(); }", str(own))
    own.unlink()
    with pytest.raises(SystemExit, match=r"exe: error: the library libown\.so is needed"):
        contents.add_missing_libraries(folder)


@pytest.mark.parametrize("name", ["libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"])
def test_libraries_of_glibc_are_known(contents: ModuleType, name: str) -> None:
    assert contents.GLIBC.fullmatch(name)
    assert not contents.GLIBC.fullmatch(f"x{name}")


def test_libraries_of_the_fallback_folder_are_opened_only_where_the_system_has_none(folder: Path) -> None:
    (folder / "fallback").mkdir()
    # libneeding sorts before or after what it needs, whatever the order of the folder is.
    needed = [
        compile_c(folder / "fallback" / f"lib{name}.so", f"int {name}(void) {{ return 7; }}", *SHARED, f"lib{name}.so")
        for name in ("aaa", "zzz")
    ]
    text = "int aaa(void); int zzz(void); int needing(void) { return aaa() * zzz(); }"
    compile_c(folder / "fallback" / "libneeding.so", text, *SHARED, "libneeding.so", *map(str, needed))
    compile_c(folder / "fallback" / "libm.so.6", "int of_the_fallback(void) { return 1; }", *SHARED, "libm.so.6")
    program = compile_c(
        folder / "alpha",
        (ROOT / "build_scripts" / "executable_start.c").read_text()
        + """
int main(void) {
    int (*needing)(void) = (int (*)(void))dlsym(dlopen("libneeding.so", RTLD_LAZY | RTLD_NOLOAD), "needing");
    void *math = dlopen("libm.so.6", RTLD_LAZY | RTLD_NOLOAD);
    printf("%d %d %d", needing(), dlsym(math, "cos") != NULL, dlsym(math, "of_the_fallback") != NULL);
}
""",
        "-ldl",
    )
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "49 1 0"


def test_the_path_is_found_without_proc(tmp_path: Path, folder: Path) -> None:
    source = (ROOT / "build_scripts" / "executable_start.c").read_text()
    program = compile_c(
        folder / "alpha",
        source.replace("/proc/self/exe", "/nowhere/self/exe")  # as if /proc were not there
        + """
int main(int count, char **arguments) {
    char path[4096];
    ssize_t length = readlink(count > 1 ? arguments[1] : "/nowhere/self/exe", path, sizeof path);
    printf("%ld %.*s", (long)length, (int)(length < 0 ? 0 : length), path);
}
""",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
    )
    (tmp_path / "link").symlink_to("target")

    def output(*command: str) -> str:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

    assert output("./alpha") == f"{len(str(program))} {program}"
    assert output("./alpha", str(tmp_path / "link")) == "6 target"
    assert output("./alpha", "/missing") == "-1 "


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "x"}, {"expression": "MIT OR Apache-2.0"}),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, {"license": {"name": "MIT License"}}),
        ({"License": "BSD-3-Clause\nCopyright ..."}, {"license": {"name": "BSD-3-Clause"}}),
        ({}, None),
    ],
)
def test_licences(contents: ModuleType, metadata: dict[str, str], licence: dict[str, Any] | None) -> None:
    from email.message import Message

    message = Message()
    for name, value in metadata.items():
        message[name] = value
    assert contents._licence_of(message) == licence


def test_the_bill_of_materials(contents: ModuleType, tmp_path: Path) -> None:
    found = contents.distributions_of({"numpy", "rich", "docopt", "alpha", "sys"})
    assert [each.metadata["Name"] for each in found] == ["docopt-ng", "numpy", "rich"]
    components = [
        contents.python_component(tmp_path),
        *(contents.distribution_component(each, tmp_path) for each in found),
    ]
    facts = {"version": "1.2", "commit": "abc", "date": "2026-11-25T12:00:00+00:00", "glibc": "2.35"}
    bill = contents.bill(components, facts)
    assert bill == contents.bill(components, facts)
    assert bill["serialNumber"] != contents.bill(components[1:], facts)["serialNumber"]
    assert [each["name"] for each in bill["components"]] == ["cpython", "docopt-ng", "numpy", "rich"]
    assert bill["dependencies"][0]["dependsOn"] == [each["bom-ref"] for each in components]
    assert bill["components"][2]["purl"] == f"pkg:pypi/numpy@{found[1].version}"
    assert bill["components"][3]["licenses"]
    for each in found:
        assert list((tmp_path / "licenses" / f"{each.metadata['Name']}-{each.version}").iterdir())
    assert sys.version.split()[0] == bill["components"][0]["version"]
