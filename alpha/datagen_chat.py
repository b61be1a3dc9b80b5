"""Conversations for the three chat domains, in which every answer is right.

chat: a few plain exchanges. super_chat: longer ones that go back to what was said, some with a persona. nanochat: most
begin with an instruction that shapes every answer (short, worked out, a fixed beginning, capitals).
"""

from collections.abc import Callable

from alpha.datagen_grammar import FUNCTIONS, GRAMMAR, PLACES, WEEKDAYS, Chooser, article, items, listed, table
from alpha.domain import ASSISTANT, SYSTEM, USER, dialogue

BRIEF, PLAIN, WORKED = 2, 1, 3  # the place of such an answer in a task's line

_ANIMALS, _FOODS, _COLOURS = items("words.animal"), items("words.food"), items("words.colour")
_FRAMED, _MOVABLE = frozenset(items("chat.framed")), items("chat.movable")
_PLURALS = frozenset(food for food in _FOODS if food.endswith("s") and food != "asparagus")


class Dialogue:
    """A conversation under construction: its turns, and what has been said that later turns may refer to."""

    def __init__(self, name: str, index: int, seed: int) -> None:
        self.chooser = Chooser(name, index, seed)
        self.style = PLAIN  # how long answers are
        self.prefix = ""  # what every answer begins with, when the system asks for it
        self.capitals = False  # whether the system asks for capital letters
        self.persona: dict[str, str] = {}
        self.user_name = ""
        self.number: int | None = None  # the answer just given, when it was a whole number
        self.items: list[str] | None = None  # the user's list
        self.favourites: dict[str, str] = {}
        self.age: int | None = None
        self.reviewed = False  # whether the user has asked what was said
        self.turns: list[tuple[str, str]] = []

    def write(self, symbol: str, /, **values: object) -> str:
        return self.chooser.expand(f"chat.{symbol}", values)

    def system(self, symbol: str, /, **values: object) -> None:
        """Put an instruction before the conversation."""
        self.turns.append((SYSTEM, self.write(symbol, **values)))

    def exchange(self, task: str, /, **given: object) -> None:
        """A question and its answer, in the length that the conversation's style asks for. A value `result` is a whole
        number that the next question may build on."""
        symbol = f"chat.{task}"
        values = self.chooser.values(GRAMMAR.rules[symbol], given)
        question, *answers = self.chooser.expand(symbol, values).split(" | ")
        if task in _FRAMED:
            question = self.framed(question)
        result = values.get("result")
        answer = answers[self.style - 1] if self.style <= len(answers) else ""
        if not answer and self.style == BRIEF and result is not None:
            answer = f"{result}."
        answer = self.prefix + (answer or answers[0])
        self.turns.append((USER, question))
        self.turns.append((ASSISTANT, answer.upper() if self.capitals else answer))
        self.number = result if isinstance(result, int) else None

    def framed(self, question: str) -> str:
        """A question, at times with one of the small frames that people put around it."""
        way = self.chooser.below(12)
        if way > 4 or (way == 4 and not self.persona):
            return question
        inner = question[0].lower() + question[1:] if question.startswith(_MOVABLE) else question
        if way == 4:
            return f"{self.persona['name']}, {inner}"
        return self.write("frame", question=question, inner=inner)

    def said(self) -> list[str]:
        """What the user has said so far."""
        return [text for role, text in self.turns if role == USER]


Task = Callable[[Dialogue], None]
"""Adds at least one question with its answer to a conversation."""


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


def _build_on_number(d: Dialogue) -> None:
    """A follow-up that works on the last answer, or asks about it."""
    number = d.number or 0
    ways = ["add_to", "add_to", "is_odd", "is_more"]
    if number <= 100_000:
        ways += ["double", "multiply_by", "tenfold"] + ["take_away", "take_away"] * (number >= 20)
        ways += ["half"] * (number % 2 == 0)
    d.exchange(d.chooser.pick(ways), number=number, amount=d.chooser.between(2, 20))


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
_OTHERS = {  # of each two kinds, what is of the second and not of the first
    (kind, other): tuple(word for word in words if word not in options)
    for kind, options in _KINDS
    for other, words in _KINDS
}


def _category(d: Dialogue) -> None:
    """What kind of thing something is, and which does not belong."""
    c = d.chooser
    (kind, options), (other_kind, _) = c.sample(_KINDS, 2)
    odd = c.pick(_OTHERS[kind, other_kind])
    if c.chance(50):
        task, word = ("is_kind", c.pick(options)) if c.chance(50) else ("is_not_kind", odd)
        d.exchange(task, word=word, **{"is": "are" if word in _PLURALS else "is"}, kind=kind, other_kind=other_kind)
    else:
        shown = ", ".join(c.sample([*c.sample(options, 3), odd], 4))
        d.exchange("odd_one", shown=shown, odd=odd, kind=kind, other_kind=other_kind)


def _greeting(d: Dialogue) -> None:
    d.exchange("greeting", name=f", {d.user_name}" if d.user_name else "")


def _farewell(d: Dialogue) -> None:
    d.exchange("farewell", name=f", {d.user_name}" if d.user_name else "")


def _own_name(d: Dialogue) -> None:
    d.exchange("persona_name" if d.persona else "model_name", **d.persona)


# --- what the user tells and asks for later -------------------------------------------------------------------------


def _introduction(d: Dialogue) -> None:
    d.user_name = d.chooser.write("words.first_name")
    d.exchange("introduction", name=d.user_name)


def _recall_name(d: Dialogue) -> None:
    d.exchange("recall_name" if d.user_name else "no_name", name=d.user_name)


