"""Going on from weights that exist: what comes along, what is refused, and that a run then needs its source no more."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_models import CASES, golden_folder, make_checkpoint
from small_training import (
    MODEL,
    TRAINING,
    RecordingDisplay,
    bits_of,
    newest,
    resume,
    rows_of,
    steps_saved,
    train,
    write_corpus,
)

from alpha import checkpoint, corpus_files, dataset
from alpha.backend_cpu_ref import CpuRef
from alpha.checkpoint import IMPORTED
from alpha.cli import main
from alpha.config import TrainingConfig
from alpha.errors import AlphaError, UsageError
from alpha.evaluation import Evaluator
from alpha.model_loading import load_model
from alpha.sampler import Sampler, inputs_and_targets
from alpha.settings import merge
from alpha.training_setup import new_run

INIT = {**TRAINING, "lr": 1e-3}
del INIT["tokenizer"]


pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run's folder."""
    return train(write_corpus(tmp_path), tmp_path / "base")


def go_on(source: Path, folder: Path, display: RecordingDisplay | None = None, **given: Any) -> Path:
    """Train a run that starts from `source`, with options as from the command line; returns its folder."""
    corpus = folder.parent / "more.txt"
    corpus.write_text("the old dog likes the small cat. " * 60)
    options = {"data": str(corpus), "run_dir": str(folder), "init": str(source), **INIT, **given}
    run, trainer = new_run(*merge(options), display or RecordingDisplay())
    with run:
        trainer.train(run)
    return run.folder


def first_loss(source: Path, folder: Path) -> float:
    """What the source's model loses on the windows of the run's first step."""
    config = json.loads((folder / "config.json").read_text())
    loaded = load_model(str(source), CpuRef())
    training = TrainingConfig(**INIT)
    data = dataset.prepare(
        corpus_files.find(config["training"]["data"]),
        None,
        loaded.tokenizer,
        folder.parent / "c",
        lambda file: MODEL.block + 1,
    )
    windows = Sampler(data.train.tokens, MODEL.block, training.batch, training.seed, packed=False).batch_at(0)
    return Evaluator(loaded.model, loaded.tokenizer).batches([inputs_and_targets(windows)]).loss


