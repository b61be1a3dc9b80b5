"""From a configuration to a trainer: what is refused, when, and what it leaves behind."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_training import (
    MODEL,
    TRAINING,
    RecordingDisplay,
    begin,
    bits_of,
    newest,
    resume,
    rows_of,
    steps_saved,
    text_of,
    train,
    write_corpus,
)

from alpha import checkpoint, tokenizer_registry, training_setup
from alpha.config import ModelConfig, TrainingConfig
from alpha.errors import AlphaError, UsageError
from alpha.files import cache_folder
from alpha.run import is_locked, read_config
from alpha.sampler import Sampler
from alpha.settings import merge
from alpha.tokenizer_simple import build_char
from alpha.trainer import Trainer
from alpha.training_setup import RESUMABLE, new_run, resumed_run
from alpha.training_step import StepResult, TrainingStep

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


@pytest.fixture
def stopped(corpus: Path, tmp_path: Path) -> Path:
    """The folder of a run that was stopped after step 4 of 8."""
    return train(corpus, tmp_path / "run", RecordingDisplay(stop_after=4))


def files_of(folder: Path) -> dict[str, bytes]:
    """What a run's folder holds, but for the log, which says more each time."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("log.txt", ".lock")}


# --- new runs ---------------------------------------------------------------------------------------------------------


def test_a_run_gets_a_folder_named_by_its_id(corpus: Path, tmp_path: Path) -> None:
    run, trainer = new_run(MODEL, TrainingConfig(data=str(corpus), **TRAINING), RecordingDisplay())
    with run:
        assert run.folder.parent == Path("runs")
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.config.run_id]
        assert trainer.steps_done == 0
        assert run.config.training == trainer.training
        assert run.config.model == trainer.model.config


def test_what_is_automatic_is_resolved_once_and_saved(corpus: Path, tmp_path: Path) -> None:
    folder = train(corpus, tmp_path / "run", iters=10)
    values = json.loads((folder / "config.json").read_text())
    assert values["model"]["ffnDim"] == 64
    assert values["model"]["kvHeads"] == 2
    assert values["training"]["lrMin"] == pytest.approx(0.001)
    assert values["training"]["warmupIters"] == 2
    resume(folder, iters=100)
    assert newest(folder).training.warmup_iters == 2


