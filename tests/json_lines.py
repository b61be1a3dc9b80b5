"""Files of JSON lines, as others read them."""

import json
from pathlib import Path
from typing import Any


def rows_in(path: Path) -> list[dict[str, Any]]:
    """None of a missing file; a half line at the end, as of a process that was killed, is passed over."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
