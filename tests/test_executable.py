"""The built executable does what the sources do, on a machine that has nothing.

These tests run with `build_scripts/exe-test` only, which builds first: they need dist/, made from the sources that are
here.
"""

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_training import text_of

from alpha import __version__
from alpha.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
FOLDER = DIST / "alpha"
ONEFILE = DIST / "alpha-onefile"
SHAPE = ("--tokenizer=char", "--layers=1", "--dim=16", "--heads=2", "--block=16", "--batch=4", "--minTokensPerParam=0")
MEGABYTES = 60
SLOWEST_START = 1.5
JSON = {"content-type": "application/json"}
GLIBC_FILES = ("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")

pytestmark = pytest.mark.executable

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def contents() -> Iterator[Any]:
    """The build's own functions, once it is clear that dist/ was made from these sources."""
    sys.path.insert(0, str(ROOT / "build_scripts"))
    import executable
    import executable_contents

    assert executable.is_current(executable.inputs()), "dist/ is not what these sources give; run build_scripts/exe"
    yield executable_contents
    sys.path.remove(str(ROOT / "build_scripts"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(text_of())
    return path


@pytest.fixture(params=[FOLDER / "alpha", ONEFILE], ids=["folder", "onefile"])
def program(request: pytest.FixtureRequest, contents: Any) -> Path:
    return request.param


@pytest.fixture
def alpha(program: Path, tmp_path: Path) -> Run:
    """Runs the executable with an environment of nothing but a place for its cache."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(program), *arguments]
        variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return run


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def available_backends(version: str) -> list[str]:
    return re.findall(r"^(\w+) +available", version, re.MULTILINE)


# --- what it does -----------------------------------------------------------------------------------------------------


def test_the_version_names_the_build(alpha: Run) -> None:
    facts = json.loads((DIST / "build.json").read_bytes())["inputs"]
    lines = succeed(alpha("--version")).splitlines()
    assert lines[0] == f"alpha {__version__}"
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [["commit", facts["commit"]], ["built", facts["date"]]]
    assert available_backends("\n".join(lines))[0] == "cpu_ref"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_help_of_every_command_is_that_of_the_sources(name: str, contents: Any, tmp_path: Path) -> None:
    arguments = [*name.split(), "--help"]
    built, source = (
        subprocess.run([*command, *arguments], env={}, cwd=tmp_path, capture_output=True, text=True, check=False)
        for command in ([str(FOLDER / "alpha")], [sys.executable, str(ROOT / "alpha.py")])
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, source.stdout, source.stderr)


def test_train_resume_sample_eval(alpha: Run, corpus: Path, tmp_path: Path) -> None:
    data = f"--data={corpus}"
    succeed(alpha("train", data, *SHAPE, "--iters=20", "--threads=1", "--runDir=run"))
    succeed(alpha("train", "--resume=run", "--iters=30"))
    assert len(losses(tmp_path / "run")) == 30
    text = json.loads(succeed(alpha("sample", "--checkpoint=run", "--steps=20", "--json")))
    assert text
    result = json.loads(succeed(alpha("eval", "--checkpoint=run", data, "--json")))
    assert 0 < result["loss"] < 4
    assert "run" in succeed(alpha("runs", "--dir=."))


def test_it_computes_the_same_bits_as_the_sources(contents: Any, corpus: Path, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, command in (("built", [str(FOLDER / "alpha")]), ("source", [sys.executable, str(ROOT / "alpha.py")])):
        arguments = ["train", f"--data={corpus}", *SHAPE, "--iters=20", "--threads=1", f"--runDir={tmp_path / name}"]
        subprocess.run([*command, *arguments], env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert losses(tmp_path / "built") == losses(tmp_path / "source")


def test_every_backend_that_is_available_trains(alpha: Run, corpus: Path, tmp_path: Path) -> None:
    found = available_backends(succeed(alpha("--version")))
    for backend in found:
        options = (f"--data={corpus}", *SHAPE, "--iters=5", "--sampleInterval=0", f"--backend={backend}")
        succeed(alpha("train", *options, f"--runDir={backend}"))
    first, *others = [losses(tmp_path / backend) for backend in found]
    assert len(first) == 5
    for other in others:
        assert other == pytest.approx(first, rel=1e-3)


def test_other_commands(alpha: Run, corpus: Path, tmp_path: Path) -> None:
    succeed(alpha("datagen", "--domain=abc", "--size=20kB", "--out=tunes.txt"))
    assert (tmp_path / "tunes.txt").stat().st_size > 10_000
    succeed(alpha("tokenizer", "build", f"--input={corpus}", "--type=bpe", "--vocabSize=300", "--out=bpe.json"))
    assert json.loads((tmp_path / "bpe.json").read_bytes())
    devices = json.loads(succeed(alpha("devices", "--json")))["devices"]
    assert devices[0]["backend"] == "cpu_ref"
    assert devices[0]["blas"]
    assert "ALPHA_DEBUG" in succeed(alpha("env"))
    rows = succeed(alpha("bench", "--suite=ops", "--match=norm", "--iters=1", "--seconds=0.01", "--json"))
    commit = json.loads((DIST / "build.json").read_bytes())["inputs"]["commit"]
    assert commit in rows


def test_errors_are_one_line(alpha: Run) -> None:
    for arguments, code, message in (
        (["train", "--wrong=1"], 2, "--wrong"),
        (["train", "--data=missing.txt", "--backend=cpu_ref"], 1, "missing.txt"),
        (["sample", "--checkpoint=missing"], 1, "missing"),
        (["nonsense"], 2, "nonsense"),
    ):
        done = alpha(*arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("alpha: error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_ctrl_c_in_a_terminal_saves_and_says_how_to_go_on(program: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", f"--data={corpus}", *SHAPE, "--iters=1000000", "--evalInterval=0", f"--runDir={run}"]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "xterm-256color"}
    process, terminal = pty.fork()
    if process == 0:
        os.execve(program, [str(program), *arguments], environment)
    shown = read_until(terminal, rb"step +\d{2,}/1000000")
    os.write(terminal, b"\x03")
    shown += read_until(terminal, None)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert b"\x1b[" in shown  # drawn, not only printed
    assert b"--resume=" in shown
    assert list(run.glob("checkpoint-*.safetensors"))


def test_an_interrupt_by_another_process_saves_too(program: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", f"--data={corpus}", *SHAPE, "--iters=1000000", "--evalInterval=0", f"--runDir={run}"]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen([program, *arguments], env=environment, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() or len(losses(run)) < 10:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert list(run.glob("checkpoint-*.safetensors"))


def test_an_interrupt_at_any_moment_of_the_start_is_one_line(program: Path, tmp_path: Path) -> None:
    outcomes = set()
    for milliseconds in range(1, 41):
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([program, "--version"], env={"XDG_CACHE_HOME": str(tmp_path)}, **pipes) as process:
            time.sleep(milliseconds / 1000)
            process.send_signal(signal.SIGINT)
            outcomes.add((process.communicate(timeout=60)[1], process.wait()))
    # Ended by the signal before the program's own code runs, or after all is done; or done before it came.
    assert outcomes <= {("alpha: interrupted\n", 130), ("", -signal.SIGINT), ("", 0)}
    assert ("alpha: interrupted\n", 130) in outcomes


def read_until(terminal: int, pattern: bytes | None, seconds: float = 60) -> bytes:
    """What is written to the terminal, until it matches, or until the program closes it."""
    shown = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # how Linux says that the other side has closed
                return shown
            if pattern and re.search(pattern, shown):
                return shown
    raise AssertionError(f"the program went on for {seconds} s after {shown!r}")


# --- where it runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bare_root(tmp_path: Path) -> Path:
    """A root folder that holds glibc, a corpus, and nothing else."""
    root = tmp_path / "root"
    places = [Path("/lib64"), Path("/lib/x86_64-linux-gnu")]
    for name in GLIBC_FILES:
        for place in (place for place in places if (place / name).exists()):
            (root / place.relative_to("/")).mkdir(parents=True, exist_ok=True)
            shutil.copy(place / name, root / place.relative_to("/") / name)
    (root / "corpus.txt").write_text(text_of())
    (root / "tmp").mkdir()
    return root


def command_in(root: Path, *arguments: str) -> list[str]:
    become_root = [] if os.getuid() == 0 else ["unshare", "--map-root-user"]
    chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "chroot"
    return [*become_root, chroot, str(root), *arguments]


def in_root(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_in(root, *arguments), env={}, capture_output=True, text=True, check=False)


def put_folder_into(root: Path) -> None:
    shutil.copytree(FOLDER, root / "alpha")
    version = in_root(root, "/alpha/alpha", "--version")
    if version.returncode and "alpha" not in version.stderr:
        pytest.skip(f"this machine does not let a root folder be changed: {version.stderr.strip()}")
    assert available_backends(succeed(version)) == ["cpu_ref"]


def train_in(root: Path) -> None:
    arguments = ["train", "--data=/corpus.txt", *SHAPE, "--block=64", "--iters=20", "--runDir=/runs/first"]
    succeed(in_root(root, "/alpha/alpha", *arguments))


def test_the_folder_needs_nothing_but_glibc(contents: Any, bare_root: Path) -> None:
    put_folder_into(bare_root)
    assert "Vulkan" in succeed(in_root(bare_root, "/alpha/alpha", "devices"))
    without_network = in_root(bare_root, "/alpha/alpha", "hub", "pull", "--repo=a/b", "--out=/model")
    assert without_network.stderr.startswith("alpha: error: The Hub cannot be reached")
    succeed(in_root(bare_root, "/alpha/alpha", "train", "--data=/corpus.txt", *SHAPE, "--iters=20", "--runDir=/run"))
    succeed(in_root(bare_root, "/alpha/alpha", "train", "--resume=/run", "--iters=25"))
    succeed(in_root(bare_root, "/alpha/alpha", "sample", "--checkpoint=/run", "--steps=5"))
    succeed(in_root(bare_root, "/alpha/alpha", "eval", "--checkpoint=/run", "--data=/corpus.txt"))
    assert len(losses(bare_root / "run")) == 25


def test_it_serves_models_pages_and_runs(contents: Any, bare_root: Path) -> None:
    put_folder_into(bare_root)
    train_in(bare_root)
    command = command_in(bare_root, "/alpha/alpha", "serve", "--dir=/runs", "--port=0")
    with subprocess.Popen(command, env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = re.fullmatch(r"Serving the runs in /runs/ at (http://[\d.:]+)/v1\n", process.stdout.readline())
            assert address, process.communicate(timeout=60)

            def ask(path: str, **body: Any) -> bytes:
                sent = json.dumps(body).encode() if body else None
                with urllib.request.urlopen(
                    urllib.request.Request(address[1] + path, sent, JSON), timeout=60
                ) as answer:
                    return answer.read()

            for page in ("/", "/runs", "/run?id=first", "/compare", "/models", "/domains"):
                assert b"<!doctype html>" in ask(page)[:20].lower()
            for path in (ROOT / "alpha" / "web").glob("*.[cj]s*"):
                assert ask(f"/web/{path.name}") == path.read_bytes()
            assert b"alpha_running" in ask("/metrics")
            assert json.loads(ask("/api/runs"))["runs"][0]["runId"] == "first"
            assert ask("/api/csv?run=first").startswith(b"step,loss,valLoss\n1,")
            first = {"prompt": "the ", "max_tokens": 5, "seed": 1, "logprobs": 5}
            answers = [json.loads(ask("/v1/completions", model=name, **first)) for name in ("first", "first@20")]
            assert answers[0]["choices"] == answers[1]["choices"]
            assert len(answers[0]["choices"][0]["logprobs"]["top_logprobs"][0]) >= 5
            assert ask("/v1/completions", model="first", **first, stream=True).endswith(b"data: [DONE]\n\n")
            chat = {"model": "first", "messages": [{"role": "user", "content": "the "}]}
            assert json.loads(ask("/v1/chat/completions", **chat))["usage"]["completion_tokens"] > 0
            assert json.loads(ask("/v1/responses", model="first", input="the "))["output"][0]["role"] == "assistant"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, process.communicate()


def test_weights_go_out_and_come_back(alpha: Run, corpus: Path, tmp_path: Path) -> None:
    options = (f"--data={corpus}", *SHAPE, "--tokenizer=bpe", "--vocabSize=300", "--iters=5", "--sampleInterval=0")
    succeed(alpha("train", *options, "--runDir=run"))
    texts = set()
    for kind, out in (("hf", "folder"), ("gguf", "model.gguf")):
        succeed(alpha("export", "--checkpoint=run", f"--format={kind}", f"--out={out}"))
        succeed(alpha("import", f"--from={out}", f"--out={kind}"))
        texts.add(succeed(alpha("sample", f"--checkpoint={kind}", "--prompt=the", "--steps=8", "--seed=1")))
    assert len(texts) == 1
    space = alpha("hub", "space", "--checkpoint=run", "--out=space")
    assert (space.returncode, "install it with pip" in space.stderr) == (1, True)


def test_the_dashboard_starts_and_quits_in_a_terminal(contents: Any, bare_root: Path) -> None:
    put_folder_into(bare_root)
    train_in(bare_root)
    command = command_in(bare_root, "/alpha/alpha", "tui", "--dir=/runs")
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(command[0], command, {"TERM": "xterm-256color", "PATH": os.environ["PATH"]})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    shown = read_until(terminal, rb"first: finished step 20 of 20")
    os.write(terminal, b"q")
    shown += read_until(terminal, None)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown


def test_the_one_file_needs_nothing_but_glibc(contents: Any, bare_root: Path) -> None:
    shutil.copy(ONEFILE, bare_root / "alpha")
    (bare_root / "tmp").chmod(0o1777)
    version = in_root(bare_root, "/alpha", "--version")
    if version.returncode and "alpha" not in version.stderr:
        pytest.skip(f"this machine does not let a root folder be changed: {version.stderr.strip()}")
    assert available_backends(succeed(version)) == ["cpu_ref"]
    assert version.stderr == (
        "alpha: warning: there is no home folder to unpack Alpha into; "
        f"Alpha was unpacked into /tmp/alpha-{os.getuid()}\n"
    )
    succeed(in_root(bare_root, "/alpha", "train", "--data=/corpus.txt", *SHAPE, "--iters=20", "--runDir=/run"))
    assert len(losses(bare_root / "run")) == 20


# --- how the one file unpacks itself ----------------------------------------------------------------------------------


def start_one_file(tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path), **environment}
    command = [ONEFILE, "--version"]
    return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed.split("\n")[0], errors


WORKS = (0, f"alpha {__version__}", "")


def entries(base: Path) -> list[Path]:
    return sorted(base.iterdir()) if base.exists() else []


def test_it_is_unpacked_once(contents: Any, tmp_path: Path) -> None:
    together = [start_one_file(tmp_path) for _ in range(3)]
    assert [finish(process) for process in together] == [WORKS] * 3
    (folder,) = entries(tmp_path / "cache" / "alpha" / "executable")
    assert folder.name == contents_name()
    assert {path.stat().st_mode & 0o077 for path in (folder, folder.parent, *folder.rglob("*"))} == {0}
    program = folder / "alpha" / "alpha"
    before = program.stat().st_ctime_ns
    assert finish(start_one_file(tmp_path)) == WORKS
    assert program.stat().st_ctime_ns == before
    # What is damaged, as by a program that tidies up, is made again.
    for damage in (
        program.unlink,
        lambda: os.truncate(folder / "alpha" / "build.json", 3),
        lambda: folder.chmod(0o755),
    ):
        damage()
        assert finish(start_one_file(tmp_path)) == WORKS
        assert entries(folder.parent) == [folder]
        assert program.stat().st_ctime_ns != before
        before = program.stat().st_ctime_ns


def contents_name() -> str:
    return hashlib.sha256((DIST / "alpha.tar.zst").read_bytes()).hexdigest()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupt_while_it_unpacks_leaves_nothing(contents: Any, tmp_path: Path, number: int, code: int) -> None:
    base = tmp_path / "cache" / "alpha" / "executable"
    process = stop_while_it_unpacks(tmp_path, base)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    assert finish(process) == (code, "", "alpha: interrupted\n")
    assert entries(base) == []


def test_what_a_killed_start_has_left_is_removed(contents: Any, tmp_path: Path) -> None:
    base = tmp_path / "cache" / "alpha" / "executable"
    process = stop_while_it_unpacks(tmp_path, base)
    process.kill()
    finish(process)
    assert [path.name[:8] for path in entries(base)] == ["partial-"]
    old, recent = base / ("0" * 64), base / ("1" * 64)  # other versions
    old.mkdir()
    recent.mkdir()
    os.utime(old, (0, 0))
    assert finish(start_one_file(tmp_path)) == WORKS
    assert {path.name for path in entries(base)} == {contents_name(), recent.name}


def stop_while_it_unpacks(tmp_path: Path, base: Path) -> subprocess.Popen[str]:
    """A start that has unpacked a part, stopped there."""
    process = start_one_file(tmp_path)
    deadline = time.monotonic() + 60
    while not list(base.glob("partial-*/alpha/*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    return process


def test_a_cache_that_cannot_be_used_is_said_and_another_is_used(contents: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    fallback = tmp_path / f"alpha-{os.getuid()}"
    (tmp_path / "file").write_text("")
    code, version, errors = finish(start_one_file(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")))
    assert (code, version) == WORKS[:2]
    assert errors == (
        f"alpha: warning: {tmp_path}/file/alpha/executable cannot be made (Not a directory); "
        f"Alpha was unpacked into {fallback}\n"
    )
    # A folder that another user could have made, or written to, is not used; nor is a link to one.
    base = tmp_path / "cache" / "alpha" / "executable"
    base.mkdir(parents=True)
    base.chmod(0o777)
    assert finish(start_one_file(tmp_path)) == WORKS  # the fallback, which is there already
    assert entries(base) == []
    shutil.rmtree(fallback)
    fallback.symlink_to(base)
    code, _, errors = finish(start_one_file(tmp_path))
    assert code == 1
    assert errors.startswith(
        f"alpha: error: {base} is not used, because other users may have written to it, and {fallback} cannot be used "
        "(it is not a folder); name a folder with "
    )
    assert errors.endswith(" MB free by XDG_CACHE_HOME.\n")


@pytest.mark.parametrize(
    ("options", "message"), [("size=2m", "No space left on device"), ("noexec", "does not let programs run (noexec)")]
)
def test_a_full_and_a_noexec_file_system_are_named(contents: Any, tmp_path: Path, options: str, message: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    script = f"mount -t tmpfs -o {options} none {place} && exec {ONEFILE} --version"
    command = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"]), "sh", "-c", script]
    variables = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(place), "TMPDIR": str(place)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if "alpha" not in done.stderr:
        pytest.skip(f"this machine does not let a file system be mounted: {done.stderr.strip()}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("alpha: error: ")
    assert message in done.stderr


def test_every_library_is_inside_or_of_glibc(contents: Any) -> None:
    files = contents.elf_files(FOLDER)
    inside = {path.name for path in files}
    assert len(files) > 20
    needed = {name for path in files for name in contents.needed_libraries(path)}
    assert [name for name in sorted(needed - inside) if not contents.GLIBC.fullmatch(name)] == []
    own = [path for path in files if path.parent.name != contents.FALLBACK]
    assert contents.newest_glibc(own) == json.loads((FOLDER / "build.json").read_bytes())["glibc"]


def test_the_files_of_the_package_are_inside(contents: Any) -> None:
    names = {path.name for path in contents.package_files()}
    assert {"kernels.zip", "datagen_words.txt", "play.html"} <= names
    assert names <= {path.name for path in FOLDER.rglob("*")}


# --- what is written beside it ----------------------------------------------------------------------------------------


def test_sums(contents: Any) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=DIST, check=True)
    listed = {line.split("  ")[1] for line in (DIST / "SHA256SUMS").read_text().splitlines()}
    assert {"alpha/alpha", "alpha-onefile", "alpha.tar.zst", "sbom.cdx.json"} <= listed


def test_the_bill_of_materials_names_what_is_inside(contents: Any) -> None:
    bill = json.loads((DIST / "sbom.cdx.json").read_bytes())
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", __version__)
    components = {each["name"]: each for each in bill["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = [*project["dependencies"], *(each for extra in ("serve", "tui", "hub") for each in extras[extra])]
    assert {canonicalize_name(Requirement(each).name) for each in used} <= {*map(canonicalize_name, components)}
    assert "cpython" in components
    others = {canonicalize_name(Requirement(each).name) for extra in ("dev", "exe") for each in extras[extra]}
    assert others & {*map(canonicalize_name, components)} == set()
    for name in ("numpy", "rich", "cpython"):
        assert components[name]["version"]
        assert components[name]["licenses"]
        assert list((FOLDER / "licenses").glob(f"{name}-*/*"))
    libraries = {path.name for path in contents.shared_libraries(FOLDER)}
    assert any("openblas" in name for name in libraries)
    assert libraries <= components.keys()


def test_sizes(contents: Any) -> None:
    for name in ("alpha.tar.zst", "alpha-onefile"):
        assert (DIST / name).stat().st_size < MEGABYTES * 1e6


def test_it_starts_about_as_fast_as_python(contents: Any, tmp_path: Path) -> None:
    commands = ([str(FOLDER / "alpha"), "--help"], [sys.executable, str(ROOT / "alpha.py"), "--help"])
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(21):  # in turns, so that other work on the machine slows both
        for command, found in zip(commands, seconds, strict=True):
            start = time.perf_counter()
            subprocess.run(command, env={}, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
            found.append(time.perf_counter() - start)
    built, source = map(statistics.median, seconds)
    assert built < SLOWEST_START * source
