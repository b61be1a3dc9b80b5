"""From a configuration to a trainer: what is refused, when, and what it leaves behind."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

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
from alpha.run import is_locked
from alpha.tokenizer_char import build_char
from alpha.trainer import Trainer
from alpha.training_setup import RESUMABLE, new_run, resumed_run


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


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
    data, size = trainer.dataset, trainer.model.parameters.size
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
        train(write_corpus(tmp_path, text_of(300)), tmp_path / "run", require_val_data=True)
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


def test_unknown_characters_are_looked_for_in_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tmp_path / "tokenizer.json"
    tokenizer_registry.save(artifact, build_char([text_of()]))
    corpus = write_corpus(tmp_path, text_of() + "\N{SNOWMAN}" * 100)
    display = RecordingDisplay()
    monkeypatch.setattr(training_setup, "LOOKED_AT", 6000)
    options = {"tokenizer_artifacts": str(artifact), "val_data": str(corpus)}
    begin(corpus, tmp_path / "first", display, **options)[0].close()
    assert display.warnings == []
    monkeypatch.setattr(training_setup, "LOOKED_AT", 6002)
    begin(corpus, tmp_path / "second", display, **options)[0].close()
    assert [warning.split(" of")[0] for warning in display.warnings] == ["0.017%"] * 2


# --- resumed runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("lr", "lr", 0.1), ("batch", "batch", 2), ("accum_steps", "accumSteps", 2), ("seed", "seed", 1),
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
        "log_every": 3, "log": "debug", "trace": True, "checkpoint": True,
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


def test_a_run_without_a_checkpoint_cannot_be_resumed(corpus: Path, tmp_path: Path) -> None:
    run, _ = begin(corpus, tmp_path / "run")
    run.close()
    with pytest.raises(AlphaError, match="holds no checkpoint"):
        resume(run.folder)
    assert not is_locked(run.folder)


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