def test_the_sizes_are_said_before_training(corpus: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    run, trainer = begin(corpus, tmp_path / "run", display, accum_steps=3, min_tokens_per_param=20.0)
    run.close()
    data, size = trainer.mixture.parts[0].data, trainer.model.parameters.size
    assert data.validation is not None
    assert display.messages == [
        f"Building the char tokenizer from {corpus}.",
        f"Data: {len(data.train.tokens):,} tokens for training, {len(data.validation.tokens):,} for validation, "
        f"vocabulary {trainer.tokenizer.vocab_size}.",
        f"Model: {size:,} parameters; 192 tokens per step.",
    ]
    assert len(display.warnings) == 1
    assert display.warnings[0].startswith(f"The run sees {8 * 192:,} tokens, ")


def test_files_that_are_passed_over_are_counted(corpus: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(corpus, folder)
    for name in ("a.pdf", "b.png", ".hidden.txt"):
        (folder / name).write_text("?")
    run, _ = begin(folder, tmp_path / "run", display)
    run.close()
    assert display.messages[1].endswith("; 3 other files were skipped.")


BAD = {
    "no data": ({"data": ""}, UsageError, "Say what to train on with --data=PATHS"),
    "data missing": ({"data": "nowhere.txt"}, AlphaError, "There is no file or folder 'nowhere.txt'"),
    "validation missing": ({"val_data": "nowhere.txt"}, AlphaError, "There is no file or folder 'nowhere.txt'"),
    "unknown tokenizer": ({"tokenizer": "chars"}, UsageError, "Did you mean 'char'"),
    "vocabulary size": ({"tokenizer": "char", "vocab_size": 30}, UsageError, "leave out --vocabSize=30"),
    "learning rates": ({"lr": 0.1, "lr_min": 0.2}, UsageError, "lrMin=0.2 is above --lr=0.1"),
    "strict planning": ({"strict_planning": True, "min_tokens_per_param": 20.0}, AlphaError, "this run is refused"),
    "unusable artifact": ({"tokenizer_artifacts": "x" * 300}, AlphaError, "Cannot look for x.*File name too long"),
    "unknown domain": ({"domain": "nowhere"}, UsageError, "There is no domain"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_what_is_refused_leaves_no_folder(
    corpus: Path, tmp_path: Path, options: dict[str, Any], error: type[AlphaError], message: str
) -> None:
    training = TrainingConfig(**{"data": str(corpus), "run_dir": "run"} | TRAINING | options)
    with pytest.raises(error, match=message) as caught:
        new_run(MODEL, training, RecordingDisplay())
    assert type(caught.value) is error
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()


def test_a_contradictory_model_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    training = TrainingConfig(data="nowhere.txt", run_dir="run")
    with pytest.raises(UsageError, match="--dim=16 is not a multiple of --heads=3"):
        new_run(dataclasses.replace(MODEL, heads=3), training, RecordingDisplay())
    assert not (tmp_path / "run").exists()


def test_a_backend_that_cannot_be_had_is_refused_before_anything_is_built(corpus: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    with pytest.raises(UsageError, match="--device=3 chooses a Vulkan device"):
        begin(corpus, tmp_path / "run", display, device=3)
    assert display.messages == []
    assert not (tmp_path / "run").exists()


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match="needs 17; use a smaller --block or more data"):
        train(write_corpus(tmp_path, "Short."), tmp_path / "run")
    with pytest.raises(AlphaError, match="no validation data, which --requireValData asks for"):
        train(write_corpus(tmp_path, text_of(150)), tmp_path / "run", require_val_data=True)
    assert not (tmp_path / "run").exists()


def test_a_model_that_no_memory_holds_is_refused(corpus: Path, tmp_path: Path) -> None:
    giant = ModelConfig(block=16, layers=1024, dim=1 << 16, heads=2)
    with pytest.raises(AlphaError, match=r"no memory for a model of 52,\d{3},\d{3},\d{3},\d{3} parameters"):
        begin(corpus, tmp_path / "run", model=giant)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_before_the_data_is_read(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(stopped)
    with pytest.raises(AlphaError, match=f"has a run; continue it with --resume={stopped}"):
        begin(Path("nowhere.txt"), stopped)
    assert files_of(stopped) == before


def test_a_folder_with_other_files_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(AlphaError, match="is not empty"):
        begin(corpus, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "Dear"


def test_encoded_corpora_are_kept_in_the_users_cache(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == tmp_path / "cache" / "alpha"
    train(corpus, tmp_path / "run")
    assert list((tmp_path / "cache" / "alpha" / "tokens").glob("*/train.npy"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/alpha")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(training_setup.Path, "home", no_home)
    monkeypatch.chdir(tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "alpha"


def test_a_run_below_its_own_data_is_resumed_and_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path)
    folder = train(Path(), Path("run"))
    resume(folder, iters=10)
    display = RecordingDisplay()
    train(Path(), Path("run2"), display)
    assert any("other files were skipped" in message for message in display.messages)


def test_names_that_are_not_utf8_are_kept_in_every_file(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    corpus = write_corpus(odd)
    folder = train(corpus, odd / "run", val_data=str(corpus), max_dataset_passes=1000)
    resume(folder, iters=10)
    assert newest(folder).training.data == str(corpus) == read_config(folder).training.data
    _, training = merge({"config": str(folder / "config.json")})
    assert training.data == str(corpus)
    assert (folder / "config.json").read_text("utf-8"), "valid UTF-8"


def test_progress_is_told_of_what_takes_long(corpus: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    begin(corpus, tmp_path / "run", display, tokenizer="bpe", vocab_size=300)[0].close()
    stages = dict.fromkeys(stage for stage, _, _ in display.counts)
    assert list(stages) == ["reading", "learning tokens", "hashing", "encoding"]
    last = {stage: (done, total) for stage, done, total in display.counts}
    assert all(done == total for done, total in last.values())


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["char", "word", "bpe"])
def test_a_tokenizer_is_built_once_and_used_again(
    corpus: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "new" / "tokenizer.json"
    options: dict[str, Any] = {"tokenizer": name, "tokenizer_artifacts": str(artifact), "iters": 2}
    options["vocab_size"] = 270 if name == "bpe" else 0
    first = train(corpus, tmp_path / "first", **options)
    content = artifact.read_bytes()
    assert json.loads(content)["kind"] == name

    def build(*_: Any) -> None:
        pytest.fail("built again")

    monkeypatch.setattr(tokenizer_registry, "build", build)
    display = RecordingDisplay()
    second = train(corpus, tmp_path / "second", display, **options)
    assert artifact.read_bytes() == content
    assert display.messages[0] == f"Using the tokenizer of {artifact}."
    assert newest(second).tokenizer == newest(first).tokenizer == json.loads(content)
    assert bits_of(second) == bits_of(first)
    artifact.unlink()
    resume(first, iters=3)  # a checkpoint has all that it needs


CONTRADICTIONS = {
    "smaller": (
        {"tokenizer": "bpe", "vocab_size": 280},
        "--vocabSize=280 contradicts .* a bpe tokenizer of 300 tokens",
    ),
    "kind": ({"tokenizer": "char"}, "--tokenizer=char contradicts"),
    "another kind": ({"tokenizer": "word"}, "--tokenizer=word contradicts"),
    "chat": ({"tokenizer": "bpe-chat-4k"}, r"--tokenizer=bpe-chat-4k contradicts .* without <\|user\|>"),
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_options_that_contradict_a_tokenizer_file_are_refused(
    corpus: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    artifact = tmp_path / "tokenizer.json"
    tokenizer_registry.save(artifact, tokenizer_registry.build("bpe", [text_of()], 300))
    with pytest.raises(UsageError, match=message):
        begin(corpus, tmp_path / "run", tokenizer_artifacts=str(artifact), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, {"domain": "super_chat"}, {"vocab_size": 300}, {"tokenizer": "bpe"}])
def test_what_was_used_of_a_tokenizer_file_is_in_the_configuration(
    corpus: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    artifact = tmp_path / "tokenizer.json"
    tokenizer_registry.save(artifact, tokenizer_registry.build("bpe", [text_of()], 300))
    given = {"data": str(corpus), "tokenizer_artifacts": str(artifact), "run_dir": str(tmp_path / "run"), **options}
    model, training = merge({"iters": 2, "batch": 2, "block": 16, "layers": 1, "dim": 16, "heads": 2, **given})
    run, _ = new_run(model, training, RecordingDisplay())
    run.close()
    written = read_config(run.folder).training
    assert (written.tokenizer, written.vocab_size) == ("bpe", 300)
    merge({"config": str(run.folder / "config.json"), "tokenizer_artifacts": "other.json"})


def test_a_vocabulary_smaller_than_asked_is_said(corpus: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "tokenizer.json"
    tokenizer_registry.save(artifact, tokenizer_registry.build("bpe", [text_of()], 300))
    display = RecordingDisplay()
    options = {"tokenizer": "bpe", "vocab_size": 350, "tokenizer_artifacts": str(artifact)}
    begin(corpus, tmp_path / "run", display, **options)[0].close()
    assert display.warnings[0].startswith("--vocabSize=350 allows more tokens than --tokenizerArtifacts=")


GARBAGE = {
    "not text": b"\x93NUMPY\x00\xff",
    "not JSON": b"{",
    "nested": b"[" * 100_000,
    "no object": b"[1, 2]",
    "another file": b'{"model": {}, "training": {}}',
    "another kind": b'{"format": "alpha-tokenizer", "version": 1, "kind": "magic", "tokens": [], "special_tokens": {}}',
    "empty": b"",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_tokenizer_file_of_garbage_is_refused_and_kept(corpus: Path, tmp_path: Path, content: bytes) -> None:
    artifact = tmp_path / "tokenizer.json"
    artifact.write_bytes(content)
    with pytest.raises(AlphaError, match=str(artifact)):
        begin(corpus, tmp_path / "run", tokenizer_artifacts=str(artifact))
    assert artifact.read_bytes() == content
    assert not (tmp_path / "run").exists()


def test_a_folder_in_the_place_of_a_tokenizer_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match="not a regular file"):
        begin(corpus, tmp_path / "run", tokenizer_artifacts=str(tmp_path))


def test_unknown_characters_are_warned_of_with_their_share(corpus: Path, tmp_path: Path) -> None:
    text = text_of()
    artifact = tmp_path / "tokenizer.json"
    tokenizer_registry.save(artifact, build_char([text.replace("e", "").replace("T", "")]))
    validation = tmp_path / "validation.txt"
    validation.write_text("The bird. " * 10)
    display = RecordingDisplay()
    options = {"tokenizer_artifacts": str(artifact), "val_data": str(validation), "max_dataset_passes": 1000}
    run, _ = begin(corpus, tmp_path / "run", display, **options)
    run.close()
    unknown = text.count("e") + text.count("T")
    assert display.warnings == [
        f"{100 * unknown / (len(text) + 1):.2g}% of the training tokens are unknown to the tokenizer and cannot be "
        "learned; build one from this data, or use --tokenizer=bpe.",
        f"{100 * 20 / 101:.2g}% of the validation tokens are unknown to the tokenizer and cannot be learned; "
        "build one from this data, or use --tokenizer=bpe.",
    ]


def test_a_cache_that_cannot_be_written_is_said_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    other = tmp_path / "other.txt"
    other.write_text(text_of(20_000, "other"))
    display = RecordingDisplay()
    options = {"val_data": str(other), "max_dataset_passes": 99}
    begin(corpus, tmp_path / "run", display, **options)[0].close()
    assert [each for each in display.warnings if "XDG_CACHE_HOME" in each] == display.warnings
    assert len(display.warnings) == 1


def test_unknown_characters_are_looked_for_in_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tmp_path / "tokenizer.json"
    tokenizer_registry.save(artifact, build_char([text_of()]))
    corpus = write_corpus(tmp_path, text_of() + "\N{SNOWMAN}" * 100)
    display = RecordingDisplay()
    monkeypatch.setattr(training_setup, "LOOKED_AT", 6000)
    options = {"tokenizer_artifacts": str(artifact), "val_data": str(corpus)}
    begin(corpus, tmp_path / "first", display, **options)[0].close()
    assert not any("unknown" in warning for warning in display.warnings)
    monkeypatch.setattr(training_setup, "LOOKED_AT", 6002)
    begin(corpus, tmp_path / "second", display, **options)[0].close()
    unknown = [warning for warning in display.warnings if "unknown" in warning]
    assert [warning.split(" of")[0] for warning in unknown] == ["0.017%"] * 2


# --- resumed runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("weight_decay", "weightDecay", 0.1), ("dtype", "dtype", "f16"), ("seed", "seed", 1),
        ("optim", "optim", "sgd"), ("packed", "packed", True), ("tokenizer_artifacts", "tokenizerArtifacts", "x"),
        ("dim", "dim", 32), ("dropout", "dropout", 0.1), ("run_dir", "runDir", "x"), ("config", "config", "x.json"),
    ],
)  # fmt: skip
def test_options_that_would_change_the_steps_are_refused(stopped: Path, name: str, flag: str, value: Any) -> None:
    before = files_of(stopped)
    with pytest.raises(UsageError, match=f"--{flag} cannot be changed when a run is resumed"):
        resume(stopped, **{name: value})
    assert files_of(stopped) == before


def test_options_that_may_change_exist_and_are_saved(stopped: Path) -> None:
    assert set(RESUMABLE) <= set(TrainingConfig.__dataclass_fields__)
    changes: dict[str, Any] = {
        "iters": 9, "keep": 5, "threads": 2, "eval_interval": 2, "sample_interval": 4, "checkpoint_interval": 7,
        "log_every": 3, "log": "debug", "trace": True, "recompute": True,
    }  # fmt: skip
    resume(stopped, **changes)
    training = newest(stopped).training
    assert {name: getattr(training, name) for name in changes} == changes
    assert steps_saved(stopped) == [3, 4, 7, 9]
    assert [row["step"] for row in rows_of(stopped)] == [1, 2, 3, 4, 6, 8, 9]


def test_fewer_iters_than_steps_made_are_refused(stopped: Path) -> None:
    before = files_of(stopped)
    with pytest.raises(UsageError, match="--iters=3 is less than the 4 steps that this run already has"):
        resume(stopped, iters=3)
    assert files_of(stopped) == before


def test_a_changed_corpus_is_refused_and_nothing_is_lost(stopped: Path, corpus: Path, tmp_path: Path) -> None:
    whole = bits_of(train(corpus, tmp_path / "whole"))
    before, text = files_of(stopped), corpus.read_text()
    corpus.write_text(text.replace("The", "Ten", 1))
    with pytest.raises(AlphaError, match="The training data has changed since step 3 of this run"):
        resume(stopped / "checkpoint-3.safetensors", iters=20)
    assert files_of(stopped) == before
    assert not is_locked(stopped)
    corpus.write_text(text)
    resume(stopped)
    assert bits_of(stopped) == whole


def test_missing_data_is_named_and_may_have_moved(stopped: Path, corpus: Path, tmp_path: Path) -> None:
    whole = bits_of(train(corpus, tmp_path / "whole"))
    before = files_of(stopped)
    moved = corpus.rename(tmp_path / "moved.txt")
    with pytest.raises(AlphaError, match=f"There is no file or folder '{corpus}'"):
        resume(stopped)
    assert files_of(stopped) == before
    resume(stopped, data=str(moved))
    assert bits_of(stopped) == whole


def test_other_validation_data_changes_no_bit_of_the_training(corpus: Path, tmp_path: Path) -> None:
    validation = tmp_path / "validation.txt"
    validation.write_text(text_of(500, "validation"))
    other = tmp_path / "other.txt"
    other.write_text(text_of(700, "other"))
    whole = train(corpus, tmp_path / "whole", val_data=str(validation))
    parts = train(corpus, tmp_path / "parts", RecordingDisplay(stop_after=4), val_data=str(validation))
    resume(parts, val_data=str(other))
    assert bits_of(parts) == bits_of(whole)
    assert rows_of(parts)[-1]["valLoss"] != rows_of(whole)[-1]["valLoss"]


def test_a_run_without_a_checkpoint_starts_over(corpus: Path, tmp_path: Path) -> None:
    whole = train(corpus, tmp_path / "whole")
    run, _ = begin(corpus, tmp_path / "run")
    run.add_metrics({"step": 1, "loss": 9.0})
    run.close()
    display = RecordingDisplay()
    resume(run.folder, display)
    message = f"The run {run.folder} has no checkpoint yet: it starts over from its configuration, at step 0."
    assert message in display.messages
    assert bits_of(run.folder) == bits_of(whole)
    assert rows_of(run.folder) == rows_of(whole)


def test_a_run_starts_over_with_what_is_changed(corpus: Path, tmp_path: Path) -> None:
    run, _ = begin(corpus, tmp_path / "run")
    run.close()
    with pytest.raises(UsageError, match="--seed cannot be changed"):
        resume(run.folder, seed=1)
    resume(run.folder, iters=5, lr=0.5)
    assert rows_of(run.folder)[0]["lr"] == 0.5
    assert steps_saved(run.folder) == [3, 5]


@pytest.mark.parametrize("packed", [False, True], ids=["random", "packed"])
def test_windows_are_drawn_on_where_the_batch_changes(
    corpus: Path, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps of 4 windows, then 2 of 2 x 3, then 2 of 5: windows 0 to 37, each once and in order."""
    seen: list[Any] = []
    run_step = TrainingStep.run

    def recorded(step: TrainingStep, ids: Any, targets: Any, learning_rate: float) -> StepResult:
        tokens = np.concatenate([ids[..., :1], targets], -1)
        seen.extend(tokens.reshape(-1, tokens.shape[-1]).tolist())
        return run_step(step, ids, targets, learning_rate)

    monkeypatch.setattr(TrainingStep, "run", recorded)
    folder = train(corpus, tmp_path / "run", RecordingDisplay(stop_after=4), packed=packed)
    resume(folder, RecordingDisplay(stop_after=6), batch=3, accum_steps=2)
    resume(folder, batch=5, accum_steps=1)
    run, trainer = resumed_run({"resume": str(folder)}, RecordingDisplay())
    run.close()
    sampler = Sampler(trainer.mixture.parts[0].data.train.tokens, MODEL.block, 38, trainer.training.seed, packed=packed)
    assert seen == sampler.batch_at(0).tolist()
    assert [(each["step"], each["changes"]) for each in read_config(folder).history] == [
        (4, {"batch": {"from": 4, "to": 3}, "accumSteps": {"from": 1, "to": 2}}),
        (6, {"batch": {"from": 3, "to": 5}, "accumSteps": {"from": 2, "to": 1}}),
    ]


@pytest.mark.parametrize(
    ("options", "changes", "rates", "is_warning"),
    [
        ({}, {"iters": 16}, ("0.001", "0.005"), True),
        ({"schedule": "wsd"}, {"iters": 16}, ("0.001", "0.01"), True),
        ({}, {"iters": 16, "lr": 0.001, "lr_min": 0.001}, None, False),
        ({}, {"iters": 16, "lr": 0.001}, ("0.001", "0.0005"), False),
        ({}, {"iters": 16, "schedule": "wsd"}, ("0.001", "0.01"), True),
        ({"schedule": "wsd", "decay_fraction": 0.0}, {"iters": 16}, None, False),
        ({}, {}, None, False),
    ],
)
def test_a_learning_rate_that_changes_is_said_with_both_rates(
    corpus: Path,
    tmp_path: Path,
    options: dict[str, Any],
    changes: dict[str, Any],
    rates: tuple[str, str] | None,
    is_warning: bool,
) -> None:
    folder = train(corpus, tmp_path / "run", eval_interval=0, **options)
    display = RecordingDisplay()
    resumed_run({"resume": str(folder), **changes}, display)[0].close()
    said = [text for text in display.messages + display.warnings if "learning rate" in text]
    assert len(said) == (rates is not None)
    if rates:
        assert re.match(rf"The learning rate goes from {rates[0]} in step 8 to {rates[1]}\d* in step 9, ", said[0])
        assert (said[0] in display.warnings) == is_warning == ("--lr=0.001 --lrMin=0.001" in said[0])


def test_the_least_rate_follows_the_rate_that_it_came_from(stopped: Path) -> None:
    resume(stopped, lr=1e-4)
    assert newest(stopped).training.lr_min == pytest.approx(1e-5)


def test_the_backend_is_resolved_when_a_run_is_resumed(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpha.backend_helios_device.has_gpu", lambda: False)
    resume(stopped, backend="auto")
    assert newest(stopped).training.backend == read_config(stopped).training.backend == "cpu_ref"


@pytest.mark.parametrize("run_dir", ["file", "file/x", "x" * 300, "full"])
def test_an_impossible_folder_is_refused_before_the_data_is_read(tmp_path: Path, run_dir: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(AlphaError, match=r"Cannot make the folder|is not empty"):
        begin(Path("nowhere.txt"), Path(run_dir))


def test_a_damaged_checkpoint_is_refused_and_the_older_one_named(stopped: Path) -> None:
    path = stopped / "checkpoint-4.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(AlphaError, match="checkpoint-3"):
        resume(stopped)
    resume(stopped / "checkpoint-3.safetensors")
    assert steps_saved(stopped) == [3, 6, 8]


def test_a_checkpoint_whose_weights_do_not_fit_is_refused(stopped: Path) -> None:
    saved = newest(stopped)
    del saved.tensors["h.1.mlp.c_fc.weight"]
    checkpoint.save(stopped, saved)
    before = files_of(stopped)
    with pytest.raises(AlphaError, match=r"lack 'h\.1\.mlp\.c_fc\.weight'"):
        resume(stopped)
    assert files_of(stopped) == before


def test_sizes_that_a_checkpoint_only_claims_are_not_allocated(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = newest(stopped)
    checkpoint.save(stopped, dataclasses.replace(saved, model=dataclasses.replace(saved.model, ffn_dim=1 << 18)))
    monkeypatch.setattr(training_setup, "Trainer", lambda *_: pytest.fail("memory was taken for it"))
    with pytest.raises(AlphaError, match=r"mlp.c_fc.weight' is float32 \[16, 64\], but this model needs"):
        resume(stopped)


def test_whatever_goes_wrong_the_run_is_released(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Trainer:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training_setup, "Trainer", interrupted)
        resumed_run({"resume": str(stopped)}, RecordingDisplay())
    assert not is_locked(stopped)
    resume(stopped)


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
@pytest.mark.parametrize("shared", [0.0, 0.3, 1.0])
def test_validation_text_that_is_trained_on_is_warned_about(tmp_path: Path, tokenizer: str, shared: float) -> None:
    text, other = text_of(20_000), text_of(20_000, "other")
    end = round(20_000 * shared)
    (tmp_path / "val.txt").write_text(text[3000 : 3000 + end] + other[: 20_000 - end])
    (tmp_path / "train.txt").write_text("Something before. " + text[3000:] + text[:3000])
    display = RecordingDisplay()
    options = {"tokenizer": tokenizer, "val_data": str(tmp_path / "val.txt"), "max_dataset_passes": 99}
    run, _ = begin(tmp_path / "train.txt", tmp_path / "run", display, iters=1, **options)
    run.close()
    warnings = [warning for warning in display.warnings if "sections of the validation data" in warning]
    assert len(warnings) == (shared > 0)
    if shared:
        share = float(warnings[0].replace("more than", "").partition("%")[0]) / 100
        assert abs(share - shared) < 0.1
