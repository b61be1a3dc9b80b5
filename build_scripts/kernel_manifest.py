"""What kernels/manifest.toml says: each kernel's arguments, specialization constants and variants.

From a variant it makes the text of "kernel.glsl", which the kernel includes, and the description that Alpha reads to
pack arguments; so nothing about the layout is written twice. Nor are the activations' numbers: "activation_kinds.glsl"
comes from Alpha's table of them.
"""

import functools
import hashlib
import json
import re
import runpy
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_compiler import OPTIONS, PROBES, ROOT, ToolError

KERNELS = ROOT / "kernels"
MANIFEST = KERNELS / "manifest.toml"
LAYOUT = "kernel.glsl"
ACTIVATION_KINDS = "activation_kinds.glsl"
ACTIVATIONS = ROOT / "alpha" / "activation.py"
PUSH_BYTES = 128
"""What every Vulkan device has for push constants."""

SCALARS = ("uint", "int", "float")
FORMAT = 1


@dataclass(frozen=True)
class Variant:
    """One compiled module of a kernel."""

    kernel: str
    name: str
    fields: tuple[dict[str, Any], ...]
    constants: tuple[dict[str, Any], ...]
    definitions: Mapping[str, str]
    requires: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return f"{self.kernel}.{self.name}.spv"

    def generated(self) -> dict[str, str]:
        """The files that the compiler finds beside those of kernels/, by name."""
        return {LAYOUT: self._layout(), ACTIVATION_KINDS: activation_kinds()}

    def _layout(self) -> str:
        lines = []
        for index, constant in enumerate(self.constants):
            kind, default = constant["type"], constant["default"]
            literal = f"{default}u" if kind == "uint" else repr(float(default))
            lines.append(f"layout(constant_id = {index}) const {kind} {constant['name']} = {literal};")
        lines.append("layout(push_constant, std430) uniform push_constants {")
        for field in self.fields:
            kind = field["type"] if field["type"] in SCALARS else f"{field['type']}_buffer"
            lines.append(f"    {kind} {field['name']};")
        return "\n".join([*lines, "};", ""])

    def options(self) -> list[str]:
        """The compiler's options for this variant."""
        wanted = [f"-DREQUIRES_{feature.upper()}" for feature in self.requires]
        return [*OPTIONS, *wanted, *(f"-D{key}={value}" for key, value in self.definitions.items())]


@dataclass(frozen=True)
class Kernel:
    """`source` is the SHA-256 of all that its modules are made from but the compiler."""

    name: str
    source: str
    variants: tuple[Variant, ...]

    def description(self, built: Mapping[str, bytes]) -> dict[str, Any]:
        """What Alpha is told, for the variants that were built, by file name."""
        variants = {
            each.name: {
                "file": each.file_name,
                "sha256": hashlib.sha256(built[each.file_name]).hexdigest(),
                "requires": list(each.requires),
                "fields": list(each.fields),
            }
            for each in self.variants
            if each.file_name in built
        }
        return {"source": self.source, "constants": list(self.variants[0].constants), "variants": variants}


