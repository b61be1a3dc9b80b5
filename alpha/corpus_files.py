"""Which files belong to a corpus: what `--data` names, how each is read, and what is passed over.

What a file says plays no part, but for the beginning of one whose name does not tell how to read it.
"""

import atexit
import contextlib
import glob
import gzip
import io
import json
import os
import shlex
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from alpha import environment, files
from alpha.corpus_forms import form_of
from alpha.errors import AlphaError, UsageError

STANDARD_INPUT = "-"
PLAIN_ENDINGS = (".txt", ".text", ".md", ".rst", ".py")
JSON_LINES_ENDINGS = (".jsonl", ".ndjson")
_READ_BY_NAME = f"{' '.join((*PLAIN_ENDINGS, *JSON_LINES_ENDINGS))}, each also with .gz"

_BUFFER_BYTES = 1 << 20
_LOOKED_AT = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_RUN_CONFIG = "config.json"
_RUN_CONFIG_LIMIT = 1 << 20
_TABLE = (
    'It is a table. Write its column of text as JSON lines; if that is named "text": '
    "python3 -c '{program}' {name} > corpus.jsonl"
)
_CSV = (
    "import csv, json, sys; "
    '[print(json.dumps({"text": row["text"]})) for row in csv.DictReader(open(sys.argv[1], newline="")%s)]'
)
_PARQUET = (
    'import pandas, sys; pandas.read_parquet(sys.argv[1])[["text"]].to_json(sys.stdout, orient="records", lines=True)'
)
_TABLES = {".csv": _CSV % "", ".tsv": _CSV % ', delimiter="\\t"', ".parquet": _PARQUET}
_PIPED = "Pipe its content: {command} | alpha train --data=-"
_COMMANDS = {
    ".zst": "zstd -dc {name}", ".xz": "xz -dc {name}", ".bz2": "bzip2 -dc {name}", ".lz4": "lz4 -dc {name}",
    ".zip": "unzip -p {name}", ".tar": "tar -xOf {name}", ".tgz": "tar -xOf {name}", ".pdf": "pdftotext {name} -",
}  # fmt: skip
_NO_TEXT = (".arrow", ".feather", ".npy", ".npz", ".safetensors", ".docx", ".odt", ".epub", ".7z", ".rar")


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus and how to read it; of a pipe, `spool` is the file that it was read into.

    Of JSON, in lines or in one array, `text_field` is the key of the text, empty for what an object itself says, and
    `skip_bad_lines` says whether bad ones are counted or refused.
    """

    path: Path
    json_lines: bool
    compressed: bool
    spool: BinaryIO | None = field(default=None, compare=False)
    text_field: str = ""
    skip_bad_lines: bool = False
    json_array: bool = False

    def open(self) -> BinaryIO:
        """The file, from its first byte. Raises OSError; of a pipe, only the newest of several may be read from."""
        if self.spool is None:
            return files.open_regular(self.path)
        file = os.fdopen(os.dup(self.spool.fileno()), "rb", buffering=_BUFFER_BYTES)
        file.seek(0)
        return file

    def status(self) -> os.stat_result:
        """Size, times and identity of the file. Raises OSError."""
        return self.path.stat() if self.spool is None else os.fstat(self.spool.fileno())


@dataclass(frozen=True)
class Selection:
    """The files that `--data` names, in reading order."""

    files: tuple[CorpusFile, ...]
    skipped: int
    """How many others, and folders of runs, lay beside them and were passed over."""
    notes: tuple[str, ...] = ()
    """What was decided by looking into a file, in sentences."""


def find(data: str, text_field: str = "", skip_bad_lines: bool = False) -> Selection:
    """The files of a file name, folder (read recursively), glob, pipe or `-`, or several of these separated by commas.

    Each part's files are sorted by path, and a file that is named twice counts once. Hidden files and folders, folders
    behind symbolic links, folders of runs and files of unknown endings are passed over and counted when a folder or
    glob leads to them. A file that is named itself may have any ending. A pipe is read to its end, once in the life of
    the process. Raises UsageError when `data` names nothing, AlphaError for a missing or unreadable path and when no
    file is left.
    """
    found: dict[object, CorpusFile] = {}
    skipped: set[Path] = set()
    notes: list[str] = []
    for part in _parts(data):
        try:
            if part == STANDARD_INPUT:
                found.setdefault(part, _standard_input(text_field, notes))
                continue
            for path, named in _candidates(part, skipped):
                file = _named_file(path, text_field, notes) if named else _recognize(path)
                if file is None:
                    skipped.add(path)
                else:
                    found.setdefault(path.resolve(), file)
        except OSError as error:
            raise AlphaError(f"Cannot read {error.filename or part}: {error.strerror or error}.") from error
    if not found:
        others = f" ({len(skipped)} other files were skipped)" if skipped else ""
        advice = next((f" {hint}" for path in sorted(skipped) if (hint := _advice(path))), "")
        raise AlphaError(f"No corpus file matches {data!r}{others}; endings that are read: {_READ_BY_NAME}.{advice}")
    chosen = [replace(file, text_field=text_field, skip_bad_lines=skip_bad_lines) for file in found.values()]
    return Selection(tuple(chosen), len(skipped), tuple(notes))


def _parts(data: str) -> list[str]:
    if "\0" in data:
        raise UsageError(f"The path {data!r} contains a NUL character.")
    parts = [data] if _exists(data) else [part.strip() for part in data.split(",") if part.strip()]
    if not parts:
        raise UsageError("No corpus is named; give a file, folder or glob, several separated by commas.")
    return parts


def _exists(path: str) -> bool:
    return bool(path) and os.path.lexists(path)


def _candidates(part: str, skipped: set[Path]) -> Iterator[tuple[Path, bool]]:
    """The files that one part of `data` leads to, and whether it names them itself."""
    if _exists(part):
        path = Path(part)
        if not path.is_dir():
            yield path, True
        elif _is_run(path):
            raise AlphaError(f"{path} is the folder of a run and holds no corpus; name the text itself.")
        else:
            yield from ((each, False) for each in _walk(path, skipped))
    elif glob.has_magic(part):
        for match in sorted(glob.glob(part, recursive=True)):  # noqa: PTH207 (Path.glob refuses absolute patterns)
            path = Path(match)
            run = next((folder for folder in (path, *path.parents) if _is_run(folder)), None)
            if run is not None:
                skipped.add(run)
                continue
            matches = _walk(path, skipped) if path.is_dir() else [path]
            yield from ((each, False) for each in matches)
    else:
        try:
            Path(part).lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise AlphaError(f"Cannot read {part}: {error.strerror}.") from error
        raise AlphaError(f"There is no file or folder {part!r}; check the path of the corpus.")


def _walk(folder: Path, skipped: set[Path]) -> list[Path]:
    """Every visible file below `folder`, sorted; what is hidden, behind a link or a run's goes into `skipped`."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folder_names, file_names in os.walk(folder, onerror=refuse):
        here = Path(parent)
        for name in list(folder_names):
            if name.startswith(".") or (here / name).is_symlink() or _is_run(here / name):
                folder_names.remove(name)
                skipped.add(here / name)
        for name in file_names:
            if name.startswith("."):
                skipped.add(here / name)
            else:
                found.append(here / name)
    return sorted(found)


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run: its config.json says so."""
    path = folder / _RUN_CONFIG
    try:
        values = files.read_json(path, "configuration", _RUN_CONFIG_LIMIT)
    except AlphaError:
        return False
    return isinstance(values, dict) and {"runId", "model", "training"} <= values.keys()


def _recognize(path: Path) -> CorpusFile | None:
    """A regular file whose ending says how to read it."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compressed = endings[-1:] == [".gz"]
    if compressed:
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending not in (*PLAIN_ENDINGS, *JSON_LINES_ENDINGS) or not stat.S_ISREG(path.stat().st_mode):
        return None
    return CorpusFile(path, json_lines=ending in JSON_LINES_ENDINGS, compressed=compressed)


