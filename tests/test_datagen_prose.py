"""Generated prose, articles and mixtures: what they state is computed and followed independently."""

import calendar
import json
import re
from collections import Counter
from datetime import date, datetime
from fractions import Fraction
from itertools import pairwise

import pytest
from generated_text import EQUATION, documents, equation_holds, is_prime, number, rounded

from alpha.datagen import GENERATORS
from alpha.datagen_grammar import Chooser, in_words, items, roman
from alpha.datagen_mixtures import piece

ADJECTIVES, ANIMALS, FOODS = items("words.adjective"), items("words.animal"), items("words.food")
OBJECTS, TRADES = items("words.object"), items("words.trade")
MEN, WOMEN, WEEKDAYS = items("words.man"), items("words.woman"), items("words.weekday")


def test_the_equation_checker_itself() -> None:
    def check(text: str) -> bool:
        return all(equation_holds(match[0]) for match in EQUATION.finditer(text))

    assert check("2 + 3 x 4 = 14, and 25,600 + 28,224 = 53,824 = 232 x 232.")
    assert check("2 / 3 = 0.67 and 2 x (3 + 4) = 14")
    assert not check("2 + 2 = 5")
    assert not check("2 / 3 = 0.66")


@pytest.mark.parametrize(("domain", "fewest"), [("chat", 100), ("nanochat", 300), ("chaos", 200), ("fine_corpus", 300)])
def test_every_equation_holds(domain: str, fewest: int) -> None:
    equations = [match[0] for text in documents(domain) for match in EQUATION.finditer(text)]
    assert [equation for equation in equations if not equation_holds(equation)] == []
    assert len(equations) >= fewest


GIVES = re.compile(r"^(\w+) (?:gave|handed|passed) the ([^.]+) to (\w+)\.")
HIDES = re.compile(r"^(\w+) hid the ([^.]+) in the ([^.]+)\.")
TAKES = re.compile(r"^(\w+) (?:took|drew|lifted) the ([^.]+) out of the ([^.]+)\.")


def test_novels_keep_to_what_has_happened() -> None:
    seen: Counter[str] = Counter()
    for text in documents("novels"):
        holder, hidden_in = "", ""  # not known until the text tells
        for paragraph in text.split("\n\n"):
            if match := GIVES.match(paragraph):
                assert holder in ("", match[1])
                assert not hidden_in, "what is hidden cannot be given"
                holder = match[3]
                assert holder != match[1]
                seen["gives"] += 1
            elif match := HIDES.match(paragraph):
                assert holder in ("", match[1])
                assert not hidden_in
                holder, hidden_in = "", match[3]
                seen["hides"] += 1
            elif match := TAKES.match(paragraph):
                assert match[3] == hidden_in
                holder, hidden_in = match[1], ""
                seen["takes"] += 1
            for showing in re.findall(r"(?:^|\. )(\w+) showed \w+ the ", paragraph):
                assert not hidden_in
                assert holder in ("", showing)
                holder = showing
                seen["shows"] += 1
            if match := re.match(r'"(?:(\w+) has it|It is with ([A-Z]\w+)|Ask (\w+))\W', paragraph):
                assert not hidden_in
                assert holder in ("", *match.groups())
                seen["says who"] += 1
            elif match := re.match(r'"It is in the (.+?)(?: at the .+?)?[.,]"', paragraph):
                assert match[1] == hidden_in
                seen["says where"] += 1
        ending = paragraph
        if hidden_in:
            assert f"lay in the {hidden_in} at the " in ending
        elif holder:
            assert holder in ending
        seen["ends"] += 1
    assert all(seen[kind] >= 10 for kind in ("gives", "hides", "takes", "shows", "says who", "says where", "ends")), (
        seen
    )


def test_novels_have_a_small_cast_with_constant_pronouns() -> None:
    names = set(WOMEN) | set(MEN)
    checked = 0
    for text in documents("novels"):
        cast = {word for word in re.findall(r"[A-Z][a-z]+", text) if word in names}
        assert len(cast) <= 4
        for sentence in re.findall(r"[^.!?\"]+[.!?]", re.sub(r'"[^"]*"', "", text)):
            present = {word for word in re.findall(r"[A-Z][a-z]+", sentence) if word in cast}
            pronouns = set(re.findall(r"\b(he|him|his|she|her)\b", sentence))
            if len(present) == 1 and pronouns:
                assert pronouns <= ({"she", "her"} if present <= set(WOMEN) else {"he", "him", "his"}), sentence
                checked += 1
    assert checked > 250


