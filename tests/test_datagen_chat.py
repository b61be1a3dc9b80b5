"""Generated conversations: a listener answers the questions by itself and compares."""

import importlib
import json
import operator
import re
import runpy
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import pytest
from exchange_models import make_checkpoint
from generated_text import documents, is_prime

from alpha.datagen_chat import CONVERSATIONS, Dialogue
from alpha.datagen_grammar import Chooser, in_words, items, roman, table
from alpha.domain import ASSISTANT, USER

FOODS, WEEKDAYS = items("words.food"), items("words.weekday")
COUNTRIES = [(row["country"], row["capital"], row["continent"]) for row in table("facts.country")]
LEGS = [(row["one"], int(row["legs"])) for row in table("facts.legs")]

FACTORS = {
    ("kilometres", "metres"): 1000, ("metres", "centimetres"): 100, ("centimetres", "millimetres"): 10,
    ("kilograms", "grams"): 1000, ("tonnes", "kilograms"): 1000, ("litres", "millilitres"): 1000,
    ("hours", "minutes"): 60, ("minutes", "seconds"): 60, ("days", "hours"): 24, ("weeks", "days"): 7,
    ("feet", "inches"): 12, ("yards", "feet"): 3, ("pounds", "ounces"): 16, ("gallons", "pints"): 8,
    ("years", "months"): 12, ("centuries", "years"): 100, ("decades", "years"): 10,
    ("hectares", "square metres"): 10_000,
}  # fmt: skip
SINGULAR = {"people": "person", "foxes": "fox"}


class Finding(NamedTuple):
    """What a question is about, what its answer must match, and the number it leaves for the next question."""

    kind: str
    patterns: list[str]
    result: int | None = None


Match = re.Match[str]
Rule = tuple[str, Callable[[Match], Finding]]


def counted(kind: str, result: int | Fraction) -> Finding:
    assert int(result) == result
    return Finding(kind, [rf"(?<![\d-]){int(result)}\b"], int(result))


def integers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)]


def operands(match: Match) -> list[int]:
    return [int(each) for each in match.groups() if each]


def division(match: Match) -> Finding:
    number, divisor = operands(match)
    quotient, rest = divmod(number, divisor)
    return Finding("sum", [rf"\b{quotient}, remainder {rest}\.$"]) if rest else counted("sum", quotient)


def conversion(count: str, unit: str, other: str) -> Finding:
    factor = Fraction(FACTORS[unit, other]) if (unit, other) in FACTORS else Fraction(1, FACTORS[other, unit])
    return counted("units", int(count) * factor)


def temperature(match: Match) -> Finding:
    degrees = Fraction(int(match[1]))
    result = degrees * 9 / 5 + 32 if match[2] == "Celsius" else (degrees - 32) * 5 / 9
    return counted("temperature", result)._replace(result=None)


def story(match: Match) -> Finding:
    count = Fraction(int(match[1]))
    for step, amount in re.findall(r"(gives away|buys|finds|gets|loses half|then has) (\d*)", match[2]):
        if step == "gives away":
            count -= int(amount)
        elif step == "loses half":
            count /= 2
        elif step == "then has":
            count *= int(amount)
        else:
            count += int(amount)
    return counted("story", count)