def _named_file(path: Path, text_field: str, notes: list[str]) -> CorpusFile:
    """A file or pipe that `data` names itself: of any ending, unless its ending says that it is no text."""
    status = path.stat()
    if stat.S_ISFIFO(status.st_mode):
        # Nobody may ever write to it: opening must not wait, and a pipe without a writer ends at once.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "rb", buffering=0) as pipe:
            return _spooled(path, pipe, f"The pipe {path}", text_field, notes)
    if not stat.S_ISREG(status.st_mode):
        raise AlphaError(f"Cannot read {path}: it is neither a regular file nor a pipe.")
    if advice := _advice(path):
        raise AlphaError(f"Cannot read {path} as text. {advice}")
    file = _recognize(path)
    if file is None:
        with files.open_regular(path) as opened:
            file = _look(path, opened, text_field)
        notes.append(_note(str(path), file))
    return file


def _standard_input(text_field: str, notes: list[str]) -> CorpusFile:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("--data=- reads standard input, which is a terminal here; pipe a text into it.")
    with os.fdopen(os.dup(0), "rb", buffering=0) as stream:
        return _spooled(Path("/dev/stdin"), stream, "Standard input", text_field, notes)


@contextlib.contextmanager
def _temporary_room(name: str) -> Iterator[None]:
    """Inside, an OSError becomes an AlphaError about the temporary folder."""
    try:
        yield
    except OSError as error:
        raise AlphaError(
            f"{name} is read into a temporary file, which cannot be written ({error.strerror}); "
            "name another folder for it with TMPDIR, or name a file instead of the pipe."
        ) from error


