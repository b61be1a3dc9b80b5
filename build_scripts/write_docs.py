"""Writes the help of every command into README.md, between two marks; `--check` fails when it is not current."""

import html
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpha.cli import COMMANDS, overview, usage_text  # noqa: E402  (the package lies beside this folder)

README = ROOT / "README.md"
BEGIN = "<!-- begin: written by build_scripts/docs -->\n"
END = "<!-- end: written by build_scripts/docs -->\n"
WIDTH = 96


def current() -> str:
    """README.md with the help texts as they are now."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"docs: error: {README} has no line {BEGIN.strip()} followed by {END.strip()}")
    sections = [f"```\n{overview()}\n```\n"]
    for name in COMMANDS:
        text = f"```\n{usage_text(name, WIDTH)}\n```"
        sections.append(
            f"<details><summary><code>alpha {html.escape(name)} --help</code></summary>\n\n{text}\n\n</details>\n"
        )
    return before + BEGIN + "\n".join(sections) + END + after


def main() -> int:
    """Write the file, or compare it."""
    text = current()
    if sys.argv[1:] == ["--check"]:
        if text != README.read_text():
            print("docs: error: README.md is not current; run build_scripts/docs.", file=sys.stderr)
            return 1
    elif sys.argv[1:]:
        print("docs: error: the only argument is --check.", file=sys.stderr)
        return 2
    else:
        README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