def sequence(match: Match) -> Finding:
    """The next number by every rule that explains the numbers: there must be exactly one."""
    values = integers(match[1])
    found = set()
    if len({b - a for a, b in pairwise(values)}) == 1:
        found.add(2 * values[-1] - values[-2])
    if len({Fraction(b, a) for a, b in pairwise(values)}) == 1:
        found.add(values[-1] * values[1] // values[0])
    if all(isqrt(value) ** 2 == value for value in values):
        found.add((isqrt(values[-1]) + 1) ** 2)
    if all(c == a + b for (a, b), (_, c) in pairwise(pairwise(values))):
        found.add(values[-1] + values[-2])
    assert len(found) == 1, match[0]
    return counted("sequence", found.pop())


def extreme(match: Match) -> Finding:
    values = integers(match[2])
    return counted("comparison", max(values) if match[1] == "larg" else min(values))


def average(match: Match) -> Finding:
    values = integers(match[1])
    return counted("average", Fraction(sum(values), len(values)))


def clock(match: Match) -> Finding:
    hour, minute, later = int(match[1]), int(match[2]), int(match[3])
    total = (60 * hour + minute + later * (60 if match[4] == "hours" else 1)) % 1440
    return Finding("clock", [f"{total // 60:02d}:{total % 60:02d}"])


def rectangle(match: Match) -> Finding:
    width, height = int(match[1]), int(match[2])
    return counted("rectangle", width * height if "area" in match[3] else 2 * (width + height))


def occurrences(match: Match) -> Finding:
    count = match[2].count(match[1])
    return Finding("letters", [{1: "once|1", 2: "twice|2"}.get(count, rf"\b{count}\b")], count)


def longest(match: Match) -> Finding:
    words = match[1].split(", ")
    return Finding("words", [word for word in words if len(word) == max(map(len, words))])


def following(kind: str, name: str) -> str:
    names = items("words.month") if kind == "month" else WEEKDAYS
    return names[(names.index(name) + 1) % len(names)]


RULES: tuple[Rule, ...] = (
    (r"left when I take (\d+) from (\d+)", lambda m: counted("sum", int(m[2]) - int(m[1]))),
    (r"(\d+) divided by (\d+)|[Dd]ivide (\d+) by (\d+)", division),
    (r"(\d+)% of (\d+)", lambda m: counted("percentage", Fraction(int(m[1]) * int(m[2]), 100))),
    (
        r"(\d+) (?:\+|plus) (\d+)|[Aa]dd (\d+) and (\d+)|much is (\d+) and (\d+)|sum of (\d+) and (\d+)",
        lambda m: counted("sum", operator.add(*operands(m))),
    ),
    (r"(\d+) (?:-|minus|less) (\d+)", lambda m: counted("sum", operator.sub(*operands(m)))),
    (r"(\d+) (?:x|times) (\d+)|product of (\d+) and (\d+)", lambda m: counted("sum", operator.mul(*operands(m)))),
    (r"[Hh]ow many ([a-z ]+) are (\d+) ([a-z ]+)\?", lambda m: conversion(m[2], m[3], m[1])),
    (r"[Cc]onvert (\d+) ([a-z ]+) to ([a-z ]+)\.", lambda m: conversion(m[1], m[2], m[3])),
    (r"(-?\d+) degrees (Celsius|Fahrenheit)", temperature),
    (r"has (\d+) \w+, (.*) How many", story),
    (r"the average of ([\d, and]+)\?", average),
    (r"hich is (?:the )?(larg|small)\w+, ([\d, or]+)\?", extreme),
    (r"Put ([\d, and]+) in order", lambda m: Finding("order", [r"\D+".join(map(str, sorted(integers(m[1]))))])),
    (r"What comes next: ([\d, ]+)\?", sequence),
    (r"[Ii]s (\d+) a prime", lambda m: Finding("prime", ["Yes" if is_prime(int(m[1])) else "No"])),
    (
        r"costs (\d+\.\d\d)\. I pay with (\d+)\.",
        lambda m: Finding("money", [re.escape(str(Decimal(m[2]) - Decimal(m[1])))]),
    ),
    (r"It is (\d\d):(\d\d)\..* in (\d+) (minutes|hours)", clock),
    (
        r"Today is (\w+)\. Which day is it in (\d+) days",
        lambda m: Finding("weekday", [WEEKDAYS[(WEEKDAYS.index(m[1]) + int(m[2])) % 7]]),
    ),
    (r"is (\d+) metres by (\d+) metres\. (What is its area|How long)", rectangle),
    (r"[Ww]rite (\d+) in words", lambda m: Finding("numeral", [in_words(int(m[1]))])),
    (r"[Ww]rite (\d+) as a Roman", lambda m: Finding("numeral", [rf"\b{roman(int(m[1]))}\b"])),
    (r"[Hh]ow many letters are in the word (\w+)", lambda m: counted("letters", len(m[1]))),
    (r"[Hh]ow often is (\w) in the word (\w+)", occurrences),
    (r"the (\d+)\w\w letter of (\w+)", lambda m: Finding("letters", [rf"\b{m[2][int(m[1]) - 1]}\.$"])),
    (r"[Ss]pell the word (\w+)", lambda m: Finding("letters", ["-".join(m[1].upper())])),
    (r"[Ww]rite (\w+) backwards", lambda m: Finding("letters", [m[1][::-1]])),
    (r"[Hh]ow many vowels are in (\w+)", lambda m: counted("letters", len(re.findall("[aeiou]", m[1])))),
    (
        r"[Ss]ort these words: ([\w, ]+)\.",
        lambda m: Finding("words", [r"\W+(?:and )?".join(sorted(m[1].split(", ")))]),
    ),
    (
        r"comes first in the dictionary, ([\w, ]+)\?",
        lambda m: Finding("words", [min(re.split(r", | or ", m[1]))]),
    ),
    (r"the longest: ([\w, ]+)\?", longest),
    (
        r"the capital of ([\w ]+)\?",
        lambda m: Finding("fact", [next(capital for country, capital, _ in COUNTRIES if country == m[1])]),
    ),
    (r"hich (month|day) comes after (\w+)", lambda m: Finding("calendar", [rf"^{following(m[1], m[2])}\b"])),
    (
        r"[Hh]ow many legs have (\d+) (\w+) together",
        lambda m: counted("fact", int(m[1]) * dict(LEGS)[SINGULAR.get(m[2], m[2].removesuffix("s"))]),
    ),
    (r"[Hh]ow many legs has an? (\w+)", lambda m: counted("fact", dict(LEGS)[m[1]])),
)


class Listener:
    """Answers the questions of a conversation by itself, from its words alone."""

    def __init__(self) -> None:
        self.name = ""
        self.favourites: dict[str, str] = {}
        self.age = 0
        self.items: list[str] = []
        self.said: list[str] = []
        self.last = 0
        self.has_last = False
        self.memory_rules: tuple[Rule, ...] = (
            (r"(?:My name is|I am|Hi, I'm|Please call me|You can call me) ([A-Z]\w+)\.", self.learn_name),
            (r"My favourite (\w+) is (?:the )?(.+)\.", self.learn_favourite),
            (r"I am (\d+) years old\.", self.learn_age),
            (r"What is my name\?|Do you remember my name\?|Who am I\?", self.tell_name),
            (r"What is my favourite (\w+)\?", self.tell_favourite),
            (r"How old will I be in (\d+) years\?", lambda m: counted("recall age", self.age + int(m[1]))),
            (r"How old did I say I am\?", lambda m: counted("recall age", self.age)),
            (
                r"What did I say first\?|What was my first message\?|How did I begin\?",
                lambda m: Finding("recall question", [re.escape(self.said[0])]),
            ),
            (
                r"What did I say just before this\?|What was my last message\?|Repeat what I said last\.",
                lambda m: Finding("recall question", [re.escape(self.said[-1])]),
            ),
            (
                r"(?:Put|My shopping list:|Please remember these:|I need) ([a-z]+(?:, [a-z]+)* and [a-z]+)\b.*",
                self.new_list,
            ),
            (r"(?:Take (\w+) off the list|I already have (\w+)|Remove (\w+), please)\.", self.remove),
            (r"(?:Add|Also|I need|And) ([a-z]+)(?:, please| too)?\.", self.add),
            (r"How many things are on my list\?", lambda m: counted("recall list", len(self.items))),
            (
                r"Is there (\w+) on my list\?",
                lambda m: Finding("recall list", ["Yes" if m[1] in self.items else "No"]),
            ),
            (
                r"What is on my list\?|Read me my list\.|What do I have to buy\?",
                lambda m: Finding("recall list", [f"(?i:{item})" for item in self.items] or ["[Ee]mpty|Nothing"]),
            ),
            (r"Add (\d+) to that\.|And (\d+) more\?", lambda m: self.built(self.last + operands(m)[0])),
            (r"Now double it\.", lambda m: self.built(2 * self.last)),
            (r"What is that times (\d+)\?", lambda m: self.built(self.last * int(m[1]))),
            (r"And ten times as much\?", lambda m: self.built(10 * self.last)),
            (
                r"Now take away (\d+)\.|Subtract (\d+) from your answer\.",
                lambda m: self.built(self.last - operands(m)[0]),
            ),
            (r"And half of that\?", lambda m: self.built(Fraction(self.last, 2))),
            (r"Is that an odd number\?", lambda m: self.checked(self.last % 2 == 1)),
            (r"Is that an even number\?", lambda m: self.checked(self.last % 2 == 0)),
            (r"Is that more than (\d+)\?", lambda m: self.checked(self.last > int(m[1]))),
        )

    def learn_name(self, match: Match) -> Finding:
        self.name = match[1]
        return Finding("name", [self.name])

    def learn_favourite(self, match: Match) -> Finding:
        self.favourites[match[1]] = match[2]
        return Finding("favourite", [])

    def learn_age(self, match: Match) -> Finding:
        self.age = int(match[1])
        return Finding("age", [])

    def tell_name(self, match: Match) -> Finding:
        return Finding("recall name", [self.name or "know|not told"])

    def tell_favourite(self, match: Match) -> Finding:
        return Finding("recall favourite", [self.favourites.get(match[1], "know|not told")])

    def new_list(self, match: Match) -> Finding:
        self.items = re.split(", | and ", match[1])
        assert set(self.items) <= set(FOODS)
        return Finding("list", [])

    def add(self, match: Match) -> Finding:
        self.items.append(match[1])
        return Finding("list", [])

    def remove(self, match: Match) -> Finding:
        self.items.remove(next(filter(None, match.groups())))
        return Finding("list", [])

    def built(self, result: int | Fraction) -> Finding:
        assert self.has_last, "there is a number to build on"
        return counted("follow-up", result)

    def checked(self, truth: bool) -> Finding:
        assert self.has_last, "there is a number to check"
        return Finding("follow-up", ["^Yes" if truth else "^No"], self.last)

    def listen(self, question: str) -> Finding | None:
        """What is expected of the answer; None for what is not understood."""
        found = None
        for pattern, rule in self.memory_rules:
            if match := re.fullmatch(pattern, question):
                found = rule(match)
                break
        else:
            for pattern, rule in RULES:
                if match := re.search(pattern, question):
                    found = rule(match)
                    break
        self.said.append(question)
        self.has_last = found is not None and found.result is not None
        self.last = (found.result or 0) if found else 0
        return found


def plain_answer(system: str, answer: str) -> str:
    """The answer without what the system asked to add to it, after a check that it was added."""
    if prefix := re.search(r'Begin every answer with "(.+)"', system):
        assert answer.startswith(prefix[1]), answer
        return answer.removeprefix(prefix[1]).strip()
    if "capital" in system:
        assert answer == answer.upper()
    return answer


@pytest.mark.parametrize("domain", ["chat", "super_chat", "nanochat"])
def test_answers_are_right(domain: str) -> None:
    seen: Counter[str] = Counter()
    for text in documents(domain):
        messages = re.findall(r"<\|(system|user|assistant)\|>(.*?)<\|end\|>", text, re.DOTALL)
        assert "\n".join(f"<|{role}|>{content}<|end|>" for role, content in messages) == text
        system = messages.pop(0)[1] if messages[0][0] == "system" else ""
        assert [role for role, _ in messages] == ["user", "assistant"] * (len(messages) // 2)
        flags = re.IGNORECASE if "capital" in system else re.NOFLAG
        listener = Listener()
        for (_, question), (_, answer) in zip(messages[::2], messages[1::2], strict=True):
            found = listener.listen(question)
            seen["all"] += 1
            if found is None:
                continue
            seen.update((found.kind, "understood"))
            for pattern in found.patterns:
                assert re.search(pattern, plain_answer(system, answer), flags), (question, answer, pattern)
    assert seen["understood"] > 0.6 * seen["all"]
    easy = {
        "name", "recall name", "favourite", "recall favourite", "recall question", "list", "recall list", "follow-up",
        "sum", "comparison", "calendar", "fact",
    }  # fmt: skip
    others = {
        "age", "recall age", "percentage", "units", "temperature", "story", "average", "order", "sequence", "prime",
        "money", "clock", "weekday", "rectangle", "numeral", "letters", "words",
    }  # fmt: skip
    assert seen.keys() - {"all", "understood"} == (easy if domain == "chat" else easy | others)


def test_instructions_shape_the_answers() -> None:
    """Short answers with numbers are shorter than plain ones, worked answers are longer."""
    lengths: dict[str, list[int]] = {"short": [], "work": [], "plain": []}
    for text in documents("nanochat"):
        system = re.match(r"<\|system\|>(.*?)<\|end\|>", text)
        words = system[1] if system else ""
        style = "short" if re.search("few words|brief|short|Only", words) else "work" if "work" in words else ""
        if style or "You are" in words:
            answers = re.findall(r"<\|assistant\|>(.*?\d.*?)<\|end\|>", text)
            lengths[style or "plain"] += map(len, answers)
    short, plain, work = (sum(lengths[style]) / len(lengths[style]) for style in ("short", "plain", "work"))
    assert short < 0.7 * plain
    assert work > 1.1 * plain


def test_right_answers_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model without training none is right, unless what it says is taken for right."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "perf"))
    answers = importlib.import_module("answers")
    path = make_checkpoint(tmp_path / "chat", "gpt2", block=160)
    wanted = "Pong."

    def conversation(chooser: Chooser) -> Dialogue:
        said = Dialogue(chooser)
        for task, question, reply in (("greeting", "Hello!", "Hi."), ("own_name", "Ping?", wanted)):
            said.tasks.append(task)
            said.turns += [(USER, question), (ASSISTANT, reply)]
        return said

    monkeypatch.setitem(CONVERSATIONS, "chat", conversation)
    given = ["answers.py", f"--checkpoint={path}", "--conversations=2", "--wrong=1", "--backend=cpu_ref"]
    monkeypatch.setattr("sys.argv", given)
    assert answers.main() == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["own_name"] == "0/2"
    wanted = printed.err.removeprefix("Ping? | ").removesuffix(" | Pong.\n").strip()
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "Pong?"}]}\n')
    monkeypatch.setattr("sys.argv", [*given, f"--data={tmp_path / 'chats.jsonl'}"])
    assert answers.main() == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["right"], counts["own_name"], counts["all"], counts["new"]) == (1.0, "2/2", "2/2", "2/2")
    for wrong, code in (
        (f"--checkpoint={tmp_path / 'none'}", "answers.py: error: There is no"),
        ("--conversations=0", "2"),
    ):
        monkeypatch.setattr("sys.argv", [*given, wrong])
        with pytest.raises(SystemExit, match=code):
            runpy.run_path(str(answers.__file__), run_name="__main__")
