"""Reading the fields of a request that anybody may have sent: each with its type and limits, or refused by its name."""

import json
import math
from collections.abc import Mapping
from typing import Any

from alpha.errors import AlphaError
from alpha.tokenizer import shown

LARGEST_SEED = (1 << 64) - 1


class RefusedError(AlphaError):
    """A request that is not answered: why, which field is to blame, and the HTTP status that says so."""

    def __init__(self, message: str, field: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.status = status
        self.code = code

    def body(self) -> dict[str, Any]:
        """The answer in OpenAI's shape."""
        return {"error": {"message": str(self), "type": _TYPES[self.status], "param": self.field, "code": self.code}}


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class Fields:
    """The fields of a JSON object. A field that is null counts as absent; one that nobody asks for is passed over.

    Each method raises RefusedError, which names the field, for a value of another type or beyond the limits.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", size: int = 0) -> None:
        """`size` is that of the JSON, in bytes."""
        self.values = values
        self.size = size
        self._path = path

    def get(self, name: str) -> Any:
        """The value as it is; None where there is none."""
        return self.values.get(name)

    def whole(self, name: str, default: int | None, least: int, most: int) -> int | None:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():  # to JSON, 5.0 is one, too
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            raise self.wrong(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "text")
        return value

    def part(self, name: str) -> "Fields":
        """The fields of an object in this one."""
        value = self.get(name)
        if value is None:
            return Fields({}, name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self._name(name))

    def refuse(self, name: str, *harmless: Any) -> None:
        """Refuse what there is not, unless its value asks for nothing."""
        value = self.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in harmless):
            raise RefusedError(f"This server has no {self._name(name)}; leave it out.", self._name(name))

    def wrong(self, name: str, wanted: str) -> RefusedError:
        """The error for a value that is not what it should be."""
        value = self.get(name)
        found = f", not {shown(value)}" if value is not None else ""
        return RefusedError(f"{self._name(name)} must be {wanted}{found}.", self._name(name))

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def read_fields(body: bytes) -> Fields:
    """The fields of a request's body. Raises RefusedError when it is not a JSON object."""
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"The body is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise RefusedError("The body must be a JSON object.")
    return Fields(values, size=len(body))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