def test_novels_go_where_they_say() -> None:
    """The place that is agreed on is the next scene; an answer about somebody absent names an earlier scene."""
    agreed = remembered = 0
    for text in documents("novels"):
        paragraphs = text.split("\n\n")
        for position, paragraph in enumerate(paragraphs):
            if match := re.search(r'"(?:We must go to|Meet me at|Let us go to) the ([a-z ]+)[.,]"', paragraph):
                # A question, the reason and a reflection stand between the plan and the next scene.
                assert f"the {match[1]}" in paragraphs[position + 4].lower()
                agreed += 1
            if match := re.search(r"Not since we were at the ([a-z ]+)[.,]", paragraph):
                assert any(f"the {match[1]}" in earlier.lower() for earlier in paragraphs[:position])
                remembered += 1
    assert agreed > 200
    assert remembered > 10


@pytest.mark.parametrize("domain", [name for name in GENERATORS if name not in ("abc", "chords")])
def test_articles_agree_with_their_nouns(domain: str) -> None:
    text = "\n".join(documents(domain))
    nouns = {*ADJECTIVES, *ANIMALS, *OBJECTS, *TRADES}
    assert not {word for word in re.findall(r"\b[Aa] ([aeiou]\w+)", text) if word in nouns}
    assert {word for word in re.findall(r"\b[Aa]n (\w+)", text) if word[0] not in "aeiouAEIOU8"} <= {
        "hour",
        "hourglass",
        "honest",
    }


def matches(pattern: str, fewest: int = 10) -> list[re.Match[str]]:
    found = [match for text in documents("fine_corpus") for match in re.finditer(pattern, text)]
    assert len(found) >= fewest
    return found


def day_of(text: str) -> date:
    return datetime.strptime(text, "%d %B %Y").date()


def test_lives() -> None:
    pattern = r"\((\d+ \w+ \d{4}) - (\d+ \w+ \d{4})\) was .*? was born on a (\w+day) and died at the age of (\d+)\."
    for match in matches(pattern):
        born, died = day_of(match[1]), day_of(match[2])
        assert WEEKDAYS[calendar.weekday(born.year, born.month, born.day)] == match[3]
        birthday_came = (died.month, died.day) >= (born.month, born.day)
        assert died.year - born.year - (not birthday_came) == int(match[4])
    for text in documents("fine_corpus"):
        for match in re.finditer(r"\((\d+ \w+ (\d{4})) - .*?(?=\(\d+ \w+ \d{4} - |See also|\Z)", text, re.DOTALL):
            for year, ordinal in re.findall(r"In (\d+), in the year of h\w+ (\d+)\w\w birthday", match[0])[:1]:
                assert int(year) - int(match[2]) == int(ordinal)


def test_populations() -> None:
    previous = r"(?:the town had|there were|the number was) ([\d,]+)"
    for match in matches(rf"{previous}[^.]*?\. (?:In|By) \d+ {previous}, an? (in|de)crease of ([\d.]+) per cent"):
        old, new = number(match[1]), number(match[2])
        assert rounded(abs(new - old) * 100 / old, 1) == number(match[4])
        assert (new > old) == (match[3] == "in")
    density = (
        r"([\d,]+)(?: inhabitants)?(?:, an? \w+ of [\d.]+ per cent)?(?: in \d+ years)?\. "
        r"With an area of (\d+) square kilometres, the density in \d+ was ([\d,]+)"
    )
    for match in matches(density):
        assert rounded(number(match[1]) / number(match[2]), 0) == number(match[3])
    for match in matches(r"(\d+) kilometres \(([\d.]+) miles\)"):
        assert rounded(number(match[1]) / Fraction("1.609344"), 1) == number(match[2])
    for match in matches(r"([\d,]+) metres \(([\d,]+) feet\)"):
        assert rounded(number(match[1]) / Fraction("0.3048"), 0) == number(match[2])


def test_nothing_is_told_of_the_future() -> None:
    texts = [text for text in documents("fine_corpus") if re.search("census|died at the age|election of", text)]
    years = {int(year) for text in texts for year in re.findall(r"\b(?:In|By|in|since) (\d{4})\b", text)}
    assert len(years) > 200
    assert max(years) <= 2020


