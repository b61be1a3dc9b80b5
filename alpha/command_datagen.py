"""`alpha datagen`: make text to train on."""

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpha.datagen import DatagenOptions
from alpha.option import option
from alpha.terminal import print_json, print_text

if TYPE_CHECKING:
    from alpha.datagen_files import Summary


@dataclass(frozen=True)
class OutputOptions:
    """How the result is shown."""

    json: bool = option(False, "Print JSON.", group="Output")


OPTIONS = (DatagenOptions, OutputOptions)
DETAILS = """
Domains: abc, chaos, chat, chords, concordance, dumb_finance, fine_corpus, nanochat,
novels, super_chat.

Examples:
  alpha datagen --domain=abc --out=tunes.txt
  alpha datagen --mode=corpus --sources=docs/,notes.txt --out=corpus.txt
"""


def run(given: dict[str, Any]) -> None:
    """Make the file and print what is in it."""
    from alpha import datagen
    from alpha.progress import counting

    output_names = {field.name for field in dataclasses.fields(OutputOptions)}
    options = DatagenOptions(**{name: value for name, value in given.items() if name not in output_names})
    start = time.perf_counter()
    with counting("text") as report:
        summary = datagen.run(options, report)
    seconds = time.perf_counter() - start
    if given.get("json"):
        print_json({**dataclasses.asdict(summary), "path": str(summary.path), "seconds": seconds})
    else:
        print_text(_describe(summary, seconds))


def _describe(summary: "Summary", seconds: float) -> str:
    size = f"{summary.documents:,} documents, {summary.bytes / 1e6:.1f} MB of text"
    lines = [f"Wrote {summary.path}: {size}, in {seconds:.1f} s."]
    if summary.files_read:
        lines.append(f"Read {summary.files_read:,} files.")
    if summary.keywords:
        lines.append(f"{summary.keywords:,} keywords.")
    if summary.duplicate_documents or summary.duplicate_paragraphs:
        lines.append(
            f"Left out as duplicates: {summary.duplicate_documents:,} documents, "
            f"{summary.duplicate_paragraphs:,} paragraphs."
        )
    lines += [f"Skipped {count:,} files: {reason}." for reason, count in sorted(summary.skipped.items())]
    return "\n".join(lines)
