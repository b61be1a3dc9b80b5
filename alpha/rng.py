"""Counter-based random numbers: Philox4x32-10, the same integers on every backend.

Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. A value depends only on
(seed, stream, counter), so there is no hidden state to save: a checkpoint stores the seed and the step.
"""

import hashlib
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.workers import task_threads

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

NORMAL_PART = 1 << 17
"""Normal numbers that are drawn at a time, a multiple of 4.

So many that threads seldom meet in the interpreter lock, which is asked for after each operation on all of them, and so
few that what leads to them stays in the processor's cache.
"""

Counters = npt.NDArray[np.uint64]


def philox(counters: tuple[Counters, Counters, Counters, Counters], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of four counter words (uint64 arrays that hold 32-bit values, any one shape); returns [..., 4]."""
    even, odd = np.stack(counters[0::2]), np.stack(counters[1::2])
    _philox_in_place(even, odd, np.array(key, np.uint64), np.empty_like(even), np.empty_like(even))
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).astype(np.uint32)


def _philox_in_place(even: Counters, odd: Counters, key: Counters, products: Counters, high: Counters) -> None:
    """Turns words 0 and 2 (`even` [2, ...]) and 1 and 3 (`odd`) of counters into those of random words.

    `key` [2], or [2, ...] for a key of each counter. The two others, of the shape of `even`, are written over. Half of
    each round is one operation on both halves of an array.
    """
    last_axes = (1,) * (even.ndim - 1)
    multipliers, increments = (
        np.array(each, np.uint64).reshape(2, *last_axes) for each in (MULTIPLIERS, KEY_INCREMENTS)
    )
    key = key.reshape(2, *last_axes) if key.ndim == 1 else key
    for _ in range(ROUNDS):
        np.multiply(even, multipliers, out=products)
        np.right_shift(products, _SHIFT, out=high)
        np.bitwise_xor(high[::-1], odd, out=even)
        even ^= key
        np.bitwise_and(products[::-1], _LOW, out=odd)
        key = (key + increments) & _LOW


def _philox_once(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """`philox` of one counter in Python's integers: for one, arrays take many times as long."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0 = (k0 + KEY_INCREMENTS[0]) & 0xFFFFFFFF
        k1 = (k1 + KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def random_bits(count: int, seed: int, stream: int, step: int = 0, start: int = 0) -> npt.NDArray[np.uint32]:
    """`count` random 32-bit integers, the elements `start` onwards of sequence (seed, stream, step).

    Element i is word i % 4 of Philox(counter = (i // 4 low, i // 4 high, stream, step), key = the seed's 64 bits).
    """
    first, last = start // 4, (start + count + 3) // 4
    offset, key = start - 4 * first, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    if last - first == 1:
        one = _philox_once((first & 0xFFFFFFFF, first >> 32, stream, step), key)
        return np.array(one[offset : offset + count], np.uint32)
    blocks = np.arange(first, last, dtype=np.uint64)
    constant = np.zeros_like(blocks)
    words = philox((blocks & _LOW, blocks >> _SHIFT, constant + np.uint64(stream), constant + np.uint64(step)), key)
    return words.reshape(-1)[offset : offset + count]


def first_random_bits(seeds: Counters, streams: Counters, steps: Counters) -> npt.NDArray[np.uint32]:
    """Element 0 of each sequence (seed, stream, step); the arrays have one shape."""
    even, odd = np.zeros((2, 2, *seeds.shape), np.uint64)
    even[1], odd[1] = streams, steps
    _philox_in_place(even, odd, np.stack([seeds & _LOW, seeds >> _SHIFT]), np.empty_like(even), np.empty_like(even))
    return even[0].astype(np.uint32)


def random_uint16(count: int, seed: int, stream: int, step: int = 0, start: int = 0) -> npt.NDArray[np.uint16]:
    """`count` random 16-bit integers from `start` on: the low and then the high half of each of `random_bits`."""
    first = start // 2
    words = random_bits((start + count + 1) // 2 - first, seed, stream, step, first)
    halves = words.astype("<u4", copy=False).view("<u2").astype(np.uint16, copy=False)
    return halves[start - 2 * first :][:count]


def normal(count: int, seed: int, stream: int, step: int = 0) -> npt.NDArray[np.float64]:
    """Standard normal float64 numbers by the Box-Muller transform (Box and Muller, 1958).

    Many are drawn in parts on all processors; as a number depends on its place alone, the bits are always the same.
    """
    result = np.empty(count)

    def draw(start: int) -> None:
        normal_into(result[start : start + NORMAL_PART], seed, stream, step, start)

    starts = range(0, count, NORMAL_PART)
    if len(starts) <= 1:
        for start in starts:
            draw(start)
        return result
    with task_threads("alpha-draw") as pool:
        for _ in pool.map(draw, starts):
            pass
    return result


def normal_into(
    out: npt.NDArray[np.floating], seed: int, stream: int, step: int = 0, start: int = 0, deviation: float = 1.0
) -> None:
    """Write into `out` [at most NORMAL_PART] the numbers of `normal` from `start` on, a multiple of 4, on this thread.

    They are multiplied by `deviation` in float64 before they are rounded to the type of `out`.
    """
    blocks = (len(out) + 3) // 4
    even, odd, products, high = (words[:, :blocks] for words in _workspace())
    even[0] = np.arange(start // 4, start // 4 + blocks, dtype=np.uint64)
    np.right_shift(even[0], _SHIFT, out=odd[0])
    even[0] &= _LOW
    even[1], odd[1] = stream, step
    key = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], np.uint64)
    _philox_in_place(even, odd, key, products, high)
    # In the memory of the integers: of a pair, the first uniform number gives the radius, the other one the angle.
    radius, angle, first = high.view(np.float64), products.view(np.float64), even.view(np.float64)
    np.add(even, 0.5, out=radius)
    np.add(odd, 0.5, out=angle)
    radius /= 2.0**32
    angle /= 2.0**32
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * np.pi
    np.cos(angle, out=first)
    np.sin(angle, out=angle)
    for word, numbers in enumerate((first, angle)):
        np.multiply(numbers, radius, out=numbers)
        np.multiply(numbers, deviation, out=numbers)
        for pair in (0, 1):
            place = out[word + 2 * pair :: 4]
            place[:] = numbers[pair, : len(place)]


def _workspace() -> list[Counters]:
    """This thread's four arrays of half the words of NORMAL_PART numbers, which are not taken from the system anew."""
    if not hasattr(_of_thread, "words"):
        _of_thread.words = [np.empty((2, NORMAL_PART // 4), np.uint64) for _ in range(4)]
    return _of_thread.words


_of_thread = threading.local()


def stream_of(*names: Any) -> int:
    """A 32-bit stream number for a name such as ("dropout", layer), equal on every machine."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:4], "little")
