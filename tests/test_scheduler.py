"""The scheduler against a model of what it promises: memory that knows what stands in it."""

import hashlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import scheduler
from alpha.scheduler import BlockPool, Piece, Scheduler, Stream

BLOCK = 3


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    before, scheduler.BLOCK_TOKENS = scheduler.BLOCK_TOKENS, BLOCK
    yield
    scheduler.BLOCK_TOKENS = before


def next_id(ids: Sequence[int]) -> int:
    """What a stream draws: it depends on all of its ids, and on nothing else."""
    return hashlib.blake2b(bytes(list(ids)), digest_size=1).digest()[0] % 3


@dataclass
class World:
    """A device's memory, with steps that are done at once and results that come back `lag` steps late."""

    blocks: int
    max_streams: int
    budget: int
    lag: int
    memory: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    under_way: deque[list[Piece]] = field(default_factory=deque)
    arrived: list[Stream] = field(default_factory=list)
    ended: list[Stream] = field(default_factory=list)
    cancelled: list[Stream] = field(default_factory=list)
    started: list[Stream] = field(default_factory=list)
    drawn: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(BlockPool(self.blocks), self.max_streams, self.budget)

    def arrive(self, prompt: list[int], count: int, reuse: bool) -> None:
        stream = Stream(array("i", prompt), len(prompt) + count, reuse)
        if scheduler.blocks_of(stream.end) > self.blocks:
            with pytest.raises(ValueError, match="blocks are needed"):
                self.scheduler.add(stream)
            return
        self.scheduler.add(stream)
        self.arrived.append(stream)
        self.drawn[id(stream)] = []

    def cancel(self, which: int) -> None:
        if living := self.living():
            stream = living[which % len(living)]
            self.scheduler.remove(stream)
            self.cancelled.append(stream)

    def lose(self) -> None:
        """The results of all steps under way are lost, and what stands in memory."""
        self.scheduler.forget()
        self.under_way.clear()
        self.memory.clear()

    def living(self) -> list[Stream]:
        gone = {id(stream) for stream in (*self.ended, *self.cancelled)}
        return [stream for stream in self.arrived if id(stream) not in gone]

    def true_ids(self, stream: Stream) -> list[int]:
        """The ids of a stream with those that are still under way."""
        ids = list(stream.ids)
        for _ in range(stream.pending):
            ids.append(next_id(ids))
        return ids

    def step(self) -> None:
        generating = [stream for stream in self.scheduler.running if stream.remaining == 1]
        oldest = self.scheduler.running[0] if self.scheduler.running else None
        pieces = self.scheduler.plan()
        self.check_pieces(pieces, oldest, generating)
        for piece in pieces:  # all keys and values are put in place before any is read
            ids = self.true_ids(piece.stream)
            for position in range(piece.start, piece.start + piece.count):
                place = (piece.stream.blocks[position // BLOCK], position % BLOCK)
                if position < piece.start + piece.shared:
                    assert self.memory[place] == tuple(ids[: position + 1])
                else:
                    self.memory[place] = tuple(ids[: position + 1])
        for piece in pieces:
            ids = self.true_ids(piece.stream)
            for position in range(piece.start + piece.count):
                place = (piece.stream.blocks[position // BLOCK], position % BLOCK)
                assert self.memory[place] == tuple(ids[: position + 1]), "a stream reads what another one wrote"
        self.under_way.append(pieces)
        self.check_pool()
        if len(self.under_way) > self.lag or not pieces:
            self.results()
        self.check_pool()

    def results(self) -> None:
        for piece in self.under_way.popleft() if self.under_way else []:
            stream = piece.stream
            if stream in self.ended or stream in self.cancelled:
                continue
            if piece.draws:
                self.scheduler.append(stream, next_id(stream.ids))
                self.drawn[id(stream)].append(stream.ids[-1])
            if not stream.remaining and len(stream.ids) >= stream.total:
                self.scheduler.remove(stream)
                self.ended.append(stream)

    def check_pieces(self, pieces: list[Piece], oldest: Stream | None, generating: list[Stream]) -> None:
        assert sum(piece.count for piece in pieces) <= self.budget
        assert all(piece.count > 0 for piece in pieces)
        assert len({id(piece.stream) for piece in pieces}) == len(pieces) <= self.max_streams
        for piece in pieces:
            known = len(piece.stream.ids) - piece.start
            assert piece.count <= known or (piece.count, known) == (1, 1 - piece.stream.pending + piece.draws)
        both = [*self.scheduler.running, *self.scheduler.waiting]
        assert both == sorted(both, key=self.arrived.index)
        planned = [piece.stream for piece in pieces]
        # No text is stopped by a prompt: each goes on, or gives way to an older one.
        assert all(stream in planned or stream in self.scheduler.waiting for stream in generating)
        if oldest in generating:
            assert oldest in planned
        self.started += [stream for stream in planned if stream not in self.started]
        assert self.started == sorted(self.started, key=self.arrived.index), "a stream has overtaken another one"

    def check_pool(self) -> None:
        pool = self.scheduler.pool
        held: dict[int, int] = {}
        for stream in self.scheduler.running:
            assert len(set(stream.blocks)) == len(stream.blocks) >= scheduler.blocks_of(stream.computed)
            for block in stream.blocks:
                held[block] = held.get(block, 0) + 1
        for stream in self.scheduler.waiting:
            assert not stream.blocks
        free = set(pool._free)
        assert free | set(held) == set(range(1, self.blocks + 1)), "a block is lost"
        assert not free & set(held)
        assert [pool._holders[block] for block in range(1, self.blocks + 1)] == [
            held.get(block, 0) for block in range(1, self.blocks + 1)
        ]
        assert pool._names == {block: name for name, block in pool._named.items()}


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
arrivals = st.tuples(st.just("arrive"), prompts, st.integers(0, 9), st.booleans())
actions = st.lists(
    st.one_of(
        arrivals,
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("lose")),
        st.tuples(st.just("step"), st.integers(1, 4)),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(actions, st.integers(1, 9), st.integers(1, 4), st.integers(0, 6), st.integers(0, 3))
def test_nothing_is_lost_shared_wrongly_or_starved(
    todo: list[tuple[object, ...]], blocks: int, max_streams: int, more_budget: int, lag: int
) -> None:
    world = World(blocks, max_streams, max_streams + more_budget, lag)
    for name, *arguments in todo:
        if name == "arrive":
            world.arrive(*arguments)  # type: ignore[arg-type]
        elif name == "cancel":
            world.cancel(*arguments)  # type: ignore[arg-type]
        elif name == "lose":
            world.lose()
        else:
            for _ in range(int(str(arguments[0]))):
                world.step()
    # Whatever came, all that was not cancelled ends, and the oldest first has a share in every round.
    tokens = sum(stream.total for stream in world.arrived)
    for _ in range((lag + 2) * (tokens + 2) * (len(world.arrived) + 2)):
        if not world.living():
            break
        world.step()
    assert not world.living(), "a stream starves"
    for stream in world.ended:
        assert len(stream.ids) == stream.total
        drawn = world.drawn[id(stream)]
        ids = stream.ids[: stream.total - len(drawn)]
        for token in drawn:
            assert token == next_id(ids)
            ids.append(token)
        assert ids == stream.ids
    assert world.scheduler.pool.free == blocks


def run(world: World) -> int:
    steps = 0
    while world.living():
        world.step()
        steps += 1
    return steps


def computed(world: World) -> int:
    """Ids that all steps together compute."""
    total = 0
    plan = world.scheduler.plan

    def counting() -> list[Piece]:
        nonlocal total
        pieces = plan()
        total += sum(piece.count for piece in pieces)
        return pieces

    world.scheduler.plan = counting  # type: ignore[method-assign]
    run(world)
    return total


def test_a_prompt_that_many_share_is_computed_once() -> None:
    world = World(blocks=100, max_streams=32, budget=64, lag=0)
    prompt = [1, 0, 1, 1, 0, 0] * 5
    for _ in range(32):
        world.arrive(prompt, 1, reuse=True)
    # Each needs what the model says at the prompt's last id.
    assert computed(world) == len(prompt) + 31
    assert world.scheduler.reused == 31 * (len(prompt) - 1)


def test_without_reuse_all_is_computed() -> None:
    world = World(blocks=100, max_streams=4, budget=64, lag=0)
    for _ in range(4):
        world.arrive([1, 0, 1, 1, 0, 0], 1, reuse=False)
    assert computed(world) == 24


def test_texts_go_on_while_a_long_prompt_is_read() -> None:
    world = World(blocks=100, max_streams=2, budget=5, lag=0)
    world.arrive([1], 9, reuse=True)
    world.step()
    world.arrive([0] * 14, 1, reuse=True)
    before = len(world.drawn[id(world.arrived[0])])
    for _ in range(3):
        world.step()
    assert len(world.drawn[id(world.arrived[0])]) == before + 3
    assert world.arrived[1].computed == 12


def test_the_one_that_came_last_gives_way_and_goes_on_later() -> None:
    world = World(blocks=4, max_streams=2, budget=8, lag=0)
    world.arrive([1, 0], 8, reuse=True)
    world.arrive([0, 0], 8, reuse=True)
    interrupted = False
    while world.living():
        world.step()
        interrupted |= world.arrived[1] in world.scheduler.waiting and bool(world.drawn[id(world.arrived[1])])
    assert interrupted
    assert world.ended == world.arrived


def test_who_would_be_interrupted_at_once_does_not_begin() -> None:
    world = World(blocks=4, max_streams=2, budget=16, lag=0)
    world.arrive([1, 0, 1], 7, reuse=True)
    world.step()
    world.arrive([0] * 9, 1, reuse=True)  # there are three blocks for it, and the first stream wants one of them now
    world.step()
    assert world.scheduler.running == world.arrived[:1]
    run(world)


def test_blocks_that_are_wanted_seldom_go_first() -> None:
    world = World(blocks=4, max_streams=1, budget=16, lag=0)
    for prompt in ([0] * 5, [1] * 5, [0] * 5):  # the first one's is used again before the third comes
        world.arrive(prompt, 1, reuse=True)
    run(world)
    assert world.scheduler.reused == BLOCK
    world.arrive([2] * 8, 1, reuse=True)  # takes three of the four blocks
    run(world)
    assert len(world.scheduler.pool.find([Stream(array("i", [1] * 5), 6).name_of(0)])) == 0


def test_a_step_must_hold_a_token_of_each_stream() -> None:
    with pytest.raises(ValueError, match="too small"):
        Scheduler(BlockPool(1), 3, 2)
