"""Compiles the kernels and writes the bundle alpha/kernels.zip, or says whether it is what the sources give.

The bundle has the same bytes wherever the same compiler makes it: modules in the order of their names, fixed
timestamps, no compression. A module whose sources and compiler are the same as before comes from .cache/kernels.
"""

import concurrent.futures
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import kernel_compiler
import kernel_manifest
from kernel_compiler import ROOT, Tool, ToolError
from kernel_manifest import KERNELS, Kernel, Variant

BUNDLE = ROOT / "alpha" / "kernels.zip"
CACHE = ROOT / ".cache" / "kernels"
DESCRIPTION = "manifest.json"
EPOCH = (1980, 1, 1, 0, 0, 0)


def compile_variant(variant: Variant, compiler: Tool, validator: Tool | None) -> bytes:
    """The SPIR-V module of a variant. Raises ToolError with the compiler's or the validator's words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for generated, text in variant.generated().items():
            (folder / generated).write_text(text)
        output = folder / "module.spv"
        source = KERNELS / f"{variant.kernel}.comp"
        paths = [f"-I{folder}", f"-I{KERNELS}", str(source), "-o", str(output)]
        result = compiler.run(*variant.options(), *paths)
        if result.returncode:
            message = result.stderr.strip().replace(str(ROOT) + "/", "")
            raise ToolError(f"{variant.kernel}, variant {variant.name}, does not compile:\n{message}")
        if validator:
            result = validator.run("--target-env", kernel_compiler.TARGET, str(output))
            if result.returncode:
                words = (result.stdout + result.stderr).strip()
                raise ToolError(f"{variant.kernel}, variant {variant.name}, is not valid SPIR-V:\n{words}")
        return output.read_bytes()


def cached(kernel: Kernel, variant: Variant, compiler: Tool, version: str, validator: Tool | None) -> bytes:
    """The module from the cache, or compiled and put there."""
    parts = [kernel.source, variant.name, version, validator is not None]
    path = CACHE / hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if not path.exists():
        module = compile_variant(variant, compiler, validator)
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(module)
        temporary.replace(path)
    return path.read_bytes()


def build(kernels: list[Kernel], compiler: Tool) -> bytes:
    """The bytes of the bundle. Prints a line for what this compiler cannot do."""
    version = compiler.version()
    known = kernel_compiler.features(compiler)
    validator = kernel_compiler.find("spirv-val")
    if not validator:
        say("there is no spirv-val, so the modules are not validated")
    wanted = []
    for kernel in kernels:
        left_out = [variant for variant in kernel.variants if not known.issuperset(variant.requires)]
        if left_out:
            names = ", ".join(variant.name for variant in left_out)
            missing = ", ".join(sorted({feature for variant in left_out for feature in variant.requires} - known))
            say(f"{kernel.name} is made without its variants {names}: {version} has no {missing}")
        wanted += [(kernel, variant) for variant in kernel.variants if variant not in left_out]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        modules = executor.map(lambda pair: cached(*pair, compiler, version, validator), wanted)
        built = dict(zip((variant.file_name for _, variant in wanted), modules, strict=True))
    descriptions = {kernel.name: kernel.description(built) for kernel in kernels}
    content = {"format": kernel_manifest.FORMAT, "compiler": version, "kernels": descriptions}
    return pack({DESCRIPTION: json.dumps(content, indent=1, sort_keys=True).encode(), **built})


def pack(files: dict[str, bytes]) -> bytes:
    """A zip file that depends on nothing but names and contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def check(kernels: list[Kernel], compiler: Tool | None) -> None:
    """Raises ToolError when the bundle is not what the sources give.

    What it was made from is always compared; the bytes are, too, when the compiler that made it is at hand.
    """
    if not BUNDLE.exists():
        raise ToolError(f"{BUNDLE} is missing; run build_scripts/kernels.")
    with zipfile.ZipFile(BUNDLE) as archive:
        content = json.loads(archive.read(DESCRIPTION))
        modules = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    sources = {kernel.name: kernel.source for kernel in kernels}
    bundled = {name: each["source"] for name, each in content["kernels"].items()}
    stale = sorted(name for name in {*sources, *bundled} if sources.get(name) != bundled.get(name))
    if stale:
        raise ToolError(
            f"{BUNDLE.name} is not made from these sources ({', '.join(stale)}); run build_scripts/kernels."
        )
    partial = [each.name for each in kernels if len(content["kernels"][each.name]["variants"]) < len(each.variants)]
    if partial:
        raise ToolError(
            f"{BUNDLE.name} lacks variants of {', '.join(partial)}, which {content['compiler']} could not compile; run "
            "build_scripts/kernels --fetch and then build_scripts/kernels."
        )
    variants = [each for kernel in content["kernels"].values() for each in kernel["variants"].values()]
    if any(modules.get(each["file"]) != each["sha256"] for each in variants):
        raise ToolError(f"{BUNDLE.name} is damaged; run build_scripts/kernels.")
    if compiler and compiler.version() == content["compiler"] and build(kernels, compiler) != BUNDLE.read_bytes():
        raise ToolError(f"{BUNDLE.name} has other bytes than {content['compiler']} gives; run build_scripts/kernels.")


def say(text: str) -> None:
    print(f"kernels: {text}", flush=True)


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["--fetch"]:
            say(f"fetched {kernel_compiler.fetch()}")
            return 0
        kernels, compiler = kernel_manifest.read(), kernel_compiler.find("glslc")
        if arguments:
            check(kernels, compiler)
            return 0
        if not compiler:
            raise ToolError("There is no glslc; run build_scripts/kernels --fetch, or set GLSLC to a compiler.")
        bundle = build(kernels, compiler)
        BUNDLE.write_bytes(bundle)
        say(f"{BUNDLE.relative_to(ROOT)}: {len(kernels)} kernels, {len(bundle) / 1024:.0f} KiB")
    except ToolError as error:
        print(f"kernels: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
