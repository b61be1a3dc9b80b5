"""What the folder of the executable holds beside what Nuitka puts there: shared libraries that a bare system lacks, the
Vulkan backend's sidecar and kernels, the words and sentences of generated text, the server's page, the facts of the
build, licences, and a bill of materials (CycloneDX).
"""

import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FACTS = "build.json"
BILL = "sbom.cdx.json"
LICENCES = "licenses"
COMPRESSION = 12
"""Level of zstd; the strongest takes a minute and saves a tenth."""

FALLBACK = "fallback"
"""Folder of the libraries that are used where the system has none of its own; `executable_start.c` opens them."""

GLIBC = re.compile(r"(ld-linux[-\w]*|lib(c|m|dl|rt|pthread|util|resolv|anl|mvec))\.so(\.\d+)+")
"""The libraries of glibc, which every system has and nothing else may bring along."""

PACKAGE = ROOT / "alpha"


def complete(folder: Path, packages: set[str], facts: str) -> None:
    """Complete `folder`, into which Nuitka has put the modules of these top-level `packages`.

    `facts` are those of the build, as JSON: version, commit, date. Raises OSError and SystemExit.
    """
    for path in package_files():
        target = folder / path.relative_to(PACKAGE)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    refuse_libraries_of_the_program(folder)
    add_missing_libraries(folder)
    set_search_paths(folder)
    files = elf_files(folder)
    own = [path for path in files if path.parent.name != FALLBACK]
    known = {**json.loads(facts), "glibc": newest_glibc(own), "glibcOfFallback": newest_glibc(files)}
    (folder / FACTS).write_text(json.dumps(known, indent=2) + "\n")
    distributions = distributions_of(packages)
    components = [python_component(folder), *(distribution_component(each, folder) for each in distributions)]
    components += [library_component(path, folder) for path in (*shared_libraries(folder), *libraries_of_python())]
    components.append(zstd_component(folder))
    (folder / BILL).write_text(json.dumps(bill(components, known), indent=2) + "\n")


def package_files() -> list[Path]:
    """The files of the package that are needed at run time and are not Python; of the sidecar, that of this Python."""
    patterns = ("*.txt", "*.zip", "web/*", f"*{sysconfig.get_config_var('EXT_SUFFIX')}")
    return sorted(path for pattern in patterns for path in PACKAGE.glob(pattern))


# --- shared libraries -------------------------------------------------------------------------------------------------


