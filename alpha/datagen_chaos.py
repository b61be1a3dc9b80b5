"""A mixture for the domain chaos: tables, code, logs, lists, letters, and pieces of the other domains."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta

from alpha import datagen_abc, datagen_chords, datagen_finance
from alpha.datagen_chooser import Chooser, Grammar
from alpha.datagen_encyclopaedia import ARTICLES
from alpha.datagen_prose import people, tell
from alpha.datagen_words import (
    ABSTRACTIONS,
    ADJECTIVES,
    ANIMALS,
    COLOURS,
    FOODS,
    LANDSCAPE,
    MATERIALS,
    MONTHS,
    OBJECTS,
    TRADES,
    WEEKDAYS,
    article,
    decimal,
    listed,
    plural,
)

_PLAIN_OBJECTS = tuple(word for word in OBJECTS if word.isalpha())
_GRAMMAR = Grammar(
    {
        "task": (
            "feed the {animal}", "mend the {object}", "buy {food}", "write to the {trade}",
            "paint the {object} {colour}",
            "count the {s object}", "find {a object}", "return the {adjective} {object}", "learn about {abstraction}",
            "carry {food} to the {landscape}", "apologize to the {trade}", "wash the {material} {object}",
            "hide the {food}",
        ),
        "letter": (
            "The {object} that you sent has arrived, and it is {adjective}.",
            "We had {food} on {weekday} and thought of you.",
            "The {trade} next door has bought {a adjective} {animal}.", "I have been {adjective} since {month}.",
            "Please bring {food} and {a object} when you come.",
            "There is news of the {landscape}: {a animal} lives there now.",
            "I remember your words about {abstraction}.",
            "The weather is {adjective}, the {animal} is {adjective}, and so am I.",
            "Has anybody told you about the {material} {object}?", "Do not forget {abstraction}.",
        ),
        "event": (
            "opened the {object}", "lost {a object}", "could not find the {object}", "restarted the {animal} service",
            "saved {food}",
            "connection to {landscape} refused", "loaded {material} {object}", "queue {colour} is empty",
            "retrying {trade}",
            "user {trade} signed in", "user {trade} signed out", "{abstraction} is not configured",
            "wrote report for {month}",
        ),
        "definition": (
            "{a object} made of {material}", "{a adjective} {animal}",
            "a feeling between {abstraction} and {abstraction}",
            "the work of {a trade}", "{a landscape} where {s animal} live", "a dish of {food} and {food}",
            "a song about {abstraction}, sung by {s trade}", "the colour of {material}",
            "what {a trade} keeps in {a object}",
        ),
        "verse": (
            "The {animal} sat beside the {landscape}", "O {adjective} {animal}, O {adjective} {object}",
            "I gave my {object} to the {trade}",
            "All {month} long the {food} was {adjective}", "Who speaks of {abstraction} and {abstraction}?",
            "{^adjective}, {adjective} was the {landscape}",
            "No {trade} knows the {animal}'s {abstraction}", "Sing {food}, sing {object}, sing {abstraction}",
            "The {colour} {animal} and the {colour} {animal}",
        ),
        "adjective": ADJECTIVES, "animal": ANIMALS, "trade": TRADES, "object": _PLAIN_OBJECTS, "material": MATERIALS,
        "food": FOODS, "landscape": LANDSCAPE, "abstraction": ABSTRACTIONS, "colour": COLOURS, "weekday": WEEKDAYS,
        "month": MONTHS,
    }
)  # fmt: skip


def _words(chooser: Chooser, symbol: str) -> str:
    return _GRAMMAR.expand(chooser, symbol, {})


def _identifier(chooser: Chooser) -> str:
    verb = chooser.pick(("find", "count", "make", "load", "mix", "scale", "shift", "fold"))
    return f"{verb}_{chooser.pick(_PLAIN_OBJECTS)}"


def code(chooser: Chooser) -> str:
    """A Python function with calls and their results."""
    name = _identifier(chooser)
    a, b = chooser.between(2, 20), chooser.between(1, 50)
    arguments = sorted({chooser.between(0, 40) for _ in range(3)})
    way = chooser.below(5)
    body: list[str]
    if way == 0:
        body, results = [f"return {a} * x + {b}"], [a * x + b for x in arguments]
    elif way == 1:
        body = [f"if x > {b}:", f"    return x - {b}", f"return {a} * x"]
        results = [x - b if x > b else a * x for x in arguments]
    elif way == 2:
        body = ["total = 0", "for number in range(x):", f"    total += number * {a}", "return total"]
        results = [sum(number * a for number in range(x)) for x in arguments]
    elif way == 3:
        body = [f"return x % {a} + x // {a}"]
        results = [x % a + x // a for x in arguments]
    else:
        body = [f"while x >= {a}:", f"    x -= {a}", f"return x + {b}"]
        results = [x % a + b for x in arguments]
    doc = f'    """{_words(chooser, "task").capitalize()}."""'
    lines = [f"def {name}(x):", *([doc] if chooser.chance(50) else []), *[f"    {line}" for line in body], ""]
    lines += [f">>> {name}({x})\n{result}" for x, result in zip(arguments, results, strict=True)]
    return "\n".join(lines)


def strings(chooser: Chooser) -> str:
    """An interactive Python session on a list of words."""
    name, words = (
        chooser.pick(("words", "items", "names", "bag")),
        chooser.sample(_PLAIN_OBJECTS, chooser.between(3, 5)),
    )
    other = chooser.pick(FOODS)
    calls = [
        (f"len({name})", repr(len(words))),
        (f"{name}[-1]", repr(words[-1])),
        (f"sorted({name})", repr(sorted(words))),
        (f"[len(word) for word in {name}]", repr([len(word) for word in words])),
        (f"max({name})", repr(max(words))),
        (f"{name}[0].upper()", repr(words[0].upper())),
        (f"{name}[1][::-1]", repr(words[1][::-1])),
        (f"{other!r} in {name}", repr(other in words)),
        (f"'-'.join({name})", repr("-".join(words))),
    ]
    lines = [f">>> {name} = {words!r}"]
    lines += [f">>> {call}\n{result}" for call, result in chooser.sample(calls, chooser.between(2, 5))]
    return "\n".join(lines)


def _rows(chooser: Chooser) -> list[tuple[str, int, int]]:
    """Things with a count and a price in cents."""
    things = chooser.sample(_PLAIN_OBJECTS, chooser.between(2, 6))
    return [(thing, chooser.between(1, 40), chooser.between(5, 4000)) for thing in things]


def markdown_table(chooser: Chooser) -> str:
    rows = _rows(chooser)
    lines = ["| name | count | price | total |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {count} | {decimal(price, 2)} | {decimal(count * price, 2)} |" for name, count, price in rows
    ]
    total = sum(count * price for _, count, price in rows)
    lines.append(f"| sum | {sum(count for _, count, _ in rows)} | | {decimal(total, 2)} |")
    return "\n".join(lines)


def comma_table(chooser: Chooser) -> str:
    lines = ["id,name,colour,weight,made_in"]
    number = chooser.between(1, 900)
    for _ in range(chooser.between(3, 8)):
        number += chooser.between(1, 9)
        weight = decimal(chooser.between(1, 999), 1)
        lines.append(f"{number},{chooser.pick(_PLAIN_OBJECTS)},{chooser.pick(COLOURS)},{weight},{chooser.place()}")
    return "\n".join(lines)


def record(chooser: Chooser) -> str:
    """A JSON object."""
    someone = people(chooser, 1)[0]
    values = {
        "name": f"{someone.name} {someone.surname}",
        "trade": someone.trade,
        "age": chooser.between(18, 90),
        "town": chooser.place(),
        "married": chooser.chance(50),
        "likes": chooser.sample(FOODS, chooser.between(1, 4)),
        "pets": {chooser.pick(ANIMALS): chooser.between(1, 5)},
        "phone": None,
    }
    keys = chooser.sample(list(values), chooser.between(3, 7))
    return json.dumps({key: values[key] for key in keys}, indent=chooser.pick((None, 2, 2)))


def log(chooser: Chooser) -> str:
    """Log lines in the order of their times."""
    moment = datetime(2024, 1, 1) + timedelta(seconds=chooser.below(400 * 24 * 3600))
    lines = []
    for _ in range(chooser.between(4, 10)):
        moment += timedelta(seconds=chooser.pick((1, 2, 5, 30, 300)) * chooser.between(1, 9))
        level = chooser.pick(("INFO", "INFO", "INFO", "DEBUG", "WARNING", "ERROR"))
        lines.append(f"{moment:%Y-%m-%d %H:%M:%S} {level} {_words(chooser, 'event')}")
    return "\n".join(lines)


def numbered_list(chooser: Chooser) -> str:
    lines = [f"{number}. {_words(chooser, 'task').capitalize()}." for number in range(1, chooser.between(4, 9))]
    return "\n".join([f"To do on {chooser.pick(WEEKDAYS)}:", *lines])


def check_list(chooser: Chooser) -> str:
    done = [chooser.chance(50) for _ in range(chooser.between(3, 8))]
    lines = [f"- [{'x' if each else ' '}] {_words(chooser, 'task')}" for each in done]
    return "\n".join([*lines, f"{sum(done)} of {len(done)} done"])


def recipe(chooser: Chooser) -> str:
    foods = chooser.sample(FOODS, chooser.between(3, 6))
    grams = [chooser.between(1, 40) * 10 for _ in foods]
    minutes = [chooser.between(1, 12) * 5 for _ in range(3)]
    lines = [f"{chooser.pick(ADJECTIVES).capitalize()} {foods[0]} with {foods[1]}", ""]
    lines += [f"- {amount} g {food}" for amount, food in zip(grams, foods, strict=True)]
    lines += [
        "",
        f"Wash the {foods[0]}: {minutes[0]} minutes. Boil with the {listed(foods[1:])}: {minutes[1]} minutes. Let it "
        "rest: "
        f"{minutes[2]} minutes. Ready in {sum(minutes)} minutes, {sum(grams)} g in all.",
    ]
    factor = chooser.between(2, 4)
    lines.append(
        f"For {factor} times as many guests: "
        f"{listed([f'{factor * amount} g {food}' for amount, food in zip(grams, foods, strict=True)])}."
    )
    return "\n".join(lines)


def letter(chooser: Chooser) -> str:
    one, other = people(chooser, 2)
    sentences = " ".join([_words(chooser, "letter") for _ in range(chooser.between(2, 6))])
    close = chooser.pick(("Yours", "Your friend", "With love", "Sincerely", "Your old neighbour"))
    head = f"{chooser.place()}, {chooser.between(1, 28)} {chooser.pick(MONTHS)}"
    return f"{head}\n\nDear {one.name},\n\n{sentences}\n\n{close},\n{other.name} {other.surname}"


def settings(chooser: Chooser) -> str:
    lines = []
    for section in chooser.sample(_PLAIN_OBJECTS, chooser.between(1, 3)):
        lines.append(f"[{section}]")
        for key in chooser.sample(LANDSCAPE, chooser.between(2, 4)):
            value = chooser.pick(
                (str(chooser.between(0, 9999)), chooser.pick(COLOURS), "true", "false", f'"{chooser.place()}"')
            )
            lines.append(f"{key} = {value}")
        lines.append("")
    return "\n".join(lines).rstrip()


def dictionary(chooser: Chooser) -> str:
    lines = []
    for _ in range(chooser.between(3, 6)):
        word = chooser.place().lower()
        lines.append(f"{word} (noun): {_words(chooser, 'definition')}.")
    return "\n".join(sorted(lines))


def poem(chooser: Chooser) -> str:
    refrain = _words(chooser, "verse")
    stanzas = []
    for _ in range(chooser.between(2, 4)):
        stanzas.append("\n".join([f"{_words(chooser, 'verse')}," for _ in range(3)] + [f"{refrain}."]))
    return "\n\n".join(stanzas)


def play(chooser: Chooser) -> str:
    """Two people counting out something between them."""
    one, other = (person.name.upper() for person in people(chooser, 2))
    thing, count = plural(chooser.pick(_PLAIN_OBJECTS)), chooser.between(5, 60)
    lines = [f"{one}: I have {count} {thing}."]
    for _ in range(chooser.between(2, 5)):
        amount = chooser.between(1, count - 1) if count > 1 else 0
        if amount and chooser.chance(60):
            count -= amount
            lines += [f"{other}: Give me {amount}.", f"{one}: Then I have {count} left."]
        else:
            more = chooser.between(1, 20)
            count += more
            lines += [f"{other}: Take {more} of mine.", f"{one}: Now I have {count}."]
    lines.append(f"{other}: {_words(chooser, 'letter')}")
    return "\n".join(lines)


def shell(chooser: Chooser) -> str:
    """A terminal session with files and sums."""
    files = sorted(f"{name}.txt" for name in chooser.sample(_PLAIN_OBJECTS, chooser.between(2, 5)))
    counts = [chooser.between(1, 900) for _ in files]
    a, b = chooser.between(2, 999), chooser.between(2, 99)
    lines = ["$ ls", "  ".join(files), "$ wc -l *.txt"]
    lines += [f"{count:5d} {file}" for count, file in zip(counts, files, strict=True)]
    lines += [
        f"{sum(counts):5d} total",
        f"$ echo $(({a} * {b}))",
        str(a * b),
        f"$ rm {files[0]}",
        "$ ls | wc -l",
        str(len(files) - 1),
    ]
    return "\n".join(lines)


def timetable(chooser: Chooser) -> str:
    """Departures with the minutes between stops."""
    minute, lines = chooser.between(300, 900), [f"Line {chooser.between(1, 99)} on {chooser.pick(WEEKDAYS)}s"]
    start = minute
    for stop in range(chooser.between(3, 7)):
        if stop:
            ride = chooser.between(3, 45)
            minute += ride
            lines.append(f"  {ride} min")
        lines.append(f"{minute // 60:02d}:{minute % 60:02d} {chooser.place()}")
    return "\n".join([*lines, f"Journey: {minute - start} minutes"])


def sums(chooser: Chooser) -> str:
    """Plain sums, one a line."""
    lines = []
    for _ in range(chooser.between(4, 12)):
        a, b = chooser.between(1, 999), chooser.between(1, 99)
        sign, result = chooser.pick((("+", a + b), ("-", a - b), ("x", a * b)))
        lines.append(f"{a} {sign} {b} = {result}")
    return "\n".join(lines)


def inventory(chooser: Chooser) -> str:
    """A settings file in YAML's style."""
    lines = [f"{chooser.pick(LANDSCAPE)}:"]
    total = 0
    for name, count, _ in _rows(chooser):
        total += count
        lines += [
            f"  - name: {chooser.pick(ADJECTIVES)} {name}",
            f"    owner: {article(chooser.pick(TRADES))}",
            f"    count: {count}",
        ]
    return "\n".join([*lines, f"  total: {total}"])


def _article(chooser: Chooser) -> str:
    heading, paragraphs = chooser.pick(ARTICLES)(chooser)
    return "\n".join([f"## {heading}", *paragraphs[:2]])


KINDS: tuple[Callable[[Chooser], str], ...] = (
    code, code, strings, markdown_table, comma_table, record, log, numbered_list, check_list, recipe, letter, settings,
    dictionary, poem, play, shell, timetable, sums, inventory, _article, _article, datagen_finance.compose,
    datagen_chords.compose, lambda chooser: datagen_abc.compose(chooser, chooser.between(1, 999)),
    lambda chooser: tell(chooser, 1), lambda chooser: tell(chooser, 1),
)  # fmt: skip


def generate(index: int, seed: int) -> str:
    """Document number `index`: one to four pieces of different kinds."""
    chooser = Chooser("chaos", index, seed)
    kinds = chooser.sample(KINDS, chooser.between(1, 4))
    return "\n\n".join([kind(chooser) for kind in kinds])
