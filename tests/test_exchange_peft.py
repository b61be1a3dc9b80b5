"""Adapters of PEFT, both ways, against what the `peft` package stored and computed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_models import GOLDEN, golden_folder
from helios_device import helios

from alpha import checkpoint
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.cli import main
from alpha.config import TrainingConfig, resolve_training
from alpha.gpt import GPT
from alpha.lora import lora_of
from alpha.model_loading import load_model
from alpha.model_source import base_of
from alpha.optimizer import make_optimizer
from alpha.safetensors_file import SafetensorsFile
from alpha.training_step import TrainingStep

PEFT = GOLDEN.parent / "peft"


def tensors_of(path: Path) -> dict[str, Any]:
    with SafetensorsFile(path) as file:
        return {name: file.read(name) for name in file.entries}


def imported(name: str, folder: Path) -> Path:
    """A golden adapter as a checkpoint of Alpha's."""
    base = golden_folder(name, folder / name)
    adapter = folder / f"{name}-adapter"
    shutil.copytree(PEFT / name, adapter)
    assert main(["import", f"--from={adapter}", f"--base={base}", f"--out={folder / name}.safetensors"]) == 0
    return folder / f"{name}.safetensors"


def logits_of(path: Path, ids: Any) -> Any:
    model = load_model(str(path), CpuRef()).model
    return model.logits(ids).data


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_imported_adapter_has_the_logits_of_peft_and_goes_out_as_it_came(name: str, tmp_path: Path) -> None:
    results = tensors_of(PEFT / name / "results.safetensors")
    path = imported(name, tmp_path)
    np.testing.assert_allclose(logits_of(path, results["ids"]), results["logits"], atol=1e-5)
    assert main(["export", f"--checkpoint={path}", f"--out={tmp_path / 'out'}", "--format=peft"]) == 0
    before, after = (tensors_of(folder / "adapter_model.safetensors") for folder in (PEFT / name, tmp_path / "out"))
    assert before.keys() == after.keys()
    if name == "gpt2":
        for tensor, values in before.items():
            assert np.array_equal(after[tensor], values), tensor
        theirs, ours = (
            json.loads((folder / "adapter_config.json").read_text()) for folder in (PEFT / name, tmp_path / "out")
        )
        keys = ("peft_type", "task_type", "r", "lora_alpha", "fan_in_fan_out", "bias")
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]
        assert set(ours["target_modules"]) == set(theirs["target_modules"])
    assert main(["import", f"--from={tmp_path / 'out'}", f"--out={tmp_path / 'again'}"]) == 0
    np.testing.assert_allclose(logits_of(tmp_path / "again", results["ids"]), results["logits"], atol=1e-5)


@pytest.mark.parametrize("make", [CpuRef, helios])
def test_training_an_adapter_has_the_losses_of_pytorch(make: Callable[[], Backend], tmp_path: Path) -> None:
    """With targets that do not count, in two micro-batches of which one has far fewer that do."""
    backend = make()
    results = tensors_of(PEFT / "gpt2" / "results.safetensors")
    path = imported("gpt2", tmp_path)
    saved = checkpoint.load(path)
    training = resolve_training(
        TrainingConfig(**{**vars(saved.training), "accum_steps": 2, "weight_decay": 0.1, "beta2": 0.95})
    )
    lora = lora_of(training)
    assert lora is not None
    base = GPT(backend, replace(saved.model, dropout=0.0), 24, trained=lambda spec: False)
    base.parameters.load(base_of(saved, path).weights_for(saved.model))
    model = base.adapted(lora)
    model.parameters.load(saved.tensors)
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    losses = []
    for tokens, counted in zip(results["tokens"], results["counted"], strict=True):
        targets = np.where(counted, tokens[..., 1:], -1)
        losses.append(step.run(tokens[..., :-1], targets, 0.02).read()["loss"])
    np.testing.assert_allclose(losses, results["losses"], atol=1e-4)


def broken(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(("changes", "message"), [
    ({"peft_type": "IA3"}, "does not describe an adapter of type LORA"),
    ({"use_dora": True}, "no adapter whose use_dora is True"),
    ({"modules_to_save": ["lm_head"]}, "no adapter whose modules_to_save is"),
    ({"lora_alpha": "8"}, "its lora_alpha is '8', not a number above 0"),
    ({"lora_alpha": 1e999}, "its lora_alpha is"),
    ({"alpha_pattern": {"(a+)+": 1}}, "Alpha reads names of layers, no expressions"),
    ({"r": 5}, "it says that r is 5 for 'transformer.h.0.attn.c_attn', but the adapter to it in"),
    ({"r": None}, "its r is None"),
    ({"r": "4"}, "its r is '4', not a number above 0"),
    ({"rank_pattern": {"mlp.c_fc": 64}}, "it says that r is 64 for 'transformer.h.0.mlp.c_fc'"),
])  # fmt: skip
def test_an_adapter_that_says_something_else_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = golden_folder("gpt2", tmp_path / "base")
    adapter = Path(shutil.copytree(PEFT / "gpt2", tmp_path / "adapter"))
    broken(adapter, **changes)
    assert main(["import", f"--from={adapter}", f"--base={base}", f"--out={tmp_path / 'out'}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_and_one_without_a_base_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = golden_folder("llama", tmp_path / "base")
    adapter = Path(shutil.copytree(PEFT / "gpt2", tmp_path / "adapter"))
    assert main(["import", f"--from={adapter}", f"--base={base}", f"--out={tmp_path / 'out'}"]) == 1
    assert "for which an adapter to this model has no place" in capsys.readouterr().err
    assert main(["import", f"--from={adapter}", f"--out={tmp_path / 'out'}"]) == 1
    assert "it names 'gpt2', which is not here. Say it with --base=MODEL." in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").unlink()
    assert main(["import", f"--from={adapter}", f"--base={base}", f"--out={tmp_path / 'out'}"]) == 1
    assert "adapter_model.safetensors" in capsys.readouterr().err
    assert main(["import", f"--from={base}", f"--base={base}", f"--out={tmp_path / 'out'}"]) == 2
    assert "--base is for adapters" in capsys.readouterr().err