def test_reigns_and_elections() -> None:
    for match in matches(r"reigned from (\d+) to (\d+) \((\d+) years?\)"):
        assert int(match[2]) - int(match[1]) == int(match[3])
    for match in matches(
        r"ruled from (\d+) to (\d+), (\d+) years in all, with (\w+) rulers.*?average reign was ([\d.]+) years"
    ):
        assert int(match[2]) - int(match[1]) == int(match[3])
        rulers = next(count for count in range(20) if in_words(count) == match[4])
        assert rounded(Fraction(int(match[3]), rulers), 1) == number(match[5])
    for text in documents("fine_corpus"):
        for paragraph in text.split("\n\n"):
            reigns = re.findall(r"reigned from (\d+) to (\d+)", paragraph)
            assert all(one[1] == two[0] for one, two in pairwise(reigns))
    election = (
        r"with a lead of ([\d,]+) over .*? Of ([\d,]+) electors ([\d,]+) voted, a turnout of ([\d.]+) per cent\.\s+(.*)"
    )
    for match in matches(election, 5):
        votes = [
            (number(count), number(share))
            for count, share in re.findall(r"received ([\d,]+) votes, or ([\d.]+) per", match[5])
        ]
        total = sum(count for count, _ in votes)
        assert total == number(match[3])
        assert votes[0][0] - votes[1][0] == number(match[1])
        assert all(rounded(count * 100 / total, 1) == share for count, share in votes)
        assert rounded(total * 100 / number(match[2]), 1) == number(match[4])


def test_numbers_and_years() -> None:
    for match in matches(
        r"The number (\d+) \(([\w -]+)\) is (odd|even)\. In Roman numerals it is (\w+), "
        r"in binary (\d+), in octal (\d+) and in hexadecimal (\w+)\."
    ):
        value = int(match[1])
        assert (int(match[5], 2), int(match[6], 8), int(match[7], 16)) == (value, value, value)
        assert (value % 2 == 1) == (match[3] == "odd")
        assert (in_words(value), roman(value)) == (match[2], match[4])
    for match in matches(
        r"prime factorization is (\d+) = ([\dx ]+)\. It has (\d+) divisors\..*?add up to ([\d,]+), .*? called (\w+)\."
    ):
        value, parts = int(match[1]), [int(part) for part in match[2].split(" x ")]
        assert all(map(is_prime, parts))
        dividing = [each for each in range(1, value + 1) if value % each == 0]
        assert (len(dividing), sum(dividing) - value) == (int(match[3]), number(match[4]))
        proper = sum(dividing) - value
        assert match[5] == ("perfect" if proper == value else "abundant" if proper > value else "deficient")
    for match in matches(r"(\d+) \(number\)[^=]*?It is a prime number", 3):
        assert is_prime(int(match[1]))
    pattern = (
        r"The year (\d+) .*? it is a (leap|common) year of (\d+) days.*?began on a (\w+) and "
        r"ended on a (\w+)\. The (\d+)\w\w day of the year, (\d+ \w+), was a (\w+); (\d+) days"
    )
    for match in matches(pattern.replace(".*?", "(?:.|\n)*?")):
        year, length = int(match[1]), int(match[3])
        assert calendar.isleap(year) == (match[2] == "leap") == (length == 366)
        assert WEEKDAYS[date(year, 1, 1).weekday()] == match[4]
        assert WEEKDAYS[date(year, 12, 31).weekday()] == match[5]
        day = day_of(f"{match[7]} {year}")
        assert (day - date(year, 1, 1)).days + 1 == int(match[6])
        assert WEEKDAYS[day.weekday()] == match[8]
        assert length - int(match[6]) == int(match[9])


def test_substances_and_planets() -> None:
    pattern = r"molar mass is ([^=]+) = ([\d,.]+) grams per mole\. By mass it consists of (.*?per cent)\. "
    for match in matches(pattern, 5):
        total = number(match[2])
        parts = [int(atoms) * number(weight) for atoms, weight in re.findall(r"(\d+) x ([\d.]+)", match[1])]
        shares = [number(share) for share in re.findall(r"([\d.]+) per cent", match[3])]
        assert [rounded(part * 100 / total, 1) for part in parts] == shares
    pattern = (
        r"mean distance of ([\d,.]+) million kilometres\. Light, .*?, needs ([\d,]+) seconds for that, or (\d+) minutes"
    )
    for match in matches(pattern, 5):
        seconds = number(match[1]) * 1_000_000 / 299_792
        assert rounded(seconds, 0) == number(match[2])
        assert number(match[2]) // 60 == int(match[3])
    for match in matches(r"\(([\d,.]+)(?: km)?\) is ([\d.]+) times as (?:heavy|wide) as .*?\(([\d,.]+)(?: km)?\)", 10):
        assert rounded(number(match[1]) / number(match[3]), 2) == number(match[2])


