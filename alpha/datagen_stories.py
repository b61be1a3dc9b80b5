"""Texts that keep to what has happened in them: chapters of novels, and days at a silly stock exchange.

A story remembers who holds the object or where it is hidden, who saw that, where everybody was last seen and where the
next scene will be, so that answers in the dialogue are true. A market day carries prices, shares and a portfolio in
whole cents from line to line; percentages have one decimal, and everything is rounded half up.
"""

from collections.abc import Callable
from typing import NamedTuple

from alpha.datagen_grammar import Chooser, capitalized, decimal, in_words, items, rounded, table

WOMEN, MEN, TRADES = items("words.woman"), items("words.man"), items("words.trade")


class Person(NamedTuple):
    """Somebody in a story."""

    name: str
    surname: str
    female: bool
    trade: str


def people(chooser: Chooser, count: int) -> list[Person]:
    """`count` people with different first names and trades."""
    women = chooser.between(0, count)
    names = [(name, True) for name in chooser.sample(WOMEN, women)]
    names += [(name, False) for name in chooser.sample(MEN, count - women)]
    trades = chooser.sample(TRADES, count)
    return [
        Person(name, chooser.write("words.surname"), female, trade)
        for (name, female), trade in zip(chooser.sample(names, count), trades, strict=True)
    ]


# --- novels ---------------------------------------------------------------------------------------------------------

_TIMES = table("novels.time_of_day")
_WEATHERS: dict[str, list[str]] = {}
for row in table("novels.change_of_weather"):
    _WEATHERS.setdefault(row["from"], []).append(row["to"])
_SHE, _HE = {"he": "she", "him": "her", "his": "her"}, {"he": "he", "him": "him", "his": "his"}