def elf_files(folder: Path) -> list[Path]:
    """The executables and shared libraries below `folder`."""

    def is_elf(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"

    return sorted(path for path in folder.rglob("*") if path.is_file() and is_elf(path))


def shared_libraries(folder: Path) -> list[Path]:
    """The libraries of other projects in `folder`; not the extension modules of Python and its packages."""
    places = (folder, folder / FALLBACK)
    return [path for path in elf_files(folder) if path.parent in places and re.match(r"lib.*\.so", path.name)]


def newest_glibc(files: Iterable[Path]) -> str:
    """The glibc version that these ELF files need, such as "2.35"."""
    versions: set[tuple[int, ...]] = {(2, 0)}
    for path in files:
        for version in re.findall(r"\bGLIBC_(\d+(?:\.\d+)+)", _output("objdump", "-T", str(path))):
            versions.add(tuple(map(int, version.split("."))))
    return ".".join(map(str, max(versions)))


def libraries_of_python() -> list[Path]:
    """Static archives of the libraries that this Python itself is linked to, beside glibc's.

    They are what modules that are built into it need, as zlib in Debian's. Raises SystemExit for a missing one.
    """
    archives = []
    for name in needed_libraries(Path(sys.executable).resolve()):
        archive = f"{name.split('.so')[0]}.a"
        if GLIBC.fullmatch(name) or name.startswith("libpython"):
            continue
        found = Path(_output("gcc", f"-print-file-name={archive}").strip())
        if not found.is_absolute():
            raise SystemExit(
                f"exe: error: {archive} is needed, which {sys.executable} is linked to; install python3-dev."
            )
        archives.append(found)
    return archives


def refuse_libraries_of_the_program(folder: Path) -> None:
    """Raises SystemExit where the program is linked to anything but glibc: it could not start on a bare system."""
    names = {name for name in needed_libraries(folder / "alpha") if not GLIBC.fullmatch(name)}
    if names:
        raise SystemExit(
            f"exe: error: {sys.executable} links {', '.join(sorted(names))} into the executable, which then would not "
            "start on a system without; use Debian's or Ubuntu's Python, or one that is built with pyenv."
        )


def add_missing_libraries(folder: Path) -> None:
    """Copy the libraries that files in `folder` need, but that neither lie in it nor belong to glibc, and what those
    need in turn, into the folder of fallbacks. Raises SystemExit for one that this machine does not have either."""
    while True:
        there = {path.name for path in folder.rglob("*")}
        missing = {name for path in elf_files(folder) for name in needed_libraries(path)} - there
        missing = {name for name in missing if not GLIBC.fullmatch(name)}
        if not missing:
            return
        for name in sorted(missing):
            source = system_library(name)
            if source is None:
                raise SystemExit(f"exe: error: the library {name} is needed, but this machine does not have it.")
            (folder / FALLBACK).mkdir(exist_ok=True)
            shutil.copyfile(source, folder / FALLBACK / name)


def set_search_paths(folder: Path) -> None:
    """Let each library find those in `folder` that it needs. The executable's search path, which Nuitka relies on, is
    that of all it opens, but the dynamic linker cannot know it where /proc is not mounted."""
    files = elf_files(folder)
    inside = {path.name for path in files if path.parent == folder}
    for path in files:
        if ".so" in path.name and inside.intersection(needed_libraries(path)):
            up = "/".join(["$ORIGIN", *(".." for _ in path.relative_to(folder).parents[1:])])
            subprocess.run(["patchelf", "--set-rpath", up, str(path)], check=True)


def system_library(name: str) -> Path | None:
    """The file of a shared library in this system's cache of them; None where it has none of that name."""
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/usr/bin:/bin") or "ldconfig"
    for line in _output(ldconfig, "-p").splitlines():
        found, _, path = line.partition(" => ")
        if found.split()[:1] == [name] and ("x86-64" in found or platform.machine() != "x86_64"):
            return Path(path).resolve()
    return None


def needed_libraries(path: Path) -> list[str]:
    """The shared libraries that an ELF file names as needed."""
    return re.findall(r"^ +NEEDED +(\S+)$", _output("objdump", "-p", str(path)), re.MULTILINE)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- what is inside, and under which licences -------------------------------------------------------------------------


def distributions_of(packages: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions, Alpha's own aside, that these top-level packages come from, by name."""
    owners = importlib.metadata.packages_distributions()
    names = {name for package in packages for name in owners.get(package, ())} - {"alpha-gpt"}
    return [importlib.metadata.distribution(name) for name in sorted(names, key=str.lower)]


def bill(components: list[dict[str, Any]], facts: dict[str, str]) -> dict[str, Any]:
    """A CycloneDX bill of materials; equal content has an equal serial number."""
    content = json.dumps([components, facts], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {
            "timestamp": facts["date"],
            "component": {
                "type": "application",
                "bom-ref": "alpha",
                "name": "alpha",
                "version": facts["version"],
                "licenses": [{"expression": "MIT"}],
                "properties": [
                    {"name": "commit", "value": facts["commit"]},
                    {"name": "glibc", "value": facts["glibc"]},
                ],
            },
        },
        "components": components,
        "dependencies": [{"ref": "alpha", "dependsOn": [each["bom-ref"] for each in components]}],
    }


def python_component(folder: Path) -> dict[str, Any]:
    """The Python that the executable contains; its licence text is copied."""
    version = platform.python_version()
    texts = [Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", Path(f"/usr/share/doc/python{version[:4]}/copyright")]
    _copy_licences(folder, f"cpython-{version}", [path for path in texts if path.is_file()][:1])
    return {
        "type": "platform",
        "bom-ref": "cpython",
        "name": "cpython",
        "version": version,
        "licenses": [{"expression": "PSF-2.0"}],
    }


def distribution_component(distribution: importlib.metadata.Distribution, folder: Path) -> dict[str, Any]:
    """A package from a Python package index, with the licence that its metadata names; the texts are copied."""
    metadata = distribution.metadata
    name, version = metadata["Name"], distribution.version
    texts = [
        Path(str(distribution.locate_file(path)))
        for path in distribution.files or ()
        if re.match(r"(?i)(licen[cs]e|copying|notice)", path.name) and ".dist-info" in str(path)
    ]
    _copy_licences(folder, f"{name}-{version}", texts)
    component = {
        "type": "library",
        "bom-ref": name,
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name.lower()}@{version}",
    }
    if licence := _licence_of(metadata):
        component["licenses"] = [licence]
    return component


def _licence_of(metadata: Any) -> dict[str, Any] | None:
    """CycloneDX's form of the licence: an SPDX expression where there is one, otherwise a name."""
    if metadata.get("License-Expression"):
        return {"expression": metadata["License-Expression"]}
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith("License ::")]
    if classifiers:
        return {"license": {"name": classifiers[0].split(" :: ")[-1]}}
    first_line = (metadata.get("License") or "").strip().split("\n")[0]
    return {"license": {"name": first_line}} if first_line else None


def library_component(path: Path, folder: Path) -> dict[str, Any]:
    """A shared library or a static archive: of a Python package that brings it along, or of this system's package."""
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": path.name,
        "name": path.name,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
    }
    owner = next(_distributions_with(path.name), None)
    if owner:
        component["description"] = f"part of {owner.metadata['Name']} {owner.version}, whose licence files name it"
        if "openblas" in path.name:
            component["version"] = _openblas_version()
        return component
    package = _system_package(path if path.suffix == ".a" else system_library(path.name))
    if package:
        component["version"] = _output("dpkg-query", "--show", "--showformat=${Version}", package)
        name = package.split(":")[0]
        component["description"] = f"package {name} of {platform.freedesktop_os_release()['PRETTY_NAME']}"
        notice = Path("/usr/share/doc") / name / "copyright"
        if notice.is_file():
            _copy_licences(folder, name, [notice])
            names = dict.fromkeys(re.findall(r"^License: (\S.*)$", notice.read_text(errors="replace"), re.MULTILINE))
            component["licenses"] = [{"license": {"name": each}} for each in names]
    return component


