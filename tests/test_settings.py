"""Where a training run's settings come from, and what wins."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from alpha import domain, recipe
from alpha.config import ARCHITECTURES, ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.errors import AlphaError, UsageError
from alpha.option import convert, options_of, to_mapping
from alpha.settings import merge, read_file


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_nothing_given_means_the_defaults() -> None:
    assert merge({}) == (ModelConfig(), TrainingConfig())


def test_each_source_wins_over_those_before_it(tmp_path: Path) -> None:
    """super_chat sets block 256, layers 4, dim 128, silu and iters; each line below takes one of them away from it."""
    architecture = {"arch": "modern"}
    model, _ = merge(architecture)
    assert (model.norm, model.activation, model.bias, model.layers) == ("rmsnorm", "relu2", False, 6)

    preset = {**architecture, "domain": "super_chat"}
    model, training = merge(preset)
    assert (model.norm, model.activation, model.layers) == ("rmsnorm", "silu", 4)
    assert (training.tokenizer, training.iters, training.grad_clip) == ("bpe-chat-4k", 10_000, 0.4)

    file = {
        **preset,
        "config": write(tmp_path / "c.json", {"activation": "gelu", "steps": 70, "lr": 1, "norm": "layernorm"}),
    }
    model, training = merge(file)
    assert (model.norm, model.activation, model.layers) == ("layernorm", "gelu", 4)
    assert (training.iters, training.lr, training.grad_clip) == (70, 1.0, 0.4)

    model, training = merge({**file, "activation": "relu", "iters": 5})
    assert (model.norm, model.activation, model.layers) == ("layernorm", "relu", 4)
    assert (training.iters, training.lr, training.grad_clip) == (5, 1.0, 0.4)


def test_a_value_given_explicitly_wins_even_when_it_is_the_default() -> None:
    model, training = merge({"domain": "chat", "arch": "modern", "bias": True, "batch": 64})
    assert model.bias is True
    assert training.batch == 64


def test_a_file_may_name_the_architecture_and_the_domain(tmp_path: Path) -> None:
    config = write(tmp_path / "c.json", {"arch": "modern", "domain": "chords"})
    model, training = merge({"config": config})
    assert (model.norm, model.block, training.tokenizer, training.domain) == ("rmsnorm", 64, "word", "chords")
    model, training = merge({"config": config, "arch": "gpt2", "domain": ""})
    assert (model, training.tokenizer) == (ModelConfig(), "bpe")


def test_the_file_of_a_run_repeats_its_settings_but_not_its_folder(tmp_path: Path) -> None:
    model = ModelConfig(arch="modern", layers=2, norm="layernorm")
    training = TrainingConfig(domain="chat", iters=7, run_dir="runs/a", resume="runs/b", config="other.json")
    run = {"runId": "x", "model": to_mapping(model), "training": to_mapping(training)}
    config = write(tmp_path / "config.json", run)
    repeated = merge({"config": config})
    expected = dataclasses.replace(training, run_dir="", resume="", config=config)
    assert repeated == (model, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"lern": 1}', "Unknown key 'lern' in FILE. "),
        ('{"lr": "fast"}', "'lr' in FILE must be a number, not 'fast'."),
        ('{"iters": 5, "steps": 6}', "FILE sets 'iters' twice, once by its alias; keep one."),
        ("[1]", "The configuration FILE must be a JSON object of options, such as"),
        ('{"config": "b.json"}', "The configuration FILE cannot name a further one"),
        ("{", "The configuration FILE is not valid JSON"),
        ('{"domain": "novel"}', "There is no domain 'novel'. Did you mean 'novels'?"),
        ('{"model": {"dim": 8}, "training": {"dim": 8}}', "Unknown key 'dim' in FILE."),
    ],
)
def test_bad_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(AlphaError) as caught:
        merge({"config": str(path)})
    assert str(caught.value).startswith(message.replace("FILE", str(path)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match=r"Cannot read the configuration .*none.json: No such file"):
        read_file(tmp_path / "none.json")


def test_unknown_domain_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Did you mean 'novels'"):
        merge({"domain": "novls"})


def test_presets_and_architectures_hold_valid_values() -> None:
    declared = {each.name: each for kind in (ModelConfig, TrainingConfig) for each in options_of(kind)}
    domains = [preset.model | preset.training for preset in domain.PRESETS.values()]
    presets: list[dict[str, Any]] = [*ARCHITECTURES.values(), *domains, *recipe.RECIPES.values()]
    for preset in presets:
        for name, value in preset.items():
            assert convert(declared[name], value, name) == value


@pytest.mark.parametrize("name", recipe.RECIPES)
def test_a_recipe_is_a_valid_configuration_of_a_time(name: str) -> None:
    model, training = merge({"recipe": name})
    assert resolve_model(model).head_width >= 32
    assert resolve_training(training).minutes == training.minutes > 0
    _, shorter = merge({"recipe": name, "iters": 5, "lr": 1e-3})
    assert (shorter.minutes, shorter.iters, shorter.lr, shorter.optim) == (0, 5, 1e-3, "muon")


@pytest.mark.parametrize("given", [{"tokenizer": "char"}, {"tokenizer_artifacts": "tokenizer.json"}])
def test_another_tokenizer_than_a_recipes_has_its_own_vocabulary(given: dict[str, Any]) -> None:
    assert merge({"recipe": "cpu-2-minutes", **given})[1].vocab_size == 0
    assert merge({"recipe": "cpu-2-minutes", "vocab_size": 512, **given})[1].vocab_size == 512


def test_a_recipe_must_be_known_and_the_only_preset() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cpu-2-minutes'"):
        merge({"recipe": "cpu-2-minute"})
    with pytest.raises(UsageError, match="--domain and --recipe"):
        merge({"recipe": "cpu-2-minutes", "domain": "novels"})


def test_a_presets_warm_up_holds_for_a_number_of_minutes_too() -> None:
    assert merge({"domain": "novels", "minutes": 1.0})[1].warmup_iters == domain.get("novels").training["warmup_iters"]


def test_options_of_an_adapter_need_one(tmp_path: Path) -> None:
    """Without --lora all weights would be trained."""
    with pytest.raises(UsageError, match="--loraAlpha is about an adapter; give its rank with --lora"):
        merge({"init": "x", "lora_alpha": 4.0})
    path = tmp_path / "config.json"
    path.write_text('{"loraTargets": "mlp"}')  # as the file of any run has it
    assert merge({"config": str(path)})[1].lora_targets == "mlp"
