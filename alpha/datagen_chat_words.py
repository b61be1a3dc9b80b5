"""Small talk, words and facts, for the chat domains."""

from alpha.datagen_chooser import Grammar
from alpha.datagen_dialogue import Dialogue, Task
from alpha.datagen_facts import COUNTRIES, ELEMENTS, LEGS, MIXTURES, OPPOSITES, PLANETS, SOUNDS, WORK
from alpha.datagen_words import (
    ADJECTIVES,
    ANIMALS,
    COLOURS,
    FOODS,
    LANDSCAPE,
    OBJECTS,
    TRADES,
    article,
    capitalized,
    in_words,
    listed,
    ordinal,
    times,
)

_WORDS = tuple(word for word in ANIMALS + OBJECTS + LANDSCAPE + FOODS + TRADES if word.isalpha())
_PLURALS = frozenset(food for food in FOODS if food.endswith("s") and food != "asparagus")
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("an animal", tuple(map(article, ANIMALS))),
    ("an object", tuple(map(article, OBJECTS))),
    ("a food", FOODS),
    ("a colour", COLOURS),
    ("a country", tuple(country for country, _, _ in COUNTRIES)),
    ("a planet", tuple(planet.name for planet in PLANETS)),
    ("a metal", tuple(element.name for element in ELEMENTS if element.kind == "metal")),
)
_GREETINGS = (
    "Hello!",
    "Hi there.",
    "Good morning.",
    "Good evening!",
    "Hey!",
    "Hello, how are you?",
    "Hi! Are you there?",
)


