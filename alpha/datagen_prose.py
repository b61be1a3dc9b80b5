"""Chapters of novels: a small cast moves through scenes after one object, and the text keeps to what has happened.

The story remembers who holds the object or where it is hidden, who saw that, where everybody was last seen and where
the next scene will be, so that answers in the dialogue are true. Sentences come from `datagen_prose_rules`.
"""

from collections.abc import Callable
from typing import NamedTuple

from alpha.datagen_chooser import Chooser
from alpha.datagen_prose_rules import PROSE, WEATHERS
from alpha.datagen_words import ADJECTIVES, MATERIALS, MEN, OBJECTS, TRADES, WOMEN, article, capitalized, in_words

_PLACES = (
    "mill", "bridge", "harbour", "old chapel", "orchard", "inn", "quarry", "ferry", "station", "market", "library",
    "lighthouse", "boathouse", "bakery", "well", "graveyard", "school", "brewery", "greenhouse", "town hall", "tower",
    "stables", "post office", "ford", "brickworks", "theatre", "observatory", "garden", "kitchen", "cellar", "attic",
)  # fmt: skip
_HIDING_PLACES = (
    "chest", "drawer", "hollow tree", "well bucket", "cupboard", "barrel", "stove", "clock case", "sack of flour",
    "teapot", "coal box", "piano", "boot", "woodpile", "bird's nest", "trunk", "wall behind a loose brick",
)  # fmt: skip
_TIMES = (  # as the beginning of a sentence, and after "It was"
    ("early in the morning", "still early"),
    ("in the morning", "the middle of the morning"),
    ("towards noon", "almost noon"),
    ("in the afternoon", "afternoon"),
    ("in the evening", "evening"),
    ("late at night", "long after midnight"),
)


class Person(NamedTuple):
    """Somebody in a story."""

    name: str
    surname: str
    female: bool
    trade: str

    def pronouns(self) -> dict[str, str]:
        """The pronouns by the names that the sentences use."""
        forms = ("she", "her", "her") if self.female else ("he", "him", "his")
        return dict(zip(("he", "him", "his"), forms, strict=True))


def people(chooser: Chooser, count: int) -> list[Person]:
    """`count` people with different first names."""
    women = chooser.between(0, count)
    names = [(name, True) for name in chooser.sample(WOMEN, women)]
    names += [(name, False) for name in chooser.sample(MEN, count - women)]
    trades = chooser.sample(TRADES, count)
    return [
        Person(name, chooser.surname(), female, trade)
        for (name, female), trade in zip(chooser.sample(names, count), trades, strict=True)
    ]


