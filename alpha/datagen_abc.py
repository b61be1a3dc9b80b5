"""Tunes in ABC notation (standard 2.1), composed by rule: keys, modes, rhythms, phrases, repeats and cadences.

A tune is planned from the top: parts, then a phrase plan of bars that return ("abahabaz"), then a chord for each bar,
then notes that start beats on the chord and move by small figures between. Durations are counted in half units of the
L: field, so that every bar adds up to the metre by construction.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

from alpha.datagen_chooser import Chooser
from alpha.datagen_music import LETTERS, MODES, Mode, note_name, signature_accidentals, title

_SEMITONES = (0, 2, 4, 5, 7, 9, 11)
_LOWEST, _HIGHEST = -3, 14  # staff steps from middle C: G below it to the second C above


class Rhythm(NamedTuple):
    """A kind of tune: its metre, the beats of a bar in half units of `unit`, and how it moves."""

    name: str
    metre: str
    unit: str
    beats: tuple[int, ...]
    dotted: bool
    tempo: str
    slowest: int
    fastest: int


RHYTHMS = (
    Rhythm("reel", "4/4", "1/8", (8, 8), False, "1/2", 80, 112),
    Rhythm("reel", "C|", "1/8", (8, 8), False, "1/2", 80, 112),
    Rhythm("jig", "6/8", "1/8", (6, 6), False, "3/8", 96, 126),
    Rhythm("jig", "6/8", "1/8", (6, 6), False, "3/8", 96, 126),
    Rhythm("slip jig", "9/8", "1/8", (6, 6, 6), False, "3/8", 96, 120),
    Rhythm("slide", "12/8", "1/8", (6, 6, 6, 6), False, "3/8", 110, 140),
    Rhythm("polka", "2/4", "1/8", (4, 4), False, "1/4", 112, 144),
    Rhythm("waltz", "3/4", "1/8", (4, 4, 4), False, "1/4", 96, 150),
    Rhythm("waltz", "3/4", "1/4", (6,), False, "1/4", 96, 150),
    Rhythm("hornpipe", "4/4", "1/8", (4, 4, 4, 4), True, "1/4", 130, 176),
    Rhythm("strathspey", "C", "1/8", (4, 4, 4, 4), True, "1/4", 110, 150),
    Rhythm("march", "2/4", "1/8", (4, 4), True, "1/4", 84, 108),
    Rhythm("march", "4/4", "1/8", (4, 4, 4, 4), True, "1/4", 84, 112),
    Rhythm("mazurka", "3/4", "1/8", (4, 4, 4), True, "1/4", 120, 150),
    Rhythm("barndance", "4/4", "1/8", (8, 8), True, "1/4", 120, 160),
    Rhythm("air", "4/4", "1/4", (4, 4), False, "1/4", 60, 90),
    Rhythm("minuet", "3/4", "1/8", (4, 4, 4), False, "1/4", 100, 130),
    Rhythm("paidushko", "5/8", "1/8", (4, 6), False, "1/8", 300, 400),
    Rhythm("ruchenitsa", "7/8", "1/8", (4, 4, 6), False, "1/8", 340, 440),
    Rhythm("kopanitsa", "11/8", "1/8", (4, 4, 6, 4, 4), False, "1/8", 380, 460),
)

# Ways to fill a beat of so many half units; repeated entries are likelier; a negative number is a triplet in that time.
_EVEN = {
    4: (*[(2, 2)] * 7, *[(4,)] * 3, (3, 1), (2, 1, 1), (1, 1, 2), (-4,)),
    6: (*[(2, 2, 2)] * 8, *[(4, 2)] * 5, (2, 4), (6,), (1, 1, 2, 2), (2, 1, 1, 2), (3, 1, 2)),
    8: (*[(2, 2, 2, 2)] * 9, *[(4, 2, 2)] * 3, (2, 2, 4), (6, 2), (4, 4), (-4, 2, 2), (2, 2, -4), (1, 1, 2, 2, 2)),
}
_DOTTED = {
    4: (*[(3, 1)] * 6, *[(1, 3)] * 2, *[(2, 2)] * 2, (4,), (4,), (-4,)),
    8: (*[(3, 1, 3, 1)] * 5, (3, 1, 2, 2), (4, 3, 1), (3, 1, 4), (2, 2, 3, 1), (-4, 3, 1), (4, 4)),
}


def _figures(notes: int) -> tuple[tuple[int, ...], ...]:
    """Melodic figures of so many notes, as steps from the first: every walk by small steps that stays near."""
    walks = []
    for steps in product((-2, -1, 0, 1, 2) if notes < 4 else (-2, -1, 1, 2), repeat=notes - 1):
        offsets = [0]
        for step in steps:
            offsets.append(offsets[-1] + step)
        conjunct = sum(abs(step) == 1 for step in steps)
        if max(offsets) - min(offsets) <= 4 and 2 * conjunct >= len(steps):
            walks.append(tuple(offsets))
    return tuple(walks)


_FIGURES = {notes: _figures(notes) for notes in range(1, 6)}
_PITCHES = {
    step: LETTERS[step % 7].lower() + "'" * (step // 7 - 1) if step >= 7 else LETTERS[step % 7] + "," * -(step // 7)
    for step in range(_LOWEST, _HIGHEST + 1)
}
_TO_CHORD_TONE = (0, -1, 0, 1, 0, -1, 1)  # by scale degree above the chord's root

_TONICS = {  # positions on the line of fifths; repeated ones are commoner
    "major": (1, 1, 1, 2, 2, 2, 3, 3, 0, 0, -1, -1, -2, -3, 4),
    "minor": (4, 4, 3, 3, 5, 2, 2, 1, 0, 6),
    "dorian": (4, 4, 3, 3, 2, 2, 1, 5),
    "mixolydian": (2, 2, 3, 3, 1, 4, 0),
    "lydian": (-1, 0, 1, -2),
    "phrygian": (4, 3, 5, 2),
}
_MODE_NAMES = (*["major"] * 9, *["minor"] * 4, *["dorian"] * 3, *["mixolydian"] * 3, "lydian", "phrygian")
_CHORD_DEGREES = {
    "major": (0, 0, 3, 3, 4, 5, 1),
    "minor": (0, 0, 6, 3, 5, 2),
    "dorian": (0, 0, 6, 6, 3, 2),
    "mixolydian": (0, 0, 6, 6, 3),
    "lydian": (0, 0, 1, 4),
    "phrygian": (0, 0, 1, 6),
}
_CADENCE_DEGREES = {
    "major": (4,), "minor": (4, 6), "dorian": (6,), "mixolydian": (6, 6, 3), "lydian": (4, 1), "phrygian": (1, 6),
}  # fmt: skip
_PLANS = (  # bars by letter: a on the tonic, h the half close, z the full close
    "abahabaz", "abchabcz", "abahcdaz", "abchdbcz", "aabhaabz", "abahcdez", "abchdefz", "abacabaz", "abachdez",
    "aabbahcz", "abcdabhz", "abahabcz", "abbhabbz", "abcbahcz", "abchabdz",
)  # fmt: skip
_LONG_PLANS = ("abchabcdefghabcz", "abcdabchefgeabcz", "abacabahdefgabcz", "abchdefhabcgdefz")


_TRIPLET = "(3"


def _duration(half_units: int, half: str) -> str:
    """The length that follows a note: nothing for one unit, `half` for half a unit, "3/2" for one and a half."""
    if half_units % 2:
        return half if half_units == 1 else f"{half_units}/2"
    return "" if half_units == 2 else str(half_units // 2)


@lru_cache(maxsize=1024)
def _suffixes(cell: tuple[int, ...], broken: bool, half: str) -> tuple[str, ...]:
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
        self.rhythm = chooser.pick(RHYTHMS)
        self.mode: Mode = MODES[chooser.pick(_MODE_NAMES)]
        tonic = chooser.pick(_TONICS[self.mode.name])
        self.tonic_name = note_name(tonic)
        self.accidentals = signature_accidentals(tonic + self.mode.signature)
        tonic_step = LETTERS.index(self.tonic_name[0])
        self.tonic_step = tonic_step - 7 if tonic_step > 4 and chooser.chance(60) else tonic_step
        self.cells = _DOTTED if self.rhythm.dotted else _EVEN
        self.half = chooser.pick(("/", "/2"))
        self.broken = self.rhythm.dotted or chooser.chance(15)
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

    def chord_name(self, degree: int, raised: bool) -> str:
        """The name of the triad on a scale degree in this key, such as Em, Bb or C#dim."""
        letters = [(self.tonic_step + degree + offset) % 7 for offset in (0, 2, 4)]
        root, third, fifth = (_SEMITONES[letter] + self.accidentals[letter] for letter in letters)
        sign = ("", "#", "b")[self.accidentals[letters[0]]]
        quality = "" if raised or (third - root) % 12 == 4 else "m" if (fifth - root) % 12 == 7 else "dim"
        return LETTERS[letters[0]] + sign + quality

    def beat(self, half_units: int, root: int, centre: int, raised: bool) -> str:
        """The notes of one beat: the first on a tone of the chord, the rest by a figure."""
        chooser = self.chooser
        cell = chooser.pick(self.cells.get(half_units) or _EVEN[half_units])
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

    def bar(self, root: int, centre: int, raised: bool = False) -> str:
        """One full bar on the chord of degree `root`."""
        beats = [self.beat(half_units, root, centre, raised) for half_units in self.rhythm.beats]
        chord = f'"{self.chord_name(root, raised)}"' if self.shows_chords else ""
        return chord + " ".join(beats)

    def final_bar(self) -> str:
        """A bar that comes to rest on the tonic, shorter by the pickup."""
        *others, last = self.rhythm.beats
        chord = f'"{self.chord_name(0, False)}"' if self.shows_chords else ""
        octave = 7 if self.degree > 3 and self.highest >= 7 else 0
        tonic = self.note(octave, False)
        held_from = self.chooser.below(len(others) + 1)
        beats = [self.beat(half_units, 0, octave + 1, False) for half_units in others[:held_from]]
        beats += [tonic + _duration(half_units, self.half) for half_units in others[held_from:]]
        beats.append(tonic + _duration(last - self.pickup, self.half))
        self.degree = octave
        return chord + " ".join(beats)

    def bars(self, plan: str, centre: int) -> list[str]:
        """The bars of a phrase plan; equal letters are equal bars."""
        chooser = self.chooser
        degrees, cadences = _CHORD_DEGREES[self.mode.name], _CADENCE_DEGREES[self.mode.name]
        made: dict[str, str] = {}
        for position, letter in enumerate(plan):
            if letter in made:
                continue
            if letter == "z":
                made[letter] = self.final_bar()
                continue
            closing = letter == "h" or (letter != "a" and plan[position + 1] == "z")
            root = 0 if letter == "a" else chooser.pick(cadences if closing else degrees)
            raised = self.mode.name == "minor" and root == 4
            made[letter] = self.bar(root, centre, raised)
        return [made[letter] for letter in plan]

    def part(self, plan: str, centre: int, last: bool) -> str:
        """A part of the tune with its repeat signs, four bars a line."""
        chooser = self.chooser
        repeated = chooser.chance(80)
        pickup = ""
        if self.pickup:
            pickup = self.note(chooser.pick((-3, -1, 1, 2, 4)), False) + self.bar_line
        bars = self.bars(plan, centre)
        rows = [self.bar_line.join(bars[first : first + 4]) for first in range(0, len(bars), 4)]
        text = f"{self.bar_line.rstrip()}\n".join(rows)
        end = "|]" if last else "||"
        if not repeated:
            return f"{pickup}{text}{end}"
        if chooser.chance(25):
            second = self.final_bar()
            head = text.removesuffix(bars[-1]).rstrip(" |")
            if second != bars[-1]:
                return f"|:{pickup}{head}|1 {bars[-1]}:|2 {second}{end}"
        return f"|:{pickup}{text}:|"


