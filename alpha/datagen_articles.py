"""Articles for the domain fine_corpus: invented places and people, numbers, years, figures, substances and planets.

An article is a heading and paragraphs, divided by blank lines. Whatever follows from other figures in it (a density, an
age, a share of votes) is computed from them, and what is said of the real world comes from tables.
"""

import re
from collections.abc import Callable
from datetime import date
from math import isqrt

from alpha.datagen_grammar import (
    FUNCTIONS,
    MONTHS,
    PLACES,
    WEEKDAYS,
    Chooser,
    decimal,
    in_words,
    items,
    ordinal,
    quotient,
    roman,
    rounded,
    table,
)

Article = Callable[[Chooser], str]

_LAST_YEAR = 2020  # what is told lies in the past
_WOMEN = frozenset(items("words.woman"))
_FORMULA = re.compile(r"([A-Z][a-z]?)(\d*)")


def _miles(kilometres: int) -> str:
    return quotient(kilometres * 1_000_000, 1_609_344, 1)


def _feet(metres: int) -> str:
    return f"{rounded(metres * 10_000, 3048):,}"


def _years(count: int) -> str:
    return "1 year" if count == 1 else f"{count} years"


def _change(old: int, new: int) -> str:
    """How a number changed, in per cent with one decimal place."""
    if new == old:
        return "the same number"
    return f"{'an increase' if new > old else 'a decrease'} of {quotient(abs(new - old) * 100, old, 1)} per cent"


