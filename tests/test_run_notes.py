import json
from pathlib import Path

import pytest
from disk import read_only_folder
from small_checkpoint import MODEL, TRAINING, small_checkpoint

from alpha.errors import AlphaError
from alpha.run import Run
from alpha.run_notes import Notes, delete_run, read_notes, write_notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Run.create(MODEL, TRAINING, folder=tmp_path / "run") as new:
        new.add_metrics({"step": 1, "loss": 1.0})
        new.save(small_checkpoint(1))
        new.save(small_checkpoint(2))
        new.rewind(1)
        return new.folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_notes_change_one_by_one(folder: Path) -> None:
    assert read_notes(folder) == Notes()
    assert write_notes(folder, name="first try") == Notes(name="first try")
    write_notes(folder, notes="Diverged.\nSee log.", group="lr")
    write_notes(folder, name="")
    assert read_notes(folder) == Notes("", "lr", "Diverged.\nSee log.")
    assert json.loads((folder / "notes.json").read_text())["group"] == "lr"


def test_notes_are_written_while_the_run_goes_on(folder: Path) -> None:
    with Run.open(folder):
        assert write_notes(folder, name="now") == read_notes(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a\nb"}, "one line without control characters"),
        ({"name": "\x1b[31m"}, "one line without control characters"),
        ({"group": " a"}, "without spaces around it"),
        ({"group": "g" * 101}, "at most 100 characters, not 101"),
        ({"notes": "n" * 20_001}, "at most 20,000 characters, not 20,001"),
    ],
)
def test_notes_that_are_refused(folder: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(AlphaError, match=message):
        write_notes(folder, **changes)
    assert read_notes(folder) == Notes()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"name":3,"group":"g"}', json.dumps({"name": "n" * 101})])
def test_damaged_notes_are_no_notes(folder: Path, content: str) -> None:
    (folder / "notes.json").write_text(content)
    assert read_notes(folder).name == ""


def test_the_longest_notes_are_read_back(folder: Path) -> None:
    for text in ("\x01" * 20_000, "\U0001f600" * 20_000, "\ud800" * 20_000):
        write_notes(folder, notes=text)
        assert read_notes(folder).notes == text


def test_notes_are_not_written_behind_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (folder / "notes.json").symlink_to(tmp_path / "precious")
    with pytest.raises(AlphaError, match="it is a link"):
        write_notes(folder, name="x")
    assert (tmp_path / "precious").read_text() == "precious"
    with pytest.raises(AlphaError, match="There is no run in"):
        write_notes(tmp_path, name="x")
    assert not (tmp_path / "notes.json").exists()


def test_a_deleted_run_leaves_nothing(folder: Path) -> None:
    write_notes(folder, name="x")
    assert (folder / "superseded-checkpoint-2.safetensors").exists()
    (folder / f".alpha-{'0' * 32}.tmp").touch()
    assert delete_run(folder) == []
    assert not folder.exists()


def test_what_is_not_of_alpha_stays(folder: Path) -> None:
    (folder / "thesis.tex").write_text("precious")
    (folder / "plots").mkdir()
    assert [path.name for path in delete_run(folder)] == ["plots", "thesis.tex"]
    assert names(folder) == ["plots", "thesis.tex"]


def test_what_is_no_run_or_in_use_is_not_deleted(folder: Path, tmp_path: Path) -> None:
    with Run.open(folder):
        before = names(folder)
        with pytest.raises(AlphaError, match="is in use by process"):
            delete_run(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(AlphaError, match="is a link"):
        delete_run(tmp_path / "link")
    assert names(folder) == before
    (folder / "config.json").write_text("{}")
    with pytest.raises(AlphaError, match="does not have the objects"):
        delete_run(folder)
    (tmp_path / "log.txt").write_text("of somebody else")
    with pytest.raises(AlphaError, match="Cannot read the run's configuration"):
        delete_run(tmp_path)
    assert names(folder) == before
    assert (tmp_path / "log.txt").exists()


def test_a_folder_that_may_not_be_written_is_an_error(folder: Path) -> None:
    with read_only_folder(*(path for path in folder.iterdir() if path.is_file())) as copy:
        with pytest.raises(AlphaError, match="Cannot"):
            delete_run(copy)
        assert (copy / "config.json").exists()
