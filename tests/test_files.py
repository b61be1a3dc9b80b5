"""Opening files for reading and writing: never anything but a regular file, and never a half of one."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from alpha.errors import AlphaError
from alpha.files import (
    open_in_place,
    open_regular,
    read_bytes,
    read_json,
    remove_leftovers,
    replacing,
    temporary_folder,
    write_bytes,
    write_json,
)
from alpha.new_folder import filling

LEFT = f".alpha-{'0' * 32}.tmp"
OTHERS = (".alpha-0.tmp", f".alpha-{'0' * 32}.tmp2", f"x.alpha-{'0' * 32}.tmp", f".alpha-{'G' * 32}.tmp", "note.tmp")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, Path("/dev/zero"), Path("/dev/tty")):
        with pytest.raises(AlphaError, match=f"Cannot read the note {path}: it is not a regular file"):
            read_bytes(path, "note", 100)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(AlphaError, match="no file can have this name"):
            read_bytes(tmp_path / name, "note", 100)


def test_a_name_that_becomes_a_pipe_meanwhile_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    regular = Path(__file__).stat()
    monkeypatch.setattr(Path, "stat", lambda path: regular)
    monkeypatch.setattr(Path, "lstat", lambda path: regular)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_in_place(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        open_in_place(tmp_path / "link")
    assert names(tmp_path) == ["link", "pipe"]


def test_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, "note", 5) == b"12345"
    with pytest.raises(AlphaError, match=f"The note {path} has 5 bytes, more than the 4 that are accepted"):
        read_bytes(path, "note", 4)
    os.truncate(path, 1 << 40)
    with pytest.raises(AlphaError, match="more than the 4 that"):
        read_bytes(path, "note", 4)
    # Its size is given as 0, and it has hundreds of lines.
    with pytest.raises(AlphaError, match="more than the 10 that"):
        read_bytes(Path("/proc/self/status"), "note", 10)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ("n" * 255)
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        assert len(names(path.parent)) == 2
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("write", [replacing, filling])
def test_what_fails_leaves_no_folder(tmp_path: Path, write: Callable[[Path], AbstractContextManager[Any]]) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), write(tmp_path / "mine" / "new" / "newer" / "a"):
        raise KeyboardInterrupt
    assert names(tmp_path / "mine") == []
    with pytest.raises(KeyboardInterrupt), write(tmp_path / "mine" / "new" / "newer" / "a"):
        (tmp_path / "mine" / "new" / "of another").touch()
        raise KeyboardInterrupt
    assert names(tmp_path / "mine") == ["new"]
    assert names(tmp_path / "mine" / "new") == ["of another"]


def test_half_a_character_is_escaped_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"\udcff": "é\ud800"})
    assert read_json(tmp_path / "a", "note", 100) == {"\udcff": "é\ud800"}


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "dangling").symlink_to("missing")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    for name, reason in (("link", "a link"), ("dangling", "a link"), ("folder", "not a reg"), ("pipe", "not a reg")):
        with pytest.raises(AlphaError, match=f"Cannot write {tmp_path / name}: it is {reason}"):
            write_bytes(tmp_path / name, b"x")
    assert (tmp_path / "other").read_bytes() == b"mine"
    assert names(tmp_path) == before
    (tmp_path / "name").hardlink_to(tmp_path / "other")
    write_bytes(tmp_path / "name", b"x")
    assert (tmp_path / "other").read_bytes() == b"mine"


def test_two_writers_of_one_file_with_one_process_number_are_both_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"first"  # whose block ended last
    assert names(tmp_path) == ["a"]


WRITER = """
import sys, time
from pathlib import Path
from alpha.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in OTHERS:
        (tmp_path / name).touch()
    (tmp_path / LEFT.replace("0", "1")).mkdir()
    (tmp_path / LEFT.replace("0", "2")).symlink_to("note.tmp")
    kept = names(tmp_path)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writing = names(tmp_path)
    assert len(writing) == len(kept) + 1
    write_bytes(tmp_path / "b", b"")  # passes by while it lives
    assert names(tmp_path) == sorted([*writing, "b"])
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    write_bytes(tmp_path / "b", b"")
    assert names(tmp_path) == sorted([*kept, "b"])


FILLER = """
import sys, time
from pathlib import Path
from alpha.new_folder import filling
with filling(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_filled_by_one_process_and_with_all_or_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with pytest.raises(AlphaError, match=f"^Cannot write {folder}/a/b: Is a directory"), filling(folder) as staged:
        (staged / "a" / "b").mkdir(parents=True)
        (staged / "c").touch()
        raise AlphaError(f"Cannot write {staged}/a/b: Is a directory.")
    assert names(tmp_path) == []
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), filling(folder) as staged:
        (staged / "c").touch()
        raise KeyboardInterrupt
    assert names(folder) == []
    filler = subprocess.Popen([sys.executable, "-c", FILLER, str(folder)], stdout=subprocess.PIPE)
    assert filler.stdout is not None
    assert filler.stdout.readline() == b"writing\n"
    with pytest.raises(AlphaError, match=r"Another process writes into .*folder; name another"), filling(folder):
        pass
    filler.kill()
    filler.communicate()
    assert len(names(folder)) == 1
    with filling(folder) as staged:
        (staged / "a").mkdir()
        (staged / "a" / "b").write_text("whole")
        assert "a" not in names(folder)
    assert (folder / "a" / "b").read_text() == "whole"
    assert names(folder) == ["a"]


def test_only_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LEFT).symlink_to("elsewhere")  # of our name, but nothing that we leave
    (tmp_path / "link").symlink_to("missing")
    for name in ("file", "folder", "link"):
        message = f"^--out={tmp_path}/{name} is not an empty folder"
        with pytest.raises(AlphaError, match=message), filling(tmp_path / name):
            pass
    assert names(tmp_path) == ["file", "folder", "link"]
    assert names(tmp_path / "folder") == [LEFT]


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def late(file: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            remove_leftovers(tmp_path)
            assert names(tmp_path) == []
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_bytes(tmp_path / "a", b"whole")
    assert calls == [fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_locks_keeps_what_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / LEFT).touch()
    write_bytes(tmp_path / "a", b"whole")
    assert names(tmp_path) == [LEFT, "a"]


def test_a_full_disk_under_the_cache_says_how_to_have_it_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(AlphaError, match=r"Cannot write .*: No space left on device\. .*XDG_CACHE_HOME"),
        temporary_folder("hub") as folder,
    ):
        write_bytes(folder / "a", b"")
    with pytest.raises(AlphaError, match=r": No space left on device\.$"):
        write_bytes(tmp_path / "a", b"")  # not a file of the cache


def test_a_temporary_folder_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alpha").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with temporary_folder("x") as folder:
        assert folder.parent == tmp_path / "temporary"
    assert names(tmp_path / "temporary") == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(AlphaError, match=r"^Neither the cache .*set XDG_CACHE_HOME or TMPDIR"), temporary_folder("x"):
        pass
