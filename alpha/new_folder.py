"""Folders of several files that are made as a whole or not at all: exported models, Spaces."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpha.errors import AlphaError
from alpha.files import TEMPORARY_NAME, making_folder


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to write files into that are in `folder`, which must be missing or empty, when the `with` block ends.

    When the block raises, `folder` and those above it are what they were. Raises AlphaError when there is something in
    it, another process fills it, too, or the operating system refuses.
    """
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise _not_empty(folder)
        with making_folder(folder):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _lock_to_fill(folder, descriptor)
                staged = folder / f".alpha-{secrets.token_hex(16)}.tmp"
                staged.mkdir()
                try:
                    yield staged
                    for path in sorted(staged.iterdir()):
                        path.replace(folder / path.name)
                except AlphaError as error:
                    error.args = (str(error).replace(str(staged), str(folder)),)  # where the file would have been
                    raise
                finally:
                    shutil.rmtree(staged, ignore_errors=True)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise AlphaError(f"Cannot write {folder}: {getattr(error, 'strerror', None) or error}.") from error


def _lock_to_fill(folder: Path, descriptor: int) -> None:
    """The lock ends when the folder's descriptor is closed. What a process that was killed left goes."""
    with contextlib.suppress(OSError):  # no locks on this file system: then nothing is taken for left
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlphaError(f"Another process writes into {folder}; name another folder with --out.") from error
        for path in folder.iterdir():
            if TEMPORARY_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
    if any(folder.iterdir()):
        raise _not_empty(folder)


def _not_empty(folder: Path) -> AlphaError:
    return AlphaError(f"--out={folder} is not an empty folder; name another one, or remove it.")