def read(manifest: Path = MANIFEST) -> list[Kernel]:
    """Every kernel, by name. Raises ToolError naming the entry that is wrong."""
    try:
        entries = tomllib.loads(manifest.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ToolError(f"{manifest} is not valid TOML: {error}.") from error
    shared = entries.pop("shared", {})
    expanded = {name: _expanded(name, entry, shared) for name, entry in sorted(entries.items())}
    kernels = [_kernel(name, entry, manifest.parent) for name, entry in expanded.items()]
    strays = {path.stem for path in manifest.parent.glob("*.comp")} - set(entries)
    if strays:
        raise ToolError(f"{manifest} has no entry for {', '.join(sorted(strays))}; each .comp file needs one.")
    return kernels


def _expanded(kernel: str, entry: dict[str, Any], shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An entry with what "@name" stands for in its place, so that it is the same as one that is written out."""

    def named(key: str, reference: str) -> Any:
        groups = shared.get(key, {})
        if reference[:1] != "@" or reference[1:] not in groups:
            raise ToolError(f'{MANIFEST}: [{kernel}] {key}: there is no "{reference}" in [shared.{key}].')
        return groups[reference[1:]]

    whole = dict(entry)
    for key, value in entry.items():
        if isinstance(value, str):
            whole[key] = named(key, value)
        elif isinstance(value, list):
            lists = (named(key, each) if each.startswith("@") else [each] for each in value)
            whole[key] = [each for part in lists for each in part]
    return whole


def _kernel(name: str, entry: dict[str, Any], folder: Path) -> Kernel:
    unknown = set(entry) - {"push", "constants", "variants"}
    if unknown or not entry.get("variants"):
        problem = f"has the unknown key {unknown.pop()!r}" if unknown else "has no variants"
        raise ToolError(f"{MANIFEST}: [{name}] {problem}; its keys are push, constants and variants.")
    constants = _constants(name, entry.get("constants", []))
    variants = []
    for variant, definitions in entry["variants"].items():
        requires = tuple(definitions.get("requires", ()))
        if not set(requires) <= set(PROBES):
            raise ToolError(f"{MANIFEST}: [{name}] {variant} requires an unknown feature; known: {', '.join(PROBES)}.")
        values = {key: str(value) for key, value in definitions.items() if key != "requires"}
        fields = _fields(name, entry.get("push", []), values)
        variants.append(Variant(name, variant, fields, constants, values, requires))
    return Kernel(name, _digest(folder / f"{name}.comp", entry), tuple(variants))


def _constants(kernel: str, declarations: list[str]) -> tuple[dict[str, Any], ...]:
    constants: list[dict[str, Any]] = []
    for declaration in declarations:
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*) = (-?[0-9.]+)", declaration)
        if not match:
            raise ToolError(f'{MANIFEST}: [{kernel}] constant "{declaration}" is not of the form "NAME = 128".')
        name, value = match.groups()
        kind = "float" if "." in value else "uint"
        constants.append({"name": name, "type": kind, "default": float(value) if kind == "float" else int(value)})
    if not constants or constants[0]["name"] != "THREADS":
        raise ToolError(f"{MANIFEST}: [{kernel}] must have THREADS as its first constant.")
    return tuple(constants)


def _fields(kernel: str, declarations: list[str], definitions: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """Name, type, direction ("" for a scalar) and byte offset of each push-constant field."""
    fields: list[dict[str, Any]] = []
    offset = 0
    for declaration in declarations:
        words = declaration.split()
        if len(words) == 2 and words[0] in SCALARS:
            direction, (kind, name), size = "", words, 4
        elif len(words) == 3 and words[0] in ("in", "out", "inout"):
            if fields and not fields[-1]["direction"]:
                raise ToolError(f'{MANIFEST}: [{kernel}] "{declaration}" stands after a scalar; addresses come first.')
            (direction, kind, name), size = words, 8
            kind = re.sub(r"^([A-Z]+)(?=x\d$|$)", lambda match: definitions.get(match[1], match[1]), kind)
        else:
            raise ToolError(f'{MANIFEST}: [{kernel}] "{declaration}" is neither "in TYPE name" nor "uint name".')
        fields.append({"name": name, "type": kind, "direction": direction, "offset": offset})
        offset += size
    if offset > PUSH_BYTES:
        raise ToolError(f"{MANIFEST}: [{kernel}] has {offset} bytes of push constants; {PUSH_BYTES} is the limit.")
    return tuple(fields)


@functools.cache
def activation_kinds() -> str:
    """The text of activation_kinds.glsl: which function of activation.glsl each number means. Raises ToolError."""
    module = runpy.run_path(str(ACTIVATIONS))
    table = module["ACTIVATIONS"]
    names = {each.number: name for name, each in table.items() if not each.gated}
    alone = sorted({each.number for each in table.values()} - set(names))
    if alone or len(names) < sum(not each.gated for each in table.values()):
        problem = f"no activation without a gate has the number {alone[0]}" if alone else "two have the same number"
        raise ToolError(f"{ACTIVATIONS}: {problem}.")
    slopes = {number: f"{name}_slope" for number, name in names.items()}
    by_result = {number: f"{name}_slope_of_result" for number, name in names.items() if table[name].by_result}
    cases = {module["OF_RESULT"] + number: function for number, function in by_result.items()}
    if max(names) >= module["OF_RESULT"]:
        raise ToolError(f"{ACTIVATIONS}: OF_RESULT is not above all numbers.")
    lines = []
    for function, functions in (("activate", names), ("activation_slope", cases | slopes)):
        lines += [f"float {function}(uint kind, float x) {{", "    switch (kind) {"]
        for number, name in sorted(functions.items(), key=lambda item: (item[0] == max(names), item[0])):
            label = "default" if number == max(names) else f"case {number}"
            lines += [f"    {label}:", f"        return {name}(x);"]
        lines += ["    }", "}", ""]
    return "\n".join(lines)


def _included(path: Path, seen: set[Path]) -> Iterator[Path]:
    """`path` and all that it includes, each once."""
    if path in seen:
        return
    seen.add(path)
    if not path.exists():
        raise ToolError(f"{path} is missing.")
    yield path
    for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE):
        if name not in (LAYOUT, ACTIVATION_KINDS):
            yield from _included(path.parent / name, seen)


def _digest(source: Path, entry: dict[str, Any]) -> str:
    texts = {path.name: path.read_text() for path in _included(source, set())}
    if any(f'#include "{ACTIVATION_KINDS}"' in text for text in texts.values()):
        texts[ACTIVATION_KINDS] = activation_kinds()
    content = json.dumps([FORMAT, OPTIONS, entry, texts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
