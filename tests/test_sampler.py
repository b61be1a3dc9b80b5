import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import sampler
from alpha.errors import AlphaError
from alpha.sampler import Sampler

quick = settings(max_examples=60, derandomize=True, deadline=None)


def counting(size: int) -> sampler.Tokens:
    """Tokens whose values are their places."""
    return np.arange(size, dtype=np.uint32)


def keys(count: int, seed: int, rounds: int = sampler._ROUNDS) -> np.ndarray:
    return np.tile(np.random.default_rng(seed).integers(0, 1 << 64, rounds, np.uint64), (count, 1))


class TestSampler:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
    def test_batch_has_consecutive_tokens_as_int32(self, packed: bool, dtype: type) -> None:
        tokens = np.arange(1000, dtype=dtype)
        for index in range(50):
            batch = Sampler(tokens, 16, 4, seed=1, packed=packed).batch_at(index)
            assert batch.shape == (4, 17)
            assert batch.dtype == np.int32
            assert np.array_equal(batch, (batch[:, :1] + np.arange(17)) % 1000)

    @pytest.mark.parametrize("packed", [False, True])
    def test_batch_depends_on_index_and_seed_alone(self, packed: bool) -> None:
        one, same, other = (Sampler(counting(5000), 8, 4, seed, packed) for seed in (1, 1, 2))
        forward = [one.batch_at(index) for index in range(20)]
        backward = [same.batch_at(index) for index in reversed(range(20))][::-1]
        assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
        assert not any(np.array_equal(batch, other.batch_at(index)) for index, batch in enumerate(forward))
        assert len({batch.tobytes() for batch in forward}) == 20

    @pytest.mark.parametrize("packed", [False, True])
    def test_sequence_of_windows_is_the_same_for_every_batch_size(self, packed: bool) -> None:
        wide, narrow = (Sampler(counting(333), 8, batch, 3, packed) for batch in (60, 5))
        assert np.array_equal(wide.batch_at(2), np.concatenate([narrow.batch_at(index) for index in range(24, 36)]))

    def test_windows_never_change_between_versions(self) -> None:
        tokens = counting(1 << 20)
        assert Sampler(tokens, 64, 4, 42, False).batch_at(7)[:, 0].tolist() == RANDOM
        assert Sampler(tokens, 64, 4, 42, True).batch_at(7)[:, 0].tolist() == PACKED

    def test_random_windows_begin_everywhere_equally_often(self) -> None:
        size, block = 30, 10  # twenty places
        draws = Sampler(counting(size), block, 4000, 5, False).batch_at(3)[:, 0]
        counts = np.bincount(draws, minlength=20)
        assert len(counts) == 20
        chi_square = float(((counts - 200.0) ** 2 / 200.0).sum())
        assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand

    @quick
    @given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**64 - 1))
    def test_packed_pass_visits_every_window_once(self, size: int, block: int, batch: int, seed: int) -> None:
        block = min(block, size - 1)
        each = Sampler(counting(size), block, batch, seed, True)
        count = size // block
        batches = -(-3 * count // batch)
        rows = np.concatenate([each.batch_at(index) for index in range(batches)])
        assert np.array_equal(rows, (rows[:, :1] + np.arange(block + 1)) % size)
        for first in range(0, 3 * count, count):
            inputs = rows[first : first + count, :-1]
            assert len(np.unique(inputs)) == count * block, "no input twice in a pass"

    def test_packed_passes_differ_in_phase_and_order(self) -> None:
        size, block = 10_000, 100
        each = Sampler(counting(size), block, 100, 9, True)
        starts = [each.batch_at(index)[:, 0] for index in range(40)]
        phases = [int(start[0]) % block for start in starts]
        assert len(set(phases)) > 25
        orders = {tuple(((start - start.min()) // block).tolist()) for start in starts}
        assert len(orders) == 40
        positions = np.mean([np.argsort(start) for start in starts], axis=0)
        assert np.all(np.abs(positions - 49.5) < 28), "no window comes early in every pass"

    @pytest.mark.parametrize("packed", [False, True])
    def test_enormous_corpus_and_index(self, packed: bool) -> None:
        tokens = np.broadcast_to(np.uint16(7), (1 << 48,))
        assert np.all(Sampler(tokens, 1024, 8, 1, packed).batch_at(1 << 40) == 7)

    @pytest.mark.parametrize("packed", [False, True])
    def test_tokens_fewer_than_one_window(self, packed: bool) -> None:
        assert Sampler(counting(9), 8, 2, 1, packed).batch_at(0).shape == (2, 9)
        with pytest.raises(AlphaError, match=r"has 9 tokens but one window needs 10; use a smaller --block"):
            Sampler(counting(9), 9, 2, 1, packed)


# A resumed run depends on these; computed with whole numbers of any size instead of arrays of 64 bits.
RANDOM = [10553, 989147, 136970, 176637]
PACKED = [662400, 789312, 643520, 797440]


class TestPermute:
    @quick
    @given(st.integers(1, 3000), st.integers(0, 1 << 32))
    def test_permutation_is_a_bijection(self, size: int, seed: int) -> None:
        values = sampler.permute(np.arange(size, dtype=np.uint64), size, keys(size, seed))
        assert sorted(values.tolist()) == list(range(size))

    @quick
    @given(st.integers(10_000, 1 << 61), st.integers(0, 1 << 32))
    def test_large_permutation_stays_in_range_without_collisions(self, size: int, seed: int) -> None:
        positions = np.unique(np.random.default_rng(seed).integers(0, size, 500, np.uint64))
        values = sampler.permute(positions, size, keys(len(positions), seed))
        assert int(values.max()) < size
        assert len(np.unique(values)) == len(positions)

    @pytest.mark.parametrize("size", [2, 3, 4, 5])
    def test_every_order_of_a_small_set_is_about_equally_likely(self, size: int) -> None:
        draws = 200 * math.factorial(size)
        random_keys = np.random.default_rng(size).integers(0, 1 << 64, (draws, sampler._ROUNDS), np.uint64)
        positions = np.tile(np.arange(size, dtype=np.uint64), draws)
        orders = sampler.permute(positions, size, np.repeat(random_keys, size, axis=0)).reshape(draws, size)
        counts = Counter(map(tuple, orders.tolist()))
        assert set(counts) == set(itertools.permutations(range(size)))
        assert all(130 < count < 280 for count in counts.values()), counts

    def test_neighbours_are_sent_far_apart(self) -> None:
        size = 10_000
        values = sampler.permute(np.arange(size, dtype=np.uint64), size, keys(size, 1)).astype(np.int64)
        steps = np.abs(np.diff(values))
        assert abs(float(steps.mean()) / size - 1 / 3) < 0.02
        assert abs(float(np.corrcoef(np.arange(size), values)[0, 1])) < 0.05


class TestWindows:
    @quick
    @given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 9))
    def test_every_token_but_the_first_is_predicted_once(self, size: int, block: int, batch: int) -> None:
        pairs = list(sampler.windows(counting(size), block, batch))
        inputs = [token for pair in pairs for token in pair[0].reshape(-1).tolist()]
        targets = [token for pair in pairs for token in pair[1].reshape(-1).tolist()]
        assert inputs == list(range(size - 1))
        assert targets == list(range(1, size))
        shapes = [pair[0].shape for pair in pairs]
        assert shapes == [pair[1].shape for pair in pairs]
        full = (size - 1) // block if size else 0
        assert shapes[: full // batch] == [(batch, block)] * (full // batch)
        assert len(shapes) <= full // batch + 2
        assert all(pair[0].dtype == pair[1].dtype == np.int32 for pair in pairs)

    def test_windows_are_made_one_batch_at_a_time(self) -> None:
        tokens = np.broadcast_to(np.uint16(7), (1 << 48,))
        inputs, targets = next(sampler.windows(tokens, 1024, 4))
        assert inputs.shape == targets.shape == (4, 1024)