def test_medians_and_interest() -> None:
    for match in matches(
        r"noted ([\d, and]+) centimetres\.\s+.*?: (\d+) / (\d+) = .*?in order, ([\d, ]+), and "
        r"the middle one is taken: (\d+)\.",
        5,
    ):
        values = list(map(int, re.findall(r"\d+", match[1])))
        ordered = list(map(int, match[4].split(", ")))
        assert (sum(values), len(values)) == (int(match[2]), int(match[3]))
        assert ordered == sorted(values)
        assert ordered[len(ordered) // 2] == int(match[5])
    for match in matches(r"A sum of ([\d,]+) grows at ([\d.]+) per cent a year.*?\n\n(.*?)\n\n", 5):
        amount = number(match[1])
        for gain, result in re.findall(r"([\d,.]+) of interest makes it ([\d,]+\.\d\d)", match[3]):
            assert number(gain) == rounded(amount * number(match[2]) / 100, 2)
            amount += number(gain)
            assert amount == number(result)


def pieces(kind: str, count: int = 40) -> list[str]:
    return [piece(Chooser(f"test {kind}", index, 3), kind) for index in range(count)]


@pytest.mark.parametrize("name", ["code", "strings"])
def test_code_gives_the_results_that_it_shows(name: str) -> None:
    for text in pieces(name):
        program, _, session = text.partition("\n>>> ") if name == "code" else ("", "", text.removeprefix(">>> "))
        scope: dict[str, object] = {}
        exec(program, scope)
        for call, _, result in (part.partition("\n") for part in session.split("\n>>> ")):
            if result:
                assert repr(eval(call, scope)) == result
            else:
                exec(call, scope)


def test_tables_add_up() -> None:
    for text in pieces("markdown_table"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n")]
        assert len({len(row) for row in rows}) == 1
        body, last = rows[2:-1], rows[-1]
        assert all(int(count) * number(price) == number(total) for _, count, price, total in body)
        assert sum(int(row[1]) for row in body) == int(last[1])
        assert sum(number(row[3]) for row in body) == number(last[3])
    for text in pieces("comma_table"):
        rows = [line.split(",") for line in text.split("\n")]
        assert {len(row) for row in rows} == {5}
        identities = [int(row[0]) for row in rows[1:]]
        assert identities == sorted(set(identities))


def test_other_pieces_are_consistent() -> None:
    for text in pieces("record"):
        assert isinstance(json.loads(text), dict)
    for text in pieces("log"):
        times = [datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in text.split("\n")]
        assert times == sorted(times)
    for text in pieces("check_list"):
        *items, last = text.split("\n")
        assert last == f"{sum('[x]' in item for item in items)} of {len(items)} done"
    for text in pieces("play"):
        counts = [int(each) for each in re.findall(r"(?:I have|Then I have|Now I have) (\d+)", text)]
        changes = [
            int(amount) * (-1 if verb == "Give me" else 1) for verb, amount in re.findall(r"(Give me|Take) (\d+)", text)
        ]
        assert [b - a for a, b in pairwise(counts)] == changes
    for text in pieces("shell"):
        counts = [int(each) for each in re.findall(r"^ *(\d+) \w+\.txt$", text, re.MULTILINE)]
        assert f"{sum(counts):5d} total" in text
        assert text.endswith(f"\n{len(counts) - 1}")
        a, b, product = map(int, re.findall(r"\$\(\((\d+) \* (\d+)\)\)\n(\d+)", text)[0])
        assert a * b == product
    for text in pieces("timetable"):
        times = [60 * int(hour) + int(minute) for hour, minute in re.findall(r"(\d\d):(\d\d)", text)]
        rides = [int(each) for each in re.findall(r"^  (\d+) min$", text, re.MULTILINE)]
        assert [b - a for a, b in pairwise(times)] == rides
        assert text.endswith(f"Journey: {sum(rides)} minutes")
    for text in pieces("recipe"):
        grams = [int(each) for each in re.findall(r"^- (\d+) g", text, re.MULTILINE)]
        minutes = [int(each) for each in re.findall(r": (\d+) minutes", text)]
        assert f"Ready in {sum(minutes)} minutes, {sum(grams)} g in all." in text
        factor, rest = re.findall(r"For (\d) times as many guests: (.*)\.", text)[0]
        assert [int(each) for each in re.findall(r"(\d+) g", rest)] == [int(factor) * each for each in grams]
    for text in pieces("inventory"):
        assert sum(map(int, re.findall(r"count: (\d+)", text))) == int(re.findall(r"total: (\d+)", text)[0])


def test_kinds_of_things_do_not_overlap() -> None:
    """A question such as "Is a bat an object?" must have one answer."""
    assert not set(ANIMALS) & set(FOODS)
