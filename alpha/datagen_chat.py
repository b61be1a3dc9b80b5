"""Conversations for the three chat domains, in which every answer is right.

chat: a few plain exchanges. super_chat: longer ones that go back to what was said, some with a persona. nanochat: most
begin with an instruction that shapes every answer (short, worked out, a fixed beginning, capitals).
"""

from collections.abc import Callable
from math import isqrt

from alpha.datagen_grammar import (
    MONTHS,
    PLACES,
    WEEKDAYS,
    Chooser,
    article,
    decimal,
    in_words,
    items,
    listed,
    ordinal,
    roman,
    table,
)
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

    def exchange(self, task: str, result: int | None = None, /, **values: object) -> None:
        """A question and its answer, in the length that the conversation's style asks for. A `result` is a whole
        number that the next question may build on."""
        values["result"] = result
        question, *answers = self.chooser.expand(f"chat.{task}", values).split(" | ")
        if task in _FRAMED:
            question = self.framed(question)
        answer = answers[self.style - 1] if self.style <= len(answers) else ""
        if not answer and self.style == BRIEF and result is not None:
            answer = f"{result}."
        answer = self.prefix + (answer or answers[0])
        self.turns.append((USER, question))
        self.turns.append((ASSISTANT, answer.upper() if self.capitals else answer))
        self.number = result

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


# --- numbers --------------------------------------------------------------------------------------------------------

_COUNTABLE = (*(food for food in _FOODS if food in _PLURALS), *items("chat.countable"))


def _operands(d: Dialogue) -> tuple[int, int]:
    """Two numbers of one of several sizes."""
    limit = d.chooser.pick((10, 20, 100, 100, 1000))
    return d.chooser.between(2, limit), d.chooser.between(2, limit)


def _sum(d: Dialogue, task: str, result: int, split: int, **values: object) -> None:
    """A sum that is worked out by the tens and units of one operand, where it has both."""
    if d.style == WORKED and split > 10 and split % 10:
        values["worked"] = d.write(
            f"{task}_worked", result=result, units=split % 10, round=split - split % 10, **values
        )
    d.exchange(task, result, **{"worked": "", **values})


def _addition(d: Dialogue) -> None:
    first, second = _operands(d)
    middle = first + second - second % 10
    _sum(d, "addition", first + second, second, first=first, second=second, middle=middle)


def _subtraction(d: Dialogue) -> None:
    second, first = sorted(_operands(d))
    middle = first - second + second % 10
    _sum(d, "subtraction", first - second, second, first=first, second=second, middle=middle)


def _multiplication(d: Dialogue) -> None:
    c = d.chooser
    first, second = c.between(2, c.pick((12, 12, 99))), c.between(2, c.pick((10, 12, 50)))
    few, result = first % 10 * second, first * second
    _sum(d, "multiplication", result, first, first=first, second=second, many=result - few, few=few)


def _division(d: Dialogue) -> None:
    c = d.chooser
    divisor, whole = c.between(2, 12), c.between(2, 30)
    rest = c.below(divisor) if c.chance(50) else 0
    quotient = f"{whole}, remainder {rest}" if rest else str(whole)
    product = divisor * whole
    d.exchange(
        "division", None if rest else whole, number=product + rest, divisor=divisor, quotient=quotient, whole=whole,
        product=product, rest=rest,
    )  # fmt: skip


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
        "story_sum", count, name=c.write("words.first_name"), thing=c.pick(_COUNTABLE), start=start, count=count,
        steps=listed(steps), working=", ".join(working),
    )  # fmt: skip


