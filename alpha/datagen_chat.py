"""Conversations for the three chat domains, in which every answer is right.

chat: a few plain exchanges, with questions that a small model can learn to answer. super_chat: longer ones that go back
to what was said, some with a persona. nanochat: most begin with an instruction that shapes every answer (short, worked
out, a fixed beginning, capitals).
"""

from collections.abc import Callable
from typing import cast

from alpha.datagen_grammar import FUNCTIONS, GRAMMAR, Chooser, article, items, listed, table
from alpha.domain import ASSISTANT, SYSTEM, USER

BRIEF, PLAIN, WORKED = 2, 1, 3  # the place of such an answer in a task's line

_ANIMALS, _FOODS, _COLOURS = items("words.animal"), items("words.food"), items("words.colour")
_FRAMED, _MOVABLE = frozenset(items("chat.framed")), items("chat.movable")
_PLURALS = frozenset(food for food in _FOODS if food.endswith("s") and food != "asparagus")


class Dialogue:
    """A conversation under construction: its turns, and what has been said that later turns may refer to."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.style = PLAIN  # how long answers are
        self.prefix = ""  # what every answer begins with, when the system asks for it
        self.capitals = False  # whether the system asks for capital letters
        self.memory: dict[str, object] = {}  # what has been told
        self.number: int | None = None  # the answer just given, when it was a whole number
        self.turns: list[tuple[str, str]] = []
        self.tasks: list[str] = []  # of the exchanges so far

    def write(self, symbol: str, /, **values: object) -> str:
        return self.chooser.expand(f"chat.{symbol}", values)

    def system(self, symbol: str, /, **values: object) -> None:
        """Put an instruction before the conversation."""
        self.turns.append((SYSTEM, self.write(symbol, **values)))

    def exchange(self, task: str, /, **given: object) -> None:
        """A question and its answer, in the length that the conversation's style asks for. A value `result` is a whole
        number that the next question may build on."""
        symbol = f"chat.{task}"
        told = [text for role, text in self.turns if role == USER]
        values = self.chooser.values(GRAMMAR.rules[symbol], {"memory": self.memory, "turns": told, **given})
        self.memory |= cast(dict[str, object], values.get("remember", {}))
        question, *answers = self.chooser.expand(symbol, values).split(" | ")
        if task in _FRAMED:
            question = self.framed(question)
        result = values.get("result")
        answer = answers[self.style - 1] if self.style <= len(answers) else ""
        if not answer and self.style == BRIEF and result is not None:
            answer = f"{result}."
        answer = self.prefix + (answer or answers[0])
        self.tasks.append(task)
        self.turns.append((USER, question))
        self.turns.append((ASSISTANT, answer.upper() if self.capitals else answer))
        self.number = result if isinstance(result, int) else None

    def framed(self, question: str) -> str:
        """A question, at times with one of the small frames that people put around it."""
        way = self.chooser.below(12)
        persona = cast(dict[str, str], self.memory.get("persona", {}))
        if way > 4 or (way == 4 and not persona):
            return question
        inner = question[0].lower() + question[1:] if question.startswith(_MOVABLE) else question
        if way == 4:
            return f"{persona['name']}, {inner}"
        return self.write("frame", question=question, inner=inner)


# --- tasks that a line of data cannot say ----------------------------------------------------------------------------

_COUNTABLE = (*(food for food in _FOODS if food in _PLURALS), *items("chat.countable"))


def _story_sum(d: Dialogue) -> None:
    """A word problem of one to three steps about one person's things."""
    c = d.chooser
    start = count = c.between(3, 40)
    steps, working = [], []
    for _ in range(c.between(1, 3)):
        before, amount, way = count, c.between(2, 20), c.below(4)
        if way == 0 and count > amount:
            step, count, sign = "gives", count - amount, f"- {amount}"
        elif way == 1 and count % 2 == 0:
            step, count, sign = "halves", count // 2, "/ 2"
        elif way == 2 and amount < 4:
            step, count, sign = "multiplies", count * amount, f"x {amount}"
        else:
            step, count, sign = "gains", count + amount, f"+ {amount}"
        steps.append(d.write(step, amount=amount))
        working.append(f"{before} {sign} = {count}")
    d.exchange(
        "story_sum", result=count, name=c.write("words.first_name"), thing=c.pick(_COUNTABLE), start=start, count=count,
        steps=listed(steps), working=", ".join(working),
    )  # fmt: skip


