import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alpha.braille import Line, Piece, draw, letter, number


def text_of(rows: list[list[Piece]]) -> list[str]:
    return ["".join(piece.text for piece in row) for row in rows]


def line_of(*y: float, colour: int = 0, letter: str = "") -> Line:
    return Line(np.arange(1.0, len(y) + 1), np.array(y, dtype=np.float64), colour, letter)


def test_a_straight_line() -> None:
    rows = text_of(draw([line_of(0.0, 1.0, letter="A")], 30, 7, x_unit="steps"))
    assert [row[:10] for row in rows] == [
        "     1.05┤",
        "         ┤",
        "      0.5┤",
        "         ┤",
        "    -0.05┤",
        "         └",
        "          ",
    ]
    assert rows[0][-3:] == "⣀⠤A"
    assert rows[-1].split() == ["1", "1.5", "steps", "2"]
    assert all(len(row) == 30 for row in rows)
    # It rises from the left to the right: the lowest dot of each column is never below that of the column before.
    heights = [min(i for i in range(5) if rows[i][column] not in " ┤") for column in range(10, 30)]
    assert heights == sorted(heights, reverse=True)


def test_curves_have_their_colours_and_letters() -> None:
    rows = draw([line_of(1, 1, colour=3, letter="A"), line_of(2, 2, colour=5, letter="B")], 40, 10)
    assert {piece.colour for row in rows for piece in row} == {None, 3, 5}
    ends = {piece.text[-1]: piece.colour for row in rows for piece in row if piece.text[-1] in "AB"}
    assert ends == {"A": 3, "B": 5}
    assert [letter(index) for index in (0, 25, 26)] == ["A", "Z", "A"]


def test_a_spike_in_a_million_points_is_drawn() -> None:
    y = np.zeros(1_000_000)
    y[123_456] = 5.0
    rows = draw([Line(np.arange(1e6), y, 0)], 60, 12)
    assert set(text_of(rows)[0][10:]) & set(map(chr, range(0x2801, 0x2900)))


def test_logarithmic_axes() -> None:
    x = np.array([0.0, 1.0, 10.0, 100.0])
    rows = text_of(draw([Line(x, 10 * x, 0)], 40, 9, log_x=True, log_y=True))
    assert [rows[-1].split()[0], rows[-1].split()[-1]] == ["1", "100"]
    labels = [row.split("┤")[0].strip() for row in rows[:-2]]
    assert labels == ["1259", "", "", "100", "", "", "7.943"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1.23e6"), (2.34567, "2.346"), (0.0003, "0.0003"), (3e-5, "3e-05"), (123456, "123456"),
     (-1e300, "-1e300")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@settings(deadline=None, max_examples=200)
@example([[1e308, -1e308]], 80, 20, False, False)
@example([[5e-324, 1e308]], 80, 20, True, True)
@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30), max_size=4),
    st.integers(0, 120), st.integers(0, 40), st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_numbers_fit_any_terminal(
    curves: list[list[float]], width: int, height: int, log_x: bool, log_y: bool
) -> None:
    rows = draw([line_of(*y, colour=i, letter=letter(i)) for i, y in enumerate(curves)], width, height, log_x, log_y)
    assert len(rows) == height
    assert all(len(row) in (0, width) for row in text_of(rows))
