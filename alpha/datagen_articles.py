"""Articles for the domain fine_corpus: invented places and people, numbers, years, figures, substances and planets.

An article is a heading and paragraphs, divided by blank lines. Whatever follows from other figures in it (a density, an
age, a share of votes) is computed from them, and what is said of the real world comes from tables.
"""

import re
from collections.abc import Callable
from datetime import date
from math import isqrt

from alpha.datagen_grammar import (
    MONTHS,
    PLACES,
    WEEKDAYS,
    Chooser,
    capitalized,
    decimal,
    in_words,
    items,
    listed,
    ordinal,
    quotient,
    roman,
    rounded,
    table,
)

Article = Callable[[Chooser], str]

_LAST_YEAR = 2020  # what is told lies in the past
_LIGHT_KM_PER_SECOND = 299_792
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


def _river(c: Chooser) -> str:
    length, source, mouth = c.between(20, 900), c.between(200, 2400), c.between(0, 90)
    tributaries = [(c.pick(PLACES), c.between(5, 150)) for _ in range(c.between(2, 4))]
    lengths = [kilometres for _, kilometres in tributaries]
    one_longest = lengths.count(max(lengths)) == 1
    low, high, drop = c.between(2, 60), c.between(80, 900), source - mouth
    return c.write(
        "articles.river_article", name=c.pick(PLACES), source=f"{source:,}", length=length, miles=_miles(length),
        end=c.write("articles.river_end" if mouth else "articles.river_end_sea", mouth=mouth), drop=f"{drop:,}",
        slope=quotient(drop, length, 2), tributaries=listed([f"the {name} ({km} km)" for name, km in tributaries]),
        total=sum(lengths), low=low, high=high, ratio=quotient(high, low, 1),
        longest=f"; the longest is the {max(tributaries, key=lambda each: each[1])[0]}" if one_longest else "",
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


def _bridge(c: Chooser) -> str:
    spans = [c.between(10, 120) for _ in range(c.between(2, 5))]
    begun, years, width, load, total = (
        c.between(1700, 1960),
        c.between(1, 9),
        c.between(3, 20),
        c.between(5, 60),
        sum(spans),
    )
    return c.write(
        "articles.bridge_article", name=f"{c.pick(PLACES)} Bridge", count=in_words(len(spans)), spans=listed(spans),
        total=total, feet=_feet(total), begun=begun, opened=begun + years, years=_years(years), width=width,
        surface=f"{total * width:,}", load=load, kilograms=f"{load * 1000:,}",
    )  # fmt: skip


def _election(c: Chooser) -> str:
    votes = sorted(c.sample(range(300, 9000), c.between(2, 4)), reverse=True)
    names, total = [_name(c) for _ in votes], sum(votes)
    electors = total + c.between(200, 6000)
    rows = [
        c.write("articles.votes", name=name, count=f"{count:,}", share=quotient(count * 100, total, 1))
        for name, count in zip(names, votes, strict=True)
    ]
    return c.write(
        "articles.election_article",
        town=c.pick(PLACES), year=c.between(1840, _LAST_YEAR), winner=names[0], second=names[1],
        lead=f"{votes[0] - votes[1]:,}", electors=f"{electors:,}", total=f"{total:,}",
        turnout=quotient(total * 100, electors, 1), rows=" ".join(rows),
    )  # fmt: skip


def _animal(c: Chooser) -> str:
    low, eggs, broods = c.between(3, 120), c.between(2, 9), c.between(1, 4)
    high = low + c.between(1, 60)
    before, after, year = c.between(200, 9000), c.between(100, 9000), c.between(1900, 1990)
    town, kind = c.pick(PLACES), c.write("words.animal")
    name = f"{c.write('articles.look')} {town} {kind}"
    return c.write(
        "articles.animal_article", name=name, title=capitalized(name), town=town, kind=kind, low=low, high=high,
        low_inches=quotient(low * 100, 254, 1), high_inches=quotient(high * 100, 254, 1),
        mean=quotient(low + high, 2, 1), eggs=in_words(eggs),
        broods="once" if broods == 1 else "twice" if broods == 2 else f"{broods} times", young=eggs * broods,
        before=f"{before:,}", after=f"{after:,}", year=year, later=year + c.between(5, 30),
        change=_change(before, after),
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


def _number(c: Chooser) -> str:
    value = c.between(2, c.pick((60, 400, 2000, 3999)))
    parts, dividing, root, digits = _factors(value), _divisors(value), isqrt(value), str(value)
    proper, digit_sum = sum(dividing) - value, sum(map(int, digits))
    way = 0 if proper == value else 1 if proper > value else 2
    return c.write(
        "articles.number_article", value=value, words=in_words(value), parity="odd" if value % 2 else "even",
        roman_numeral=roman(value), binary=f"{value:b}", octal=f"{value:o}", hexadecimal=f"{value:X}",
        divisibility=c.write(
            "articles.prime" if len(parts) == 1 else "articles.composite", value=value, count=len(dividing),
            factors=" x ".join(map(str, parts)), shown=f"They are {listed(dividing)}. " if len(dividing) < 13 else "",
            proper=f"{proper:,}", relation=("equal to", "more than", "less than")[way],
            kind=("perfect", "abundant", "deficient")[way],
        ),
        square=f"{value * value:,}", cube=f"{value**3:,}",
        digits=c.write(
            "articles.digit_sum", digits=" + ".join(digits),
            total=digit_sum, verdict="is" if value % 3 == 0 else "is not"
        ) + " " if value > 9 else "",
        root=c.write(
            "articles.square_root" if root * root == value else "articles.no_square_root", root=root, next=root + 1,
            low=root * root, high=(root + 1) ** 2,
        ),
    )  # fmt: skip


def _year(c: Chooser) -> str:
    value, other = c.between(1583, 2025), c.between(1583, 2100)
    leap = value % 4 == 0 and (value % 100 != 0 or value % 400 == 0)
    why = f"it is {'' if leap else 'not '}divisible by 4"
    if value % 100 == 0:
        why = f"it is divisible by 100 {'and' if leap else 'but not'} by 400"
    first, last, day = date(value, 1, 1), date(value, 12, 31), _date(c, value)
    count, days, gap = day.timetuple().tm_yday, last.timetuple().tm_yday, abs(other - value)
    return c.write(
        "articles.year_article", value=value, roman_numeral=roman(value), century=ordinal((value + 99) // 100),
        kind="leap" if leap else "common", days=days, why=why, first=WEEKDAYS[first.weekday()],
        last=WEEKDAYS[last.weekday()], count=ordinal(count), day=_day(day), on=WEEKDAYS[day.weekday()],
        left=days - count, february=29 if leap else 28,
        gap=f" {value} came {gap} years {'before' if value < other else 'after'} {other}." if gap > 1 else "",
    )  # fmt: skip


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


def _element(c: Chooser) -> str:
    chosen, other = c.sample(list(_ELEMENTS), 2)
    heavier, lighter = (chosen, other) if _WEIGHTS[chosen] > _WEIGHTS[other] else (other, chosen)
    row, weight, mass, found = _ELEMENTS[chosen], _WEIGHTS[chosen], c.between(2, 90), ""
    compounds = [each for each in _COMPOUNDS if chosen in dict(each[1])]
    if compounds:
        compound = c.pick(compounds)
        found = f"\n\n{capitalized(row['name'])} occurs in {compound[0]}. {_molar_mass(*compound)[1]}"
    return c.write(
        "articles.element_article", **row | {"weight": decimal(weight, 3)}, mass=mass,
        product=decimal(mass * weight, 3),
        protons="proton" if row["number"] == "1" else "protons", heavier=_ELEMENTS[heavier]["name"],
        lighter=_ELEMENTS[lighter]["name"], heavy=decimal(_WEIGHTS[heavier], 3), light=decimal(_WEIGHTS[lighter], 3),
        ratio=quotient(_WEIGHTS[heavier], _WEIGHTS[lighter], 2), compound=found,
    )  # fmt: skip


def _compound(c: Chooser) -> str:
    name, formula, _ = compound = c.pick(_COMPOUNDS)
    total, mass = _molar_mass(*compound)
    shares = [
        f"{_ELEMENTS[symbol]['name']} {quotient(100 * _WEIGHTS[symbol] * atoms, total, 1)} per cent"
        for symbol, atoms in formula
    ]
    moles = c.between(2, 40)
    return c.write(
        "articles.compound_article", name=name,
        atoms=sum(atoms for _, atoms in formula), mass=mass, shares=listed(shares),
        made_of=listed([f"{in_words(atoms)} of {_ELEMENTS[symbol]['name']}" for symbol, atoms in formula]),
        moles=moles, total=decimal(total, 3), product=decimal(moles * total, 3),
    )  # fmt: skip


def _planet(c: Chooser) -> str:
    chosen, other = c.sample(table("facts.planet"), 2)
    near, far = sorted((chosen, other), key=lambda row: int(row["distance"]))
    narrow, wide = sorted((chosen, other), key=lambda row: int(row["diameter"]))
    distance, wider, narrower = int(chosen["distance"]), int(wide["diameter"]), int(narrow["diameter"])
    light = rounded(distance * 100_000, _LIGHT_KM_PER_SECOND)
    return c.write(
        "articles.planet_article", name=chosen["name"], ordinal=chosen["ordinal"], distance=decimal(distance, 1),
        speed=f"{_LIGHT_KM_PER_SECOND:,}", light=f"{light:,}", minutes=light // 60,
        seconds="1 second" if light % 60 == 1 else f"{light % 60} seconds", period=decimal(int(chosen["period"]), 1),
        diameter=f"{int(chosen['diameter']):,}", wide=wide["name"], wider=f"{wider:,}", narrow=narrow["name"],
        narrower=f"{narrower:,}", ratio=quotient(wider, narrower, 2), near=near["name"], far=far["name"],
        far_distance=decimal(int(far["distance"]), 1), near_distance=decimal(int(near["distance"]), 1),
        difference=decimal(int(far["distance"]) - int(near["distance"]), 1),
    )  # fmt: skip


def _figure(c: Chooser) -> str:
    """Right triangles by Euclid's formula (m > n gives sides m^2 - n^2, 2mn, m^2 + n^2), rectangles and boxes."""
    way = c.below(3)
    a, b, d = (c.between(2, 60) for _ in range(3))
    if way == 0:
        n, scale = c.between(1, 8), c.between(1, 5)
        m = n + c.between(1, 8)
        a, b, d = scale * (m * m - n * n), scale * 2 * m * n, scale * (m * m + n * n)
    return c.write(
        ("articles.triangle_article", "articles.rectangle_article", "articles.box_article")[way],
        a=a, b=b, c=d, aa=f"{a * a:,}",
        bb=f"{b * b:,}", cc=f"{d * d:,}", sum=a + b + d, half=f"{a * b // 2:,}", ab=f"{a * b:,}", bc=f"{b * d:,}",
        ac=f"{a * d:,}", edge=2 * (a + b), a2=2 * a, b2=2 * b, ab4=f"{4 * a * b:,}", edge2=4 * (a + b),
        abc=f"{a * b * d:,}", litres=decimal(a * b * d, 3), surface=f"{2 * (a * b + b * d + a * d):,}",
    )  # fmt: skip


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


def _motion(c: Chooser) -> str:
    speed, hours = c.between(3, 120), c.between(2, 12)
    distance, slower = speed * hours, c.between(2, speed)
    return c.write(
        "articles.motion_article", speed=speed, hours=hours, distance=distance, metres=quotient(speed * 1000, 3600, 2),
        slower=slower, longer=quotient(distance, slower, 2), both=speed + slower,
    )  # fmt: skip


def _sample(c: Chooser) -> str:
    values = [c.between(1, 99) for _ in range(c.pick((5, 7, 9)))]
    ordered, total, count = sorted(values), sum(values), len(values)
    return c.write(
        "articles.sample_article", count=count, values=listed(values), total=total, mean=quotient(total, count, 2),
        ordered=", ".join(map(str, ordered)), median=ordered[count // 2], low=ordered[0], high=ordered[-1],
        range=ordered[-1] - ordered[0],
    )  # fmt: skip


def _country(c: Chooser) -> str:
    continent = c.write("articles.continent")
    some = c.sample([row for row in table("facts.country") if row["continent"] == continent], 4)
    return c.write(
        "articles.country_article", area=continent, names=listed(sorted(row["country"] for row in some)),
        rows=" ".join([f"The capital of {row['country']} is {row['capital']}." for row in some]),
        capitals=listed(sorted(row["capital"] for row in some)),
    )  # fmt: skip


_CENSUSES = tuple(map(int, items("articles.census_year")))
ARTICLES: tuple[Article, ...] = (  # repeated ones are commoner
    *(_town, _person, _animal) * 2, _town, _person, _river, _dynasty, _bridge, _election, *(_number, _year) * 2,
    _element, _compound, _planet, _figure, _interest, _motion, _sample, _country,
)  # fmt: skip


def fine_corpus(index: int, seed: int) -> str:
    """Document number `index` of the domain fine_corpus: one to three articles."""
    chooser = Chooser("fine_corpus", index, seed)
    style = chooser.below(3)
    articles = [chooser.pick(ARTICLES)(chooser) for _ in range(chooser.pick((1, 1, 2, 3)))]
    headings = [article.partition("\n\n")[0] for article in articles]
    if style == 1:
        articles = [f"# {article}" for article in articles]
    elif style == 2:
        articles = [article.partition("\n\n")[2] for article in articles]
    if len(articles) > 1 and chooser.chance(60):
        articles.append("See also: " + "; ".join(headings) + ".")
    return "\n\n".join(articles)