class _Story:
    """What is true at this point of a chapter."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.cast = people(chooser, chooser.between(3, 4))
        self.town = chooser.write("words.place")
        self.thing = chooser.write("novels.thing_kind")
        self.holder: Person | None = chooser.pick(self.cast)
        self.hidden_in = self.hidden_at = ""
        self.knowing = {self.holder}  # who knows where the thing is
        self.weather = chooser.pick(list(_WEATHERS))
        self.time = chooser.between(0, 2)
        self.spots = chooser.sample(items("novels.scene"), 6)
        self.spot = self.next_spot = self.spots[0]
        self.seen_at: dict[Person, str] = {}
        self.present: list[Person] = []
        self.lines: list[str] = []  # sentences of the paragraph that is being written
        self.paragraphs: list[str] = []

    def sentence(self, symbol: str, a: Person, b: Person, **values: str) -> str:
        """A text of a symbol; it is about `a`."""
        values.update(_SHE if a.female else _HE)
        values.update(_TIMES[self.time])
        values.update(
            A=a.name, B=b.name, spot=self.spot, town=self.town, thing=self.thing, hidden_in=self.hidden_in,
            hidden_at=self.hidden_at, sky=self.weather,
        )  # fmt: skip
        return self.chooser.expand(f"novels.{symbol}", values)

    def tell(self, symbol: str, a: Person, b: Person, **more: str) -> None:
        """Add a sentence to the present paragraph."""
        self.lines.append(self.sentence(symbol, a, b, **more))

    def end_paragraph(self) -> None:
        if self.lines:
            self.paragraphs.append(" ".join(self.lines))
            self.lines = []

    def speak(self, speaker: Person, symbol: str, listener: Person, **more: str) -> None:
        """A line of dialogue, as a paragraph of its own; sometimes with a gesture."""
        words = capitalized(self.sentence(symbol, speaker, listener, **more))
        self.end_paragraph()
        way = self.chooser.below(10)
        asked = symbol.startswith("ask_")
        mark = "?" if asked else "."
        if way < 3:
            text = f'"{words}{mark}"'
        elif way == 3:
            text = f'{speaker.name} {self.sentence("gesture", speaker, listener)}. "{words}{mark}"'
        else:
            verb = self.chooser.write("novels.asked" if asked else "novels.said")
            manner = f" {self.chooser.write('novels.manner')}" if way > 7 else ""
            text = f'"{words}{"?" if asked else ","}" {verb} {speaker.name}{manner}.'
        self.paragraphs.append(text)

    def two(self) -> tuple[Person, Person]:
        """Two of those present."""
        first, second = self.chooser.sample(self.present, 2)
        return first, second

    def other_than(self, person: Person) -> Person:
        """Somebody else who is present."""
        return self.chooser.pick([each for each in self.present if each is not person])

    def whereabouts(self, speaker: Person) -> str:
        """The symbol of what `speaker` can truly say about where the thing is."""
        if speaker not in self.knowing:
            return "know_nothing"
        if self.holder is not None:
            return "have_thing" if self.holder is speaker else "name_holder"
        return "name_hiding_place" if self.spot == self.hidden_at else "name_far_hiding_place"


def _ask_whereabouts(story: _Story) -> None:
    asker, other = story.two()
    if asker is story.holder:
        asker, other = other, asker
    story.speak(asker, "ask_thing", other)
    story.speak(other, story.whereabouts(other), asker, holder=story.holder.name if story.holder else "")
    if other in story.knowing:
        story.knowing.add(asker)


def _move_thing(story: _Story) -> None:
    """The thing changes hands, is hidden or is found, and those present see it."""
    chooser, holder = story.chooser, story.holder
    story.end_paragraph()
    if holder is None:
        if story.hidden_at != story.spot:
            return
        story.holder = chooser.pick(story.present)
        story.tell("find_thing", story.holder, story.holder)
    elif holder not in story.present:
        return
    elif chooser.chance(60):
        story.holder = story.other_than(holder)
        story.tell("give_thing", holder, story.holder)
    else:
        story.hidden_in, story.hidden_at = chooser.pick(items("novels.hiding_place")), story.spot
        story.tell("hide_thing", holder, holder)
        story.holder = None
    story.knowing = set(story.present)
    story.tell("narration", *story.two())


def _show_thing(story: _Story) -> None:
    if story.holder is None or story.holder not in story.present:
        _narrate(story)
        return
    other = story.other_than(story.holder)
    story.tell("show_thing", story.holder, other)
    story.knowing.update(story.present)
    story.tell("narration", other, story.holder)


def _ask_after_absent(story: _Story) -> None:
    absent = [person for person in story.cast if person not in story.present]
    if not absent:
        _talk(story)
        return
    missing = story.chooser.pick(absent)
    asker, other = story.two()
    story.speak(asker, "ask_absent", other, missing=missing.name)
    seen_at = story.seen_at.get(missing, "")
    story.speak(other, "seen_earlier" if seen_at else "not_seen", asker, seen_at=seen_at)


def _talk(story: _Story) -> None:
    """A remark with its answers."""
    first, second = story.two()
    story.speak(first, "remark", second)
    for _ in range(story.chooser.between(1, 3)):
        first, second = second, first
        story.speak(first, "retort", second)


def _narrate(story: _Story) -> None:
    for _ in range(story.chooser.between(1, 3)):
        story.tell("narration", *story.two())


def _introduce(story: _Story) -> None:
    """Who somebody is."""
    person, other = story.two()
    story.tell("introduce", person, other, surname_of_A=person.surname, trade_of_A=person.trade)
    story.tell("narration", person, other)


_BEATS: tuple[Callable[[_Story], None], ...] = (
    _ask_whereabouts, _move_thing, _move_thing, _show_thing, _ask_after_absent, _talk, _talk, _talk, _narrate, _narrate,
    _narrate, _introduce,
)  # fmt: skip


def _scene(story: _Story, last: bool) -> None:
    chooser = story.chooser
    story.present = chooser.sample(story.cast, chooser.pick((2, 2, 3)))
    if story.holder is not None and chooser.chance(60) and story.holder not in story.present:
        story.present[0] = story.holder
    first, second = story.two()
    story.tell("setting", first, second)
    if f"the {story.spot}" not in story.lines[-1].lower():
        story.tell("meeting", first, second)
    story.tell("arrival", first, second)
    for person in story.present[2:]:
        story.tell("with_them", person, first)
    for _ in range(chooser.between(3, 6)):
        chooser.pick(_BEATS)(story)
        if chooser.chance(50):
            story.end_paragraph()
    if not last:  # agree on the next place, where the next scene will be
        one, other = story.two()
        story.speak(one, "propose", other, target=story.next_spot)
        story.speak(other, "ask_why", one, target=story.next_spot)
        story.speak(one, "because", other)
    story.tell("reflection", first, second)
    story.end_paragraph()
    story.seen_at.update(dict.fromkeys(story.present, story.spot))


def _told(chooser: Chooser, scenes: int) -> _Story:
    story = _Story(chooser)
    for number in range(scenes):
        story.spot, story.next_spot = story.spots[number : number + 2]
        _scene(story, number == scenes - 1)
        story.time = min(story.time + chooser.between(0, 2), len(_TIMES) - 1)
        if chooser.chance(30):
            story.weather = chooser.pick(_WEATHERS[story.weather])
    holder = story.holder or story.cast[0]
    story.tell("end_held" if story.holder else "end_hidden", holder, holder)
    story.end_paragraph()
    return story


def tell(chooser: Chooser, scenes: int) -> str:
    """The paragraphs of a story of so many scenes, without a heading."""
    return "\n\n".join(_told(chooser, scenes).paragraphs)


def novel(chooser: Chooser) -> str:
    """A document of the domain novels: a chapter."""
    story = _told(chooser, chooser.between(2, 4))
    title = story.sentence("title", *story.two(), number=in_words(chooser.between(1, 24)).title())
    return "\n\n".join([title, *story.paragraphs])


# --- market days ----------------------------------------------------------------------------------------------------


def _money(cents: int) -> str:
    return decimal(cents, 2)


class _Company:
    def __init__(self, name: str, ticker: str, price: int, shares: int) -> None:
        self.name, self.ticker = name, ticker
        self.opened = self.price = price
        self.shares = shares  # in millions
        self.streak = 0  # rises in a row, negative for falls

    def change(self) -> str:
        """The day's change with its sign, from the opening price."""
        sign = "+" if self.price >= self.opened else "-"
        tenths = rounded(abs(self.price - self.opened) * 1000, self.opened)
        return f"{sign}{decimal(tenths, 1)}%"


