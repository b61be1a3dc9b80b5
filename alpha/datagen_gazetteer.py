"""Articles about invented towns, rivers, people, dynasties, bridges, elections and animals, with consistent numbers.

Whatever follows from other figures in an article (a density, an age, a share of votes) is computed from them.
"""

from datetime import date

from alpha.datagen_chooser import Chooser
from alpha.datagen_words import (
    ABSTRACTIONS,
    ADJECTIVES,
    ANIMALS,
    COLOURS,
    FOODS,
    MEN,
    MONTHS,
    OBJECTS,
    TRADES,
    WEEKDAYS,
    WOMEN,
    article,
    capitalized,
    in_words,
    listed,
    ordinal,
    plural,
    quotient,
    roman,
    rounded,
    times,
)

_METRES_PER_FOOT = (3048, 10_000)
_KM_PER_MILE = (1_609_344, 1_000_000)
_LAST_YEAR = 2020  # what is told lies in the past
_CRAFTS = (
    "weaving", "brewing", "glass making", "ship building", "paper making", "quarrying", "printing", "pottery",
    "salt making",
    "clock making", "fishing", "rope making", "tanning", "the wool trade", "market gardening", "bell founding",
)  # fmt: skip
_STONES = ("stone", "brick", "oak", "marble", "slate", "granite", "sandstone", "flint", "limestone", "red brick")
_BUILDINGS = (
    "town hall", "corn exchange", "library", "parish church", "railway station", "grammar school", "covered market",
    "museum", "hospital", "theatre", "lighthouse", "court house", "water tower", "concert hall",
)  # fmt: skip


def miles(kilometres: int) -> str:
    """A distance in miles with one decimal place."""
    return quotient(kilometres * _KM_PER_MILE[1], _KM_PER_MILE[0], 1)


def feet(metres: int) -> str:
    """A length in whole feet."""
    return f"{rounded(metres * _METRES_PER_FOOT[1], _METRES_PER_FOOT[0]):,}"


