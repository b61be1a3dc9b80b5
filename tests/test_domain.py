"""Presets: each makes a valid configuration, and its prompts are written in what its text is made of."""

import dataclasses

import pytest

from alpha import domain, recipe
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.datagen import GENERATORS, document
from alpha.errors import UsageError
from alpha.option import convert, options_of
from alpha.tokenizer import CHAT_TOKENS

# block, layers, dim, heads, tokenizer: the reference table, written down a second time on purpose.
TABLE = {
    "novels": (128, 6, 128, 8, "bpe"),
    "chords": (64, 3, 64, 4, "word"),
    "abc": (256, 4, 128, 4, "char"),
    "dumb_finance": (256, 6, 128, 8, "char"),
    "chaos": (128, 6, 128, 8, "bpe-4k"),
    "concordance": (1024, 12, 768, 12, "bpe-64k"),
    "chat": (256, 6, 256, 8, "bpe-4k"),
    "super_chat": (256, 4, 128, 4, "bpe-chat-4k"),
    "nanochat": (512, 16, 512, 8, "bpe-chat-4k"),
    "fine_corpus": (512, 8, 384, 6, "bpe-8k"),
}


def test_the_ids_are_those_of_the_table_and_of_the_generators() -> None:
    assert list(domain.PRESETS) == list(TABLE)
    assert set(GENERATORS) == set(TABLE)
    assert all(preset.id == name for name, preset in domain.PRESETS.items())


@pytest.mark.parametrize("name", TABLE)
def test_shape_and_tokenizer(name: str) -> None:
    preset = domain.get(name)
    shape = tuple(preset.model[name] for name in ("block", "layers", "dim", "heads"))
    assert (*shape, preset.tokenizer) == TABLE[name]


def test_training_of_the_table() -> None:
    training = {name: preset.training for name, preset in domain.PRESETS.items()}
    assert training["super_chat"]["batch"] * training["super_chat"]["accum_steps"] == 20
    assert training["super_chat"]["grad_clip"] == 0.4
    assert training["super_chat"]["spike_threshold"] == 60
    assert training["nanochat"]["batch"] == training["nanochat"]["accum_steps"] == 4
    assert training["fine_corpus"]["beta2"] == 0.999
    assert domain.get("super_chat").model["activation"] == "silu"
    assert domain.get("nanochat").model["activation"] == "swiglu"


@pytest.mark.parametrize("name", TABLE)
def test_the_recipe_is_that_of_the_quick_start(name: str) -> None:
    preset = domain.get(name)
    values = {**preset.model, **preset.training}
    learning = recipe.RECIPES["cpu-2-minutes"]
    shared = ["arch", "tied", "optim", "schedule", "decay_fraction", "warmup_iters", "lr_min"]
    if values["dim"] == learning["dim"]:
        shared.append("lr")
    assert {each: values[each] for each in shared} == {each: learning[each] for each in shared}


@pytest.mark.parametrize("name", TABLE)
def test_overrides_make_a_valid_configuration(name: str) -> None:
    preset = domain.get(name)
    for options, overrides in ((ModelConfig, preset.model), (TrainingConfig, preset.training)):
        declared = {each.name: each for each in options_of(options)}
        for field, value in overrides.items():
            assert convert(declared[field], value, field) == value
    model = resolve_model(dataclasses.replace(ModelConfig(), **preset.model))
    training = resolve_training(dataclasses.replace(TrainingConfig(), **preset.training))
    assert model.dim % model.heads == 0
    assert training.lr_min < training.lr
    assert training.warmup_iters <= training.iters / 5, "the peak learning rate must be reached"


@pytest.mark.parametrize("name", TABLE)
def test_description_and_prompts(name: str) -> None:
    preset = domain.get(name)
    assert preset.description.endswith(".")
    assert "\n" not in preset.description
    assert 3 <= len(preset.prompts) <= 8
    assert len(set(preset.prompts)) == len(preset.prompts)


@pytest.mark.parametrize("name", TABLE)
def test_prompts_are_written_in_what_the_generated_text_is_made_of(name: str) -> None:
    text = "\n".join(document(name, index, 1) for index in range(400))
    prompts = domain.get(name).prompts
    if domain.get(name).tokenizer == "word":
        words = set(text.split())
        assert [word for prompt in prompts for word in prompt.split() if word not in words] == []
    else:
        assert set("".join(prompts)) <= set(text)
    if "chat" in name:
        assert all(prompt.endswith(domain.ASSISTANT) for prompt in prompts)


def test_dialogue() -> None:
    assert {domain.SYSTEM, domain.USER, domain.ASSISTANT, domain.END} == set(CHAT_TOKENS)
    messages = [(domain.SYSTEM, "Be brief."), (domain.USER, "Hi"), (domain.ASSISTANT, "Hello")]
    text = "<|system|>Be brief.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>Hello<|end|>"
    assert domain.dialogue(messages) == text
    assert domain.dialogue(messages[:2], reply=True) == text.removesuffix("Hello<|end|>")


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no domain 'novel'\. Did you mean 'novels'\?"):
        domain.get("novel")
    with pytest.raises(UsageError, match="Valid: abc, chaos, chat"):
        domain.get("???")