class _Story:
    """What is true at this point of a chapter."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.cast = people(chooser, chooser.between(3, 4))
        self.town = chooser.place()
        self.thing = f"{chooser.pick(chooser.pick((ADJECTIVES, MATERIALS)))} {chooser.pick(OBJECTS)}"
        self.holder: Person | None = chooser.pick(self.cast)
        self.hidden_in = ""
        self.hidden_at = ""
        self.knowing = {self.holder}  # who knows where the thing is
        self.weather = chooser.pick(list(WEATHERS))
        self.time = chooser.between(0, 2)
        places = chooser.sample(_PLACES, 6)
        self.places = places
        self.place = places[0]
        self.next_place = ""
        self.seen_at: dict[Person, str] = {}
        self.present: list[Person] = []
        self.lines: list[str] = []  # sentences of the paragraph that is being written
        self.paragraphs: list[str] = []

    def values(self, a: Person, b: Person) -> dict[str, str]:
        """What the sentences may name, with `a` as the one whom they are about."""
        values = a.pronouns()
        values.update(A=a.name, B=b.name, place=self.place, town=self.town, thing=self.thing)
        values["time"], values["time_is"] = _TIMES[self.time]
        return values

    def sentence(self, symbol: str, a: Person, b: Person) -> str:
        values = self.values(a, b)
        values["weather"] = PROSE.expand(self.chooser, self.weather, values)
        return PROSE.expand(self.chooser, symbol, values)

    def tell(self, sentence: str) -> None:
        """Add to the present paragraph."""
        self.lines.append(sentence)

    def end_paragraph(self) -> None:
        if self.lines:
            self.paragraphs.append(" ".join(self.lines))
            self.lines = []

    def speak(self, speaker: Person, words: str, listener: Person, question: bool = False) -> None:
        """A line of dialogue, as a paragraph of its own; sometimes with a gesture."""
        chooser = self.chooser
        self.end_paragraph()
        way = chooser.below(10)
        mark = "?" if question else "."
        if way < 3:
            self.paragraphs.append(f'"{words}{mark}"')
            return
        verb = self.sentence("asked" if question else "said", speaker, listener)
        manner = f" {self.sentence('manner', speaker, listener)}" if way > 7 else ""
        text = f'"{words}{"?" if question else ","}" {verb} {speaker.name}{manner}.'
        if way == 3:
            text = f'{speaker.name} {self.sentence("gesture", speaker, listener)}. "{words}{mark}"'
        self.paragraphs.append(text)

    def two(self) -> tuple[Person, Person]:
        """Two of those present."""
        first, second = self.chooser.sample(self.present, 2)
        return first, second

    def whereabouts(self, speaker: Person) -> str:
        """What `speaker` can truly say about where the thing is."""
        chooser = self.chooser
        if speaker not in self.knowing:
            return chooser.pick(
                ("I do not know", "Nobody tells me anything", "I wish I knew", "I have not seen it today")
            )
        if self.holder is speaker:
            return chooser.pick(
                ("I have it", "It is here in my pocket", "It is with me", "I am holding it, as you see")
            )
        if self.holder is not None:
            return chooser.pick(
                (f"{self.holder.name} has it", f"It is with {self.holder.name}", f"Ask {self.holder.name}")
            )
        where = f"in the {self.hidden_in}"
        return f"It is {where}" if self.place == self.hidden_at else f"It is {where} at the {self.hidden_at}"


def _ask_whereabouts(story: _Story) -> None:
    asker, other = story.two()
    if asker is story.holder:
        asker, other = other, asker
    chooser = story.chooser
    question = chooser.pick((f"Where is the {story.thing}", f"Who has the {story.thing}", f"And the {story.thing}"))
    story.speak(asker, question, other, question=True)
    story.speak(other, story.whereabouts(other), asker)
    if other in story.knowing:
        story.knowing.add(asker)


def _move_thing(story: _Story) -> None:
    """The thing changes hands, is hidden or is found, and those present see it."""
    chooser, holder, thing = story.chooser, story.holder, story.thing
    story.end_paragraph()
    if holder is None:
        if story.hidden_at != story.place:
            return
        finder = chooser.pick(story.present)
        verb = chooser.pick(("took", "drew", "lifted"))
        story.tell(f"{finder.name} {verb} the {thing} out of the {story.hidden_in}.")
        story.holder = finder
    elif holder not in story.present:
        return
    elif chooser.chance(60):
        taker = chooser.pick([person for person in story.present if person is not holder])
        verb = chooser.pick(("gave", "handed", "passed"))
        story.tell(f"{holder.name} {verb} the {thing} to {taker.name}.")
        story.holder = taker
    else:
        story.hidden_in = chooser.pick(_HIDING_PLACES)
        story.hidden_at = story.place
        story.tell(f"{holder.name} hid the {thing} in the {story.hidden_in}.")
        story.holder = None
    story.knowing = set(story.present)
    first, second = story.two()
    story.tell(story.sentence("narration", first, second))


def _show_thing(story: _Story) -> None:
    holder = story.holder
    if holder is None or holder not in story.present:
        _narrate(story)
        return
    other = story.chooser.pick([person for person in story.present if person is not holder])
    story.tell(f"{holder.name} showed {other.name} the {story.thing}.")
    story.knowing.update(story.present)
    story.tell(story.sentence("narration", other, holder))


def _ask_after_absent(story: _Story) -> None:
    absent = [person for person in story.cast if person not in story.present]
    if not absent:
        _talk(story)
        return
    missing = story.chooser.pick(absent)
    asker, other = story.two()
    story.speak(asker, f"Have you seen {missing.name}", other, question=True)
    place = story.seen_at.get(missing)
    answer = f"Not since we were at the {place}" if place else "Not today"
    story.speak(other, answer, asker)


def _talk(story: _Story) -> None:
    """A remark with its answers."""
    first, second = story.two()
    story.speak(first, story.sentence("remark", first, second), second)
    for turn in range(story.chooser.between(1, 3)):
        speaker, listener = (second, first) if turn % 2 == 0 else (first, second)
        story.speak(speaker, story.sentence("retort", speaker, listener), listener)


def _narrate(story: _Story) -> None:
    for _ in range(story.chooser.between(1, 3)):
        first, second = story.two()
        story.tell(story.sentence("narration", first, second))


def _introduce(story: _Story) -> None:
    """Who somebody is."""
    person, other = story.two()
    chooser = story.chooser
    story.tell(
        chooser.pick(
            (
                f"{person.name} {person.surname} was {article(person.trade)} in {story.town}.",
                f"Everybody in {story.town} knew {person.name} {person.surname}, the {person.trade}.",
                f"As {article(person.trade)}, {person.name} had seen stranger things.",
                f"{person.name} was the best {person.trade} in {story.town}, and the only one.",
            )
        )
    )
    story.tell(story.sentence("narration", person, other))


def _plan(story: _Story) -> None:
    """Agree on the next place; the next scene will be there."""
    first, second = story.two()
    chooser = story.chooser
    target = story.next_place
    proposal = chooser.pick((f"We must go to the {target}", f"Meet me at the {target}", f"Let us go to the {target}"))
    story.speak(first, proposal, second)
    story.speak(
        second, chooser.pick((f"Why the {target}", "Why", f"To the {target}, at this hour")), first, question=True
    )
    reason = story.sentence("because", first, second)
    story.speak(first, capitalized(reason), second)


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
    setting = story.sentence("setting", first, second)
    story.tell(setting)
    if f"the {story.place}" not in setting.lower():
        story.tell(story.sentence("meeting", first, second))
    story.tell(story.sentence("arrival", first, second))
    for person in story.present[2:]:
        story.tell(f"{person.name} was with them.")
    for _ in range(chooser.between(3, 6)):
        chooser.pick(_BEATS)(story)
        if chooser.chance(50):
            story.end_paragraph()
    if not last:
        _plan(story)
    story.tell(story.sentence("reflection", first, second))
    story.end_paragraph()
    for person in story.present:
        story.seen_at[person] = story.place


def _closing(story: _Story) -> str:
    """The last sentence of a chapter: where the thing is now."""
    if story.holder is None:
        return f"The {story.thing} lay in the {story.hidden_in} at the {story.hidden_at}, and {story.town} slept."
    return story.chooser.pick(
        (
            f"When the lamps went out in {story.town}, {story.holder.name} still had the {story.thing}.",
            f"That night {story.holder.name} slept with the {story.thing} under the pillow.",
        )
    )


def tell(chooser: Chooser, scenes: int) -> str:
    """The paragraphs of a story of so many scenes, without a heading."""
    return "\n\n".join(_told(chooser, scenes).paragraphs)


def _told(chooser: Chooser, scenes: int) -> _Story:
    story = _Story(chooser)
    for number in range(scenes):
        story.place = story.places[number]
        story.next_place = story.places[number + 1]
        _scene(story, number == scenes - 1)
        story.time = min(story.time + chooser.between(0, 2), len(_TIMES) - 1)
        if chooser.chance(30):
            story.weather = chooser.pick(WEATHERS[story.weather])
    story.paragraphs.append(_closing(story))
    return story


def generate(index: int, seed: int) -> str:
    """Chapter number `index`."""
    chooser = Chooser("novels", index, seed)
    story = _told(chooser, chooser.between(2, 4))
    first, second = story.two()
    number = chooser.between(1, 24)
    label = in_words(number).title()
    heading = story.sentence("heading", first, second)
    title = chooser.pick((f"Chapter {label}", f"Chapter {label}\n\n{heading}", f"Chapter {label}: {heading}", heading))
    return "\n\n".join([title, *story.paragraphs])