def generate(index: int, seed: int) -> str:
    """Tune number `index`."""
    return compose(Chooser("abc", index, seed), index + 1)


def compose(chooser: Chooser, number: int) -> str:
    """One tune; `number` is its reference number (X:)."""
    tune = _Tune(chooser)
    rhythm = tune.rhythm
    lines = [f"X:{number}", f"T:{title(chooser)}"]
    if chooser.chance(25):
        lines.append("C:" + chooser.pick(("Trad.", "Traditional", f"{chooser.first_name()} {chooser.surname()}")))
    if chooser.chance(75):
        lines.append(f"R:{rhythm.name}")
    lines += [f"M:{rhythm.metre}", f"L:{rhythm.unit}"]
    if chooser.chance(40):
        lines.append(f"Q:{rhythm.tempo}={chooser.between(rhythm.slowest, rhythm.fastest) // 2 * 2}")
    suffix = tune.mode.suffix
    if suffix and chooser.chance(20):
        suffix = f" {tune.mode.name}"
    lines.append(f"K:{tune.tonic_name}{suffix}")
    parts = chooser.pick((1, 2, 2, 2, 2, 2, 2, 3, 3, 4))
    labelled = parts > 1 and chooser.chance(20)
    plans = _LONG_PLANS if len(rhythm.beats) == 1 and chooser.chance(50) else _PLANS
    centres = (2, 6, 4, 8)
    for part in range(parts):
        if labelled:
            lines.append(f"P:{'ABCD'[part]}")
        centre = min(centres[part], _HIGHEST - 3 - tune.tonic_step)
        lines.append(tune.part(chooser.pick(plans), centre, part == parts - 1))
    return "\n".join(lines)
