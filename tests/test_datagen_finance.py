"""Generated market days: every number is computed again from what was told before it."""

import re
from collections import Counter
from fractions import Fraction

from generated_text import documents, number, rounded, value_of

MONEY = r"(\d[\d,]*\.\d\d)"
ORDINALS = ("zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh")
TICKER = "([A-Z]{4})"
PRICE, SHARES, TOTAL = rf"(?P<price>{MONEY[1:]}", r"(?P<shares>\d+)", rf"(?P<total>{MONEY[1:]}"
LINES = (  # the first that fits counts
    ("move", rf"(\d+\.\d)%,? from {MONEY} to {MONEY}"),
    ("value", rf"^At {PRICE} a share and with {SHARES} million shares, .* is worth {TOTAL} million"),
    ("value", rf"^[A-Z]{{4}}: {SHARES} million shares x {PRICE} = {TOTAL} million\.$"),
    ("earnings", rf"earned {MONEY} million on (\d+) million shares, or {MONEY} a share"),
    ("dividend", rf"dividend of {MONEY} a share: the owner of (\d+) shares gets {MONEY}"),
    ("split", rf"splits its shares (\d+) for 1 .*: (\d+) million shares at {MONEY} become (\d+) million at {MONEY}"),
    ("quarters", r"by quarter: ([\d. +]+) = (\d+\.\d) (?:million|thousand)"),
    ("comparison", rf"^[A-Z]{{4}} at {MONEY} now costs {MONEY} more than [A-Z]{{4}} at {MONEY}"),
    ("gap", rf"^The gap between .* \({MONEY}\) and .* \({MONEY}\) is {MONEY}\."),
    ("target", rf"rates {TICKER} .* target of {MONEY}, (\d+\.\d)% above {MONEY}\."),
    ("buy", rf" bought (\d+) {TICKER} at {MONEY} for {MONEY}"),
    (
        "sell",
        rf" sold the (\d+) {TICKER} bought for {MONEY} at {MONEY} for {MONEY}: "
        rf"(?:nothing gained|a (\w+) of {MONEY})",
    ),
    ("index", rf"index, the average of ([\d., ]+), stands at {MONEY}\."),
    ("close", r"^Close: "),
)


