"""A day at a deliberately silly stock exchange, in which every number is right.

Prices, shares and portfolios are kept in whole cents and carried from line to line: a move states the percentage, the
old and the new price; market values, dividends, splits and trades follow from them; the close sums up what was told.
Percentages have one decimal, and everything is rounded half up.
"""

from alpha.datagen_chooser import Chooser, Grammar
from alpha.datagen_words import (
    ABSTRACTIONS,
    ADJECTIVES,
    ANIMALS,
    FOODS,
    MATERIALS,
    OBJECTS,
    TRADES,
    WEEKDAYS,
    decimal,
    rounded,
    words,
)

_GRAMMAR = Grammar(
    {
        "company": (
            "{^food} {business}",
            "{^adjective} {^animal} {business}",
            "{^animal} & {^animal}",
            "{place} {^object} {business}",
            "{surname} {^food}",
            "{^material} {^object} {business}",
            "United {^food} {business}",
            "{surname} & {^animal} {business}",
            "General {^object} {business}",
            "{place} {^food}",
        ),
        "business": words("""Holdings Dynamics Industries Partners Works Logistics Capital Systems Brothers Group
            Trust Robotics Airways Mills Foods Labs Telegraph Mutual Shipping Insurance Rentals Analytics"""),
        "rose": ("rose", "climbed", "gained", "jumped", "floated up", "added", "tiptoed up", "bounced"),
        "fell": ("fell", "slipped", "lost", "dropped", "sank", "shed", "tumbled", "sulked its way down"),
        "why": (
            "after {event}",
            "after {event}",
            "because {belief}",
            "as {belief}",
            "on rumours that {event_clause}",
            "on news that {event_clause}",
            "while {belief}",
            "although nobody could say whether {event_clause}",
            "despite the fact that {event_clause}",
            "and traders blamed {blamed}",
            "and {official} thanked {blamed}",
        ),
        "event": (
            "{official} mistook {a thing} for the annual report",
            "{official} was seen {doing}",
            "the board voted to replace {blamed} with {a thing}",
            "{official} promised every shareholder {a thing}",
            "{a animal} wandered into the {room}",
            "the {room} ran out of {food}",
            "the auditors found {a thing} in the {room}",
            "a computer rounded {blamed} up to the nearest {animal}",
            "the company renamed its {room} after {a animal}",
            "{official} swapped the {room} for {a thing}",
        ),
        "event_clause": (
            "{official} has been {doing}",
            "the {room} is made of {food}",
            "{a animal} will be the new {office}",
            "the {office} owns {a thing}",
            "{food} may replace {blamed}",
            "the merger is really {a thing}",
            "the {animal} in the {room} has been promoted",
            "{a adjective} {trade} is buying every {object} in town",
        ),
        "belief": (
            "investors felt {mood}",
            "the {animal} index pointed at {food}",
            "{s trade} everywhere were {doing}",
            "it was somebody's birthday in the {room}",
            "the chart looked like {a thing}",
            "{official} sneezed twice",
            "the moon was {mood}",
            "a spreadsheet had {a thing} in column {column}",
            "{official} kept {doing}",
            "the weather vane had been replaced by {a thing}",
        ),
        "doing": (
            "counting {food}",
            "arguing with {a animal}",
            "hedging against {abstraction}",
            "polishing {a thing}",
            "buying {food} at the top",
            "juggling {food} and {food}",
            "shouting about {abstraction}",
            "looking for {a thing}",
            "explaining {abstraction} to {a animal}",
            "whispering to {a object}",
            "selling {abstraction} by the kilogram",
            "measuring the {room} with {a object}",
        ),
        "blamed": (
            "{abstraction}",
            "{food}",
            "{a animal}",
            "the {adjective} {object}",
            "the {trade} next door",
            "a shortage of {food}",
            "too much {abstraction}",
            "the smell of {food}",
        ),
        "gift": ("{a thing}",),
        "thing": ("{adjective} {object}", "{material} {object}", "{adjective} {animal}", "bag of {food}"),
        "official": (
            "the {office}", "the {office}", "the {adjective} {office}", "{a office} from {place}",
            "the {office}'s {animal}",
        ),
        "office": (
            "chairman", "treasurer", "director of {abstraction}", "night watchman", "head of {food}", "founder",
            "chief {animal} officer", "intern", "accountant", "vice-president of {food}", "lawyer", "{trade}",
        ),
        "room": (
            "boardroom", "car park", "canteen", "vault", "lift", "broom cupboard", "server room", "trading floor",
            "car wash", "library", "roof garden", "press office",
        ),
        "mood": (
            "{adjective}", "rather {adjective}", "{adjective} and {adjective}", "oddly {adjective}",
            "suspiciously {adjective}",
        ),
        "quote": (
            "We never understood {abstraction} anyway",
            "Buy {food}, sell {abstraction}",
            "It is only {a thing}",
            "The {animal} knew all along",
            "Our strategy is {abstraction} with {food}",
            "I blame {blamed}",
            "Nobody ever lost money on {a thing}",
            "This is priced in, like {a animal}",
            "I would rather own {a thing}",
            "Numbers are {mood} this year",
            "Cash is {mood}, but {food} is forever",
            "Past {abstraction} is no guide to future {food}",
        ),
        "rating": (
            "hold, but gently", "buy two", "sell to {a animal}", "strong maybe", "hide under {a object}",
            "overweight in {food}",
            "neutral and {adjective}", "buy before lunch", "{adjective}", "outperform {a animal}",
        ),
        "adjective": ADJECTIVES,
        "animal": ANIMALS,
        "trade": TRADES,
        "object": OBJECTS,
        "material": MATERIALS,
        "food": FOODS,
        "abstraction": ABSTRACTIONS,
        "column": tuple("ABCDEFGH"),
    }
)  # fmt: skip


