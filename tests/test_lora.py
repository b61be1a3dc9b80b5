"""Adapters: what is trained and saved, what they stand on, and that they compute what they are defined as."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import serving
from small_training import TRAINING, RecordingDisplay, bits_of, newest, resume, rows_of, train, write_corpus

from alpha import checkpoint
from alpha.autograd import Tape
from alpha.backend_cpu_ref import CpuRef
from alpha.checkpoint import BASE
from alpha.cli import main
from alpha.config import ARCHITECTURES, ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.errors import AlphaError, UsageError
from alpha.gpt import GPT
from alpha.lora import A, B, Lora, lora_of, merged
from alpha.model_loading import SharedModels, load_model
from alpha.settings import merge
from alpha.training_setup import new_run

TUNE = {**TRAINING, "lora": 2, "lora_targets": "attn,mlp", "lr": 0.01}
del TUNE["tokenizer"]


pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run's folder."""
    return train(write_corpus(tmp_path), tmp_path / "runs" / "base")


def adapt(source: Path, folder: Path, display: RecordingDisplay | None = None, **given: Any) -> Path:
    """Train an adapter to `source`, or with lora=0 all of it; returns its run's folder."""
    corpus = folder.parent / "more.txt"
    corpus.write_text("the old dog likes the small cat. " * 60)
    options = {"data": str(corpus), "run_dir": str(folder), "init": str(source), **TUNE, **given}
    if not options["lora"]:
        options = {name: value for name, value in options.items() if not name.startswith("lora_")}
    run, trainer = new_run(*merge(options), display or RecordingDisplay())
    with run:
        trainer.train(run)
    return run.folder


def logits_of(model: GPT) -> Any:
    ids = np.arange(2 * model.config.block, dtype=np.int32).reshape(2, -1) * 7 % model.vocab_size
    return model.backend.to_numpy(model.logits(model.backend.from_numpy(ids)).data)