class _Day:
    """The state of the market in one document."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.always = {"city": chooser.write("words.place"), "founder": chooser.write("words.surname")}
        self.trader = chooser.write("words.first_name")
        self.holding: tuple[_Company, int, int] | None = None  # company, shares, what they cost in cents
        self.companies: list[_Company] = []
        for _ in range(chooser.between(2, 5)):
            name = self.write("company")
            while any(name == company.name for company in self.companies):
                name = self.write("company")
            price = 500 + chooser.pick((10, 100, 100, 500, 1000)) * chooser.below(400) + chooser.below(100)
            self.companies.append(_Company(name, self.ticker(name), price, chooser.between(2, 400)))

    def write(self, symbol: str, company: _Company | None = None, **values: object) -> str:
        """A text of a symbol; it may name the company's name, ticker, shares and present price."""
        if company:
            values.update(name=company.name, ticker=company.ticker, shares=company.shares, price=_money(company.price))
            values["cents"] = company.price
        values.update(self.always, market=[each.price for each in self.companies])
        return self.chooser.expand(f"finance.{symbol}", values)

    def ticker(self, name: str) -> str:
        """Four capitals from the name, different from the others of the day."""
        letters = [letter for letter in name.upper() if letter.isalpha()]
        taken = {company.ticker for company in self.companies}
        ticker = "".join(letters[:4])
        while ticker in taken:
            ticker = ticker[:1] + "".join(self.chooser.sample(letters[1:], 3))
        return ticker