def _day(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


def _date(chooser: Chooser, year: int) -> date:
    return date(year, chooser.between(1, 12), chooser.between(1, 28))


def _name(chooser: Chooser) -> str:
    return chooser.write("articles.full_name")


def _town(c: Chooser) -> str:
    founded, height, area, year = c.between(900, 1750), c.between(3, 900), c.between(4, 90), c.pick(_CENSUSES)
    population, count = c.between(900, 60_000), c.between(1, 3)
    counts = [c.write("articles.census", year=year, population=f"{population:,}")]
    for _ in range(count):
        later, before = year + c.pick((10, 20, 30)), population
        if later > _LAST_YEAR:
            break
        population = max(population * c.between(70, 190) // 100, 100)
        change, years = _change(before, population), later - year
        counts.append(
            c.write("articles.later_census", year=later, population=f"{population:,}", change=change, years=years)
        )
        year = later
    distances = [c.between(3, 80) for _ in range(c.between(1, 3))]
    near = [c.write("articles.neighbour", distance=each, miles=_miles(each)) for each in distances]
    built, history = founded, list[str]()
    for building in c.sample(items("articles.building"), c.between(1, 4)):
        built += c.between(10, 120)
        if built <= _LAST_YEAR:
            after = _years(built - founded)
            history.append(c.write("articles.built", thing=building, year=built, after=after))
    return c.write(
        "articles.town_article", name=c.pick(PLACES), county=c.pick(PLACES), river=c.pick(PLACES), founded=founded,
        height=height, feet=_feet(height), area=area, year=year, density=f"{rounded(population, area):,}",
        counts=" ".join(counts), neighbours=" ".join(near), history=" ".join(history),
    )  # fmt: skip


def _person(c: Chooser) -> str:
    name, surname, town = c.write("words.first_name"), c.write("words.surname"), c.pick(PLACES)
    he, his = ("she", "her") if name in _WOMEN else ("he", "his")
    born = _date(c, c.between(1500, 1920))
    died = _date(c, born.year + c.between(25, 95))
    age = died.year - born.year - ((died.month, died.day) < (born.month, born.day))
    events, year = list[str](), born.year + c.between(16, 22)
    while year < died.year and len(events) < 5:
        birthday = ordinal(year - born.year)
        events.append(c.write("articles.event", year=year, birthday=birthday, he=he, his=his))
        year += c.between(2, 14)
    after = c.between(1, min(90, _LAST_YEAR - died.year))
    return c.write(
        "articles.person_article", name=name, family=surname, born=f"{_day(born)} {born.year}", he=he, his=his, age=age,
        died=f"{_day(died)} {died.year}", town=town, birth_day=WEEKDAYS[born.weekday()], year=died.year + after,
        events=" ".join(events) + "\n\n" if events else "", after=_years(after),
        since_birth=_years(died.year + after - born.year),
    )  # fmt: skip


def _dynasty(c: Chooser) -> str:
    start = year = c.between(800, 1600)
    names = c.sample(items("words.woman"), 2) + c.sample(items("words.man"), 3)
    rulers, rows, counts = list[tuple[int, str]](), list[str](), dict[str, int]()
    for _ in range(c.between(3, 7)):
        name, reign = c.pick(names), c.between(1, 40)
        counts[name] = counts.get(name, 0) + 1
        title = c.write("articles.ruler", name=name, number=roman(counts[name]))
        kind = "Queen" if name in _WOMEN else "King"
        rulers.append((reign, title))
        rows.append(f"{kind} {title} reigned from {year} to {year + reign} ({_years(reign)}).")
        year += reign
    length, longest = max(rulers, key=lambda ruler: ruler[0])
    return c.write(
        "articles.dynasty_article", house=c.pick(PLACES), start=start, end=year, total=_years(year - start),
        count=in_words(len(rulers)), average=quotient(year - start, len(rulers), 1), longest=longest,
        length=_years(length), reigns=" ".join(rows), remembered=c.pick(rulers)[1],
    )  # fmt: skip


# --- numbers, laws and tables ---------------------------------------------------------------------------------------


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return small + [number // divisor for divisor in reversed(small) if divisor * divisor != number]


def _factors(number: int) -> list[int]:
    """The prime factors, each as often as it divides."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found + ([number] if number > 1 else [])


_ELEMENTS = {row["symbol"]: row for row in table("facts.element")}
_WEIGHTS = {symbol: int(row["weight"]) for symbol, row in _ELEMENTS.items()}  # in thousandths
_COMPOUNDS = [
    (row["compound"], [(symbol, int(atoms or 1)) for symbol, atoms in _FORMULA.findall(row["formula"])], row["formula"])
    for row in table("facts.compound")
]


def _molar_mass(name: str, formula: list[tuple[str, int]], written: str) -> tuple[int, str]:
    total = sum(_WEIGHTS[symbol] * atoms for symbol, atoms in formula)
    terms = " + ".join([f"{atoms} x {decimal(_WEIGHTS[symbol], 3)}" for symbol, atoms in formula])
    return (
        total,
        f"The formula of {name} is {written}, and its molar mass is {terms} = {decimal(total, 3)} grams per mole.",
    )


def _interest(c: Chooser) -> str:
    start, rate, years = c.between(1, 90) * 100, c.between(10, 95), c.between(2, 6)
    cents, rows = start * 100, list[str]()
    for count in range(1, years + 1):
        gain = rounded(cents * rate, 1000)
        cents += gain
        rows.append(f"After year {count}, {decimal(gain, 2)} of interest makes it {decimal(cents, 2)}.")
    return c.write(
        "articles.interest_article", rate=decimal(rate, 1), start=f"{start:,}", rows=" ".join(rows), years=years,
        end=decimal(cents, 2), gain=decimal(cents - start * 100, 2), product=f"{start * rate // 10:,}",
        simple=decimal(start * rate * years // 10, 2),
    )  # fmt: skip


_CENSUSES = tuple(map(int, items("articles.census_year")))
_CODED: dict[str, Article] = {"town": _town, "person": _person, "dynasty": _dynasty, "interest": _interest}
FUNCTIONS.update(
    in_miles=_miles,
    in_feet=_feet,
    in_years=_years,
    change_in_words=_change,
    day_of=_day,
    day_of_year=lambda day: day.timetuple().tm_yday,
    factors_of=_factors,
    divisors_of=_divisors,
    compounds=lambda: _COMPOUNDS,
    molar_mass=_molar_mass,
    element=_ELEMENTS.__getitem__,
)


def article_text(chooser: Chooser) -> str:
    """An article of some kind: a heading, and paragraphs."""
    kind = chooser.pick(items("articles.article_kind"))
    return _CODED[kind](chooser) if kind in _CODED else chooser.write(f"articles.{kind}_article")


def fine_corpus(index: int, seed: int) -> str:
    """Document number `index` of the domain fine_corpus: one to three articles."""
    chooser = Chooser("fine_corpus", index, seed)
    style = chooser.below(3)
    articles = [article_text(chooser) for _ in range(chooser.pick((1, 1, 2, 3)))]
    headings = [article.partition("\n\n")[0] for article in articles]
    if style == 1:
        articles = [f"# {article}" for article in articles]
    elif style == 2:
        articles = [article.partition("\n\n")[2] for article in articles]
    if len(articles) > 1 and chooser.chance(60):
        articles.append("See also: " + "; ".join(headings) + ".")
    return "\n\n".join(articles)