def test_only_the_adapter_is_trained_and_saved(base: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    folder = adapt(base, tmp_path / "runs" / "tuned", display, keep=9)
    begun, ended = (checkpoint.load(folder / f"checkpoint-{step}.safetensors") for step in (0, 8))
    weights = {name for name in ended.tensors if not name.startswith("optimizer.")}
    assert weights == {
        f"h.{layer}.{module}{part}"
        for layer in range(2)
        for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for part in (A, B)
    }
    assert ended.tensors["h.0.attn.c_attn" + A].shape == (16, 2)
    assert ended.tensors["h.0.attn.c_attn" + B].shape == (2, 48)
    moments = {name for name in ended.tensors if name.startswith("optimizer.first_moment.")}
    assert {name.removeprefix("optimizer.first_moment.") for name in moments} == weights
    assert all(not begun.tensors[name].any() for name in weights if name.endswith(B))
    assert all(ended.tensors[name].any() for name in weights)
    assert ended.state[BASE]["path"] == str(base / "checkpoint-8.safetensors")
    count = sum(ended.tensors[name].size for name in weights)
    assert any(f"and {count:,} of an adapter, which alone are trained" in each for each in display.messages)
    rows = rows_of(folder)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert load_model(str(folder), CpuRef()).model.parameters.gradients.shape == (0,)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_are_those_of_the_merged_weights(arch: str) -> None:
    """By the chain rule: of W + s A B, that of A is s dW B^T, and that of B is s A^T dW."""
    config = resolve_model(ModelConfig(**{"block": 8, "layers": 2, "dim": 16, "heads": 2, **ARCHITECTURES[arch]}))
    lora = Lora(3, 5.0, ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), 0.0)
    backend = CpuRef()
    plain = GPT(backend, config, 11, 1, np.float64, trained=lambda spec: False)
    plain.parameters.initialize()
    adapted = plain.adapted(lora, 2)
    adapted.parameters.initialize()
    generator = np.random.default_rng(3)
    adapter = {name: generator.normal(0, 0.1, each.shape) for name, each in adapted.parameters.to_numpy().items()}
    adapted.parameters.load(adapter)
    whole = GPT(backend, config, 11, 1, np.float64)
    whole.parameters.load(merged(plain.parameters.to_numpy(), adapter, lora))
    ids, targets = (backend.from_numpy(generator.integers(0, 11, (3, 8)).astype(np.int32)) for _ in range(2))
    losses = []
    for model in (adapted, whole):
        with Tape() as tape:
            loss = model.loss(ids, targets)
        tape.backward(loss)
        losses.append(float(backend.to_numpy(loss.data)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name in adapter:
        layer, part = name[: -len(A)], name[-len(A) :]
        change = whole.parameters[layer + ".weight"].gradient
        wanted = change @ adapter[layer + B].T if part == A else adapter[layer + A].T @ change
        np.testing.assert_allclose(adapted.parameters[name].gradient, lora.scale * wanted, rtol=1e-9, atol=1e-12)
    assert all(plain.parameters[spec.name].gradient is None for spec in plain.parameters.specs)


def test_a_resumed_run_has_the_same_bits(base: Path, tmp_path: Path) -> None:
    options = {"lora_dropout": 0.2, "accum_steps": 2, "recompute": True, "lora_targets": "attn.c_attn,mlp"}
    whole = adapt(base, tmp_path / "whole", **options)
    folder = adapt(base, tmp_path / "run", RecordingDisplay(stop_after=4), **options)
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert rows_of(folder) == rows_of(whole)
    assert adapt(base, tmp_path / "other", **{**options, "lora_dropout": 0.0}) != whole
    assert rows_of(tmp_path / "other") != rows_of(whole)


def test_an_adapter_computes_as_its_merged_weights_do(base: Path, tmp_path: Path) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned", block=8)
    loaded = load_model(str(tuned), CpuRef())
    saved = newest(tuned)
    weights = {name: each for name, each in newest(base).tensors.items() if not name.startswith("optimizer.")}
    weights["wpe.weight"] = weights["wpe.weight"][:8]
    lora = lora_of(saved.training)
    assert lora == Lora(2, 4.0, ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), 0.0)
    whole = GPT(CpuRef(), saved.model, loaded.tokenizer.vocab_size)
    adapter = {name: each for name, each in saved.tensors.items() if not name.startswith("optimizer.")}
    whole.parameters.load(merged(weights, adapter, lora))
    np.testing.assert_allclose(logits_of(loaded.model), logits_of(whole), atol=1e-5)


def test_the_base_is_found_where_the_runs_were_moved_to(base: Path, tmp_path: Path) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    before = logits_of(load_model(str(tuned), CpuRef()).model)
    corpus = tmp_path / "runs" / "more.txt"
    corpus.rename(tmp_path / "more.txt")
    (tmp_path / "runs").rename(tmp_path / "moved")
    tuned = tmp_path / "moved" / "tuned"
    assert np.array_equal(logits_of(load_model(str(tuned), CpuRef()).model), before)
    resume(tuned, iters=9, data=str(tmp_path / "more.txt"))


def test_a_base_that_is_gone_or_another_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    path = checkpoint.find(base)
    shutil.copy(path, tmp_path / "kept.safetensors")
    other = train(write_corpus(tmp_path), tmp_path / "other", seed=7)
    shutil.copy(checkpoint.find(other), path)
    with pytest.raises(AlphaError, match=f"stands on is missing: {path} has other weights. Bring the model back to"):
        load_model(str(tuned), CpuRef())
    shutil.rmtree(base)
    assert main(["sample", f"--checkpoint={tuned}", "--steps=3"]) == 1
    error = capsys.readouterr().err
    assert f"is missing: {path} is not there. Bring the model back to {path}" in error
    with pytest.raises(AlphaError, match="is missing"):
        resume(tuned, iters=9)


@pytest.mark.parametrize("said", [None, {}, {"digest": 1, "path": "x"}, {"digest": "x", "path": "a\0b"}])
def test_what_a_checkpoint_says_of_its_base_may_be_anything(said: Any, base: Path, tmp_path: Path) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    saved = newest(tuned)
    damaged = checkpoint.Checkpoint(**{**vars(saved), "state": {**saved.state, BASE: said}})
    path = checkpoint.save(tmp_path, damaged)
    with pytest.raises(AlphaError, match="does not say what it is an adapter to"):
        load_model(str(path), CpuRef())


def test_an_adapter_is_a_source_but_no_base(base: Path, tmp_path: Path) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    with pytest.raises(UsageError, match="is an adapter, and another one cannot stand on it"):
        adapt(tuned, tmp_path / "runs" / "more")
    display = RecordingDisplay()
    whole = adapt(tuned, tmp_path / "runs" / "whole", display, lora=0, lr=1e-9)
    np.testing.assert_allclose(
        logits_of(load_model(str(whole), CpuRef()).model), logits_of(load_model(str(tuned), CpuRef()).model), atol=1e-5
    )
    # An adapter that names itself as its base.
    saved = newest(tuned)
    path = tmp_path / "checkpoint-8.safetensors"
    state = {**saved.state, BASE: {**saved.state[BASE], "path": str(path)}}
    checkpoint.save(tmp_path, checkpoint.Checkpoint(**{**vars(saved), "state": state}))
    with pytest.raises(AlphaError, match=r"checkpoint-8\.safetensors is an adapter itself"):
        load_model(str(path), CpuRef())


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="--lora=4 needs weights to adapt; name them with --init"):
        resolve_training(TrainingConfig(lora=4))
    for targets, named in (("attn,lm_head", "'lm_head'"), ("", "''"), ("attn.", "'attn.'")):
        with pytest.raises(UsageError, match=f"{named}, which is no part of a block"):
            lora_of(TrainingConfig(lora=4, lora_targets=targets))
    chosen = lora_of(resolve_training(TrainingConfig(lora=4, init="x", lora_targets="mlp, attn.c_attn")))
    assert chosen == Lora(4, 8.0, ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"), 0.0)


def test_merging_gives_a_model_that_needs_no_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    wanted = logits_of(load_model(str(tuned), CpuRef()).model)
    base.rename(tmp_path / "elsewhere")
    assert main(["merge", f"--checkpoint={tuned}", "--out=merged"]) == 1
    assert "--base=MODEL" in capsys.readouterr().err
    assert main(["merge", f"--checkpoint={tuned}", "--base=elsewhere", "--out=merged", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert 0 < said["largestDifference"] < 1e-4 * said["largestLogit"]
    shutil.rmtree(tmp_path / "elsewhere")
    merged_model = load_model("merged", CpuRef())
    assert merged_model.model.lora is None
    np.testing.assert_allclose(logits_of(merged_model.model), wanted, atol=1e-5)
    assert merged_model.training.lora == 0
    assert main(["merge", "--checkpoint=merged", "--out=again"]) == 2
    assert "is a whole model and no adapter" in capsys.readouterr().err
    assert main(["merge", f"--checkpoint={tuned}", "--out=merged"]) == 1
    assert "merged/checkpoint-0.safetensors exists" in capsys.readouterr().err


def test_what_does_not_agree_is_not_written(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    monkeypatch.setattr("alpha.model_source.merged", lambda weights, adapter, lora: dict(weights))
    assert main(["merge", f"--checkpoint={tuned}", "--out=merged"]) == 1
    assert "so nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_adapters_to_one_base_share_its_weights(base: Path, tmp_path: Path) -> None:
    paths = [adapt(base, tmp_path / "runs" / name, lora=rank) for name, rank in (("one", 1), ("two", 2))]
    shared: SharedModels = {}
    plain, *adapted = (load_model(str(path), CpuRef(), shared).model for path in (base, *paths))
    assert len(shared) == 1
    for model, path in zip(adapted, paths, strict=True):
        assert model.parameters.base is plain.parameters
        assert np.array_equal(logits_of(model), logits_of(load_model(str(path), CpuRef()).model))
    shorter = adapt(base, tmp_path / "runs" / "shorter", block=8)
    assert load_model(str(shorter), CpuRef(), shared).model.parameters.base is not plain.parameters


def test_a_server_holds_the_base_of_its_adapters_once(base: Path, tmp_path: Path) -> None:
    for name, rank in (("one", 1), ("two", 2)):
        adapt(base, tmp_path / "runs" / name, lora=rank, lr=0.3)
    with serving(tmp_path, root=tmp_path / "runs") as server:
        texts = {
            name: server.post("/v1/completions", model=name, prompt="The ", seed=1, max_tokens=20)["choices"]
            for name in ("one", "base", "two")
        }
        loaded = {model.name: model.loaded.model for model in server.models.loaded}
        assert loaded["one"].parameters.base is loaded["two"].parameters.base is loaded["base"].parameters
    assert len({json.dumps(text) for text in texts.values()}) == 3


def test_an_adapter_is_exported_with_its_base(base: Path, tmp_path: Path) -> None:
    tuned = adapt(base, tmp_path / "runs" / "tuned")
    assert main(["export", f"--checkpoint={tuned}", "--out=whole"]) == 0
    assert main(["import", "--from=whole", "--out=back"]) == 0
    got, wanted = (load_model(str(each), CpuRef()).model for each in (tmp_path / "back", tuned))
    np.testing.assert_allclose(logits_of(got), logits_of(wanted), atol=1e-5)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_type"] == "gpt2"