def long_date(day: date) -> str:
    """A date as "4 March 1871"."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def age_at(born: date, day: date) -> int:
    """Completed years between two dates."""
    return day.year - born.year - ((day.month, day.day) < (born.month, born.day))


def _date(chooser: Chooser, year: int) -> date:
    return date(year, chooser.between(1, 12), chooser.between(1, 28))


def _years(count: int) -> str:
    return "1 year" if count == 1 else f"{count} years"


def _change(old: int, new: int) -> str:
    """How a number changed, in per cent with one decimal place."""
    if new == old:
        return "the same number"
    kind = "an increase" if new > old else "a decrease"
    return f"{kind} of {quotient(abs(new - old) * 100, old, 1)} per cent"


def town(chooser: Chooser) -> tuple[str, list[str]]:
    name, county, river = chooser.place(), chooser.place(), chooser.place()
    founded = chooser.between(900, 1750)
    area, height = chooser.between(4, 90), chooser.between(3, 900)
    year = chooser.pick((1801, 1851, 1871, 1901, 1921, 1951, 1961))
    population = chooser.between(900, 60_000)
    paragraphs = [
        chooser.pick(
            (
                f"{name} is a {chooser.pick(('market town', 'town', 'small town', 'port'))} in the county of "
                f"{county}shire, on the River {river}.",
                f"{name} lies on the River {river} in {county}shire.",
                f"The town of {name} stands on the River {river}, {height} metres ({feet(height)} feet) above the sea.",
            )
        )
        + f" It was first recorded in {founded} and is known for {chooser.pick(_CRAFTS)} and {chooser.pick(FOODS)}."
    ]
    counts = [f"At the census of {year} the town had {population:,} inhabitants."]
    for _ in range(chooser.between(1, 3)):
        later, before = year + chooser.pick((10, 20, 30)), population
        if later > _LAST_YEAR:
            break
        population = max(population * chooser.between(70, 190) // 100, 100)
        counts.append(
            chooser.pick(
                (
                    f"In {later} there were {population:,}, {_change(before, population)} in {later - year} years.",
                    f"By {later} the number was {population:,}, {_change(before, population)}.",
                )
            )
        )
        year = later
    counts.append(
        f"With an area of {area} square kilometres, the density in {year} was {rounded(population, area):,} "
        "inhabitants per "
        "square kilometre."
    )
    paragraphs.append(" ".join(counts))
    neighbours = [
        (chooser.place(), chooser.between(3, 80), chooser.pick(("north", "south", "east", "west")))
        for _ in range(chooser.between(1, 3))
    ]
    paragraphs.append(
        " ".join(
            [
                f"{other} is {distance} kilometres ({miles(distance)} miles) to the {side}."
                for other, distance, side in neighbours
            ]
        )
    )
    built = founded
    history = []
    for building in chooser.sample(_BUILDINGS, chooser.between(1, 4)):
        built += chooser.between(10, 120)
        if built > _LAST_YEAR:
            break
        architect = f"{chooser.first_name()} {chooser.surname()}"
        history.append(
            chooser.pick(
                (
                    f"The {building} was built in {built} by {architect}.",
                    f"In {built}, {_years(built - founded)} after the first record, {architect} finished the "
                    f"{building}.",
                    f"The {building} of {chooser.pick(_STONES)} dates from {built}.",
                )
            )
        )
    paragraphs.append(" ".join(history))
    return name, paragraphs


def river(chooser: Chooser) -> tuple[str, list[str]]:
    name = chooser.place()
    length, source, mouth = chooser.between(20, 900), chooser.between(200, 2400), chooser.between(0, 90)
    drop = source - mouth
    paragraphs = [
        f"The River {name} rises at a height of {source:,} metres and flows {length} kilometres ({miles(length)} "
        "miles) to "
        + (f"the sea at {chooser.place()}." if not mouth else f"{chooser.place()}, {mouth} metres above the sea.")
        + f" It falls {drop:,} metres on the way, or {quotient(drop, length, 2)} metres per kilometre on average."
    ]
    tributaries = [(chooser.place(), chooser.between(5, 150)) for _ in range(chooser.between(2, 4))]
    total = sum(kilometres for _, kilometres in tributaries)
    names = listed([f"the {tributary} ({kilometres} km)" for tributary, kilometres in tributaries])
    longest = max(tributaries, key=lambda each: each[1])
    paragraphs.append(
        f"Its tributaries are {names}. Together they are {total} kilometres long; the longest is the {longest[0]}."
        if len({kilometres for _, kilometres in tributaries}) == len(tributaries)
        else f"Its tributaries are {names}, together {total} kilometres long."
    )
    low, high = chooser.between(2, 60), chooser.between(80, 900)
    paragraphs.append(
        f"In late summer the river carries {low} cubic metres a second, and after the thaw {high}, which is "
        f"{quotient(high, low, 1)} times as much. {chooser.pick(('Trout', 'Salmon', 'Eels', 'Pike', 'Perch'))} and "
        f"{plural(chooser.pick(ANIMALS))} live along its banks."
    )
    return f"River {name}", paragraphs


def person(chooser: Chooser) -> tuple[str, list[str]]:
    female = chooser.chance(50)
    name, surname = chooser.pick(WOMEN if female else MEN), chooser.surname()
    he, his = ("she", "her") if female else ("he", "his")
    born = _date(chooser, chooser.between(1500, 1920))
    died = _date(chooser, born.year + chooser.between(25, 95))
    trade, place = chooser.pick(TRADES), chooser.place()
    first = (
        f"{name} {surname} ({long_date(born)} - {long_date(died)}) was {article(trade)} and {chooser.pick(TRADES)} "
        "from "
        f"{place}. {he.title()} was born on a {WEEKDAYS[born.weekday()]} and died at the age of {age_at(born, died)}."
    )
    events: list[str] = []
    year = born.year + chooser.between(16, 22)
    while year < died.year and len(events) < 5:
        age = year - born.year
        kind = chooser.pick(("A History of", "On", "Letters about", "The Book of", "Notes on"))
        work = f"{kind} {chooser.pick(ABSTRACTIONS).title()}"
        events.append(
            chooser.pick(
                (
                    f"In {year}, in the year of {his} {ordinal(age)} birthday, {he} moved to {chooser.place()}.",
                    f'{he.title()} published "{work}" in {year}.',
                    f"From {year} {he} worked for the {chooser.pick(TRADES)} {chooser.first_name()} "
                    f"{chooser.surname()}.",
                    f"In {year} {he} invented {article(chooser.pick(ADJECTIVES))} {chooser.pick(OBJECTS)}.",
                    f"{he.title()} spent {year} collecting {plural(chooser.pick(OBJECTS))} in {chooser.place()}.",
                )
            )
        )
        year += chooser.between(2, 14)
    after = chooser.between(1, min(90, _LAST_YEAR - died.year))
    last = (
        f"A street in {place} has borne the name of {surname} since {died.year + after}, {_years(after)} after {his} "
        "death; "
        f"{_years(died.year + after - born.year)} had passed since the year of {his} birth."
    )
    return f"{name} {surname}", [first, *([" ".join(events)] if events else []), last]


def dynasty(chooser: Chooser) -> tuple[str, list[str]]:
    house, start = chooser.place(), chooser.between(800, 1600)
    year, rulers, counts = start, [], dict[str, int]()
    names = chooser.sample(WOMEN, 2) + chooser.sample(MEN, 3)
    for _ in range(chooser.between(3, 7)):
        name = chooser.pick(names)
        counts[name] = counts.get(name, 0) + 1
        reign = chooser.between(1, 40)
        epithet = chooser.pick(("", "", f" the {chooser.pick(ADJECTIVES).title()}"))
        rulers.append((f"{name} {roman(counts[name])}{epithet}", name, year, year + reign))
        year += reign
    total = year - start
    longest = max(rulers, key=lambda ruler: ruler[3] - ruler[2])
    intro = (
        f"The House of {house} ruled from {start} to {year}, {_years(total)} in all, with {in_words(len(rulers))} "
        "rulers. The "
        f"average reign was {quotient(total, len(rulers), 1)} years; the longest was that of {longest[0]}, with "
        f"{_years(longest[3] - longest[2])}."
    )
    rows = []
    for title, name, begun, ended in rulers:
        kind = "Queen" if name in WOMEN else "King"
        rows.append(f"{kind} {title} reigned from {begun} to {ended} ({_years(ended - begun)}).")
    virtue, stone = chooser.pick(ABSTRACTIONS), chooser.pick(_STONES)
    deeds = f"{chooser.pick(rulers)[0]} is remembered for {virtue} and for a palace of {stone}."
    return f"House of {house}", [intro, " ".join(rows), deeds]


def bridge(chooser: Chooser) -> tuple[str, list[str]]:
    name = f"{chooser.place()} Bridge"
    spans = [chooser.between(10, 120) for _ in range(chooser.between(2, 5))]
    total = sum(spans)
    begun = chooser.between(1700, 1960)
    opened = begun + chooser.between(1, 9)
    first = (
        f"{name} is a bridge of {chooser.pick(('stone', 'iron', 'steel', 'brick', 'oak', 'concrete'))} over the River "
        f"{chooser.place()}. It has {in_words(len(spans))} spans of {listed([str(span) for span in spans])} metres "
        "and is "
        f"{total} metres ({feet(total)} feet) long."
    )
    width, load = chooser.between(3, 20), chooser.between(5, 60)
    second = (
        f"The work began in {begun} under {chooser.first_name()} {chooser.surname()} and ended in {opened}, after "
        f"{_years(opened - begun)}. The roadway is {width} metres wide, so that its surface measures "
        f"{total * width:,} square "
        f"metres. Carts of more than {load} tonnes ({load * 1000:,} kilograms) may not cross."
    )
    return name, [first, second]


def election(chooser: Chooser) -> tuple[str, list[str]]:
    place, year = chooser.place(), chooser.between(1840, 2020)
    votes = chooser.sample(range(300, 9000), chooser.between(2, 4))
    candidates = [
        (
            f"{chooser.first_name()} {chooser.surname()}",
            f"{chooser.pick(COLOURS).title()} {chooser.pick(('League', 'Party', 'Union'))}",
            count,
        )
        for count in votes
    ]
    candidates.sort(key=lambda candidate: -candidate[2])
    total = sum(votes)
    electors = total + chooser.between(200, 6000)
    rows = [
        f"{name} of the {party} received {count:,} votes, or {quotient(count * 100, total, 1)} per cent."
        for name, party, count in candidates
    ]
    lead = candidates[0][2] - candidates[1][2]
    first = (
        f"The election of {year} in {place} was won by {candidates[0][0]} with a lead of {lead:,} over "
        f"{candidates[1][0]}. Of "
        f"{electors:,} electors {total:,} voted, a turnout of {quotient(total * 100, electors, 1)} per cent."
    )
    return f"{place} election, {year}", [first, " ".join(rows)]


def animal(chooser: Chooser) -> tuple[str, list[str]]:
    place, kind = chooser.place(), chooser.pick(ANIMALS)
    name = f"{chooser.pick((*COLOURS, *ADJECTIVES))} {place} {kind}"
    low = chooser.between(3, 120)
    high = low + chooser.between(1, 60)
    eggs, broods = chooser.between(2, 9), chooser.between(1, 4)
    first = (
        f"The {name} is {article(kind)} that lives only in the "
        f"{chooser.pick(('woods', 'marshes', 'hills', 'caves', 'gardens', 'rivers'))} "
        f"around {place}. Adults are {low} to {high} centimetres long ({quotient(low * 100, 254, 1)} to "
        f"{quotient(high * 100, 254, 1)} inches), {quotient(low + high, 2, 1)} centimetres on average of the two. It "
        "feeds on "
        f"{chooser.pick(FOODS)} and {chooser.pick(FOODS)}."
    )
    before, after, year = chooser.between(200, 9000), chooser.between(100, 9000), chooser.between(1900, 1990)
    later = year + chooser.between(5, 30)
    second = (
        f"A pair raises {in_words(eggs)} young {times(broods)} a year, {eggs * broods} in all. {chooser.first_name()} "
        f"{chooser.surname()} counted {before:,} animals in {year} and {after:,} in {later}, {_change(before, after)}."
    )
    return capitalized(name), [first, second]