_SPOOLED: dict[tuple[int, int], CorpusFile] = {}
"""What was read from pipes, by device and inode: a pipe can be read once, and a run reads its corpus several times."""


def _spooled(path: Path, stream: BinaryIO, name: str, text_field: str, notes: list[str]) -> CorpusFile:
    """Read a pipe into a temporary file that goes when the process does, however it ends."""
    status = os.fstat(stream.fileno())
    known = _SPOOLED.get((status.st_dev, status.st_ino))
    if known is not None:
        return known
    limit = environment.read("ALPHA_TOKEN_CACHE_MIB") << 20
    with contextlib.ExitStack() as opened:
        with _temporary_room(name):
            spool = opened.enter_context(tempfile.TemporaryFile(buffering=0))
        size = 0
        while chunk := stream.read(_BUFFER_BYTES):
            size += len(chunk)
            if size > limit:
                raise AlphaError(
                    f"{name} gives more than the {limit >> 20:,} MiB of ALPHA_TOKEN_CACHE_MIB; "
                    f"raise it, or name a file."
                )
            with _temporary_room(name):
                while chunk:
                    chunk = chunk[spool.write(chunk) :]
        if not size:
            raise AlphaError(
                f"{name} gave no text; a corpus that comes through a pipe must be given again at every start."
            )
        spool.seek(0)
        file = replace(_look(path, spool, text_field), spool=spool)
        atexit.register(opened.pop_all().close)
    notes.append(_note(name, file))
    _SPOOLED[status.st_dev, status.st_ino] = file
    return file


def _look(path: Path, stream: BinaryIO, text_field: str) -> CorpusFile:
    """How to read a file, by how it begins."""
    compressed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    stream.seek(0)
    value, is_array = None, False
    try:
        source = io.BufferedReader(gzip.GzipFile(fileobj=stream)) if compressed else stream
        begun = source.read(_LOOKED_AT).decode("utf-8-sig", "replace").lstrip()
        is_array = begun.startswith("[")
        if is_array:
            value, _ = json.JSONDecoder().raw_decode(begun[1:].lstrip())
        else:
            value = json.loads(begun.partition("\n")[0])
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile):
        pass  # plain text
    is_json = isinstance(value, dict) and (text_field in value or form_of(value) is not None)
    return CorpusFile(path, is_json and not is_array, compressed, json_array=is_json and is_array)


def _note(name: str, file: CorpusFile) -> str:
    kind = "JSON lines" if file.json_lines else "JSON array" if file.json_array else "plain text"
    return f"{name} is read as {'a ' if file.json_array else ''}{'compressed ' if file.compressed else ''}{kind}."


def _advice(path: Path) -> str:
    """What to do with a file that is not text by its name; empty for others."""
    *_, inner, ending = ["", "", *map(str.lower, path.suffixes)]
    name = shlex.quote(str(path))
    if ending == ".gz" and inner == ".tar":
        ending = inner
    if ending == ".gz" and inner in {*_TABLES, *_COMMANDS, *_NO_TEXT}:
        return f"Decompress it first: gunzip -k {name}"
    if ending in _TABLES:
        return _TABLE.format(program=_TABLES[ending], name=name)
    if ending in _COMMANDS:
        return _PIPED.format(command=_COMMANDS[ending].format(name=name))
    if ending in _NO_TEXT:
        return 'Convert it to plain text, or to JSON lines such as {"text": "Once upon a time"}.'
    return ""
