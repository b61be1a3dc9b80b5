"""Counter-based random numbers: Philox4x32-10, the same integers on every backend.

Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. A value depends only on
(seed, stream, counter), so there is no hidden state to save: a checkpoint stores the seed and the step.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.workers import available_cpus

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

NORMAL_PART = 1 << 16
"""Normal numbers that are drawn at a time, so that what leads to them stays in the processor's cache; even."""

Counters = npt.NDArray[np.uint64]


def philox(counters: tuple[Counters, Counters, Counters, Counters], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of four counter words (uint64 arrays that hold 32-bit values, any one shape); returns [..., 4]."""
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = c0 * np.uint64(MULTIPLIERS[0])
        product1 = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0 = (k0 + KEY_INCREMENTS[0]) & 0xFFFFFFFF
        k1 = (k1 + KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_bits(count: int, seed: int, stream: int, step: int = 0, start: int = 0) -> npt.NDArray[np.uint32]:
    """`count` random 32-bit integers, the elements `start` onwards of sequence (seed, stream, step).

    Element i is word i % 4 of Philox(counter = (i // 4 low, i // 4 high, stream, step), key = the seed's 64 bits).
    """
    first = start // 4
    blocks = np.arange(first, (start + count + 3) // 4, dtype=np.uint64)
    constant = np.zeros_like(blocks)
    words = philox(
        (blocks & _LOW, blocks >> _SHIFT, constant + np.uint64(stream), constant + np.uint64(step)),
        (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF),
    )
    offset = start - 4 * first
    return words.reshape(-1)[offset : offset + count]


def random_uint16(count: int, seed: int, stream: int, step: int = 0, start: int = 0) -> npt.NDArray[np.uint16]:
    """`count` random 16-bit integers from `start` on: the low and then the high half of each of `random_bits`."""
    first = start // 2
    words = random_bits((start + count + 1) // 2 - first, seed, stream, step, first)
    halves = words.astype("<u4", copy=False).view("<u2").astype(np.uint16, copy=False)
    return halves[start - 2 * first :][:count]


def uniform(count: int, seed: int, stream: int, step: int = 0, start: int = 0) -> npt.NDArray[np.float64]:
    """Uniform float64 numbers in (0, 1), one per 32-bit integer: (bits + 0.5) / 2^32."""
    bits = random_bits(count, seed, stream, step, start).astype(np.float64)
    return (bits + 0.5) / 2.0**32


def normal(count: int, seed: int, stream: int, step: int = 0) -> npt.NDArray[np.float64]:
    """Standard normal float64 numbers by the Box-Muller transform (Box and Muller, 1958).

    Many are drawn in parts on all processors; as a number depends on its place alone, the bits are always the same.
    """
    result = np.empty(count)

    def draw(start: int) -> None:
        part = result[start : start + NORMAL_PART]
        pairs = (len(part) + 1) // 2
        points = uniform(2 * pairs, seed, stream, step, start).reshape(pairs, 2)
        radius = np.sqrt(-2.0 * np.log(points[:, 0]))
        angle = 2.0 * np.pi * points[:, 1]
        part[0::2] = radius * np.cos(angle)
        part[1::2] = (radius * np.sin(angle))[: len(part) // 2]

    starts = range(0, count, NORMAL_PART)
    if len(starts) <= 1:
        for start in starts:
            draw(start)
        return result
    with ThreadPoolExecutor(min(len(starts), available_cpus())) as pool:
        for _ in pool.map(draw, starts):
            pass
    return result


def stream_of(*names: Any) -> int:
    """A 32-bit stream number for a name such as ("dropout", layer), equal on every machine."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:4], "little")
