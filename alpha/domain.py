"""The ten domain presets: which tokenizer, model shape and schedule suit a kind of text, and prompts to sample with.

A preset is data. Whoever builds the configuration decides what wins over it; an explicit flag or configuration file
should. Knows nothing about how the text of a domain is made.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from alpha.errors import UsageError
from alpha.option import nearest
from alpha.recipe import LEARNING, LEARNING_RATES

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
"""The chat markers that bpe-chat-4k reserves."""


@dataclass(frozen=True)
class Preset:
    """What a domain sets: fields of ModelConfig in `model`, fields of TrainingConfig in `training`, by field name."""

    id: str
    description: str
    model: dict[str, Any]
    training: dict[str, Any]
    prompts: tuple[str, ...]

    @property
    def tokenizer(self) -> str:
        """The tokenizer's name."""
        name: str = self.training["tokenizer"]
        return name


def dialogue(messages: Iterable[tuple[str, str]], reply: bool = False) -> str:
    """Messages (role marker, text) as the chat domains write them: marker, text, `<|end|>`, one message a line.

    With `reply` the assistant's marker follows, so that a model continues with the answer.
    """
    text = "\n".join([f"{role}{content}{END}" for role, content in messages])
    return f"{text}\n{ASSISTANT}" if reply else text


def messages(text: str) -> list[tuple[str, str]]:
    """The messages (role marker, text) of a text that `dialogue` made; none of any other text."""
    lines = text.removesuffix(END).split(f"{END}\n")
    parts = [_MESSAGE.fullmatch(line) for line in lines] if text.endswith(END) else []
    return [(part[1], part[2]) for part in parts if part] if all(parts) else []


_MESSAGE = re.compile("(" + "|".join(map(re.escape, (SYSTEM, USER, ASSISTANT))) + ")(.*)", re.DOTALL)


_OF_THE_MODEL = ("arch", "tied")
_MODEL = {name: LEARNING[name] for name in _OF_THE_MODEL}
_TRAINING = {name: value for name, value in LEARNING.items() if name not in _OF_THE_MODEL}


def _preset(
    id: str,
    description: str,
    tokenizer: str,
    shape: tuple[int, int, int, int],
    prompts: tuple[str, ...],
    *,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> Preset:
    block, layers, dim, heads = shape
    return Preset(
        id,
        description,
        {"block": block, "layers": layers, "dim": dim, "heads": heads, **_MODEL} | (model or {}),
        {"tokenizer": tokenizer, "lr": LEARNING_RATES[dim], **_TRAINING} | (training or {}),
        prompts,
    )


def _questions(*texts: str) -> tuple[str, ...]:
    return tuple(dialogue([(USER, text)], reply=True) for text in texts)


PRESETS = {
    preset.id: preset
    for preset in (
        _preset(
            "novels",
            "Prose with characters, scenes and dialogue.",
            "bpe",
            (128, 6, 128, 8),
            ("The ", "Chapter One", '"Where is the ', "In the evening ", "She looked at ", "Nobody in the village "),
        ),
        _preset(
            "chords",
            "Chord charts of songs.",
            "word",
            (64, 3, 64, 4),
            ("Title: The Road to", "Key: G major", "[Verse]\n| C | Am |", "| Dm7 | G7 |", "Style: blues"),
        ),
        _preset(
            "abc",
            "Tunes in ABC notation.",
            "char",
            (256, 4, 128, 4),
            (
                "X:1\nT:",
                "X:7\nT:The Quiet Miller\nR:reel\nM:4/4\nL:1/8\nK:D\n",
                "X:12\nT:Farewell to Fernbridge\nR:jig\nM:6/8\nL:1/8\nK:G\n|:",
                "X:40\nT:The Wandering Heron\nR:waltz\nM:3/4\nL:1/8\nK:Em\n",
            ),
        ),
        _preset(
            "dumb_finance",
            "Silly stock market commentary with right numbers.",
            "char",
            (256, 6, 128, 8),
            (
                "Monday at the ",
                "Shares of ",
                "The chairman ",
                "PEAR rose 2.0% from 50.00 to ",
                "Close: ",
            ),
        ),
        _preset(
            "chaos",
            "A mixture of every kind of text: prose, tables, lists, logs, code.",
            "bpe-4k",
            (128, 6, 128, 8),
            ("The ", "def ", "| name | ", "1. ", "Dear ", "2024-"),
        ),
        _preset(
            "concordance",
            "Keywords in context: each line shows a word between its neighbours.",
            "bpe-64k",
            (1024, 12, 768, 12),
            ("river\n", "said\n", "afternoon\n", "square\n"),
            training={"batch": 4},
        ),
        _preset(
            "chat",
            "Short conversations: greetings, arithmetic, everyday questions.",
            "bpe-4k",
            (256, 6, 256, 8),
            _questions("Hello!", "What is 12 + 30?", "How many minutes are 3 hours?", "Which is larger, 371 or 317?"),
            model={"dropout": 0.1},
            training={"iters": 5000, "batch": 16},
        ),
        _preset(
            "super_chat",
            "Conversations that refer back to earlier turns, with chat markers.",
            "bpe-chat-4k",
            (256, 4, 128, 4),
            (
                *_questions("Hello!", "My name is Nora.", "What is 7 times 8?", "Spell the word lantern."),
                dialogue([(USER, "My name is Hugo."), (ASSISTANT, "Hello, Hugo."), (USER, "What is my name?")], True),
            ),
            model={"dropout": 0.1, "activation": "silu"},
            training={
                "iters": 10_000,
                "batch": 10,
                "accum_steps": 2,
                "grad_clip": 0.4,
                "spike_threshold": 60.0,
            },
        ),
        _preset(
            "nanochat",
            "Longer conversations under instructions, with worked answers.",
            "bpe-chat-4k",
            (512, 16, 512, 8),
            (
                *_questions("Hello!", "What is 47 times 36?", "Tell me a short story about a fox."),
                dialogue([(SYSTEM, "Answer in as few words as possible."), (USER, "What is 15 plus 27?")], True),
                dialogue([(SYSTEM, "Show your work."), (USER, "What is 15% of 240?")], True),
            ),
            model={"activation": "swiglu"},
            training={
                "iters": 2500,
                "batch": 4,
                "accum_steps": 4,
                "spike_threshold": 50.0,
            },
        ),
        _preset(
            "fine_corpus",
            "Explanatory paragraphs like an encyclopaedia's.",
            "bpe-8k",
            (512, 8, 384, 6),
            (
                "The River ",
                "The number 360 ",
                "Copper is ",
                "The year 1848 ",
                "The population of ",
                "A triangle ",
            ),
            training={"iters": 2500, "beta2": 0.999},
        ),
    )
}


def get(id: str) -> Preset:
    """The preset of a domain. Raises UsageError that names the nearest valid id."""
    try:
        return PRESETS[id]
    except KeyError:
        raise UsageError(f"There is no domain {id!r}. {nearest(id, PRESETS)}") from None


def is_chat(id: str) -> bool:
    """Whether a domain, which need not exist, is of conversations."""
    return id in PRESETS and PRESETS[id].prompts[0].endswith(ASSISTANT)
