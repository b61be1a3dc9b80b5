"""Articles about numbers, years, figures, substances, planets and simple laws, computed from rules and tables."""

from datetime import date
from math import isqrt

from alpha.datagen_chooser import Chooser
from alpha.datagen_facts import COMPOUNDS, COUNTRIES, ELEMENT, ELEMENTS, PLANETS
from alpha.datagen_words import (
    MONTHS,
    OBJECTS,
    TRADES,
    WEEKDAYS,
    article,
    capitalized,
    decimal,
    in_words,
    listed,
    ordinal,
    plural,
    quotient,
    roman,
    rounded,
)

_LIGHT_KM_PER_SECOND = 299_792


def divisors(number: int) -> list[int]:
    """The divisors of a natural number in order."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    large = [number // divisor for divisor in reversed(small) if divisor * divisor != number]
    return small + large


def factors(number: int) -> list[int]:
    """The prime factors of a natural number, each as often as it divides."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found + ([number] if number > 1 else [])


def is_leap(year: int) -> bool:
    """Whether a year of the Gregorian calendar has 366 days."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def number(chooser: Chooser) -> tuple[str, list[str]]:
    value = chooser.between(2, chooser.pick((60, 400, 2000, 3999)))
    parts, dividing = factors(value), divisors(value)
    first = (
        f"The number {value} ({in_words(value)}) is {'odd' if value % 2 else 'even'}. In Roman numerals it is "
        f"{roman(value)}, in binary {value:b}, in octal {value:o} and in hexadecimal {value:X}."
    )
    if len(parts) == 1:
        second = f"It is a prime number: only 1 and {value} divide it."
    else:
        proper = sum(dividing) - value
        kind = "perfect" if proper == value else "abundant" if proper > value else "deficient"
        relation = "equal to" if proper == value else "more than" if proper > value else "less than"
        shown = f"They are {listed([str(divisor) for divisor in dividing])}. " if len(dividing) <= 12 else ""
        second = (
            f"Its prime factorization is {value} = {' x '.join(map(str, parts))}. It has {len(dividing)} divisors. "
            f"{shown}Without {value} itself they add up to {proper:,}, which is {relation} {value}; such a number is "
            f"called {kind}."
        )
    third = f"The square of {value} is {value * value:,} and its cube is {value**3:,}."
    digits = str(value)
    total = sum(map(int, digits))
    if len(digits) > 1:
        verdict = "is divisible" if value % 3 == 0 else "is not divisible"
        third += f" Its digits add up to {' + '.join(digits)} = {total}; like {total}, it {verdict} by 3."
    root = isqrt(value)
    if root * root == value:
        third += f" Its square root is exactly {root}."
    else:
        third += (
            f" Its square root lies between {root} and {root + 1}, since {root} x {root} = {root * root} and "
            f"{root + 1} x {root + 1} = {(root + 1) ** 2}."
        )
    return f"{value} (number)", [first, second, third]


def year(chooser: Chooser) -> tuple[str, list[str]]:
    value = chooser.between(1583, 2025)
    leap = is_leap(value)
    weekday = WEEKDAYS[date(value, 1, 1).weekday()]
    century = (value + 99) // 100
    if value % 100:
        why = f"it is {'' if leap else 'not '}divisible by 4"
    else:
        why = f"it is divisible by 100 {'and' if leap else 'but not'} by 400"
    first = (
        f"The year {value} ({roman(value)}) was a year of the {ordinal(century)} century. In the Gregorian calendar "
        "it is "
        f"{'a leap year' if leap else 'a common year'} of {366 if leap else 365} days, because {why}."
    )
    day = date(value, chooser.between(1, 12), chooser.between(1, 28))
    count = day.timetuple().tm_yday
    left = (366 if leap else 365) - count
    name = f"{day.day} {MONTHS[day.month - 1]}"
    second = (
        f"It began on a {weekday} and ended on a {WEEKDAYS[date(value, 12, 31).weekday()]}. The {ordinal(count)} day "
        "of the "
        f"year, {name}, was a {WEEKDAYS[day.weekday()]}; {left} days were left. February had {29 if leap else 28} days."
    )
    other = chooser.between(1583, 2100)
    gap = abs(other - value)
    third = f"{value} came {gap} years {'before' if value < other else 'after'} {other}." if gap > 1 else ""
    return f"{value} (year)", [first, f"{second} {third}".rstrip()]


def element(chooser: Chooser) -> tuple[str, list[str]]:
    chosen, other = chooser.sample(ELEMENTS, 2)
    heavier, lighter = (chosen, other) if chosen.weight > other.weight else (other, chosen)
    name = chosen.name.capitalize()
    mass = chooser.between(2, 90)
    first = (
        f"{name} is {article(chosen.kind)} with the symbol {chosen.symbol} and the atomic number {chosen.number}. "
        "Each of its "
        f"atoms has {chosen.number} {'proton' if chosen.number == 1 else 'protons'} and, when neutral, as many "
        "electrons."
    )
    second = (
        f"Its atomic weight is {decimal(chosen.weight, 3)}. {mass} moles of {chosen.name} atoms therefore have a mass "
        "of "
        f"{mass} x {decimal(chosen.weight, 3)} = {decimal(mass * chosen.weight, 3)} grams. An atom of {heavier.name} "
        f"({decimal(heavier.weight, 3)}) is {quotient(heavier.weight, lighter.weight, 2)} times as heavy as one of "
        f"{lighter.name} ({decimal(lighter.weight, 3)})."
    )
    compounds = [each for each in COMPOUNDS if any(symbol == chosen.symbol for symbol, _ in each[1])]
    if not compounds:
        return name, [first, second]
    compound, formula = chooser.pick(compounds)
    return name, [first, second, f"{name} occurs in {compound}. {_molar_mass(compound, formula)}"]


def _formula(formula: tuple[tuple[str, int], ...]) -> str:
    return "".join([symbol + (str(atoms) if atoms > 1 else "") for symbol, atoms in formula])


def _molar_mass(compound: str, formula: tuple[tuple[str, int], ...]) -> str:
    parts = [(ELEMENT[symbol], atoms) for symbol, atoms in formula]
    total = sum(part.weight * atoms for part, atoms in parts)
    terms = " + ".join([f"{atoms} x {decimal(part.weight, 3)}" for part, atoms in parts])
    return (
        f"The formula of {compound} is {_formula(formula)}, and its molar mass is {terms} = {decimal(total, 3)} grams "
        "per mole."
    )


def compound(chooser: Chooser) -> tuple[str, list[str]]:
    name, formula = chooser.pick(COMPOUNDS)
    total = sum(ELEMENT[symbol].weight * atoms for symbol, atoms in formula)
    atoms_in_all = sum(atoms for _, atoms in formula)
    made_of = listed([f"{in_words(atoms)} of {ELEMENT[symbol].name}" for symbol, atoms in formula])
    moles = chooser.between(2, 40)
    shares = [
        f"{ELEMENT[symbol].name} {quotient(100 * ELEMENT[symbol].weight * atoms, total, 1)} per cent"
        for symbol, atoms in formula
    ]
    first = f"{capitalized(name)} is a compound. One unit of it has {atoms_in_all} atoms: {made_of}."
    second = (
        f"{_molar_mass(name, formula)} By mass it consists of {listed(shares)}. {moles} moles have a mass of {moles} x "
        f"{decimal(total, 3)} = {decimal(moles * total, 3)} grams."
    )
    return capitalized(name), [first, second]


def planet(chooser: Chooser) -> tuple[str, list[str]]:
    place = chooser.below(len(PLANETS))
    chosen = PLANETS[place]
    other = chooser.pick([each for each in PLANETS if each is not chosen])
    wide, narrow = (chosen, other) if chosen.diameter > other.diameter else (other, chosen)
    minutes, seconds = divmod(rounded(chosen.distance * 100_000, _LIGHT_KM_PER_SECOND), 60)
    first = (
        f"{chosen.name} is the {ordinal(place + 1)} planet from the Sun, at a mean distance of "
        f"{decimal(chosen.distance, 1)} "
        f"million kilometres. Light, at {_LIGHT_KM_PER_SECOND:,} kilometres a second, needs "
        f"{60 * minutes + seconds:,} seconds "
        f"for that, or {minutes} minutes and {seconds} {'second' if seconds == 1 else 'seconds'}."
    )
    second = (
        f"It goes round the Sun once in {decimal(chosen.period, 1)} days. Its diameter is {chosen.diameter:,} "
        "kilometres. "
        f"{wide.name} ({wide.diameter:,} km) is {quotient(wide.diameter, narrow.diameter, 2)} times as wide as "
        f"{narrow.name} ({narrow.diameter:,} km)."
    )
    near, far = (chosen, other) if chosen.distance < other.distance else (other, chosen)
    third = (
        f"{far.name} is {decimal(far.distance - near.distance, 1)} million kilometres farther from the Sun than "
        f"{near.name}: "
        f"{decimal(far.distance, 1)} - {decimal(near.distance, 1)} = {decimal(far.distance - near.distance, 1)}."
    )
    return chosen.name, [first, second, third]


def figure(chooser: Chooser) -> tuple[str, list[str]]:
    """Right triangles, rectangles and boxes."""
    way = chooser.below(3)
    if way == 0:
        # Euclid's formula: m > n gives a right triangle with sides m^2 - n^2, 2mn, m^2 + n^2.
        n = chooser.between(1, 8)
        m, scale = n + chooser.between(1, 8), chooser.between(1, 5)
        a, b, c = scale * (m * m - n * n), scale * 2 * m * n, scale * (m * m + n * n)
        return f"Triangle with sides {a}, {b} and {c}", [
            f"A triangle with sides of {a}, {b} and {c} centimetres has a right angle, because {a} x {a} + {b} x {b} = "
            f"{a * a:,} + {b * b:,} = {c * c:,}, which is {c} x {c}. This is the theorem of Pythagoras.",
            f"Its perimeter is {a} + {b} + {c} = {a + b + c} centimetres. Its area is half the product of the short "
            "sides: "
            f"{a} x {b} / 2 = {a * b // 2:,} square centimetres.",
        ]
    a, b, c = (chooser.between(2, 60) for _ in range(3))
    if way == 1:
        return f"Rectangle of {a} by {b}", [
            f"A rectangle {a} metres long and {b} metres wide has an area of {a} x {b} = {a * b:,} square metres and a "
            f"perimeter of 2 x ({a} + {b}) = {2 * (a + b)} metres.",
            f"If both sides are doubled, the area becomes {2 * a} x {2 * b} = {4 * a * b:,} square metres, four times "
            "as much, "
            f"while the perimeter becomes {4 * (a + b)} metres, only twice as much.",
        ]
    surface = 2 * (a * b + b * c + a * c)
    return f"Box of {a} by {b} by {c}", [
        f"A box {a} centimetres long, {b} wide and {c} high holds {a} x {b} x {c} = {a * b * c:,} cubic centimetres, "
        "or "
        f"{decimal(a * b * c, 3)} litres. Its surface is 2 x ({a * b:,} + {b * c:,} + {a * c:,}) = {surface:,} square "
        "centimetres."
    ]


def interest(chooser: Chooser) -> tuple[str, list[str]]:
    start, rate = chooser.between(1, 90) * 100, chooser.between(10, 95)
    cents = start * 100
    rows = []
    years = chooser.between(2, 6)
    for count in range(1, years + 1):
        gain = rounded(cents * rate, 1000)
        cents += gain
        rows.append(f"After year {count}, {decimal(gain, 2)} of interest makes it {decimal(cents, 2)}.")
    percent = decimal(rate, 1)
    return f"Compound interest at {percent} per cent", [
        f"With compound interest, what is earned in one year earns interest itself in the next. A sum of {start:,} "
        "grows at "
        f"{percent} per cent a year as follows, rounded to the cent.",
        " ".join(rows),
        f"In {years} years {start:,} has become {decimal(cents, 2)}, a gain of {decimal(cents - start * 100, 2)}. "
        "Simple "
        f"interest would have given {years} x {start * rate // 10:,} / 100 = {decimal(start * rate * years // 10, 2)}.",
    ]


def motion(chooser: Chooser) -> tuple[str, list[str]]:
    speed, hours = chooser.between(3, 120), chooser.between(2, 12)
    distance = speed * hours
    who = f"a {chooser.pick(('walker', 'cyclist', 'rider', 'train', 'barge', 'cart', 'car', 'ship'))}"
    slower = chooser.between(2, speed) if speed > 2 else 2
    return f"Speed of {speed} kilometres per hour", [
        f"Speed is distance divided by time. {capitalized(who)} that covers {distance} kilometres in {hours} "
        "hours has an "
        f"average speed of {distance} / {hours} = {speed} kilometres per hour, or {quotient(speed * 1000, 3600, 2)} "
        "metres "
        "per second.",
        f"At {slower} kilometres per hour the same {distance} kilometres take {quotient(distance, slower, 2)} hours. "
        "Two that "
        f"start together in opposite directions at these speeds are {speed} + {slower} = {speed + slower} kilometres "
        "apart "
        "after one hour.",
    ]


def sample(chooser: Chooser) -> tuple[str, list[str]]:
    """Mean, median and range of a small set of measurements."""
    values = [chooser.between(1, 99) for _ in range(chooser.pick((5, 7, 9)))]
    ordered = sorted(values)
    total, count = sum(values), len(values)
    thing = chooser.pick(OBJECTS)
    return f"Median of {count} numbers", [
        f"{article(chooser.pick(TRADES)).capitalize()} measured {count} {plural(thing)} and noted "
        f"{listed([str(value) for value in values])} "
        "centimetres.",
        f"The mean is the sum divided by the count: {total} / {count} = {quotient(total, count, 2)}. For the median "
        "the numbers "
        f"are put in order, {', '.join(map(str, ordered))}, and the middle one is taken: {ordered[count // 2]}. The "
        "range is "
        f"{ordered[-1]} - {ordered[0]} = {ordered[-1] - ordered[0]}.",
    ]


def country(chooser: Chooser) -> tuple[str, list[str]]:
    """A list of countries of a continent with their capitals."""
    continent = chooser.pick(("Africa", "Asia", "Europe", "South America"))
    some = chooser.sample([each for each in COUNTRIES if each[2] == continent], 4)
    rows = [f"The capital of {name} is {capital}." for name, capital, _ in some]
    names = sorted(name for name, _, _ in some)
    return f"Capitals in {continent}", [
        f"{listed(names)} are countries of {continent}. {' '.join(rows)}",
        f"In alphabetical order their capitals are {listed(sorted(capital for _, capital, _ in some))}.",
    ]
