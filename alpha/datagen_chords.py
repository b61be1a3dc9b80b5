"""Chord charts: song forms filled with functional harmony, spelled in the song's key.

A chord is planned relative to the tonic (a number of fifths and a quality), so the same plan can be written in any key,
as Roman numerals, or transposed. Phrases are made from functions (tonic, subdominant, dominant), then enriched with
applied dominants, borrowed chords and substitutes.
"""

from typing import NamedTuple

from alpha.datagen_chooser import Chooser
from alpha.datagen_music import note_name, simple_note_name, title


class Chord(NamedTuple):
    """A chord as its root's distance from the tonic in fifths and a quality of `_COLOURS`."""

    fifths: int
    quality: str


Bar = tuple[Chord, ...]


def _bar(first: Chord, second: Chord) -> Bar:
    return (first, second) if first != second else (first,)


_COLOURS = {  # how a quality is written: triads, sevenths, richer
    "major": (("",), ("maj7", "6", "maj7"), ("maj7", "maj9", "6/9", "add9")),
    "minor": (("m",), ("m7",), ("m7", "m9", "m11")),
    "tonic minor": (("m",), ("m", "m6", "m7"), ("m6", "m9", "m(maj7)")),
    "dominant": (("", "7"), ("7",), ("7", "9", "13", "7sus4")),
    "altered": (("7",), ("7",), ("7b9", "7#9", "7b13")),
    "half-diminished": (("dim",), ("m7b5",), ("m7b5",)),
    "diminished": (("dim",), ("dim7",), ("dim7",)),
}
_NUMERALS = {
    0: "I", 2: "II", 4: "III", -1: "IV", 1: "V", 3: "VI", 5: "VII", -5: "bII", -3: "bIII", -4: "bVI", -2: "bVII",
    6: "#IV",
}  # fmt: skip
_SMALL = ("minor", "tonic minor", "half-diminished", "diminished")

_MAJOR = {
    "tonic": (Chord(0, "major"), Chord(0, "major"), Chord(3, "minor"), Chord(4, "minor")),
    "home": (Chord(0, "major"),),
    "subdominant": (Chord(2, "minor"), Chord(-1, "major"), Chord(2, "minor"), Chord(-1, "minor")),
    "dominant": (Chord(1, "dominant"), Chord(1, "dominant"), Chord(-2, "dominant"), Chord(-5, "dominant")),
}
_MINOR = {
    "tonic": (Chord(0, "tonic minor"), Chord(0, "tonic minor"), Chord(-4, "major"), Chord(-3, "major")),
    "home": (Chord(0, "tonic minor"),),
    "subdominant": (Chord(2, "half-diminished"), Chord(-1, "minor"), Chord(-4, "major")),
    "dominant": (Chord(1, "altered"), Chord(1, "dominant"), Chord(-2, "dominant"), Chord(-5, "dominant")),
}
_PHRASES = (  # four bars of functions; a close is added to the last phrase of a section
    ("tonic", "tonic", "subdominant", "dominant"),
    ("tonic", "subdominant", "dominant", "tonic"),
    ("home", "tonic", "subdominant", "subdominant"),
    ("subdominant", "dominant", "tonic", "tonic"),
    ("home", "subdominant", "tonic", "dominant"),
    ("tonic", "dominant", "tonic", "dominant"),
    ("subdominant", "subdominant", "tonic", "tonic"),
    ("tonic", "tonic", "dominant", "dominant"),
)
_CLOSES = (
    ("subdominant", "dominant", "home", "home"),
    ("tonic", "subdominant", "dominant", "home"),
    ("subdominant", "dominant", "home", "dominant"),
    ("dominant", "dominant", "home", "home"),
)
# What may follow a diatonic chord in folk and pop, by fifths from the tonic.
_MAJOR_STEPS = {
    0: (-1, -1, 1, 1, 3, 3, 2, 4, -2), 2: (1, 1, -1, 0), 4: (3, -1, -1), -1: (0, 0, 1, 1, 2, 3, -2),
    1: (0, 0, 3, -1, 2), 3: (-1, -1, 2, 1, 4, 0), -2: (-1, 0),
}  # fmt: skip
_MINOR_STEPS = {
    0: (-4, -4, -2, -2, -1, -3, 1), -1: (0, -2, 1, -4), -2: (0, -4, -3, -1), -3: (-2, -4, -1), -4: (-2, -2, -3, -1, 1),
    1: (0, 0, -4),
}  # fmt: skip
_MAJOR_QUALITY = {0: "major", 2: "minor", 4: "minor", -1: "major", 1: "dominant", 3: "minor", -2: "major"}
_MINOR_QUALITY = {0: "minor", -1: "minor", -2: "major", -3: "major", -4: "major", 1: "dominant"}


class _Style(NamedTuple):
    """A kind of song: metre, tempo, how rich its chords are, and the forms it takes."""

    name: str
    metre: str
    slowest: int
    fastest: int
    colours: tuple[int, ...]
    forms: tuple[str, ...]
    writer: str