def greeting(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    hello = chooser.pick(_GREETINGS)
    name = f", {dialogue.user_name}" if dialogue.user_name else ""
    start = "Good morning" if "morning" in hello else "Good evening" if "evening" in hello else "Hello"
    middle = " I am well, thank you." if "how are you" in hello else " Yes, I am here." if "there?" in hello else ""
    offer = chooser.pick(
        ("How can I help?", "What can I do for you?", "What would you like to know?", "Ask me anything.")
    )
    dialogue.exchange(hello, f"{start}{name}!{middle} {offer}", f"{start}{name}.{middle}")


def own_name(dialogue: Dialogue) -> None:
    """Who the assistant is."""
    question = dialogue.chooser.pick(("Who are you?", "What is your name?", "What are you?"))
    name, trade = dialogue.assistant_name, dialogue.assistant_trade
    if name:
        dialogue.exchange(question, f"I am {name}, {article(trade)}.", f"{name}.")
    else:
        dialogue.exchange(question, "I am a small language model. I answer questions.", "A language model.")


def letters(dialogue: Dialogue) -> None:
    """Questions about the letters of a word."""
    chooser = dialogue.chooser
    word = chooser.pick(_WORDS)
    way = chooser.below(7)
    if way == 0:
        spelled = " ".join(word)
        dialogue.numeric(
            dialogue.ask(f"How many letters are in the word {word}?"),
            f"The word {word} has {len(word)} letters.",
            len(word),
            f"{spelled}: the word {word} has {len(word)} letters.",
        )
    elif way == 1:
        letter = chooser.pick(word)
        count = word.count(letter)
        full = f"The letter {letter} is there {times(count)}."
        question = dialogue.ask(f"How often is {letter} in the word {word}?")
        dialogue.numeric(question, full, count, f"{'-'.join(word)}: {full}")
    elif way == 2:
        place = chooser.between(1, len(word))
        question = f"What is the {ordinal(place)} letter of {word}?"
        dialogue.exchange(
            dialogue.ask(question),
            f"The {ordinal(place)} letter of {word} is {word[place - 1]}.",
            f"{word[place - 1]}.",
        )
    elif way == 3:
        dialogue.exchange(
            dialogue.ask(f"Spell the word {word}."), f"{word}: {'-'.join(word.upper())}.", f"{'-'.join(word.upper())}."
        )
    elif way == 4:
        dialogue.exchange(
            dialogue.ask(f"Write {word} backwards."), f"{word} backwards is {word[::-1]}.", f"{word[::-1]}."
        )
    elif way == 5:
        vowels = [letter for letter in word if letter in "aeiou"]
        full = f"The word {word} has {len(vowels)} {'vowel' if len(vowels) == 1 else 'vowels'}: {', '.join(vowels)}."
        dialogue.numeric(dialogue.ask(f"How many vowels are in {word}?"), full, len(vowels))
    else:
        repeats = chooser.between(2, 5)
        dialogue.exchange(f"Say {word} {in_words(repeats)} times.", f"{' '.join([word] * repeats)}.")


def word_order(dialogue: Dialogue) -> None:
    """Sorting, longest words and word counts."""
    chooser = dialogue.chooser
    words = chooser.sample(_WORDS, chooser.between(3, 6))
    text = listed(words)
    way = chooser.below(3)
    if way == 0:
        ordered = listed(sorted(words))
        dialogue.exchange(
            dialogue.ask(f"Sort these words: {', '.join(words)}."), f"In order: {ordered}.", f"{ordered}."
        )
    elif way == 1:
        longest = max(map(len, words))
        longest_words = [word for word in words if len(word) == longest]
        which = (
            f"{longest_words[0]} is the longest"
            if len(longest_words) == 1
            else f"{listed(longest_words)} are the longest"
        )
        question = dialogue.ask(f"Which of these words is the longest: {', '.join(words)}?")
        dialogue.exchange(question, f"With {longest} letters, {which}.", f"{listed(longest_words)}.")
    else:
        question = f"Which word comes first in the dictionary, {text.replace(' and ', ' or ')}?"
        dialogue.exchange(question, f"{min(words)} comes first.", f"{min(words)}.")


def category(dialogue: Dialogue) -> None:
    """What kind of thing something is, and which does not belong."""
    chooser = dialogue.chooser
    kind, options = chooser.pick(_KINDS)
    other_kind, others = chooser.pick([each for each in _KINDS if each[0] != kind])
    if chooser.chance(50):
        truly = chooser.chance(50)
        word = chooser.pick(options if truly else [word for word in others if word not in options])
        verb = "are" if word in _PLURALS else "is"
        full = f"Yes, {word} {verb} {kind}." if truly else f"No, {word} {verb} {other_kind}, not {kind}."
        dialogue.exchange(dialogue.ask(f"{verb.title()} {word} {kind}?"), full, "Yes." if truly else "No.")
    else:
        odd = chooser.pick([word for word in others if word not in options])
        words = chooser.sample([*chooser.sample(options, 3), odd], 4)
        full = f"{capitalized(odd)}: that is {other_kind}, and each of the others is {kind}."
        dialogue.exchange(dialogue.ask(f"Which does not belong: {', '.join(words)}?"), full, f"{capitalized(odd)}.")


def fact(dialogue: Dialogue) -> None:
    """A question from the tables of facts."""
    chooser = dialogue.chooser
    way = chooser.below(9)
    if way == 0:
        country, capital, _ = chooser.pick(COUNTRIES)
        found = f"What is the capital of {country}?", f"The capital of {country} is {capital}.", f"{capital}."
    elif way == 1:
        country, capital, _ = chooser.pick(COUNTRIES)
        found = f"Which country has the capital {capital}?", f"{capital} is the capital of {country}.", f"{country}."
    elif way == 2:
        country, _, continent = chooser.pick(COUNTRIES)
        found = f"On which continent is {country}?", f"{country} is in {continent}.", f"{continent}."
    elif way == 3:
        element = chooser.pick(ELEMENTS)
        found = (
            f"What is the chemical symbol of {element.name}?",
            f"The symbol of {element.name} is {element.symbol}, and its atomic number is {element.number}.",
            f"{element.symbol}.",
        )
    elif way == 4:
        place = chooser.below(8)
        planet = PLANETS[place].name
        found = (
            f"Which planet is the {ordinal(place + 1)} from the Sun?",
            f"{planet} is the {ordinal(place + 1)} planet from the Sun.",
            f"{planet}.",
        )
    elif way == 5:
        first, second = chooser.sample(chooser.pick(OPPOSITES), 2)
        found = f"What is the opposite of {first}?", f"The opposite of {first} is {second}.", f"{capitalized(second)}."
    elif way == 6:
        animal, sound = chooser.pick(SOUNDS)
        found = (
            f"What does {article(animal)} do to make a sound?",
            f"{capitalized(article(animal))} {sound}.",
            f"It {sound}.",
        )
    elif way == 7:
        trade, work = chooser.pick(WORK)
        found = f"What does {article(trade)} do?", f"{capitalized(article(trade))} {work}.", f"{capitalized(work)}."
    else:
        first, second, mixture = chooser.pick(MIXTURES)
        found = (
            f"What do I get when I mix {first} and {second} paint?",
            f"{capitalized(first)} and {second} make {mixture}.",
            f"{capitalized(mixture)}.",
        )
    dialogue.exchange(dialogue.ask(found[0]), found[1], found[2])


def legs(dialogue: Dialogue) -> None:
    animal, count = dialogue.chooser.pick(LEGS)
    many = dialogue.chooser.between(1, 12)
    plural = "people" if animal == "person" else "foxes" if animal == "fox" else animal + "s"
    if many == 1:
        dialogue.numeric(
            f"How many legs has {article(animal)}?", f"{capitalized(article(animal))} has {count} legs.", count
        )
    else:
        dialogue.numeric(
            f"How many legs have {many} {plural} together?",
            f"{many} {plural} have {many * count} legs.",
            many * count,
            f"One has {count} legs, and {many} x {count} = {many * count}.",
        )


_STORY = Grammar(
    {
        "story": (
            "Once there was {a adjective} {hero} who lived near {a landscape}. One day the {hero} found {a adjective} "
            "{object}. "
            "{^helper} asked for it, and the {hero} gave it away. From then on the two were friends.",
            "{a hero} wanted to cross the {landscape}. {^helper} said it was too far. The {hero} went all the same, "
            "met "
            "{a adjective} {trade}, and came home with {a object}.",
            "In {a landscape} lived {a adjective} {hero}. Every night it looked for {food}. One night it met "
            "{helper}, and "
            "they shared the {food} until morning.",
            "{a adjective} {hero} lost {a object} in the {landscape}. {^helper} found it the next day. The {hero} was "
            "so happy "
            "that it brought {food} for everyone.",
        ),
        "helper": ("{a trade}", "an old {animal}", "the {animal} next door", "a passing {trade}"),
        "adjective": ADJECTIVES,
        "animal": ANIMALS,
        "landscape": tuple(word for word in LANDSCAPE if word.isalpha()),
        "object": OBJECTS,
        "trade": TRADES,
    }
)  # fmt: skip


def story(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    hero, food = chooser.pick(ANIMALS), chooser.pick(FOODS)
    question = chooser.pick(
        (f"Tell me a short story about {article(hero)}.", f"Can you tell me a story with {article(hero)} in it?")
    )
    dialogue.exchange(question, capitalized(_STORY.expand(chooser, "story", {"hero": hero, "food": food})))


def unknowable(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    question, answer = chooser.pick(
        (
            ("What will the weather be tomorrow?", "I cannot know tomorrow's weather."),
            ("What am I holding in my hand?", "I cannot see, so I do not know."),
            (f"What did {chooser.first_name()} eat today?", "I have no way to know that."),
            (f"Where did I put my {chooser.pick(OBJECTS)}?", "You have not told me where it is."),
            (f"How many {chooser.pick(ANIMALS)} pictures do I own?", "I do not know; you have not said."),
        )
    )
    dialogue.exchange(question, answer, "I do not know.")


def farewell(dialogue: Dialogue) -> None:
    chooser = dialogue.chooser
    name = f", {dialogue.user_name}" if dialogue.user_name else ""
    question = chooser.pick(("Thank you!", "Thanks, that is all.", "Goodbye.", "Great, bye!", "Thanks for your help."))
    answer = chooser.pick(("You are welcome", "Goodbye", "Have a nice day", "Until next time"))
    dialogue.exchange(question, f"{answer}{name}!", "Goodbye.")


WORD_TASKS: tuple[Task, ...] = (
    letters, letters, letters, word_order, word_order, category, category, fact, fact, fact, fact, legs, own_name,
    unknowable,
)  # fmt: skip
