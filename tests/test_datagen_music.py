"""Generated tunes and chord charts, read by independent parsers: bars add up, chords fit their key."""

import re
from collections import Counter
from fractions import Fraction

from generated_text import documents

MODES = {
    "": 0, "major": 0, "m": -3, "minor": -3, "dor": -2, "dorian": -2, "mix": -1, "mixolydian": -1, "lyd": 1,
    "lydian": 1, "phr": -4, "phrygian": -4,
}  # fmt: skip
NOTE = re.compile(r"(?P<note>[=^_]?[A-Ga-g][,']*|z)(?P<up>\d*)(?P<slash>/*)(?P<down>\d*)(?P<broken>[<>]?)")


def bar_length(bar: str) -> Fraction:
    """The length of a bar in units of L:, by reading its notes."""
    bar = re.sub(r'"[^"]*"|\{[^}]*\}|[~T ]', "", bar)
    total, position, triplet, factor = Fraction(0), 0, 0, Fraction(1)
    while position < len(bar):
        if bar.startswith("(3", position):
            position, triplet = position + 2, 3
            continue
        match = NOTE.match(bar, position)
        assert match, (bar, position)
        length = Fraction(int(match["up"] or 1))
        if match["slash"]:
            length /= int(match["down"] or 2 ** len(match["slash"]))
        length *= factor
        factor = {">": Fraction(1, 2), "<": Fraction(3, 2), "": Fraction(1)}[match["broken"]]
        length *= {">": Fraction(3, 2), "<": Fraction(1, 2), "": Fraction(1)}[match["broken"]]
        if triplet:
            length *= Fraction(2, 3)
            triplet -= 1
        total += length
        position = match.end()
    assert factor == 1, "a broken rhythm needs a second note"
    assert not triplet, "a triplet has three notes"
    return total


def check_part(music: str, full: Fraction) -> tuple[int, bool]:
    """Bars of one part add up; returns their number and whether the part has a pickup."""
    first, _, second = music.partition("|2")
    first = first.replace("|1", "|")
    bars = [bar.strip() for bar in re.split(r"[|:\]\n]+", first) if bar.strip()]
    lengths = [bar_length(bar) for bar in bars]
    pickup = lengths.pop(0) if lengths[0] < full else Fraction(0)
    assert all(length == full for length in lengths[:-1]), music
    assert lengths[-1] + pickup == full, music
    if second:
        assert bar_length(re.sub(r"[|:\]\n]", "", second)) + pickup == full, music
    return len(lengths), pickup > 0


def test_tunes_are_valid_and_their_bars_add_up() -> None:
    seen: Counter[str] = Counter()
    for text in documents("abc"):
        lines = text.split("\n")
        headers = [line for line in lines if re.match(r"[A-Z]:", line)]
        fields = dict(line.split(":", 1) for line in headers if line[0] != "P")
        assert lines[0].startswith("X:")
        assert lines[1].startswith("T:")
        head = lines[: next(place for place, line in enumerate(lines) if line.startswith("K:")) + 1]
        assert all(re.match(r"[XTCRMLQK]:", line) for line in head), "K: ends the header"
        tonic, mode = re.fullmatch(r"([A-G][#b]?) ?(\w*)", fields["K"]).groups()  # type: ignore[union-attr]
        sharps = "FCGDAEB".index(tonic[0]) - 1 + 7 * (tonic.endswith("#") - tonic.endswith("b")) + MODES[mode]
        assert -7 <= sharps <= 7
        metre = {"C": Fraction(1), "C|": Fraction(1)}.get(fields["M"]) or Fraction(fields["M"])
        full = metre / Fraction(fields["L"])
        music = "\n".join(line for line in lines[len(head) :] if not line.startswith("P:"))
        # A part ends with ":|" (unless a second ending follows), "||" or "|]".
        parts = [part for part in re.split(r"(?<=:\|)(?!2)|(?<=\|\|)|(?<=\|\])", music) if part.strip()]
        for part in parts:
            bars, with_pickup = check_part(part, full)
            assert bars in (8, 16)
            seen["pickup"] += with_pickup
            seen["repeat"] += part.strip().startswith("|:")
            seen["endings"] += "|2" in part
            seen["triplet"] += "(3" in part
            seen["broken"] += ">" in part
            seen["chords"] += '"' in part
        assert part.strip().endswith((":|", "|]", "||")), "a double bar ends the tune"
        seen.update((fields["M"], mode))
    assert all(seen[kind] > 20 for kind in ("pickup", "repeat", "endings", "triplet", "broken", "chords", "6/8", "m"))
    assert all(seen[kind] > 5 for kind in ("3/4", "9/8", "7/8", "2/4", "dor", "mix"))