def zstd_component(folder: Path) -> dict[str, Any]:
    """What the one file unpacks itself with: Nuitka's copy of zstd."""
    _copy_licences(folder, "zstd", [zstd_sources() / "LICENSE.txt"])
    return {"type": "library", "bom-ref": "zstd", "name": "zstd", "licenses": [{"expression": "BSD-3-Clause"}]}


def zstd_sources() -> Path:
    """Folder of the C sources that decompress zstd."""
    return Path(str(importlib.metadata.distribution("nuitka").locate_file("nuitka/build/inline_copy/zstd")))


def _distributions_with(file_name: str) -> Iterator[importlib.metadata.Distribution]:
    for distribution in importlib.metadata.distributions():
        if any(path.name == file_name for path in distribution.files or ()):
            yield distribution


def _openblas_version() -> str:
    import numpy

    return str(numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]["version"])


def _system_package(path: Path | None) -> str | None:
    """The Debian package that owns a library of this system; None elsewhere, or for a library of another origin."""
    if path is None or shutil.which("dpkg-query") is None:
        return None
    for spelling in (str(path), str(path).removeprefix("/usr")):  # packages list either, where /lib is a link
        done = subprocess.run(["dpkg-query", "--search", spelling], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.split(": ")[0]
    return None


def _copy_licences(folder: Path, name: str, texts: list[Path]) -> None:
    for number, text in enumerate(texts):
        target = folder / LICENCES / name
        target.mkdir(parents=True, exist_ok=True)
        copied = target / text.name
        shutil.copyfile(text, target / f"{number}-{text.name}" if copied.exists() else copied)