def _move(day: _Day) -> str:
    """A price change with its reason."""
    chooser, company = day.chooser, day.chooser.pick(day.companies)
    up = chooser.chance(55)
    tenths = chooser.pick((chooser.between(1, 40), chooser.between(1, 99), chooser.between(1, 250)))
    start = company.price
    company.price = rounded(start * (1000 + tenths if up else 1000 - tenths), 1000)
    company.streak = max(company.streak, 0) + 1 if up else min(company.streak, 0) - 1
    text = day.write("move", company, tenths=tenths, start=_money(start), way="up" if up else "down")
    if 1 < abs(company.streak) <= 7 and chooser.chance(50):
        number = items("finance.ordinal")[abs(company.streak) - 2]
        text += " " + day.write("streak", number=number, way="rise" if up else "fall")
    return text


def _split(day: _Day) -> str:
    company = day.chooser.pick(day.companies)
    parts = [count for count in (2, 3, 4, 5, 10) if company.price % count == company.opened % count == 0]
    if not parts or company.price < 1000 or (day.holding is not None and day.holding[0] is company):
        return day.write("quarters", company)
    count = day.chooser.pick(parts)
    before = f"{company.shares} million shares at {_money(company.price)}"
    company.price //= count
    company.opened //= count
    company.shares *= count
    return day.write("split", company, count=count, before=before)


def _compare(day: _Day) -> str:
    low, high = sorted(day.chooser.sample(day.companies, 2), key=lambda company: company.price)
    difference, low_price = _money(high.price - low.price), _money(low.price)
    return day.write(
        "compare", high, low_name=low.name, low_ticker=low.ticker, low_price=low_price, difference=difference
    )


def _trade(day: _Day) -> str:
    """A trader buys, and on the next occasion sells the same shares."""
    chooser = day.chooser
    if day.holding is None:
        company, count = chooser.pick(day.companies), chooser.between(1, 90) * chooser.pick((1, 10, 10, 100))
        cost = count * company.price
        day.holding = (company, count, cost)
        return day.write("buy", company, trader=day.trader, count=count, cost=_money(cost))
    company, count, cost = day.holding
    day.holding = None
    value = count * company.price
    result = f"a {'profit' if value > cost else 'loss'} of {_money(abs(value - cost))}"
    return day.write(
        "sell", company, trader=day.trader, count=count, cost=_money(cost), value=_money(value),
        result=result if value != cost else "nothing gained",
    )  # fmt: skip


_CODED: dict[str, Callable[[_Day], str]] = {"split": _split, "compare": _compare, "trade": _trade}


def _happening(day: _Day) -> str:
    """Something beside a price change."""
    kind = day.chooser.pick(items("finance.happening"))
    return _CODED[kind](day) if kind in _CODED else day.write(kind, day.chooser.pick(day.companies))


def _close(day: _Day) -> str:
    """The day's last prices, with the change from the opening."""
    rows = [f"{company.ticker} {_money(company.price)} ({company.change()})" for company in day.companies]
    text = day.write("close", rows=", ".join(rows))
    best = max(day.companies, key=lambda company: company.price * 1_000_000 // company.opened)
    if best.price > best.opened:
        text += " " + day.write("winner", best)
    if day.holding is not None:
        company, count, _ = day.holding
        text += " " + day.write(
            "still_held", company, trader=day.trader, count=count, value=_money(count * company.price)
        )
    return text


def market_day(chooser: Chooser) -> str:
    """A document of the domain dumb_finance: one day at the exchange."""
    day = _Day(chooser)
    opening = ", ".join([f"{company.name} ({company.ticker}) {_money(company.price)}" for company in day.companies])
    lines = [day.write("open", day=chooser.pick(items("words.weekday")[:5]), opening=opening)]
    for _ in range(chooser.between(5, 14)):
        lines.append(_move(day) if chooser.chance(55) else _happening(day))
    return "\n".join([*lines, _close(day)])
