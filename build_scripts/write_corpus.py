"""Write the text of unpacked Debian packages as a corpus of documents: training.txt and held-out.txt.

    python build_scripts/write_corpus.py ROOT OUT

ROOT has a folder for each package. Documents are files: plain text, sources (reStructuredText, POD), pages of
manuals, HTML in English, and pieces of dictionaries. One of HELD_OUT, as its name's hash says, is held out. A paragraph
that stands in an earlier document, but for numbers and spaces, is left out, so that what manuals repeat on each page is
there once; held-out documents come last, so none of their paragraphs is among those to train on. Prints how much there
is, and how much of the held-out text is found in the other all the same.
"""

import gzip
import hashlib
import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha.evaluation import shared_share
from alpha.token_file import TokenFile

HELD_OUT = 64
LEAST_CHARACTERS = 400
"""A document of fewer is left out: most are lists of links."""
DICTIONARY_CHARACTERS = 1 << 16
SOURCES = ("linux-doc-6.1/", "python3.11-doc/", "cmake-doc/", "git-doc/")
"""Packages that have the sources of their HTML beside it, which is better text."""
SEPARATOR = "<|endoftext|>\n"

_LEFT_OUT = re.compile(r"(?i:changelog|copyright|/search|genindex)|/(?!en-US/)[a-z]{2}-[A-Z]{2}/")
_MANUAL_PAGE = re.compile(r"/man/man\d/")
_HIDDEN = re.compile(r"(?is)<(script|style|head|nav|header|footer|svg|select)\b.*?</\1\s*>|<!--.*?-->")
_BLOCK = re.compile(r"(?i)</?(p|div|br|li|ul|ol|dl|dt|dd|tr|table|pre|h[1-6]|section|article|blockquote)\b[^>]*>")
_CELL = re.compile(r"(?i)</(td|th)\s*>")
_TAG = re.compile(r"<[^>]*>")
_SKIPPED_MACRO = re.compile(
    r"^[.'](?:\\\"|TH|so|ft|nf|fi|in|sp|br|ne|ta|ad|na|hy|nh|de|ds|if|ie|el|ig|rm|tr|\.).*\n?", re.M
)
_MACRO = re.compile(r"^[.'](?:[A-Z]{1,2}|[A-Z][a-z]) ?", re.M)
_ROFF_ESCAPES = (
    (re.compile(r"\\f(?:\[[^]]*\]|\(..|.)|\\[&|^%/,]|\\s[-+]?\d"), ""),
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\((?:lq|rq|dq)|\\\[(?:lq|rq|dq)\]"), '"'),
    (re.compile(r"\\\((?:em|en|hy)|\\\[(?:em|en|hy)\]|\\-"), "-"),
    (re.compile(r"\\\((..)|\\\[[^]]*\]"), ""),
    (re.compile(r"\\e"), r"\\"),
)


def from_html(text: str) -> str:
    """The text of a page, a block a paragraph."""
    text = _BLOCK.sub("\n\n", _HIDDEN.sub("\n", text))
    return html.unescape(_TAG.sub("", _CELL.sub(" ", text))).replace("¶", "")


def from_roff(text: str) -> str:
    """The text of a manual page, without its tables' layout and conditions."""
    text = _MACRO.sub("", _SKIPPED_MACRO.sub("", text))
    for pattern, replacement in _ROFF_ESCAPES:
        text = pattern.sub(replacement, text)
    return text


def pieces(text: str) -> Iterator[str]:
    """Entries of a dictionary, whose first lines are not indented, in pieces of about DICTIONARY_CHARACTERS."""
    piece, size = [], 0
    for entry in re.split(r"\n(?=\S)", text):
        piece.append(entry)
        size += len(entry)
        if size > DICTIONARY_CHARACTERS:
            yield "\n\n".join(piece)
            piece, size = [], 0
    yield "\n\n".join(piece)


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of all documents, in the order of their names."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if _LEFT_OUT.search(name) or path.is_symlink() or not path.is_file():
            continue
        packed = path.suffix in (".gz", ".dz")
        data = path.read_bytes()
        text = (gzip.decompress(data) if packed else data).decode("utf-8", "replace").replace("\ufffd", "")
        ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if path.suffix == ".dz":
            yield from ((f"{name}/{number}", piece) for number, piece in enumerate(pieces(text)))
        elif _MANUAL_PAGE.search(name):
            yield name, from_roff(text)
        elif ending in (".txt", ".rst", ".pod"):
            yield name, text
        elif ending in (".html", ".htm") and not name.startswith(SOURCES):
            yield name, from_html(text)


def cleaned(text: str, seen: set[bytes]) -> str:
    """A document's paragraphs that are not among those `seen`, to which they are added."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r", "").replace("<|", "< |")):
        lines = [line.rstrip() for line in paragraph.split("\n") if line.strip()]
        key = hashlib.blake2b(re.sub(r"[\W\d_]+", "", paragraph.lower()).encode(), digest_size=8).digest()
        if lines and key not in seen:
            seen.add(key)
            kept.append("\n".join(lines))
    return "\n\n".join(kept)


def is_held_out(name: str) -> bool:
    """Chosen by the name alone, so that other packages change nothing."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT == 0


def write(path: Path, texts: Iterator[str]) -> None:
    """One file of documents; says how large it is, and its digest."""
    digest, size, count = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for text in texts:
            data = (SEPARATOR * bool(count) + text + "\n").encode()
            file.write(data)
            digest.update(data)
            size, count = size + len(data), count + 1
    print(f"{path}: {count:,} documents, {size / 1e6:.1f} MB, SHA-256 {digest.hexdigest()}", flush=True)


def main(root: Path, out: Path) -> None:
    """Write both files, and measure what they have in common."""
    out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    paths = [out / "training.txt", out / "held-out.txt"]
    for held_out, path in enumerate(paths):
        texts = (cleaned(text, seen) for name, text in documents(root) if is_held_out(name) == held_out)
        write(path, (text for text in texts if len(text) >= LEAST_CHARACTERS))
    files = [TokenFile(path, np.fromfile(path, np.uint8), 1, path.stat().st_size, "") for path in paths]
    print(f"{shared_share(*files):.2%} of the sections of {paths[1]} stand in {paths[0]}, too.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
