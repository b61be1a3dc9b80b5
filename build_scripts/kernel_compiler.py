"""The compiler and the validator of the kernels: finding them, fetching them, and what this compiler knows.

The kernels use GLSL extensions that are newer than the compilers of most distributions. `fetch` gets those of Debian
sid, with the libraries they need, into a folder of their own: apt with its own sources, lists and cache, so that the
system's packages and its apt stay as they are.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "kernel_tools"
TARGET = "vulkan1.3"
OPTIONS = ("-O", f"--target-env={TARGET}", "-Werror")

MIRROR = "http://deb.debian.org/debian"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("glslc", "libshaderc1", "spirv-tools", "libc6", "libstdc++6", "libgcc-s1")

PROBES = {
    "float16": (
        ("GL_EXT_shader_16bit_storage", "GL_EXT_shader_explicit_arithmetic_types"),
        "float16_t x = float16_t(0.5);",
    ),
    "bfloat16": (("GL_EXT_bfloat16",), "bfloat16_t x = bfloat16_t(0.5);"),
    "cooperative_matrix_f16": (
        ("GL_KHR_cooperative_matrix", "GL_KHR_memory_scope_semantics", "GL_EXT_shader_explicit_arithmetic_types"),
        "coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> x;",
    ),
    "cooperative_matrix_bf16": (
        ("GL_KHR_cooperative_matrix", "GL_KHR_memory_scope_semantics", "GL_EXT_bfloat16"),
        "coopmat<bfloat16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> x;",
    ),
    "workgroup_matrix_f16": (
        (
            *("GL_KHR_cooperative_matrix", "GL_NV_cooperative_matrix2", "GL_KHR_memory_scope_semantics"),
            "GL_EXT_shader_explicit_arithmetic_types",
        ),
        "coopmat<float16_t, gl_ScopeWorkgroup, 32, 32, gl_MatrixUseA> x;",
    ),
    "cooperative_matrix_2": (
        ("GL_KHR_cooperative_matrix", "GL_NV_cooperative_matrix2", "GL_KHR_memory_scope_semantics"),
        "coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> x = coopmat<float, gl_ScopeSubgroup, 16, 16, "
        "gl_MatrixUseA>(coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(0.0));",
    ),
}
"""For each feature that a variant may require: the extensions, and a statement that only they allow."""


class ToolError(Exception):
    """A sentence about what is wrong with the tools or the sources, and what to do."""


@dataclass(frozen=True)
class Tool:
    """A program, and the words that start it."""

    command: tuple[str, ...]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)

    def version(self) -> str:
        """The first lines of what `--version` prints, in one."""
        result = self.run("--version")
        if result.returncode:
            raise ToolError(f"{self.command[-1]} cannot be run: {result.stderr.strip()}")
        lines = [line.strip() for line in result.stdout.splitlines()]
        named = [line for line in lines if line.startswith(("shaderc", "spirv-tools", "glslang", "SPIRV-Tools"))]
        return ", ".join(named)


def find(name: str) -> Tool | None:
    """The program named by the variable that is `name` in capitals, or the fetched one, or that on the PATH."""
    given = os.environ.get(name.upper().replace("-", "_"))
    if given:
        return Tool((given,))
    libraries = FOLDER / "usr" / "lib" / "x86_64-linux-gnu"
    if (FOLDER / "complete").exists():
        loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries))
        return Tool((*loader, str(FOLDER / "usr" / "bin" / name)))
    found = shutil.which(name)
    return Tool((found,)) if found else None


def features(compiler: Tool) -> frozenset[str]:
    """What this compiler can do of what variants may require, by compiling a probe for each."""
    with tempfile.TemporaryDirectory() as folder:
        return frozenset(name for name in PROBES if _compiles(compiler, Path(folder), name))


def _compiles(compiler: Tool, folder: Path, name: str) -> bool:
    extensions, statement = PROBES[name]
    required = "".join(f"#extension {each} : require\n" for each in extensions)
    source = folder / f"{name}.comp"
    source.write_text(f"#version 460\n{required}layout(local_size_x = 32) in;\nvoid main() {{ {statement} }}\n")
    return compiler.run(*OPTIONS, str(source), "-o", str(folder / name)).returncode == 0


def fetch() -> str:
    """Download and unpack the compiler and the validator; returns the compiler's version."""
    if platform.machine() != "x86_64":
        raise ToolError("--fetch gets programs for x86_64 only; install shaderc 2026 or newer and set GLSLC to glslc.")
    for program in ("apt-get", "dpkg"):
        if not shutil.which(program):
            raise ToolError(f"There is no {program}; install shaderc 2026 or newer in another way and set GLSLC to it.")
    if not KEYS.exists():
        raise ToolError(f"{KEYS} is missing; install the package debian-archive-keyring.")
    shutil.rmtree(FOLDER, ignore_errors=True)
    apt = FOLDER / "apt"
    for part in ("lists/partial", "archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} sid main\n")
    (apt / "apt.conf").write_text(
        f'Dir::State "{apt}"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}";\n'
        f'Dir::Etc::SourceList "{apt}/sources.list"; Dir::Etc::SourceParts "-";\n'
        'APT::Architecture "amd64"; APT::Architectures "amd64"; Acquire::Languages "none"; APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    _run(["apt-get", "--quiet", "update"], apt, environment)
    _run(["apt-get", "--quiet", "download", *PACKAGES], apt, environment)
    for package in sorted(apt.glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(FOLDER)], apt, environment)
    shutil.rmtree(apt)
    (FOLDER / "complete").touch()
    compiler = find("glslc")
    assert compiler
    return compiler.version()


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ToolError(f"{' '.join(command)} failed: {(result.stderr or result.stdout).strip()}")