def test_tunes_use_the_notes_of_their_chords() -> None:
    """The first note of a bar with a chord symbol belongs to the chord (letters suffice: tunes are diatonic)."""
    checked = 0
    for text in documents("abc"):
        for chord, note in re.findall(r'"([A-G])[^"]*"(?:\{\w\}|[~T])?[=^]?([A-Ga-g])', text):
            distance = ("CDEFGAB".index(note.upper()) - "CDEFGAB".index(chord)) % 7
            checked += 1
            assert distance in (0, 2, 4), text
    assert checked > 500


PITCH = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
DEGREE = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}


def pitch_of(name: str) -> int:
    return (PITCH[name[0]] + name.count("#") - name.count("b")) % 12


def chord_of(symbol: str) -> tuple[int, str]:
    match = re.fullmatch(r"([A-G][#b]?)(.*)", symbol)
    assert match, symbol
    return pitch_of(match[1]), match[2]


def numeral_of(text: str) -> tuple[int, str]:
    """The semitones above the tonic and the chord suffix that a Roman numeral stands for."""
    match = re.fullmatch(r"([b#]?)(VII|VI|IV|V|III|II|I|vii|vi|iv|v|iii|ii|i)(.*)", text)
    assert match, text
    semitones = DEGREE[match[2].upper()] + {"b": -1, "#": 1, "": 0}[match[1]]
    small = match[2].islower() and not match[3].startswith(("dim", "m7b5"))
    return semitones % 12, ("m" if small else "") + match[3]


def bars_of(rows: list[str]) -> list[list[tuple[int, str]]]:
    bars: list[list[tuple[int, str]]] = []
    for row in rows:
        cells = [cell.split() for cell in row.replace(":", "").strip("| ").split(" | ")]
        assert len(cells) == 4, row
        for cell in cells:
            assert 1 <= len(cell) <= 2
            bars.append(bars[-1] if cell == ["%"] else [chord_of(symbol) for symbol in cell])
    return bars


def test_charts_are_consistent() -> None:
    seen: Counter[str] = Counter()
    for text in documents("chords"):
        head, *sections = text.split("\n\n")
        fields = dict(line.split(": ", 1) for line in head.split("\n"))
        tonic, mode = fields["Key"].split()
        names = [section[1 : section.index("]")] for section in sections]
        transposed = names.pop() if " in " in names[-1] else ""
        assert names == list(dict.fromkeys(fields["Form"].split()))
        written = {}
        for name, section in zip(names, sections, strict=False):
            rows = [row for row in section.split("\n") if row.startswith("|")]
            assert rows[0].startswith("|:") == rows[-1].endswith(":|")
            bars = written[name] = bars_of(rows)
            assert len(bars) == 12 or len(bars) in (4, 8, 16)
            if fields["Style"] in ("blues", "shuffle") and name == "Chorus":
                assert len(bars) == 12
            roots = {(root - pitch_of(tonic)) % 12 for bar in bars for root, _ in bar}
            assert roots <= set(range(12)) - ({1, 6} if fields["Style"] in ("folk", "pop", "rock") else set())
            last = section.split("\n")[-1]
            if last.startswith("Numerals: "):
                numerals = [[numeral_of(each) for each in bar.split()] for bar in last[10:].split(" | ")]
                relative = [[((root - pitch_of(tonic)) % 12, suffix) for root, suffix in bar] for bar in bars]
                assert numerals == relative, text
                seen["numerals"] += 1
        if transposed:
            original, _, key = transposed.partition(" in ")
            new_tonic, new_mode = key.split()
            shift = pitch_of(new_tonic) - pitch_of(tonic)
            rows = [row for row in sections[-1].split("\n") if row.startswith("|")]
            assert new_mode == mode
            assert bars_of(rows) == [
                [((root + shift) % 12, suffix) for root, suffix in bar] for bar in written[original]
            ]
            seen["transposed"] += 1
        seen.update((fields["Style"], mode))
    assert seen["numerals"] > 50
    assert seen["transposed"] > 50
    assert len(seen) >= 2 + 12 + 2
