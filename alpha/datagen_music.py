"""What tunes and chord charts share: note names, keys, modes and titles. Knows nothing about either format.

A note's name is a position on the line of fifths (F -1, C 0, G 1, ... B flat -2), which makes spelling arithmetic: a
scale degree is a fixed number of fifths from the tonic in every key.
"""

from typing import NamedTuple

from alpha.datagen_chooser import Chooser, Grammar
from alpha.datagen_words import ADJECTIVES, ANIMALS, FOODS, LANDSCAPE, MATERIALS, MEN, OBJECTS, TRADES, WOMEN, words

LETTERS = "CDEFGAB"
_FIFTHS = "FCGDAEB"


class Mode(NamedTuple):
    """A mode of the major scale, with the suffix of ABC notation."""

    name: str
    suffix: str
    signature: int  # sharps of the signature (flats negative) less the tonic's position on the line of fifths


MODES = {
    mode.name: mode
    for mode in (
        Mode("major", "", 0),
        Mode("minor", "m", -3),
        Mode("dorian", "dor", -2),
        Mode("mixolydian", "mix", -1),
        Mode("lydian", "lyd", 1),
        Mode("phrygian", "phr", -4),
    )
}


def note_name(fifths: int) -> str:
    """The name of a position on the line of fifths with "#" and "b" after the letter: -1 is "F", 6 is "F#"."""
    sharps, letter = divmod(fifths + 1, 7)
    return _FIFTHS[letter] + ("#" * sharps if sharps > 0 else "b" * -sharps)


def simple_note_name(fifths: int) -> str:
    """The name with at most one sign, avoiding Cb, Fb, E# and B#: the enharmonic equal twelve fifths away if needed."""
    while fifths < -6:
        fifths += 12
    while fifths > 8:
        fifths -= 12
    return note_name(fifths)


def signature_accidentals(sharps: int) -> list[int]:
    """The accidental (-1, 0 or 1) of each letter C D E F G A B in a key signature of `sharps` (flats negative)."""
    accidentals = [0] * 7
    for position in range(abs(sharps)):
        letter = _FIFTHS[position] if sharps > 0 else _FIFTHS[6 - position]
        accidentals[LETTERS.index(letter)] = 1 if sharps > 0 else -1
    return accidentals


_TITLES = Grammar(
    {
        "title": (
            "The {^adjective} {^noun}",
            "The {^adjective} {^noun}",
            "The {^noun} in the {^landscape}",
            "The {^noun} of {place}",
            "The {^trade}'s {^object}",
            "{name} {surname}'s {fancy}",
            "{name} {surname}'s {^object}",
            "{name}'s {^animal}",
            "The {^landscape} of {place}",
            "The Road to {place}",
            "{place} {^landscape}",
            "Over the {^landscape} to {place}",
            "Farewell to {place}",
            "The {^material} {^object}",
            "{^food} and {^food}",
            "The {^animal} and the {^animal}",
            "{name} of {place}",
            "Down by the {^landscape}",
            "{^adjective} {^food}",
            "Lady {surname}",
            "The Return of {name} {surname}",
        ),
        "fancy": words("Delight Dream Fancy Farewell Favourite Frolic Lament Ramble Return Welcome Wish"),
        "noun": ("{animal}", "{trade}", "{object}"),
        "adjective": ADJECTIVES,
        "animal": ANIMALS,
        "trade": TRADES,
        "object": OBJECTS,
        "landscape": LANDSCAPE,
        "material": MATERIALS,
        "food": FOODS,
        "name": WOMEN + MEN,
    }
)


def title(chooser: Chooser) -> str:
    """A title for a tune or a song."""
    return _TITLES.expand(chooser, "title", {"place": chooser.place(), "surname": chooser.surname()})
