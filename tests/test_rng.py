"""Random numbers: Philox against published answers and a scalar version, how it is numbered, and what comes of it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from definitions import uniform

from alpha import rng

ONES = 0xFFFFFFFF

# From Random123's file of known answers (kat_vectors), philox 4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 in Python's whole numbers: the four words after ten rounds."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return c


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: Sequence[int], key: tuple[int, int], expected: Sequence[int]
) -> None:
    words = rng.philox(tuple(np.array([each], np.uint64) for each in counter), key)
    assert words.dtype == np.uint32
    assert words.tolist() == [list(expected)]
    assert scalar_philox(counter, key) == list(expected)


@pytest.mark.parametrize("start", [0, 5, (1 << 34) - 3, (1 << 40) + 2])
def test_an_element_is_a_word_of_the_block_that_its_number_names(start: int) -> None:
    seed, stream, step = 0x0123456789ABCDEF, 0xDEADBEEF, 77
    bits = rng.random_bits(9, seed, stream, step, start)
    for index, value in enumerate(bits.tolist(), start):
        counter = (index // 4 % (1 << 32), index // 4 >> 32, stream, step)
        assert value == scalar_philox(counter, (seed % (1 << 32), seed >> 32))[index % 4]


def test_first_elements_of_many_sequences_are_those_of_each() -> None:
    seeds, streams, steps = np.random.default_rng(1).integers(0, 1 << 64, (3, 4, 5), dtype=np.uint64)
    streams, steps = streams >> np.uint64(32), steps >> np.uint64(40)
    expected = [
        int(rng.random_bits(1, *map(int, each))[0]) for each in zip(seeds.flat, streams.flat, steps.flat, strict=True)
    ]
    assert rng.first_random_bits(seeds, streams, steps).ravel().tolist() == expected


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 97])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 50])
def test_a_part_of_a_sequence_equals_that_part_of_the_whole(start: int, count: int) -> None:
    whole = rng.random_bits(200, 42, 7, 3)
    assert np.array_equal(rng.random_bits(count, 42, 7, 3, start), whole[start : start + count])


@pytest.mark.parametrize("start", [0, 1, 2, 7, 8, 97])
@pytest.mark.parametrize("count", [0, 1, 2, 9, 50])
def test_16_bit_integers_are_the_low_and_high_halves_in_turn(start: int, count: int) -> None:
    words = rng.random_bits(100, 42, 7, 3).astype(np.int64)
    halves = np.stack([words % (1 << 16), words >> 16], axis=-1).reshape(-1)
    part = rng.random_uint16(count, 42, 7, 3, start)
    assert part.dtype == np.uint16
    assert part.tolist() == halves[start : start + count].tolist()


def test_normal_numbers_of_extreme_integers_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    def extremes(even: np.ndarray, odd: np.ndarray, *rest: object) -> None:
        even[:], odd[:] = [[0], [ONES]], [[ONES], [0]]

    monkeypatch.setattr(rng, "_philox_in_place", extremes)
    assert np.isfinite(rng.normal(4, 0, 0)).all()


def test_integers_are_uniform() -> None:
    count = 200_000
    values = uniform(count, 42, rng.stream_of("test"))
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(1 / 12 / count)
    assert abs((values**2).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / count)
    observed, _ = np.histogram(values, 64, (0.0, 1.0))
    chi_squared = ((observed - count / 64) ** 2 / (count / 64)).sum()
    assert abs(chi_squared - 63) < 4 * math.sqrt(2 * 63)


def test_every_bit_is_set_half_of_the_time() -> None:
    bits = rng.random_bits(50_000, 3, 4)
    shares = [float(((bits >> position) & 1).mean()) for position in range(32)]
    assert max(abs(share - 0.5) for share in shares) < 5 * 0.5 / math.sqrt(50_000)


def test_normal_numbers_are_normal() -> None:
    count = 200_000
    values = rng.normal(count, 42, rng.stream_of("test"))
    moments = [float((values**power).mean()) for power in (1, 2, 3, 4)]
    variances = [1, 2, 15, 96]  # of x, x^2, x^3 and x^4
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), variances, strict=True):
        assert abs(moment - expected) < 4 * math.sqrt(variance / count)
    assert abs(float((np.abs(values) < 1).mean()) - math.erf(math.sqrt(0.5))) < 4 * 0.47 / math.sqrt(count)
    assert abs(correlation(values[0::2], values[1::2])) < 4 / math.sqrt(count / 2)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_fewer_normal_numbers_are_the_first_of_more(count: int) -> None:
    values = rng.normal(count, 5, 6)
    assert values.shape == (count,)
    assert np.array_equal(values, rng.normal(8, 5, 6)[:count])


@pytest.mark.parametrize("count", [2 * rng.NORMAL_PART, 3 * rng.NORMAL_PART + 7])
def test_normal_numbers_drawn_in_parts_have_the_bits_of_those_drawn_at_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = uniform(count + count % 2, 5, 6, 7).reshape(-1, 2)
    radius, angle = np.sqrt(-2.0 * np.log(points[:, 0])), 2.0 * np.pi * points[:, 1]
    at_once = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:count]
    for processors in (1, 3):
        monkeypatch.setattr("alpha.workers.available_cpus", lambda processors=processors: processors)
        assert rng.normal(count, 5, 6, 7).tobytes() == at_once.tobytes()


@pytest.mark.parametrize("start", [0, 4, rng.NORMAL_PART, 1 << 34, (1 << 36) + 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1001])
def test_normal_numbers_are_written_from_any_multiple_of_four_on(start: int, count: int) -> None:
    points = uniform(count + count % 2, 1 << 40 | 5, 6, 7, start).reshape(-1, 2)
    radius, angle = np.sqrt(-2.0 * np.log(points[:, 0])), 2.0 * np.pi * points[:, 1]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:count]
    for dtype in (np.float32, np.float64):
        out = np.full(count + 2, np.nan, dtype)
        rng.normal_into(out[1:-1], 1 << 40 | 5, 6, 7, start, 0.02)
        assert out[1:-1].tobytes() == (0.02 * expected).astype(dtype).tobytes()
        assert np.isnan(out[[0, -1]]).all()


@pytest.mark.parametrize("other", [(43, 7, 3), (42 + (1 << 32), 7, 3), (42, 8, 3), (42, 7, 4), (42, 3, 7)], ids=str)
def test_another_seed_stream_or_step_gives_independent_numbers(other: tuple[int, int, int]) -> None:
    count = 100_000
    values, others = uniform(count, 42, 7, 3), uniform(count, *other)
    assert abs(correlation(values, others)) < 4 / math.sqrt(count)
    assert abs(correlation(values[1:], others[:-1])) < 4 / math.sqrt(count)
    assert len(np.intersect1d(values, others)) < 20  # about count^2 / 2^32 = 2.3 coincide by chance


def test_a_stream_number_is_fixed_by_its_name() -> None:
    assert rng.stream_of("dropout", 3) == 0x2BE52F8A
    names = [("dropout", layer) for layer in range(500)] + [("parameter", layer) for layer in range(500)]
    numbers = {rng.stream_of(*name) for name in names}
    assert len(numbers) == len(names)
    assert all(0 <= number < 1 << 32 for number in numbers)


def test_single_numbers_are_those_of_the_sequence() -> None:
    for seed, stream, step in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (42, 7, 123_456)):
        for start in (0, 4 * (2**32 - 2)):
            many = rng.random_bits(16, seed, stream, step, start)
            for place in range(16):
                assert rng.random_bits(1, seed, stream, step, start + place).tolist() == [many[place]]