def _build_on_number(d: Dialogue, number: int, most: int) -> None:
    """A follow-up that works on the last answer, or asks about it, with amounts up to `most`."""
    c = d.chooser
    ways = ["add_to", "add_to", "is_odd", "is_more"] + ["take_away", "take_away"] * (number >= most)
    if most > _SMALL and number <= 100_000:
        ways += ["double", "multiply_by", "tenfold"] + ["half"] * (number % 2 == 0)
    limit = c.between(max(number - 3 * most, 0), number + 3 * most)
    d.exchange(c.pick(ways), number=number, amount=c.between(2, most), limit=limit)


_WORDS = tuple(
    word for kind in ("animal", "object", "landscape", "food", "trade") for word in items(f"words.{kind}")
    if word.isalpha()
)  # fmt: skip
FUNCTIONS["plain_words"] = lambda: _WORDS
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("an animal", tuple(map(article, _ANIMALS))),
    ("an object", tuple(map(article, items("words.object")))),
    ("a food", _FOODS),
    ("a colour", _COLOURS),
    ("a country", tuple(row["country"] for row in table("facts.country"))),
    ("a planet", tuple(row["name"] for row in table("facts.planet"))),
    ("a metal", tuple(row["name"] for row in table("facts.element") if row["kind"] == "metal")),
)
FUNCTIONS["kinds"] = lambda: _KINDS


def _recalls(d: Dialogue) -> list[str]:
    """The tasks that refer to what was said so far."""
    told = d.memory.keys()
    tasks = ["change_list", "change_list", "recall_list", "recall_list"] if "things" in told else []
    tasks += [f"recall_{each}" for each in ("name", "age") if each in told]
    tasks += ["recall_favourite"] if told & {"colour", "animal", "food", "day"} else []
    return tasks + (["recall_question"] if len(d.turns) > 3 and "reviewed" not in told else [])


# --- conversations --------------------------------------------------------------------------------------------------

_TASKS = tuple(items(f"chat.{kind}_task") for kind in ("number", "number", "word", "word", "memory"))
_EASY_TASKS = tuple(items(f"chat.easy_{kind}_task") for kind in ("number", "word", "memory"))
_SMALL = 9


def _converse(
    d: Dialogue, fewest: int, most: int, recall_percent: int, story_percent: int = 0, is_easy: bool = False
) -> Dialogue:
    """Add so many tasks to a conversation, after what was set before; `is_easy`: such as a small model learns."""
    tasks = _EASY_TASKS if is_easy else _TASKS
    c = d.chooser
    if c.chance(35):
        d.exchange("greeting")
    if c.chance(25):
        d.exchange("introduction")
    for _ in range(c.between(fewest, most)):
        recalls = _recalls(d)
        if recalls and c.chance(recall_percent):
            d.exchange(c.pick(recalls))
        elif c.chance(story_percent):
            d.exchange("tell_story")
        elif (task := c.pick(c.pick(tasks))) == "story_sum":
            _story_sum(d)
        else:
            d.exchange(task)
        if d.number is not None and not (is_easy and d.number > 20) and c.chance(25):
            _build_on_number(d, d.number, _SMALL if is_easy else 20)
    if c.chance(30):
        d.exchange("farewell")
    return d


def _take_persona(d: Dialogue) -> None:
    trade = d.chooser.write("words.trade")
    persona = {"name": d.chooser.write("words.first_name"), "occupation": trade, "town": d.chooser.write("words.place")}
    d.memory["persona"] = persona
    d.system("persona", **persona)


def _instruct(d: Dialogue) -> None:
    way = d.chooser.below(6)
    if way == 0:
        d.style = BRIEF
        d.system("be_brief")
    elif way in (1, 2):
        d.style = WORKED
        d.system("show_work")
    elif way == 3:
        word = d.write("beginning")
        d.prefix = f"{word} "
        d.system("begin_with", word=word)
    elif way == 4:
        d.capitals = True
        d.system("use_capitals")
    else:
        _take_persona(d)


def chat(chooser: Chooser) -> Dialogue:
    """A conversation of the domain chat."""
    return _converse(Dialogue(chooser), 2, 5, recall_percent=40, is_easy=True)


def super_chat(chooser: Chooser) -> Dialogue:
    """A conversation of the domain super_chat."""
    d = Dialogue(chooser)
    if d.chooser.chance(40):
        _take_persona(d)
    return _converse(d, 4, 8, recall_percent=55)


def nanochat(chooser: Chooser) -> Dialogue:
    """A conversation of the domain nanochat."""
    d = Dialogue(chooser)
    if d.chooser.chance(75):
        _instruct(d)
    elif d.chooser.chance(50):
        d.style = WORKED
    return _converse(d, 4, 10, recall_percent=45, story_percent=8)


CONVERSATIONS: dict[str, Callable[[Chooser], Dialogue]] = {"chat": chat, "super_chat": super_chat, "nanochat": nanochat}
