"""Writes what the modules are for, by their docstrings, into the list of ARCHITECTURE.md; `--check` says whether it is
current. The order of the list is written by hand, and so are its headings."""

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "alpha"
DOCUMENT = ROOT / "ARCHITECTURE.md"
LIST = re.compile(r"(?<=```\nalpha/\n).*?(?=```\n)", re.DOTALL)
ENTRY = re.compile(r"  (\w+)\.py\b.*")
COLUMN = 34
WIDTH = 120


def listed(document: str) -> list[str]:
    """The modules of the list, in order."""
    return [match[1] for line in _list(document).splitlines() if (match := ENTRY.fullmatch(line))]


def current(document: str, package: Path = PACKAGE) -> str:
    """The document with the list as the modules' docstrings have it now."""
    names, modules = listed(document), {path.stem for path in package.glob("*.py")}
    for name in names:
        if name not in modules:
            raise SystemExit(f"docs: error: ARCHITECTURE.md lists {name}.py, which is not there; remove its line.")
    for name in sorted(modules):
        if names.count(name) != 1:
            raise SystemExit(
                f"docs: error: ARCHITECTURE.md lists {name}.py {names.count(name)} times; give it one line, "
                f"`  {name}.py`, below all that it imports, and run build_scripts/docs."
            )
    lines = []
    for line in _list(document).splitlines():
        if match := ENTRY.fullmatch(line):
            lines += _entry(match[1], purpose((package / f"{match[1]}.py").read_text()))
        elif not line or line.startswith("  # "):
            lines.append(line)
        elif not line.startswith(" " * COLUMN):
            raise SystemExit(f"docs: error: {line!r} in ARCHITECTURE.md is neither a module nor a heading (`  # ...`).")
    return LIST.sub(lambda _: "".join(f"{line}\n" for line in lines), document, count=1)


def purpose(source: str) -> str:
    """What a module is for: the first sentence of its docstring."""
    paragraph = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
    text = " ".join(paragraph.split())
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0].replace("`", "")


def _list(document: str) -> str:
    found = LIST.search(document)
    if found is None:
        raise SystemExit("docs: error: ARCHITECTURE.md has no list of modules (```, then `alpha/`).")
    return found[0]


def _entry(name: str, text: str) -> list[str]:
    head = f"  {name}.py"
    return textwrap.wrap(text, WIDTH, initial_indent=head.ljust(COLUMN), subsequent_indent=" " * COLUMN)


def main() -> int:
    """Write the file, or compare it."""
    document = DOCUMENT.read_text()
    text = current(document)
    if sys.argv[1:] == ["--check"]:
        if text != document:
            print("docs: error: ARCHITECTURE.md is not current; run build_scripts/docs.", file=sys.stderr)
            return 1
    else:
        DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
