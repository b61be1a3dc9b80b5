import errno
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from disk import read_only_folder
from json_lines import rows_in
from small_checkpoint import MODEL, TRAINING, assert_equal, small_checkpoint

from alpha import checkpoint, run
from alpha.config import config_hash
from alpha.errors import AlphaError, UsageError
from alpha.run import CONFIG, LOCK, LOG, METRICS, SAMPLES, STATUS, Run, check_new, is_locked, read_config

HOLDER = """
import sys, time
from pathlib import Path
from alpha.run import Run
run = Run.open(Path(sys.argv[1]))
run.rewind(0)
run.add_metrics({"step": 1, "loss": 2.0})
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def opened(tmp_path):
    with Run.create(MODEL, TRAINING, folder=tmp_path / "run") as result:
        yield result


def steps(folder: Path, pattern: str = "checkpoint-*") -> list[int]:
    return sorted(int(re.findall(r"[0-9]+", path.name)[0]) for path in folder.glob(pattern))


def metrics_steps(folder: Path) -> list[int]:
    return [row["step"] for row in rows_in(folder / "metrics.jsonl")]


def test_a_new_run_has_a_sortable_unique_id_and_a_configuration(tmp_path):
    folders = []
    for _ in range(3):
        with Run.create(MODEL, TRAINING, root=tmp_path / "runs") as new:
            folders.append(new.folder)
            assert new.config.run_id == new.folder.name
    digest = config_hash(MODEL, TRAINING)
    assert all(re.fullmatch(rf"[0-9]{{8}}-[0-9]{{6}}-{digest[:6]}(-[23])?", folder.name) for folder in folders)
    assert len(set(folders)) == 3
    values = json.loads((folders[0] / "config.json").read_text())
    assert values["runId"] == folders[0].name
    assert values["configHash"] == digest
    assert values["domain"] == "abc"
    assert values["model"]["dim"] == 8
    assert values["training"]["iters"] == 30
    age = datetime.now(UTC) - datetime.fromisoformat(values["createdAt"])
    assert 0 <= age.total_seconds() < 60


def test_runs_of_one_instant_get_a_counter(tmp_path, monkeypatch):
    class Clock:
        @staticmethod
        def now(_zone: Any) -> datetime:
            return datetime(2026, 11, 23, 8, 49, 7, tzinfo=UTC)

    monkeypatch.setattr(run, "datetime", Clock)
    names = []
    for _ in range(3):
        with Run.create(MODEL, TRAINING, root=tmp_path) as new:
            names.append(new.folder.name)
    first = f"20261123-084907-{config_hash(MODEL, TRAINING)[:6]}"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(AlphaError, match=r"is not empty; choose another with --runDir, or empty it"):
        Run.create(MODEL, TRAINING, folder=tmp_path)
    (tmp_path / "config.json").write_text('{"name": "another program"}')
    with pytest.raises(AlphaError, match="is not empty"):
        Run.create(MODEL, TRAINING, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "note.txt"]
    for path in list(tmp_path.iterdir()):
        path.unlink()
    # What a run leaves that was killed while it was made.
    (tmp_path / f".alpha-{32 * '0'}.tmp").write_text("{")
    (tmp_path / ".lock").touch()
    Run.create(MODEL, TRAINING, folder=tmp_path).close()
    with pytest.raises(AlphaError, match=re.escape(f"has a run; continue it with --resume={tmp_path} or choose")):
        Run.create(MODEL, TRAINING, folder=tmp_path)


def test_whether_a_run_can_be_made_is_known_without_a_trace(tmp_path):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    check_new(tmp_path / "a" / "b")
    check_new(None, tmp_path / "runs")
    for arguments in ((tmp_path / "file",), (tmp_path / "file" / "x",), (None, tmp_path / "file"), (Path("x" * 300),)):
        with pytest.raises(AlphaError, match=r"Cannot make the folder .*: (File exists|Not a directory|File name too)"):
            check_new(*arguments)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "config", ['{"name": "x"}', "{", '{"runId": "a", "createdAt": "b", "model": {}, "training": 1}']
)
def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    names = [".tmpABCDEF", ".notes.tmp", f".alpha-{32 * '0'}.tmp", "config.json"]
    for name in names[:-1]:
        (tmp_path / name).write_text("mine")
    with pytest.raises(AlphaError, match=r"config\.json"):
        Run.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("instead", ["nothing", "moved", "another"])
def test_a_folder_that_is_gone_is_not_made_again(tmp_path, opened, instead):
    opened.save(small_checkpoint(1))
    if instead == "moved":
        opened.folder.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(opened.folder)
    if instead == "another":
        opened.folder.mkdir()
    assert not opened.is_there()
    with pytest.raises(AlphaError, match="was deleted, moved or replaced while the run went on"):
        opened.save(small_checkpoint(2))
    assert steps(opened.folder) == []
    assert opened.folder.exists() == (instead == "another")


def test_a_folder_that_was_emptied_is_whole_again_with_the_next_checkpoint(opened):
    before = read_config(opened.folder)
    for path in opened.folder.iterdir():
        path.unlink()
    opened.save(small_checkpoint(2))
    opened.save(small_checkpoint(2))
    opened.add_metrics({"step": 3, "loss": 1.0})
    assert is_locked(opened.folder)
    opened.close()
    assert not is_locked(opened.folder)
    assert read_config(opened.folder) == before
    assert metrics_steps(opened.folder) == [3]
    with Run.open(opened.folder) as again:
        again.rewind(2)
    assert (steps(opened.folder), metrics_steps(opened.folder)) == ([2], [])
    assert "config.json was removed" in (opened.folder / LOG).read_text()


def test_a_run_whose_lock_was_removed_saves_nothing_into_one_that_another_holds(opened):
    opened.save(small_checkpoint(2))
    (opened.folder / LOCK).unlink()
    with Run.open(opened.folder), pytest.raises(AlphaError, match="is in use by process"):
        opened.save(small_checkpoint(3))
    assert steps(opened.folder) == [2]


def test_what_a_file_says_reaches_the_log_harmless(opened):
    opened.close()
    path = opened.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"runId": "a\n\x1b[31mred"}))
    Run.open(opened.folder).close()
    lines = (opened.folder / "log.txt").read_text().splitlines()
    assert "Opened run a\\n\\x1b[31mred with Alpha" in lines[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, AlphaError("Cannot write: No space left on device.")])
@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_is_not_begun_leaves_no_folder(tmp_path, monkeypatch, error, named):
    def refuse(*_):
        raise error

    monkeypatch.setattr(run, "_write_config", refuse)
    folder = tmp_path / "runs" / "first" if named else None
    with pytest.raises(error if isinstance(error, type) else AlphaError):
        Run.create(MODEL, TRAINING, folder, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(error if isinstance(error, type) else AlphaError):
        Run.create(MODEL, TRAINING, folder, tmp_path / "runs")
    assert list((tmp_path / "runs" / "first").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for arguments in ({"folder": tmp_path / "file"}, {"folder": tmp_path / "file" / "x"}, {"root": tmp_path / "file"}):
        with pytest.raises(AlphaError, match=r"Cannot make the folder .*: (File exists|Not a directory)\.$"):
            Run.create(MODEL, TRAINING, **arguments)


def test_a_run_is_opened_by_its_folder_or_a_checkpoint_in_it(tmp_path, opened):
    path = opened.save(small_checkpoint(10))
    opened.close()
    for place in (opened.folder, path):
        with Run.open(place) as again:
            assert again.folder == opened.folder
            assert again.config == opened.config
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(AlphaError, match=r"is not in the folder of a run: there is no .*config\.json"):
            Run.open(place)


def test_a_damaged_configuration_is_an_error_and_releases_the_lock(opened):
    opened.close()
    path = opened.folder / "config.json"
    good = json.loads(path.read_text())
    for bad, message in (
        ("{", "is not valid JSON"),
        ("[]", "does not have the objects"),
        (json.dumps(good | {"model": 3}), "does not have the objects"),
        (json.dumps(good | {"runId": None}), "does not have the texts"),
    ):
        path.write_text(bad)
        with pytest.raises(AlphaError, match=message):
            Run.open(opened.folder)
    path.write_text(json.dumps(good | {"model": {"width": 3}}))
    with pytest.raises(UsageError, match="Unknown key 'width'"):
        Run.open(opened.folder)
    assert not is_locked(opened.folder)


def test_a_second_process_is_refused_until_the_first_is_dead(opened):
    opened.close()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(opened.folder)], stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(opened.folder)
    with pytest.raises(AlphaError, match=rf"is in use by process {holder.pid}; wait for it or stop it\.$"):
        Run.open(opened.folder)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not is_locked(opened.folder)
    with Run.open(opened.folder):
        assert metrics_steps(opened.folder) == [1]


def test_looking_at_a_lock_does_not_keep_a_run_from_being_opened(opened):
    import fcntl
    import threading

    opened.close()
    descriptor = os.open(opened.folder / ".lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    releaser = threading.Timer(0.05, os.close, [descriptor])
    releaser.start()
    with Run.open(opened.folder):
        pass
    releaser.join()


def test_resuming_gives_each_step_once(opened):
    for step in range(1, 26):
        opened.add_metrics({"step": step, "loss": float(step)})
        if step % 10 == 0:
            opened.add_sample({"step": step, "text": "x"})
            opened.save(small_checkpoint(step))
    opened.close()
    with (opened.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "lo')
    with Run.open(opened.folder) as again:
        again.rewind(20)
        for step in range(21, 31):
            again.add_metrics({"step": step, "loss": -float(step)})
        again.add_sample({"step": 30, "text": "y"})
    rows = rows_in(opened.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["loss"] > 0 for row in rows] == [step <= 20 for step in range(1, 31)]
    assert [row["step"] for row in rows_in(opened.folder / "samples.jsonl")] == [10, 20, 30]


def test_rewinding_puts_later_checkpoints_aside(opened):
    saved = [small_checkpoint(step, val_loss=1 / step) for step in (10, 20, 30)]
    for each in saved:
        opened.save(each)
    opened.rewind(20)
    assert checkpoint.find(opened.folder).name == "checkpoint-20.safetensors"
    assert_equal(checkpoint.load(opened.folder / "superseded-checkpoint-30.safetensors"), saved[2])
    opened.save(small_checkpoint(21, val_loss=9.0))
    opened.save(small_checkpoint(30))
    opened.save(small_checkpoint(31))
    opened.save(small_checkpoint(32))
    assert steps(opened.folder) == [20, 31, 32], "step 20 is the best now"


def test_a_row_needs_a_step(opened):
    with pytest.raises(KeyError):
        opened.add_metrics({"loss": 1.0})
    with pytest.raises(KeyError):
        opened.add_sample({"text": "x"})


def test_the_newest_checkpoints_and_the_best_are_kept(opened):
    losses = {1: float("nan"), 2: 1.0, 3: None, 4: 2.0, 5: float("inf"), 6: 1.0, 7: 1.5}
    kept = []
    for step, loss in losses.items():
        opened.save(small_checkpoint(step, val_loss=loss))
        kept.append(steps(opened.folder))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [2, 6, 7]]
    opened.close()
    with Run.open(opened.folder) as again:
        again.save(small_checkpoint(8, val_loss=0.5))
        again.save(small_checkpoint(9))
        again.save(small_checkpoint(10))
    assert steps(opened.folder) == [8, 9, 10], "the best is known after reopening"


def test_without_validation_only_the_newest_are_kept(opened):
    for step in range(1, 6):
        opened.save(small_checkpoint(step))
    assert steps(opened.folder) == [4, 5]


def test_nothing_is_deleted_when_saving_fails(opened, monkeypatch):
    opened.save(small_checkpoint(1))
    opened.save(small_checkpoint(2))

    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(AlphaError, match="No space left on device"):
            opened.save(small_checkpoint(3))
    assert steps(opened.folder) == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None if missing_ok else refuse())
        with pytest.raises(AlphaError, match=r"Cannot delete the old checkpoint .*checkpoint-1\.safetensors"):
            opened.save(small_checkpoint(3))
    assert steps(opened.folder) == [1, 2, 3]


def test_rows_are_durable_before_the_checkpoint_that_follows_them(opened, monkeypatch):
    events = []
    fsync, save = os.fsync, checkpoint.save
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), fsync(descriptor))[1])
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (events.append("save"), save(*arguments))[1])
    opened.save(small_checkpoint(1))
    assert events[:3] == ["sync", "sync", "save"]


@pytest.mark.parametrize("name", [LOCK, METRICS, SAMPLES, LOG])
def test_nothing_is_written_to_what_is_no_file_of_the_folder(opened, tmp_path, name):
    opened.close()
    path, other = opened.folder / name, tmp_path / "other"
    content = path.read_bytes() + b"a line without an end"
    makers = [path.symlink_to, lambda other: path.symlink_to(tmp_path / "missing"), path.hardlink_to,
              lambda _: os.mkfifo(path), lambda _: path.symlink_to("/dev/zero"), lambda _: path.mkdir()]  # fmt: skip
    for make in makers:
        other.write_bytes(content)
        path.unlink()
        make(other)
        with pytest.raises(AlphaError, match=f"{path}: it (is a link;|has a second name|is not a regular)"):
            Run.open(opened.folder)
        assert other.read_bytes() == content
        assert not (tmp_path / "missing").exists()


def test_nothing_replaces_a_link(opened, tmp_path):
    other = tmp_path / "other"
    for name in (CONFIG, "checkpoint-1.safetensors"):
        (opened.folder / name).unlink(missing_ok=True)
        (opened.folder / name).symlink_to(other)
    with pytest.raises(AlphaError, match=r"Cannot write .*checkpoint-1\.safetensors: it is a link"):
        opened.save(small_checkpoint(1))
    with pytest.raises(AlphaError, match=r"Cannot write .*config\.json: it is a link"):
        opened.configure(opened.config.model, opened.config.training, 1)
    assert not other.exists()


def test_a_damaged_old_checkpoint_is_a_warning_and_does_not_stop_the_run(opened):
    for step in (1, 2):
        path = opened.save(small_checkpoint(step, val_loss=float(step)))
    opened.close()
    os.truncate(opened.folder / "checkpoint-1.safetensors", 100)
    with Run.open(opened.folder) as again:
        assert checkpoint.load(path).step == 2
        again.save(small_checkpoint(3))
    assert re.search(r"WARNING .*checkpoint-1\.safetensors is not a whole", (opened.folder / "log.txt").read_text())


def test_the_configuration_can_be_changed_on_resuming(opened):
    opened.close()
    with Run.open(opened.folder) as again:
        again.configure(MODEL, replace(TRAINING, iters=60, keep=1, log="warning"), 10)
        again.save(small_checkpoint(1))
        again.save(small_checkpoint(2))
    config = read_config(opened.folder)
    assert (config.training.iters, config.run_id) == (60, opened.config.run_id)
    assert steps(opened.folder) == [2]
    assert "Saved" not in (opened.folder / "log.txt").read_text()
    with Run.open(opened.folder) as again:
        again.configure(MODEL, config.training, 11)  # changes nothing
        again.configure(MODEL, replace(TRAINING, iters=60, keep=1, lr=0.5), 12)
    (first, second) = read_config(opened.folder).history
    assert (first["step"], first["changes"]["iters"]) == (10, {"from": 30, "to": 60})
    assert (second["step"], second["changes"].keys()) == (12, {"lr", "log"})
    path = opened.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"history": {"a": 1}}))
    with pytest.raises(AlphaError, match=r"'history' in .* is not a list of objects"):
        read_config(opened.folder)


def test_the_log_has_times_in_utc_and_the_detail_asked_for(tmp_path):
    training = replace(TRAINING, log="warning")
    logger = logging.getLogger("alpha.somewhere")
    with Run.create(MODEL, training, folder=tmp_path / "run") as new:
        logger.info("not this")
        logger.warning("loss %s", 1.5)
        logging.getLogger("other").error("nor this")
    logger.warning("nor what comes after")
    line = (tmp_path / "run" / "log.txt").read_text()
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) WARNING loss 1\.5\n", line)
    assert match
    assert abs((datetime.now(UTC) - datetime.fromisoformat(match[1])).total_seconds()) < 60
    assert logging.getLogger("alpha").level == logging.NOTSET
    assert new.folder == tmp_path / "run"


def test_what_ended_a_run_is_in_its_log(opened, monkeypatch):
    with pytest.raises(AlphaError, match="the loss is not finite"), opened:
        raise AlphaError("the loss is not finite")
    assert "ERROR Ended by AlphaError: the loss is not finite\n" in (opened.folder / "log.txt").read_text()
    assert not is_locked(opened.folder)


def test_the_error_that_ended_a_run_is_shown_even_when_it_cannot_be_logged(opened, monkeypatch):
    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AlphaError, match="the first reason") as caught, opened, monkeypatch.context() as patch:
        patch.setattr("alpha.files.os.write", refuse)
        opened.__exit__(None, error := AlphaError("the first reason"), None)
        raise error
    assert any("log.txt: No space left on device" in note for note in caught.value.__notes__)


def test_a_read_only_run_is_an_error_that_says_so(opened):
    opened.close()
    contents = [opened.folder / name for name in (".lock", "config.json", "metrics.jsonl")]
    with read_only_folder(*contents) as folder:
        with pytest.raises(AlphaError, match=r"Cannot lock the run .*: Permission denied\.$"):
            Run.open(folder)
        with pytest.raises(AlphaError, match=r"Cannot make the folder .*: Permission denied\.$"):
            Run.create(MODEL, TRAINING, root=folder / "runs")
        assert not is_locked(folder)


PRUNED_AND_KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from small_checkpoint import MODEL, TRAINING, small_checkpoint
from alpha.run import Run

run = Run.create(MODEL, replace(TRAINING, keep=1), folder=Path(sys.argv[1]))
run.add_metrics({"step": 1})
run.save(small_checkpoint(1))
run.add_metrics({"step": 2})
run.add_metrics({"step": 3})
Path.unlink = lambda path, missing_ok=False: missing_ok or os.kill(os.getpid(), signal.SIGKILL)
run.save(small_checkpoint(2))
"""