_STYLES = (
    _Style("swing", "4/4", 120, 220, (1, 1, 2), ("A A B A", "A B A C", "A A B A C"), "functional"),
    _Style("ballad", "4/4", 54, 76, (1, 2, 2), ("A A B A", "A B A B"), "functional"),
    _Style("bossa nova", "4/4", 116, 150, (1, 2), ("A A B A", "A B", "Intro A A B"), "functional"),
    _Style("jazz waltz", "3/4", 130, 190, (1, 2), ("A A B A", "A B A C"), "functional"),
    _Style("blues", "4/4", 70, 180, (0, 1, 1), ("Chorus", "Intro Chorus", "Chorus Turnaround"), "blues"),
    _Style("shuffle", "12/8", 60, 120, (0, 0, 1), ("Chorus", "Intro Chorus"), "blues"),
    _Style("pop", "4/4", 84, 132, (0, 0, 0, 1), ("Intro Verse Chorus Verse Chorus Bridge Chorus",
           "Verse Prechorus Chorus Verse Prechorus Chorus", "Verse Chorus Verse Chorus Outro"), "steps"),
    _Style("rock", "4/4", 96, 168, (0,), ("Intro Verse Chorus Verse Chorus Solo Chorus", "Verse Verse Chorus Verse"),
           "steps"),
    _Style("folk", "4/4", 80, 120, (0,), ("Verse Refrain", "A A B B", "Verse Verse Refrain"), "steps"),
    _Style("country", "2/4", 80, 126, (0, 0, 1), ("Intro Verse Chorus Verse Chorus", "A A B A"), "steps"),
    _Style("waltz", "3/4", 84, 144, (0, 0, 1), ("A A B B", "A B A", "Verse Chorus Verse Chorus"), "steps"),
    _Style("soul", "6/8", 48, 72, (1, 1, 2), ("Intro Verse Chorus Verse Chorus Bridge Chorus",), "steps"),
)  # fmt: skip
_KEYS = {"major": (0, 0, 1, 1, 2, 2, 3, 4, -1, -1, -2, -2, -3, -3, -4, -5), "minor": (3, 3, 4, 4, 2, 5, 1, 0, -1, 6)}