def _tell_favourite(d: Dialogue) -> None:
    kind, options = d.chooser.pick((("colour", _COLOURS), ("animal", _ANIMALS), ("food", _FOODS), ("day", WEEKDAYS)))
    value = d.favourites[kind] = d.chooser.pick(options)
    d.exchange("tell_favourite", kind=kind, value=value, it=f"the {value}" if kind == "animal" else value)


def _recall_favourite(d: Dialogue) -> None:
    known = d.favourites and d.chooser.chance(85)
    kind = d.chooser.pick(list(d.favourites) if known else ("colour", "animal", "food", "day"))
    value = d.favourites.get(kind, "")
    it = f"the {value}" if kind == "animal" else value
    d.exchange("recall_favourite" if value else "no_favourite", kind=kind, value=value, it=it)


def _tell_age(d: Dialogue) -> None:
    d.age = d.chooser.between(6, 90)
    d.exchange("tell_age", age=d.age)


def _recall_age(d: Dialogue) -> None:
    age, years = d.age or 0, d.chooser.between(2, 30)
    if d.chooser.chance(60):
        d.exchange("later_age", result=age + years, age=age, years=years, total=age + years)
    else:
        d.exchange("recall_age", result=age, age=age)


def _make_list(d: Dialogue) -> None:
    d.items = d.chooser.sample(_FOODS, d.chooser.between(2, 5))
    d.exchange("make_list", list=listed(d.items), count=len(d.items))


def _change_list(d: Dialogue) -> None:
    there = d.items or []
    if there and d.chooser.chance(40):
        thing = d.chooser.pick(there)
        there.remove(thing)
        d.exchange("remove" if there else "remove_last", thing=thing, list=listed(there))
    else:
        thing = d.chooser.pick([food for food in _FOODS if food not in there])
        there.append(thing)
        d.exchange("add", thing=thing, list=listed(there))


def _recall_list(d: Dialogue) -> None:
    there, way = d.items or [], d.chooser.below(3)
    if way == 0:
        are = "is 1 thing" if len(there) == 1 else f"are {len(there)} things"
        d.exchange("list_length", result=len(there), are=are)
    elif way == 1:
        thing = d.chooser.pick([*there, d.chooser.pick(_FOODS)])
        d.exchange("on_list" if thing in there else "not_on_list", thing=thing)
    else:
        d.exchange("whole_list" if there else "empty_list", list=listed(there))


def _recall_question(d: Dialogue) -> None:
    """What the user said first, or last."""
    task, place = d.chooser.pick((("first_question", 0), ("last_question", -1)))
    d.exchange(task, said=d.said()[place])
    d.reviewed = True


def _recalls(d: Dialogue) -> list[Task]:
    """The tasks that refer to what was said so far."""
    tasks: list[Task] = [_change_list, _change_list, _recall_list, _recall_list] if d.items is not None else []
    tasks += [_recall_name] if d.user_name else []
    tasks += [_recall_favourite] if d.favourites else []
    tasks += [_recall_age] if d.age is not None else []
    tasks += [_recall_question] if len(d.turns) > 3 and not d.reviewed else []
    return tasks


# --- conversations --------------------------------------------------------------------------------------------------

_CODED: dict[str, Task] = {
    "story_sum": _story_sum, "category": _category, "own_name": _own_name, "introduction": _introduction,
    "tell_favourite": _tell_favourite, "tell_age": _tell_age, "make_list": _make_list, "recall_name": _recall_name,
}  # fmt: skip
_TASKS = tuple(items(f"chat.{kind}_task") for kind in ("number", "number", "word", "word", "memory"))


def _ask(d: Dialogue, task: str) -> None:
    """Add a task by its name."""
    if task in _CODED:
        _CODED[task](d)
    else:
        d.exchange(task)


def _converse(d: Dialogue, fewest: int, most: int, recall_percent: int, story_percent: int = 0) -> str:
    """The text of a conversation with so many tasks, after what was set before."""
    c = d.chooser
    if c.chance(35):
        _greeting(d)
    if c.chance(25):
        _introduction(d)
    for _ in range(c.between(fewest, most)):
        recalls = _recalls(d)
        if recalls and c.chance(recall_percent):
            c.pick(recalls)(d)
        elif c.chance(story_percent):
            d.exchange("tell_story")
        else:
            _ask(d, c.pick(c.pick(_TASKS)))
        if d.number is not None and c.chance(25):
            _build_on_number(d)
    if c.chance(30):
        _farewell(d)
    return dialogue(d.turns)


def _take_persona(d: Dialogue) -> None:
    trade = d.chooser.write("words.trade")
    d.persona = {"name": d.chooser.write("words.first_name"), "occupation": trade, "town": d.chooser.pick(PLACES)}
    d.system("persona", **d.persona)


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


def chat(index: int, seed: int) -> str:
    """Conversation number `index` of the domain chat."""
    return _converse(Dialogue("chat", index, seed), 2, 5, recall_percent=35)


def super_chat(index: int, seed: int) -> str:
    """Conversation number `index` of the domain super_chat."""
    d = Dialogue("super_chat", index, seed)
    if d.chooser.chance(40):
        _take_persona(d)
    return _converse(d, 4, 8, recall_percent=55)


def nanochat(index: int, seed: int) -> str:
    """Conversation number `index` of the domain nanochat."""
    d = Dialogue("nanochat", index, seed)
    if d.chooser.chance(75):
        _instruct(d)
    elif d.chooser.chance(50):
        d.style = WORKED
    return _converse(d, 4, 10, recall_percent=45, story_percent=8)