def test_a_run_killed_between_saving_and_pruning_continues(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    folder = tmp_path / "run"
    subprocess.run([sys.executable, "-c", PRUNED_AND_KILLED, str(folder)], env=environment, check=False)
    assert steps(folder) == [1, 2]
    with Run.open(folder) as again:
        again.rewind(checkpoint.load(checkpoint.find(folder)).step)
        assert metrics_steps(folder) == [1, 2]
        again.save(small_checkpoint(3))
    assert steps(folder) == [3]


# --- the heartbeat ----------------------------------------------------------------------------------------------------


def status_of(folder: Path) -> dict[str, Any]:
    content = (folder / STATUS).read_bytes()
    assert len(content) == 2048
    return json.loads(content)


def test_the_status_says_what_is_being_done_and_when(opened, monkeypatch):
    clock = [100.0, 1e9]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run.time, "time", lambda: clock[1])
    assert (opened.folder / STATUS).read_bytes() == b""
    opened.beat("training")
    assert status_of(opened.folder) == {
        "phase": "training", "time": 1e9, "pid": os.getpid(), "host": socket.gethostname()
    }  # fmt: skip
    clock[:] = [109.9, 2e9]
    opened.beat("training")
    assert status_of(opened.folder)["time"] == 1e9  # not every step writes
    opened.beat("saving")
    assert (status_of(opened.folder)["phase"], status_of(opened.folder)["time"]) == ("saving", 2e9)
    clock[:] = [119.9, 1.0]  # a clock that jumps back stops nothing
    opened.beat("saving")
    assert status_of(opened.folder)["time"] == 1.0
    opened.close()
    assert status_of(opened.folder)["phase"] == "ended"


@pytest.mark.parametrize("message", ["no money", "\x1b[31m\n" * 500, "\ud800" * 500, "\U0001f600" * 500])
def test_the_status_says_what_error_ended_a_run(tmp_path, monkeypatch, message):
    # What is logged becomes part of pytest's report, which xdist cannot send with half a character in it.
    monkeypatch.setattr(logging.getLogger("alpha.run"), "propagate", False)
    with pytest.raises(ValueError), Run.create(MODEL, TRAINING, folder=tmp_path / "run") as opened:
        opened.beat("training")
        raise ValueError(message)
    status = status_of(opened.folder)
    assert (status["phase"], status["error"]) == ("failed", f"ValueError: {message}"[:200])


def test_a_status_behind_a_link_is_not_written(tmp_path):
    with Run.create(MODEL, TRAINING, folder=tmp_path / "run"):
        pass
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / STATUS).unlink()
    (tmp_path / "run" / STATUS).symlink_to(tmp_path / "precious")
    with pytest.raises(AlphaError, match=r"status\.json: it is a link"):
        Run.open(tmp_path / "run")
    assert not is_locked(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlphaError, match=rf"Cannot make the folder {tmp_path}/file: File exists\."):
        run.check_new(tmp_path / "file" / "a" / "b")