def test_the_first_step_begins_where_the_source_ended(base: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    folder = go_on(base, tmp_path / "tuned", display)
    assert rows_of(folder)[0]["loss"] == pytest.approx(first_loss(base, folder), rel=1e-6)
    assert rows_of(folder)[-1]["loss"] < rows_of(folder)[0]["loss"]
    assert f"Starting from the weights of {base / 'checkpoint-8.safetensors'}." in display.messages
    tuned = newest(folder)
    assert tuned.tokenizer == newest(base).tokenizer
    assert tuned.training.tokenizer == "char"
    assert tuned.model == newest(base).model


def test_optimizer_schedule_and_data_are_fresh(base: Path, tmp_path: Path) -> None:
    folder = go_on(base, tmp_path / "tuned", iters=10, keep=9)
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[0]["lr"] == pytest.approx(1e-3 / 2)
    begun = checkpoint.load(folder / "checkpoint-0.safetensors")
    moments = [begun.tensors[name] for name in begun.tensors if name.startswith("optimizer.")]
    assert moments
    assert not any(array.any() for array in moments)


def test_a_run_goes_on_without_its_source(base: Path, tmp_path: Path) -> None:
    whole = go_on(base, tmp_path / "whole")
    folder = go_on(base, tmp_path / "run", RecordingDisplay(stop_after=4))
    shutil.rmtree(base)
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert rows_of(folder) == rows_of(whole)


def test_a_run_killed_before_its_first_step_goes_on_without_its_source(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go_on(base, tmp_path / "whole")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("alpha.trainer.Trainer._run_steps", killed)
        go_on(base, tmp_path / "run")
    shutil.rmtree(base)
    assert steps_saved(tmp_path / "run") == [0]
    resume(tmp_path / "run")
    assert bits_of(tmp_path / "run") == bits_of(whole)


CONTRADICTIONS = {
    "dim": ({"dim": 32}, "--dim=32 contradicts .*, which has --dim=16; leave it out"),
    "bias": ({"bias": False}, "--bias=false contradicts .* --bias=true"),
    "arch": ({"arch": "modern"}, "--arch=modern contradicts .* --arch=gpt2"),
    "heads of keys": ({"kv_heads": 1}, "--kvHeads=1 contradicts .* --kvHeads=2"),
    "learned block": ({"block": 32}, "--block=32 is more than the 16 positions .* use at most --block=16"),
    "tokenizer": ({"tokenizer": "bpe"}, "--tokenizer=bpe contradicts --init=.*, which has a char tokenizer"),
    "artifact": ({"tokenizer_artifacts": "t.json"}, "--tokenizerArtifacts=t.json cannot be given with --init"),
}


@pytest.mark.parametrize(("given", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_refused_by_name(base: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        go_on(base, tmp_path / "tuned", **given)
    assert not (tmp_path / "tuned").exists()


def test_what_the_source_has_may_be_said_again(base: Path, tmp_path: Path) -> None:
    go_on(base, tmp_path / "tuned", dim=16, kv_heads=0, ffn_dim=0, arch="gpt2", tokenizer="char")


def test_the_shape_of_a_preset_gives_way(base: Path, tmp_path: Path) -> None:
    tuned = newest(go_on(base, tmp_path / "tuned", domain="abc"))
    assert (tuned.model, tuned.training.domain) == (newest(base).model, "abc")


def test_dropout_and_a_shorter_block_may_be_chosen(base: Path, tmp_path: Path) -> None:
    saved = newest(base)
    run, trainer = new_run(
        *merge({"data": str(tmp_path / "corpus.txt"), "init": str(base), **INIT, "block": 8, "dropout": 0.1}),
        RecordingDisplay(),
    )
    run.close()
    weights = trainer.model.parameters.to_numpy()
    assert (weights["wpe.weight"] == saved.tensors["wpe.weight"][:8]).all()
    assert (weights["wte.weight"] == saved.tensors["wte.weight"]).all()
    assert trainer.model.config.dropout == 0.1


def test_a_longer_block_for_rope(tmp_path: Path) -> None:
    rope = dataclasses.replace(MODEL, position="rope")
    source = train(write_corpus(tmp_path), tmp_path / "rope", model=rope)
    assert newest(go_on(source, tmp_path / "tuned", block=32)).model.block == 32


@pytest.mark.parametrize("name", CASES)
def test_a_folder_of_another_program(name: str, tmp_path: Path) -> None:
    folder = golden_folder(name, tmp_path / "theirs")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["import", f"--from={folder}", f"--out={tmp_path / 'ours'}"]) == 0
    imported = newest(tmp_path / "ours")
    run, trainer = begin_from(folder, tmp_path)
    with run:
        weights = trainer.model.parameters.to_numpy()
        assert trainer.model.config == imported.model
        assert all(np.array_equal(weights[each], imported.tensors[each]) for each in imported.tensors)
        trainer.train(run)
    saved = newest(run.folder)
    assert saved.state[IMPORTED] == {"chatTemplate": "{{ messages }}"}
    resume(run.folder, iters=3)
    assert newest(run.folder).state[IMPORTED] == {"chatTemplate": "{{ messages }}"}


def begin_from(folder: Path, tmp_path: Path) -> Any:
    corpus = write_corpus(tmp_path)
    options = {**INIT, "iters": 2, "data": str(corpus), "init": str(folder), "run_dir": str(tmp_path / "run")}
    return new_run(*merge(options), RecordingDisplay())


def test_a_gguf_file(base: Path, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "llama")
    assert main(["export", f"--checkpoint={source}", f"--out={tmp_path / 'm.gguf'}", "--dtype=f32"]) == 0
    run, trainer = begin_from(tmp_path / "m.gguf", tmp_path)
    run.close()
    saved = checkpoint.load(source)
    weights = trainer.model.parameters.to_numpy()
    assert all(np.array_equal(weights[name], saved.tensors[name]) for name in saved.tensors)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AlphaError, match=r"no file, folder or run|holds no checkpoint"):
        go_on(Path(name), tmp_path / "tuned")


def test_few_tokens_for_each_parameter_are_no_reason_to_warn(base: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    go_on(base, tmp_path / "tuned", display, min_tokens_per_param=20.0)
    assert not any("minTokensPerParam" in warning for warning in display.warnings)


def test_from_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--batch=4 --evalIters=1 --sampleInterval=0 --backend=cpu_ref --threads=1"
    assert main(f"train --init={base} --data=corpus.txt --iters=3 --runDir=tuned {options}".split()) == 0
    assert f"Starting from the weights of {base}" in capsys.readouterr().out
    shutil.rmtree(base)
    assert main(["train", "--resume=tuned", "--iters=5"]) == 0
    assert "Resuming tuned after step 3 of 5" in capsys.readouterr().out
    assert main(f"train --resume=tuned --init={base}".split()) == 2
    assert "--init cannot be changed when a run is resumed" in capsys.readouterr().err