def money(cents: int) -> str:
    """1234567 cents as 12,345.67."""
    return decimal(cents, 2)


def percent(tenths: int) -> str:
    """32 tenths of a per cent as 3.2%."""
    return f"{decimal(tenths, 1)}%"


class _Company:
    def __init__(self, name: str, ticker: str, price: int, shares: int) -> None:
        self.name = name
        self.ticker = ticker
        self.opened = self.price = price
        self.shares = shares  # in millions
        self.streak = 0  # rises in a row, negative for falls

    def change(self) -> str:
        """The day's change with its sign, from the opening price."""
        sign = "+" if self.price >= self.opened else "-"
        return sign + percent(rounded(abs(self.price - self.opened) * 1000, self.opened))


class _Day:
    """The state of the market in one document."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.values = {"place": chooser.place(), "surname": chooser.surname()}
        self.trader = chooser.first_name()
        self.holding: tuple[_Company, int, int] | None = None  # company, shares, what they cost in cents
        self.companies: list[_Company] = []
        for _ in range(chooser.between(2, 5)):
            name = self.words("company")
            while any(name == company.name for company in self.companies):
                name = self.words("company")
            price = 500 + chooser.pick((10, 100, 100, 500, 1000)) * chooser.below(400) + chooser.below(100)
            self.companies.append(_Company(name, self.ticker(name), price, chooser.between(2, 400)))

    def words(self, symbol: str) -> str:
        return _GRAMMAR.expand(self.chooser, symbol, self.values)

    def ticker(self, name: str) -> str:
        """Four capitals from the name, different from the others of the day."""
        letters = [letter for letter in name.upper() if letter.isalpha()]
        taken = {company.ticker for company in self.companies}
        ticker = "".join(letters[:4])
        while ticker in taken:
            ticker = ticker[:1] + "".join(self.chooser.sample(letters[1:], 3))
        return ticker

    def move(self) -> str:
        """A price change with its reason; the shape of the sentence varies."""
        chooser = self.chooser
        company = chooser.pick(self.companies)
        up = chooser.chance(55)
        tenths = chooser.pick((chooser.between(1, 40), chooser.between(1, 99), chooser.between(1, 250)))
        old = company.price
        company.price = rounded(old * (1000 + tenths if up else 1000 - tenths), 1000)
        company.streak = max(company.streak, 0) + 1 if up else min(company.streak, 0) - 1
        verb = self.words("rose" if up else "fell")
        start, end, change, why = money(old), money(company.price), percent(tenths), self.words("why")
        who = chooser.pick((f"{company.name} ({company.ticker})", company.name, company.ticker))
        text = chooser.pick(
            (
                f"{who} {verb} {change} from {start} to {end} {why}.",
                f"{who} {verb} {change}, from {start} to {end}, {why}.",
                f"{company.ticker} {'up' if up else 'down'} {change} from {start} to {end} {why}.",
                f"Shares of {company.name} {verb} {change} from {start} to {end} {why}.",
            )
        )
        if abs(company.streak) > 1 and chooser.chance(50):
            number = ("second", "third", "fourth", "fifth", "sixth", "seventh")[min(abs(company.streak), 7) - 2]
            if abs(company.streak) <= 7:
                text += f" That is its {number} {'rise' if up else 'fall'} in a row today."
        return text

    def market_value(self) -> str:
        company = self.chooser.pick(self.companies)
        value = money(company.price * company.shares)
        return self.chooser.pick(
            (
                f"At {money(company.price)} a share and with {company.shares} million shares, {company.name} is worth "
                f"{value} million, not counting the {self.words('object')}.",
                f"{company.ticker}: {company.shares} million shares x {money(company.price)} = {value} million.",
            )
        )

    def earnings(self) -> str:
        company, chooser = self.chooser.pick(self.companies), self.chooser
        each = chooser.between(1, 999)
        profit = money(each * company.shares)
        return (
            f"{company.name} earned {profit} million on {company.shares} million shares, or {money(each)} a share. "
            f'"{self.words("quote")}," said {self.words("official")}.'
        )

    def dividend(self) -> str:
        company, chooser = self.chooser.pick(self.companies), self.chooser
        each, held = chooser.between(1, 300), chooser.between(2, 90) * chooser.pick((1, 5, 10, 100))
        return (
            f"{company.ticker} pays a dividend of {money(each)} a share: the owner of {held} shares gets "
            f"{money(each * held)} and {self.words('gift')}."
        )

    def split(self) -> str:
        company, chooser = self.chooser.pick(self.companies), self.chooser
        parts = [count for count in (2, 3, 4, 5, 10) if company.price % count == 0 and company.opened % count == 0]
        holder = self.holding is not None and self.holding[0] is company
        if not parts or company.price < 1000 or holder:
            return self.quarters()
        count = chooser.pick(parts)
        before = f"{company.shares} million shares at {money(company.price)}"
        company.price //= count
        company.opened //= count
        company.shares *= count
        return (
            f"{company.name} splits its shares {count} for 1 {self.words('why')}: {before} become {company.shares} "
            f"million at {money(company.price)}."
        )

    def quarters(self) -> str:
        company, chooser = self.chooser.pick(self.companies), self.chooser
        sales = [chooser.between(10, 999) for _ in range(chooser.between(2, 4))]
        parts = " + ".join([decimal(sale, 1) for sale in sales])
        total = sum(sales)
        unit = chooser.pick(("million", "million", "thousand"))
        return (
            f"Sales of {company.ticker} by quarter: {parts} = {decimal(total, 1)} {unit}, mostly {self.words('food')}."
        )

    def comparison(self) -> str:
        low, high = sorted(self.chooser.sample(self.companies, 2), key=lambda company: company.price)
        difference = money(high.price - low.price)
        return self.chooser.pick(
            (
                f"{high.ticker} at {money(high.price)} now costs {difference} more than {low.ticker} at "
                f"{money(low.price)}, {self.words('why')}.",
                f"The gap between {high.name} ({money(high.price)}) and {low.name} ({money(low.price)}) is "
                f"{difference}.",
            )
        )

    def target(self) -> str:
        company, chooser = self.chooser.pick(self.companies), self.chooser
        tenths = chooser.between(5, 600)
        goal = rounded(company.price * (1000 + tenths), 1000)
        return (
            f"{chooser.first_name()} of {self.words('surname')} Securities rates {company.ticker} "
            f'"{self.words("rating")}" with a target of {money(goal)}, {percent(tenths)} above {money(company.price)}.'
        )

    def trade(self) -> str:
        """A trader buys, and on the next occasion sells the same shares."""
        chooser = self.chooser
        if self.holding is None:
            company = chooser.pick(self.companies)
            count = chooser.between(1, 90) * chooser.pick((1, 10, 10, 100))
            cost = count * company.price
            self.holding = (company, count, cost)
            return (
                f"{self.trader} bought {count} {company.ticker} at {money(company.price)} for {money(cost)} "
                f"{self.words('why')}."
            )
        company, count, cost = self.holding
        self.holding = None
        value = count * company.price
        result = (
            "nothing gained"
            if value == cost
            else f"a {'profit' if value > cost else 'loss'} of {money(abs(value - cost))}"
        )
        return (
            f"{self.trader} sold the {count} {company.ticker} bought for {money(cost)} at {money(company.price)} for "
            f'{money(value)}: {result}. "{self.words("quote")}," said {self.trader}.'
        )

    def index(self) -> str:
        prices = [company.price for company in self.companies]
        average = money(rounded(sum(prices), len(prices)))
        return f"The {self.words('animal')} index, the average of {', '.join(map(money, prices))}, stands at {average}."

    def close(self) -> str:
        """The day's last prices, with the change from the opening."""
        rows = [f"{company.ticker} {money(company.price)} ({company.change()})" for company in self.companies]
        text = "Close: " + ", ".join(rows) + "."
        best = max(self.companies, key=lambda company: company.price * 1_000_000 // company.opened)
        if best.price > best.opened:
            text += f" Winner of the day: {best.name}."
        if self.holding is not None:
            company, count, _ = self.holding
            text += f" {self.trader} still holds {count} {company.ticker}, worth {money(count * company.price)}."
        return text


def generate(index: int, seed: int) -> str:
    """Market day number `index`."""
    return compose(Chooser("dumb_finance", index, seed))


def compose(chooser: Chooser) -> str:
    """One market day."""
    day = _Day(chooser)
    opening = ", ".join([f"{company.name} ({company.ticker}) {money(company.price)}" for company in day.companies])
    lines = [f"{chooser.pick(WEEKDAYS[:5])} at the {day.values['place']} exchange. Open: {opening}."]
    others = (
        day.market_value, day.earnings, day.dividend, day.split, day.quarters, day.comparison, day.target, day.trade,
        day.trade, day.index,
    )  # fmt: skip
    for _ in range(chooser.between(5, 14)):
        lines.append(day.move() if chooser.chance(55) else chooser.pick(others)())
    lines.append(day.close())
    return "\n".join(lines)