class Market:
    """Reads the lines of one day and checks each number against what was told before."""

    def __init__(self, opening: str) -> None:
        listing = opening.split("Open: ")[1]
        self.tickers = dict(re.findall(r"(?:^|, )([^,]+?) \(([A-Z]{4})\)", listing))
        prices = re.findall(rf"\(([A-Z]{{4}})\) {MONEY}", listing)
        self.prices = {ticker: number(price) for ticker, price in prices}
        self.opened = dict(self.prices)
        self.shares: dict[str, int] = {}
        self.cost = Fraction(0)

    def who(self, line: str) -> str:
        for name, ticker in self.tickers.items():
            if re.search(rf"(^|of |\(){ticker}\b", line) or name in line:
                return ticker
        raise AssertionError(line)

    def known_shares(self, ticker: str, count: int) -> None:
        assert self.shares.setdefault(ticker, count) == count

    def is_about(self, line: str, ticker: str) -> bool:
        name = next(name for name, each in self.tickers.items() if each == ticker)
        return re.match(rf"(Shares of )?({re.escape(name)}|{ticker}) ", line) is not None

    def read(self, line: str) -> str:
        """Check a line; the kind of line that it was."""
        for kind, pattern in LINES:
            if match := re.search(pattern, line):
                getattr(self, kind)(match)
                return kind
        raise AssertionError(f"a line of no known kind: {line}")

    def move(self, match: re.Match[str]) -> None:
        tenths, old, new = number(match[1]), number(match[2]), number(match[3])
        line = match.string
        ticker = next(ticker for ticker, price in self.prices.items() if price == old and self.is_about(line, ticker))
        rise = re.search(r"\b(up|rose|climbed|gained|jumped|floated|added|tiptoed|bounced)\b", line[: match.start()])
        change = old * tenths / 100
        assert new == rounded(old + change if rise else old - change, 2), line
        self.prices[ticker] = new

    def value(self, match: re.Match[str]) -> None:
        ticker = self.who(match.string)
        self.known_shares(ticker, int(match["shares"]))
        assert number(match["price"]) == self.prices[ticker]
        assert number(match["price"]) * int(match["shares"]) == number(match["total"])

    def dividend(self, match: re.Match[str]) -> None:
        assert number(match[1]) * int(match[2]) == number(match[3])

    def earnings(self, match: re.Match[str]) -> None:
        self.known_shares(self.who(match.string), int(match[2]))
        assert number(match[1]) == int(match[2]) * number(match[3])

    def split(self, match: re.Match[str]) -> None:
        parts, ticker = int(match[1]), self.who(match.string)
        self.known_shares(ticker, int(match[2]))
        assert (number(match[3]), int(match[4])) == (self.prices[ticker], int(match[2]) * parts)
        assert number(match[5]) * parts == number(match[3])
        self.prices[ticker], self.shares[ticker] = number(match[5]), int(match[4])
        self.opened[ticker] /= parts

    def quarters(self, match: re.Match[str]) -> None:
        assert value_of(match[1]) == number(match[2])

    def comparison(self, match: re.Match[str]) -> None:
        high, difference, low = map(number, match.groups())
        assert {high, low} <= set(self.prices.values())
        assert high - low == difference

    def gap(self, match: re.Match[str]) -> None:
        high, low, difference = map(number, match.groups())
        assert {high, low} <= set(self.prices.values())
        assert high - low == difference

    def target(self, match: re.Match[str]) -> None:
        assert number(match[4]) == self.prices[match[1]]
        assert number(match[2]) == rounded(number(match[4]) * (1 + number(match[3]) / 100), 2)

    def buy(self, match: re.Match[str]) -> None:
        assert number(match[3]) == self.prices[match[2]]
        self.cost = number(match[4])
        assert int(match[1]) * number(match[3]) == self.cost

    def sell(self, match: re.Match[str]) -> None:
        assert (number(match[3]), number(match[4])) == (self.cost, self.prices[match[2]])
        assert int(match[1]) * number(match[4]) == number(match[5])
        gain = number(match[7] or "0") * {"profit": 1, "loss": -1, None: 0}[match[6]]
        assert number(match[5]) - number(match[3]) == gain

    def index(self, match: re.Match[str]) -> None:
        prices = [number(price) for price in match[1].split(", ")]
        assert prices == list(self.prices.values())
        assert rounded(sum(prices) / len(prices), 2) == number(match[2])

    def close(self, match: re.Match[str]) -> None:
        closing = re.findall(rf"([A-Z]{{4}}) {MONEY} \(([+-])(\d+\.\d)%\)", match.string)
        assert {ticker: number(price) for ticker, price, _, _ in closing} == self.prices
        for ticker, price, sign, percent in closing:
            change = (number(price) - self.opened[ticker]) / self.opened[ticker] * 100
            assert rounded(abs(change), 1) == number(percent)
            assert (sign == "-") == (change < 0)
        if held := re.search(rf"still holds (\d+) ([A-Z]{{4}}), worth {MONEY}", match.string):
            assert int(held[1]) * self.prices[held[2]] == number(held[3])


def test_every_number_of_a_market_day_is_right() -> None:
    seen: Counter[str] = Counter()
    for text in documents("dumb_finance"):
        opening, *lines = text.split("\n")
        market = Market(opening)
        streaks = dict.fromkeys(market.prices, 0)
        for line in lines:
            before = dict(market.prices)
            kind = market.read(line)
            seen[kind] += 1
            moved = [ticker for ticker in market.prices if kind == "move" and market.prices[ticker] != before[ticker]]
            for ticker in moved:
                direction = 1 if market.prices[ticker] > before[ticker] else -1
                streaks[ticker] = streaks[ticker] + direction if streaks[ticker] * direction > 0 else direction
                if match := re.search(r"its (\w+) (rise|fall) in a row", line):
                    assert ORDINALS.index(match[1]) == abs(streaks[ticker])
                    assert (match[2] == "rise") == (direction > 0)
                    seen["streak"] += 1
    assert [kind for kind in ("streak", *dict(LINES)) if seen[kind] < 10] == []
