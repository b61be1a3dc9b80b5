"""Numbers of runs as CSV (RFC 4180, with plain newlines), a part at a time.

Texts that others wrote are made harmless for a terminal: a line end or a control character in one becomes an escape.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alpha.series import Curve
from alpha.terminal import escape_line

_ROWS = 1000
_LARGEST_PLAIN = 1e12


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Lines of CSV. A whole number has no point, None and what is not finite no text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def csv_parts(names: Sequence[str], tables: Mapping[str, Sequence[Curve]]) -> Iterator[str]:
    """The columns `names` of runs, given by id, one run after the other, a thousand rows a part.

    When there are several runs, the first column says which.
    """
    has_ids = len(tables) > 1
    yield csv_text([(*(["run"] if has_ids else []), *names)])
    for run_id, columns in tables.items():
        for begin in range(0, max(map(len, columns), default=0), _ROWS):
            rows = zip(*(column[begin : begin + _ROWS].tolist() for column in columns), strict=True)
            yield csv_text((run_id, *row) if has_ids else row for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < _LARGEST_PLAIN else repr(value)
    return "" if value is None or isinstance(value, float) else escape_line(str(value))
