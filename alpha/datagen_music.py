"""Tunes in ABC notation (standard 2.1) and chord charts, composed by rule.

A note's name is a position on the line of fifths (F -1, C 0, G 1, ... B flat -2), which makes spelling arithmetic: a
scale degree is a fixed number of fifths from the tonic in every key. Durations are counted in half units of the L:
field, so that every bar adds up to the metre by construction.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

from alpha.datagen_grammar import Chooser, items, table

_LETTERS, _FIFTHS = "CDEFGAB", "FCGDAEB"


def _numbers(symbol: str) -> tuple[int, ...]:
    return tuple(map(int, items(f"music.{symbol}")))


def _note_name(fifths: int) -> str:
    """The name of a position on the line of fifths with "#" and "b" after the letter: -1 is "F", 6 is "F#"."""
    sharps, letter = divmod(fifths + 1, 7)
    return _FIFTHS[letter] + ("#" * sharps if sharps > 0 else "b" * -sharps)


@lru_cache(maxsize=64)
def _simple_note_name(fifths: int) -> str:
    """The name with at most one sign, avoiding Cb, Fb, E# and B#: the enharmonic equal twelve fifths away if needed."""
    while fifths < -6:
        fifths += 12
    while fifths > 8:
        fifths -= 12
    return _note_name(fifths)


def _signature(sharps: int) -> list[int]:
    """The accidental (-1, 0 or 1) of each letter C D E F G A B in a key signature of `sharps` (flats negative)."""
    altered = _FIFTHS[:sharps] if sharps > 0 else _FIFTHS[7 + sharps :]
    return [(1 if sharps > 0 else -1) if letter in altered and sharps else 0 for letter in _LETTERS]


# --- tunes ----------------------------------------------------------------------------------------------------------

_SEMITONES = (0, 2, 4, 5, 7, 9, 11)
_LOWEST, _HIGHEST = -3, 14  # staff steps from middle C: G below it to the second C above
_TO_CHORD_TONE = (0, -1, 0, 1, 0, -1, 1)  # by scale degree above the chord's root
_TRIPLET = "(3"

Cell = tuple[int, ...]
"""The lengths of a beat's notes in half units; a negative number is a triplet in that time."""


class _Mode(NamedTuple):
    """A mode of the major scale; `signature` is its sharps less the tonic's position on the line of fifths."""

    name: str
    suffix: str
    signature: int
    tonics: tuple[int, ...]  # positions on the line of fifths
    degrees: tuple[int, ...]  # roots of its chords
    cadences: tuple[int, ...]


class _Rhythm(NamedTuple):
    """A kind of tune: its metre, the beats of a bar in half units, and how it moves."""

    row: dict[str, str]
    beats: tuple[int, ...]
    cells: dict[int, tuple[Cell, ...]]


def _cells(name: str) -> tuple[Cell, ...]:
    return tuple(tuple(map(int, cell.split(","))) for cell in items(f"music.{name}"))


def _figures(notes: int) -> tuple[tuple[int, ...], ...]:
    """Melodic figures of so many notes, as steps from the first: every walk by small steps that stays near."""
    walks = []
    for steps in product((-2, -1, 0, 1, 2) if notes < 4 else (-2, -1, 1, 2), repeat=notes - 1):
        offsets = [sum(steps[:count]) for count in range(notes)]
        if max(offsets) - min(offsets) <= 4 and 2 * sum(abs(step) == 1 for step in steps) >= len(steps):
            walks.append(tuple(offsets))
    return tuple(walks)


