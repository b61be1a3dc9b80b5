"""The native sidecar under the reference backend: whether it is there for some arrays, and its functions for them.

It is optional, and computes in float32 only.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from alpha.backend_cpu_ref_primitives import NumpyArray
from alpha.errors import AlphaError
from alpha.installation import library_files

_ARRAY, _NUMBER, _REAL, _FLAG = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    # native/rows.h
    "rows_linear_parts": (_ARRAY, _NUMBER, _NUMBER),
    "rows_norm": (_ARRAY, _ARRAY, _ARRAY, _REAL, _FLAG, _ARRAY, _NUMBER, _NUMBER),
    "rows_attention_parts": (_ARRAY, _NUMBER, _NUMBER),
    # native/training.h
    "training_losses": (_ARRAY, _ARRAY, _ARRAY, _REAL, _FLAG, _ARRAY, _NUMBER, _NUMBER),
    "training_norm": (_ARRAY, _ARRAY, _ARRAY, _REAL, _FLAG, _ARRAY, _ARRAY, _ARRAY, _NUMBER, _NUMBER),
    "training_norm_backward": (_ARRAY, _ARRAY, _ARRAY, _ARRAY, _FLAG, _ARRAY, _ARRAY, _NUMBER, _NUMBER),
    "training_heads_forward": (_ARRAY, _ARRAY, _NUMBER, _REAL, _ARRAY),
    "training_heads_backward": (_ARRAY, _ARRAY, _NUMBER, _ARRAY),
    "training_softmax": (_ARRAY, _ARRAY, _NUMBER, _NUMBER, _NUMBER),
    "training_softmax_backward": (_ARRAY, _ARRAY, _ARRAY, _NUMBER, _NUMBER),
    "training_add_rows": (_ARRAY, _ARRAY, _ARRAY, _NUMBER, _NUMBER),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The sidecar with its functions declared; None where it was not built, or not for this machine. Raises AlphaError
    when it is of another version."""
    path = next((each for each in library_files() if each.exists()), None)
    if path is None:
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    for name, arguments in _SIGNATURES.items():
        if not hasattr(found, name):
            raise AlphaError(f"{path} is of another version of Alpha; build it again, or install Alpha again.")
        declared = getattr(found, name)
        declared.argtypes, declared.restype = arguments, None
    return found


def can_do(*arrays: NumpyArray) -> bool:
    """Whether the sidecar is there for these arrays."""
    return library() is not None and all(each.dtype.char == "f" for each in arrays)


def structure(name: str, pointers: str, numbers: str, *others: tuple[str, Any]) -> type[ctypes.Structure]:
    """A structure of the sidecar: its fields in order, first the pointers and then the numbers."""
    fields = [(each, ctypes.c_void_p) for each in pointers.split()] + [
        (each, ctypes.c_ssize_t) for each in numbers.split()
    ]
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, *others]})


def function(name: str) -> Callable[..., None]:
    """A function of the sidecar, which must be there."""
    found = library()
    assert found is not None
    declared: Callable[..., None] = getattr(found, name)
    return declared


def address(array: NumpyArray | None, first: int = 0) -> int | None:
    """Where the element or row `first` of an array is."""
    if array is None:
        return None
    start: int = array.__array_interface__["data"][0]
    return start + first * array.strides[-1 if array.ndim < 3 else 0] if first else start