def _build_on_number(d: Dialogue) -> None:
    """A follow-up that works on the last answer."""
    number, amount = d.number or 0, d.chooser.between(2, 20)
    ways = [("add_to", number + amount)] * 2
    if number <= 100_000:
        ways += [("double", 2 * number), ("multiply_by", number * amount), ("tenfold", 10 * number)]
        ways += [("take_away", number - amount)] * 2 if number >= amount else []
        ways += [("half", number // 2)] if number % 2 == 0 else []
    task, result = d.chooser.pick(ways)
    d.exchange(task, result, number=number, amount=amount)


def _check_number(d: Dialogue) -> None:
    """A follow-up about a property of the last answer."""
    number, c = d.number or 0, d.chooser
    if c.chance(50):
        kind, asked = "odd" if number % 2 else "even", c.pick(("odd", "even"))
        d.exchange("is_odd", number=number, kind=kind, asked=asked, answer="Yes" if asked == kind else "No")
    else:
        limit = c.between(max(number - 60, 0), number + 60)
        relation = "more than" if number > limit else "less than" if number < limit else "equal to"
        d.exchange("is_more", number=number, limit=limit, relation=relation, answer="Yes" if number > limit else "No")
    d.number = number


def _conversion(d: Dialogue) -> None:
    row, count = d.chooser.pick(table("facts.conversion")), d.chooser.between(2, 60)
    total = count * int(row["factor"])
    task, result = ("conversion", total) if d.chooser.chance(65) else ("back_conversion", count)
    d.exchange(task, result, **row, count=count, total=total)


def _temperature(d: Dialogue) -> None:
    celsius = d.chooser.between(-8, 24) * 5
    scaled = celsius * 9 // 5
    d.exchange(d.chooser.pick(("celsius", "fahrenheit")), c=celsius, f=scaled + 32, scaled=scaled)


def _comparison(d: Dialogue) -> None:
    c = d.chooser
    limit = c.pick((20, 100, 1000, 10_000))
    numbers = [c.between(1, limit) for _ in range(c.between(2, 5))]
    if len(set(numbers)) < len(numbers):
        numbers = c.sample([number + place * limit for place, number in enumerate(numbers)], len(numbers))
    way = c.below(3)
    if way == 2:
        d.exchange("in_order", numbers=listed(numbers), ordered=listed(sorted(numbers)))
        return
    best = min(numbers) if way else max(numbers)
    word = (("larger", "the largest"), ("smaller", "the smallest"))[way][len(numbers) > 2]
    d.exchange("extreme", best, word=word, best=best, numbers=listed(numbers).replace(" and ", " or "))


def _sequence(d: Dialogue) -> None:
    c = d.chooser
    start, step, length, way = c.between(1, 30), c.between(2, 15), c.between(4, 6), c.below(4)
    if way == 0:
        values, rule = [start + step * place for place in range(length + 1)], "add"
    elif way == 1:
        step = c.between(2, 3)
        values, rule = [start * step**place for place in range(length + 1)], "multiply"
    elif way == 2:
        base = c.between(1, 9)
        values, rule = [(base + place) ** 2 for place in range(length + 1)], "square"
    else:
        values, rule = [start, start + step], "sum"
        while len(values) <= length:
            values.append(values[-1] + values[-2])
    *shown, result = values
    written = d.write(f"rule_{rule}", step=step)
    d.exchange("sequence", result, shown=", ".join(map(str, shown)), next=result, rule=written)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _primes(d: Dialogue) -> None:
    number = d.chooser.between(2, 200)
    if _is_prime(number):
        tried = listed([divisor for divisor in range(2, isqrt(number) + 1) if _is_prime(divisor)])
        worked = d.write("prime_worked", number=number, tried=tried) if tried else ""
        d.exchange("prime", number=number, worked=worked)
    else:
        divisor = next(divisor for divisor in range(2, number) if number % divisor == 0)
        d.exchange("not_prime", number=number, divisor=divisor, other=number // divisor)


def _percentage(d: Dialogue) -> None:
    c = d.chooser
    percent, number = c.pick((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90)), 20 * c.between(1, 60)
    d.exchange("percentage", percent * number // 100, percent=percent, number=number, hundredth=f"{number / 100:g}")


def _money(d: Dialogue) -> None:
    c = d.chooser
    note = c.pick((5, 10, 20, 50, 100))
    price = c.between(1, note * 20 - 1) * 5
    change = decimal(note * 100 - price, 2)
    d.exchange("money", object_bought=c.write("words.object"), price=decimal(price, 2), note=note, change=change)


def _clock(d: Dialogue) -> None:
    c = d.chooser
    minutes, later, hours = c.below(24 * 60), c.between(1, 36) * 5, c.between(2, 12)
    duration = f"{later} minutes"
    if c.chance(30):
        later, duration = 60 * hours, f"{hours} hours"
    now, then = (f"{value // 60:02d}:{value % 60:02d}" for value in (minutes, (minutes + later) % (24 * 60)))
    d.exchange("clock", now=now, then=then, duration=duration)


def _calendar(d: Dialogue) -> None:
    c = d.chooser
    today, days, month = c.below(7), c.between(2, 40), c.below(12)
    if c.chance(70):
        result = WEEKDAYS[(today + days) % 7]
        weeks, rest = divmod(days, 7)
        d.exchange("later_weekday", today=WEEKDAYS[today], days=days, then=result, weeks=weeks, rest=rest)
    else:
        d.exchange("month_after", this=MONTHS[month], next=MONTHS[(month + 1) % 12])


def _rectangle(d: Dialogue) -> None:
    width, height = d.chooser.between(2, 40), d.chooser.between(2, 40)
    task, result = d.chooser.pick((("area", width * height), ("edge", 2 * (width + height))))
    d.exchange(task, result, width=width, height=height, both=width + height)


def _average(d: Dialogue) -> None:
    c, count = d.chooser, d.chooser.between(2, 5)
    numbers = [c.between(1, 50) for _ in range(count - 1)]
    numbers.append(c.between(1, 10) * count + -sum(numbers) % count)
    d.exchange("average", sum(numbers) // count, numbers=listed(numbers), total=sum(numbers), count=count)


def _numeral(d: Dialogue) -> None:
    number = d.chooser.between(1, d.chooser.pick((20, 100, 3000)))
    d.exchange("numeral", number=number, in_words=in_words(number), in_roman=roman(number))


# --- words and facts ------------------------------------------------------------------------------------------------

_WORDS = tuple(
    word for kind in ("animal", "object", "landscape", "food", "trade") for word in items(f"words.{kind}")
    if word.isalpha()
)  # fmt: skip
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
_FACTS = (  # tasks with the tables of their values
    ("capital", "country"), ("capital_of", "country"), ("continent", "country"), ("symbol", "element"),
    ("planet", "planet"), ("opposite", "opposite"), ("sound", "sound"), ("work", "work"), ("mixture", "mixture"),
)  # fmt: skip


def _letters(d: Dialogue) -> None:
    """Questions about the letters of a word."""
    c, word = d.chooser, d.chooser.pick(_WORDS)
    way, place, repeats = c.below(7), c.below(len(word)), c.between(2, 5)
    if way == 0:
        d.exchange("letter_count", len(word), word=word, count=len(word), spelled=" ".join(word))
    elif way == 1:
        count = word.count(word[place])
        often = "once" if count == 1 else "twice" if count == 2 else f"{count} times"
        d.exchange("letter_times", count, word=word, letter=word[place], often=often, spelled="-".join(word))
    elif way == 2:
        d.exchange("letter_place", word=word, position=ordinal(place + 1), letter=word[place])
    elif way == 3:
        d.exchange("spell", word=word, spelled="-".join(word.upper()))
    elif way == 4:
        d.exchange("reversed", word=word, backwards=word[::-1])
    elif way == 5:
        vowels = [letter for letter in word if letter in "aeiou"]
        counted = f"{len(vowels)} {'vowel' if len(vowels) == 1 else 'vowels'}: {', '.join(vowels)}"
        d.exchange("vowel_count", len(vowels), word=word, vowels=counted)
    else:
        d.exchange("say", word=word, count=in_words(repeats), said=" ".join([word] * repeats))


def _word_order(d: Dialogue) -> None:
    """Sorting, longest words and the first in the dictionary."""
    words = d.chooser.sample(_WORDS, d.chooser.between(3, 6))
    way, shown = d.chooser.below(3), ", ".join(words)
    if way == 0:
        d.exchange("sort", shown=shown, ordered=listed(sorted(words)))
    elif way == 1:
        length = max(map(len, words))
        longest = [word for word in words if len(word) == length]
        are = "is" if len(longest) == 1 else "are"
        d.exchange("longest_word", shown=shown, length=length, longest=listed(longest), are=are)
    else:
        d.exchange("first_word", choice=listed(words).replace(" and ", " or "), first=min(words))


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


def _fact(d: Dialogue) -> None:
    task, rows = d.chooser.pick(_FACTS)
    d.exchange(f"fact_{task}", **d.chooser.pick(table(f"facts.{rows}")))


def _legs(d: Dialogue) -> None:
    row, many = d.chooser.pick(table("facts.legs")), d.chooser.between(1, 12)
    count = int(row["legs"])
    total = many * count
    d.exchange("legs" if many == 1 else "legs_together", total, **row, count=count, many=many, total=total)


def _unknowable(d: Dialogue) -> None:
    d.exchange("unknowable")


def _greeting(d: Dialogue) -> None:
    d.exchange("greeting", name=f", {d.user_name}" if d.user_name else "")


def _farewell(d: Dialogue) -> None:
    d.exchange("farewell", name=f", {d.user_name}" if d.user_name else "")


def _own_name(d: Dialogue) -> None:
    d.exchange("persona_name" if d.persona else "model_name", **d.persona)


def _story(d: Dialogue) -> None:
    d.exchange("tell_story", hero=d.chooser.pick(_ANIMALS), meal=d.chooser.pick(_FOODS))


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
        d.exchange("later_age", age + years, age=age, years=years, total=age + years)
    else:
        d.exchange("recall_age", age, age=age)


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
        d.exchange("list_length", len(there), are=are)
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

_NUMBER_TASKS: tuple[Task, ...] = (
    _addition, _addition, _subtraction, _multiplication, _division, _story_sum, _story_sum, _conversion, _conversion,
    _temperature, _comparison, _sequence, _primes, _percentage, _money, _clock, _calendar, _rectangle, _average,
    _numeral,
)  # fmt: skip
_WORD_TASKS: tuple[Task, ...] = (
    _letters, _letters, _letters, _word_order, _word_order, _category, _category, _fact, _fact, _fact, _fact, _legs,
    _own_name, _unknowable,
)  # fmt: skip
_MEMORY_TASKS: tuple[Task, ...] = (_introduction, _tell_favourite, _tell_age, _make_list, _recall_name)
_TASKS = (_NUMBER_TASKS, _NUMBER_TASKS, _WORD_TASKS, _WORD_TASKS, _MEMORY_TASKS)
_FOLLOW_UPS: tuple[Task, ...] = (_build_on_number, _build_on_number, _check_number)


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
            _story(d)
        else:
            c.pick(c.pick(_TASKS))(d)
        if d.number is not None and c.chance(25):
            c.pick(_FOLLOW_UPS)(d)
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