class _Song:
    """What holds for a whole song, and how its bars are made and written."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.style = chooser.pick(_STYLES)
        self.minor = chooser.chance(35)
        self.tonic = chooser.pick(_KEYS["minor" if self.minor else "major"])
        colour = chooser.pick(self.style.colours)
        # One way of writing each quality for the whole song, so that a chart is consistent with itself.
        self.suffixes = {quality: chooser.pick(levels[colour]) for quality, levels in _COLOURS.items()}
        self.richness = chooser.between(0, 45) if colour else 10

    def name(self, chord: Chord, transposed: int = 0) -> str:
        """A chord's symbol, `transposed` fifths from the song's key."""
        return simple_note_name(self.tonic + transposed + chord.fifths) + self.suffixes[chord.quality]

    def numeral(self, chord: Chord) -> str:
        """A chord's Roman numeral: small for minor and diminished, with the rest of its symbol after it."""
        suffix = self.suffixes[chord.quality]
        numeral = _NUMERALS[chord.fifths]
        if chord.quality not in _SMALL:
            return numeral + suffix
        flat, roman = ("b", numeral[1:]) if numeral.startswith("b") else ("", numeral)
        return flat + roman.lower() + (suffix.removeprefix("m") if chord.quality != "half-diminished" else suffix)

    def section(self, name: str) -> list[Bar]:
        """The bars of a section of the form."""
        if name in ("Intro", "Outro", "Turnaround"):
            return self.turnaround()
        if name == "Chorus" and self.style.writer == "blues":
            return self.blues()
        return self.functional() if self.style.writer == "functional" else self.steps()

    def functional(self) -> list[Bar]:
        """Eight bars of jazz harmony."""
        chooser = self.chooser
        table = _MINOR if self.minor else _MAJOR
        functions = chooser.pick(_PHRASES) + chooser.pick(_CLOSES)
        chords = [chooser.pick(table[function]) for function in functions]
        bars: list[Bar] = []
        for position, chord in enumerate(chords):
            following = chords[(position + 1) % len(chords)]
            if chord.quality in ("dominant", "altered") and chooser.chance(self.richness):
                preparation = Chord(2, "half-diminished" if self.minor else "minor")
                bars.append(_bar(preparation, chord))
            elif following != chord and following.fifths in (2, -1, 3, 0, 4, 1) and chooser.chance(self.richness):
                bars.append(_bar(chord, Chord(following.fifths + 1, "dominant")))
            elif chooser.chance(self.richness // 4) and position and chords[position - 1] == chord:
                bars.append((chord, Chord(6, "diminished")))
            else:
                bars.append((chord,))
        return bars

    def blues(self) -> list[Bar]:
        """Twelve bars of blues."""
        chooser = self.chooser
        tonic_quality = "minor" if self.minor else "dominant"
        one, four, five = Chord(0, tonic_quality), Chord(-1, tonic_quality), Chord(1, "dominant")
        two = Chord(2, "half-diminished" if self.minor else "minor")
        ways: list[list[Bar]] = [
            [(one,)], [(one,), (four,)], [(one,)], [(one,), _bar(one, Chord(0, "dominant"))],
            [(four,)], [(four,), (four, Chord(6, "diminished"))], [(one,)], [(one,), (Chord(3, "dominant"),)],
            [(five,), (two,), (Chord(-4, "dominant"),)], [(four,), (five,)],
            [(one,), (one, Chord(3, "dominant")), (one, four)], [(five,), (one, five), (two, five), (one,)],
        ]  # fmt: skip
        return [chooser.pick(way) for way in ways]

    def steps(self) -> list[Bar]:
        """Eight or sixteen bars of folk or pop: a line that returns with a changed ending."""
        chooser = self.chooser
        steps, qualities = (_MINOR_STEPS, _MINOR_QUALITY) if self.minor else (_MAJOR_STEPS, _MAJOR_QUALITY)
        start = chooser.pick((0, 0, 0, -4, -1) if self.minor else (0, 0, 0, 3, -1))
        line = [start]
        while len(line) < 4:
            line.append(line[-1] if chooser.chance(12) else chooser.pick(steps[line[-1]]))
        second = list(line)
        if chooser.chance(70):
            second[2:] = chooser.pick(([1, 0], [-1, 0], [1, 1], [-2, 0]))
        roots = line + second
        if chooser.chance(25):
            roots = line + line[:3] + [1] + line + second
        return [(Chord(root, qualities[root]),) for root in roots]

    def turnaround(self) -> list[Bar]:
        """Four bars that lead back to the beginning."""
        chooser = self.chooser
        one = Chord(0, "minor" if self.minor else "dominant" if self.style.writer == "blues" else "major")
        two = Chord(2, "half-diminished" if self.minor else "minor")
        five = Chord(1, "dominant")
        four = Chord(-1, "minor" if self.minor else one.quality)
        second = Chord(-4, "major") if self.minor else Chord(3, "minor")
        ways: list[list[Bar]] = [
            [(one,), (second,), (two,), (five,)],
            [(one, second), (two, five), (one, second), (two, five)],
            [(one,), (four,), (one,), (five,)],
            [(four,), (five,), (one,), (one,)],
            [(one,), (one,), (four,), (five,)],
            [(second,), (four,), (one,), (five,)],
        ]
        return chooser.pick(ways)

    def rows(self, bars: list[Bar], transposed: int = 0, shorthand: bool = False, repeated: bool = False) -> list[str]:
        """Bars written four a line; `shorthand` writes a bar equal to the one before it as %."""
        cells = []
        for position, bar in enumerate(bars):
            same = shorthand and position % 4 and bar == bars[position - 1]
            cells.append("%" if same else " ".join([self.name(chord, transposed) for chord in bar]))
        rows = [f"| {' | '.join(cells[first : first + 4])} |" for first in range(0, len(cells), 4)]
        if repeated:
            rows[0] = "|:" + rows[0][1:]
            rows[-1] = rows[-1][:-1] + ":|"
        return rows


def generate(index: int, seed: int) -> str:
    """Chart number `index`."""
    return compose(Chooser("chords", index, seed))


def compose(chooser: Chooser) -> str:
    """One chart."""
    song = _Song(chooser)
    style = song.style
    form = chooser.pick(style.forms)
    mode = "minor" if song.minor else "major"
    lines = [f"Title: {title(chooser)}"]
    if chooser.chance(50):
        lines.append(f"Writer: {chooser.first_name()} {chooser.surname()}")
    lines += [
        f"Key: {note_name(song.tonic)} {mode}",
        f"Style: {style.name}",
        f"Tempo: {chooser.between(style.slowest, style.fastest)}",
        f"Metre: {style.metre}",
        f"Form: {form}",
    ]
    shorthand = chooser.chance(30)
    with_numerals = chooser.chance(30)
    sections: dict[str, list[Bar]] = {}
    for name in dict.fromkeys(form.split()):
        bars = song.section(name)
        sections[name] = bars
        lines += ["", f"[{name}]"]
        lines += song.rows(bars, shorthand=shorthand, repeated=chooser.chance(20))
        if with_numerals:
            lines.append("Numerals: " + " | ".join([" ".join(map(song.numeral, bar)) for bar in bars]))
    if chooser.chance(25):
        name = chooser.pick(list(sections))
        transposed = _transposition(chooser, song.tonic)
        lines += ["", f"[{name} in {note_name(song.tonic + transposed)} {mode}]"]
        lines += song.rows(sections[name], transposed=transposed, shorthand=shorthand)
    return "\n".join(lines)


def _transposition(chooser: Chooser, tonic: int) -> int:
    """A distance in fifths to another key with at most six signs or so."""
    return chooser.pick([fifths for fifths in (-5, -3, -2, -1, 1, 2, 3, 5) if -5 <= tonic + fifths <= 6])