_MODES = {
    row["name"]: _Mode(
        row["name"], row["suffix"], int(row["signature"]), _numbers(f"{row['name']}_tonic"),
        _numbers(f"{row['name']}_chord"), _numbers(f"{row['name']}_cadence"),
    )
    for row in table("music.mode")
}  # fmt: skip
_EVEN = {4: _cells("even_4"), 6: _cells("even_6"), 8: _cells("even_8")}
_DOTTED = {4: _cells("dotted_4"), 8: _cells("dotted_8")}
_RHYTHMS = [
    _Rhythm(row, tuple(map(int, row["beats"].split())), _DOTTED if row["moves"] == "dotted" else _EVEN)
    for row in table("music.rhythm")
]
_FIGURES = {notes: _figures(notes) for notes in range(1, 6)}
_PITCHES = {
    step: _LETTERS[step % 7].lower() + "'" * (step // 7 - 1) if step >= 7 else _LETTERS[step % 7] + "," * -(step // 7)
    for step in range(_LOWEST, _HIGHEST + 1)
}


def _duration(half_units: int, half: str) -> str:
    """The length that follows a note: nothing for one unit, `half` for half a unit, "3/2" for one and a half."""
    if half_units % 2:
        return half if half_units == 1 else f"{half_units}/2"
    return "" if half_units == 2 else str(half_units // 2)


@lru_cache(maxsize=1024)
def _suffixes(cell: Cell, broken: bool, half: str) -> tuple[str, ...]:
    """What follows each note of a beat; `broken` writes dotted pairs as A>B and A<B."""
    suffixes: list[str] = []
    for index, length in enumerate(cell):
        if length < 0:
            suffixes.append(_TRIPLET)
        elif broken and suffixes and suffixes[-1] in (">", "<"):
            suffixes.append("")
        elif broken and cell[index : index + 2] in ((3, 1), (1, 3)):
            suffixes.append(">" if length == 3 else "<")
        else:
            suffixes.append(_duration(length, half))
    return tuple(suffixes)


class _Tune:
    """The choices that hold for a whole tune, and the melody's present place."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.rhythm = chooser.pick(_RHYTHMS)
        self.mode = _MODES[chooser.write("music.mode_of_tune")]
        tonic = chooser.pick(self.mode.tonics)
        self.tonic_name = _note_name(tonic)
        self.accidentals = _signature(tonic + self.mode.signature)
        tonic_step = _LETTERS.index(self.tonic_name[0])
        self.tonic_step = tonic_step - 7 if tonic_step > 4 and chooser.chance(60) else tonic_step
        self.half = chooser.pick(("/", "/2"))
        self.broken = self.rhythm.cells is _DOTTED or chooser.chance(15)
        self.shows_chords = chooser.chance(35)
        self.ornament = chooser.pick(("", "", "", "~", "{g}", "{d}", "T"))
        self.pickup = 2 if chooser.chance(35) else 0
        self.bar_line = chooser.pick(("|", "|", " | "))
        self.lowest = _LOWEST - self.tonic_step
        self.highest = min(_HIGHEST - self.tonic_step, 11)
        self.degree = 0

    def note(self, degree: int, raised: bool) -> str:
        """A scale degree (0 is the tonic) as a note without length; `raised` sharpens the seventh."""
        step = min(max(degree, self.lowest), self.highest) + self.tonic_step
        name = _PITCHES[step]
        if raised and degree % 7 == 6:
            return ("=" if self.accidentals[step % 7] < 0 else "^") + name
        return name

    def chord(self, degree: int, raised: bool = False) -> str:
        """The symbol of the triad on a scale degree in this key, such as "Em" or "C#dim", where chords are shown."""
        if not self.shows_chords:
            return ""
        letters = [(self.tonic_step + degree + offset) % 7 for offset in (0, 2, 4)]
        root, third, fifth = (_SEMITONES[letter] + self.accidentals[letter] for letter in letters)
        sign = ("", "#", "b")[self.accidentals[letters[0]]]
        quality = "" if raised or (third - root) % 12 == 4 else "m" if (fifth - root) % 12 == 7 else "dim"
        return f'"{_LETTERS[letters[0]]}{sign}{quality}"'

    def beat(self, half_units: int, root: int, centre: int, raised: bool) -> str:
        """The notes of one beat: the first on a tone of the chord, the rest by a figure."""
        chooser = self.chooser
        cell = chooser.pick(self.rhythm.cells.get(half_units) or _EVEN[half_units])
        pull = (self.degree < centre) - (self.degree > centre)
        target = self.degree + chooser.pick((-2, -1, -1, 0, 1, 1, 2)) + pull
        start = target + _TO_CHORD_TONE[(target - root) % 7]
        start += 7 * ((start < self.lowest) - (start > self.highest))
        figure = chooser.pick(_FIGURES[len(cell)])
        text = self.ornament if self.ornament and cell[0] >= 4 and chooser.chance(30) else ""
        for offset, suffix in zip(figure, _suffixes(cell, self.broken, self.half), strict=True):
            degree = start + offset
            if not self.lowest <= degree <= self.highest:
                degree = start - offset
            if suffix == _TRIPLET:
                text += "(3" + "".join([self.note(degree + inner, raised) for inner in chooser.pick(_FIGURES[3])])
            else:
                text += self.note(degree, raised) + suffix
        self.degree = degree
        return text

    def final_bar(self) -> str:
        """A bar that comes to rest on the tonic, shorter by the pickup."""
        *others, last = self.rhythm.beats
        octave = 7 if self.degree > 3 and self.highest >= 7 else 0
        tonic = self.note(octave, False)
        held_from = self.chooser.below(len(others) + 1)
        beats = [self.beat(half_units, 0, octave + 1, False) for half_units in others[:held_from]]
        beats += [tonic + _duration(half_units, self.half) for half_units in others[held_from:]]
        beats.append(tonic + _duration(last - self.pickup, self.half))
        self.degree = octave
        return self.chord(0) + " ".join(beats)

    def bars(self, plan: str, centre: int) -> list[str]:
        """The bars of a phrase plan; equal letters are equal bars (a on the tonic, h the half close, z the full)."""
        made: dict[str, str] = {}
        for position, letter in enumerate(plan):
            if letter == "z":
                made[letter] = self.final_bar()
            elif letter not in made:
                closing = letter == "h" or (letter != "a" and plan[position + 1] == "z")
                root = 0 if letter == "a" else self.chooser.pick(self.mode.cadences if closing else self.mode.degrees)
                raised = self.mode.name == "minor" and root == 4
                beats = [self.beat(half_units, root, centre, raised) for half_units in self.rhythm.beats]
                made[letter] = self.chord(root, raised) + " ".join(beats)
        return [made[letter] for letter in plan]

    def part(self, plan: str, centre: int, last: bool) -> str:
        """A part of the tune with its repeat signs, four bars a line."""
        chooser = self.chooser
        repeated = chooser.chance(80)
        pickup = self.note(chooser.pick((-3, -1, 1, 2, 4)), False) + self.bar_line if self.pickup else ""
        bars = self.bars(plan, centre)
        rows = [self.bar_line.join(bars[first : first + 4]) for first in range(0, len(bars), 4)]
        text = f"{self.bar_line.rstrip()}\n".join(rows)
        end = "|]" if last else "||"
        if not repeated:
            return f"{pickup}{text}{end}"
        if chooser.chance(25) and (second := self.final_bar()) != bars[-1]:
            head = text.removesuffix(bars[-1]).rstrip(" |")
            return f"|:{pickup}{head}|1 {bars[-1]}:|2 {second}{end}"
        return f"|:{pickup}{text}:|"


def tune(chooser: Chooser, number: int) -> str:
    """A document of the domain abc: a tune, whose reference number (X:) is `number`."""
    made = _Tune(chooser)
    rhythm, mode = made.rhythm.row, made.mode
    lines = [f"X:{number}", f"T:{chooser.write('music.title')}"]
    if chooser.chance(25):
        lines.append(f"C:{chooser.write('music.composer')}")
    if chooser.chance(75):
        lines.append(f"R:{rhythm['name']}")
    lines += [f"M:{rhythm['metre']}", f"L:{rhythm['unit']}"]
    if chooser.chance(40):
        lines.append(f"Q:{rhythm['tempo']}={chooser.between(int(rhythm['slowest']), int(rhythm['fastest'])) // 2 * 2}")
    suffix = f" {mode.name}" if mode.suffix and chooser.chance(20) else mode.suffix
    lines.append(f"K:{made.tonic_name}{suffix}")
    parts = chooser.pick((1, 2, 2, 2, 2, 2, 2, 3, 3, 4))
    labelled = parts > 1 and chooser.chance(20)
    plan = "music.long_plan" if len(made.rhythm.beats) == 1 and chooser.chance(50) else "music.plan"
    for part in range(parts):
        if labelled:
            lines.append(f"P:{'ABCD'[part]}")
        centre = min((2, 6, 4, 8)[part], _HIGHEST - 3 - made.tonic_step)
        lines.append(made.part(chooser.write(plan), centre, part == parts - 1))
    return "\n".join(lines)


# --- chord charts ---------------------------------------------------------------------------------------------------


class _Chord(NamedTuple):
    """A chord as its root's distance from the tonic in fifths and a quality."""

    fifths: int
    quality: str


Bar = tuple[_Chord, ...]


@lru_cache(maxsize=256)
def _chords(text: str) -> Bar:
    """Chords written as "2:minor 1:dominant"; an underscore in a quality stands for a blank."""
    pairs = [chord.split(":") for chord in text.split()]
    return tuple(_Chord(int(fifths), quality.replace("_", " ")) for fifths, quality in pairs)


_STYLES = table("music.style")
_QUALITIES = table("music.quality")
_COLOURS = {  # ways to write each quality; - stands for nothing
    colour: {row["quality"]: row[colour].replace("-", "").split(" ") for row in _QUALITIES}
    for colour in ("plain", "seventh", "rich")
}
_SMALL = frozenset(row["quality"] for row in _QUALITIES if row["third"] == "minor")
_NUMERALS = {int(row["fifths"]): row["numeral"] for row in table("music.numeral")}
_HARMONY = {mode: {row["function"]: _chords(row["chords"]) for row in table(f"music.{mode}_function")}
            for mode in ("major", "minor")}  # fmt: skip
_STEPS = {
    mode: {
        int(row["from"]): (row["quality"], tuple(map(int, row["to"].split()))) for row in table(f"music.{mode}_step")
    }
    for mode in ("major", "minor")
}


class _Song:
    """What holds for a whole song, and how its bars are made and written."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.style = chooser.pick(_STYLES)
        self.mode = "minor" if chooser.chance(35) else "major"
        self.tonic = chooser.pick(_KEYS[self.mode])
        colour = chooser.pick(self.style["colours"].split())
        # One way of writing each quality for the whole song, so that a chart is consistent with itself.
        self.suffixes = {quality: chooser.pick(ways) for quality, ways in _COLOURS[colour].items()}
        self.richness = 10 if colour == "plain" else chooser.between(0, 45)

    def name(self, chord: _Chord, transposed: int = 0) -> str:
        """A chord's symbol, `transposed` fifths from the song's key."""
        return _simple_note_name(self.tonic + transposed + chord.fifths) + self.suffixes[chord.quality]

    def numeral(self, chord: _Chord) -> str:
        """A chord's Roman numeral: small for minor and diminished, with the rest of its symbol after it."""
        suffix, numeral = self.suffixes[chord.quality], _NUMERALS[chord.fifths]
        if chord.quality not in _SMALL:
            return numeral + suffix
        small = numeral[:1] + numeral[1:].lower() if numeral.startswith("b") else numeral.lower()
        return small + (suffix.removeprefix("m") if chord.quality != "half-diminished" else suffix)

    def section(self, name: str) -> list[Bar]:
        """The bars of a section of the form."""
        writer = self.style["writer"]
        if name in ("Intro", "Outro", "Turnaround"):
            tonic = "dominant" if writer == "blues" and self.mode == "major" else self.mode
            return [_chords(bar) for bar in self.chooser.write(f"music.{self.mode}_turnaround", tonic=tonic).split("|")]
        if name == "Chorus" and writer == "blues":
            return [_chords(self.chooser.pick(way.split("|"))) for way in items(f"music.{self.mode}_blues")]
        return self.functional() if writer == "functional" else self.steps()

    def functional(self) -> list[Bar]:
        """Eight bars of jazz harmony, enriched with applied dominants and other chords that lead to the next."""
        chooser = self.chooser
        functions = f"{chooser.write('music.phrase')} {chooser.write('music.close')}".split()
        chords = [chooser.pick(_HARMONY[self.mode][function]) for function in functions]
        bars: list[Bar] = []
        for position, chord in enumerate(chords):
            following = chords[(position + 1) % len(chords)]
            bar: Bar = (chord,)
            if chord.quality in ("dominant", "altered") and chooser.chance(self.richness):
                bar = (_Chord(2, "half-diminished" if self.mode == "minor" else "minor"), chord)
            elif following != chord and following.fifths in (2, -1, 3, 0, 4, 1) and chooser.chance(self.richness):
                bar = (chord, _Chord(following.fifths + 1, "dominant"))
            elif chooser.chance(self.richness // 4) and position and chords[position - 1] == chord:
                bar = (chord, _Chord(6, "diminished"))
            bars.append(tuple(dict.fromkeys(bar)))
        return bars

    def steps(self) -> list[Bar]:
        """Eight or sixteen bars of folk or pop: a line that returns with a changed ending."""
        chooser, steps = self.chooser, _STEPS[self.mode]
        line = [int(chooser.write(f"music.{self.mode}_start"))]
        while len(line) < 4:
            line.append(line[-1] if chooser.chance(12) else chooser.pick(steps[line[-1]][1]))
        second = list(line)
        if chooser.chance(70):
            second[2:] = chooser.pick(([1, 0], [-1, 0], [1, 1], [-2, 0]))
        roots = line + second
        if chooser.chance(25):
            roots = line + line[:3] + [1] + line + second
        return [(_Chord(root, steps[root][0]),) for root in roots]

    def rows(self, bars: list[Bar], shorthand: bool, transposed: int = 0, repeated: bool = False) -> list[str]:
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


_KEYS = {"major": _numbers("major_key"), "minor": _numbers("minor_key")}


def chart(chooser: Chooser) -> str:
    """A document of the domain chords: the chart of a song."""
    song = _Song(chooser)
    style, mode = song.style, song.mode
    form = chooser.pick(style["forms"].split(", "))
    lines = [f"Title: {chooser.write('music.title')}"]
    if chooser.chance(50):
        lines.append(f"Writer: {chooser.write('music.writer')}")
    lines.append(
        chooser.write(
            "music.head", key=f"{_note_name(song.tonic)} {mode}", name=style["name"], beat=style["metre"], form=form,
            tempo=chooser.between(int(style["slowest"]), int(style["fastest"])),
        )
    )  # fmt: skip
    shorthand, with_numerals = chooser.chance(30), chooser.chance(30)
    sections = {name: song.section(name) for name in dict.fromkeys(form.split())}
    for name, bars in sections.items():
        lines += ["", f"[{name}]", *song.rows(bars, shorthand, repeated=chooser.chance(20))]
        if with_numerals:
            lines.append("Numerals: " + " | ".join([" ".join(map(song.numeral, bar)) for bar in bars]))
    if chooser.chance(25):
        name = chooser.pick(list(sections))
        # to another key with at most six signs or so
        moved = chooser.pick([fifths for fifths in (-5, -3, -2, -1, 1, 2, 3, 5) if -5 <= song.tonic + fifths <= 6])
        lines += ["", f"[{name} in {_note_name(song.tonic + moved)} {mode}]"]
        lines += song.rows(sections[name], shorthand, moved)
    return "\n".join(lines)
