"""Which tokens the next step computes, and in which blocks their keys and values stand.

Continuous batching (Yu et al., "Orca", OSDI 2022) with one budget of tokens a step: a token for every sequence that is
generating, then pieces of prompts from what is left, so that a long prompt stops nobody. Keys and values stand in
blocks of a fixed number of tokens that are shared out on demand (Kwon et al., "PagedAttention", SOSP 2023). A full
block is found again by a hash of all tokens up to its end, so that a prompt which begins like another one is computed
from there on. Where blocks run out, the sequence that came last gives all of its own back and is computed again later.

Sequences start in the order in which they came, none overtakes another, and the oldest is never interrupted; so each
ends. Knows ids and numbers: nothing of models, arrays or sampling.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 16
SCRATCH_BLOCK = 0
"""The block that belongs to no sequence: what nobody will read goes there."""


class BlockPool:
    """Blocks 1 to `blocks`: free, held by one sequence, or shared by several that begin alike.

    A block whose content has a name stays findable after its last holder has gone, until it is needed for something
    new; those that nobody wanted for the longest time go first.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks + 1))
        self._holders = [0] * (blocks + 1)
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks with the first of these names, up to the first name that no block has."""
        found: list[int] = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def is_free(self, block: int) -> bool:
        return block in self._free

    def hold(self, block: int) -> None:
        """One more holder of a block that was found."""
        self._free.pop(block, None)
        self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """So many free blocks, for something new. Raises KeyError when there are fewer."""
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self.forget(block)
            self._holders[block] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less of each; of the blocks of a sequence, the last ones are to be used for something new
        first."""
        holders, free, names = self._holders, self._free, self._names
        for block in reversed(blocks):
            holders[block] -= 1
            if not holders[block]:
                free[block] = None
                if block not in names:
                    free.move_to_end(block, last=False)

    def name(self, block: int, name: bytes) -> None:
        """Make a block findable, unless another one with the same content is."""
        if name not in self._named:
            self._named[name] = block
            self._names[block] = name

    def forget(self, block: int) -> None:
        """Make a block impossible to find."""
        if (name := self._names.pop(block, None)) is not None:
            del self._named[name]


@dataclass(eq=False)
class Stream:
    """A sequence that grows: the ids of its prompt and those that were drawn.

    `total` is how many ids it has in the end, at most; the last of them is never read. `length` counts also those of
    which it is known that they will be drawn, but not yet which they are. Keys and values of the first `computed` ids
    stand in `blocks`, or will when the steps that were planned are done. Without `reuse`, everything is computed for
    this stream. While it runs, no other one has its `slot`, a number below the scheduler's `max_streams`.
    """

    ids: "array[int]"
    total: int
    reuse: bool = True
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    names: list[bytes] = field(default_factory=list)
    named: int = 0
    reused: int | None = None
    """Ids that did not have to be computed when it first ran."""

    def __post_init__(self) -> None:
        self.length = len(self.ids)
        self.end = max(len(self.ids), self.total - 1)
        """How many ids are computed in the end, at most."""

    @property
    def pending(self) -> int:
        """Ids that will be drawn in the steps that were planned."""
        return self.length - len(self.ids)

    @property
    def remaining(self) -> int:
        """Ids that can be computed now."""
        return min(self.length, self.end) - self.computed

    def name_of(self, index: int) -> bytes:
        """The name of a block that its known ids fill: a digest of all ids up to the block's end."""
        while index >= len(self.names):
            start = len(self.names) * BLOCK_TOKENS
            content = self.ids[start : start + BLOCK_TOKENS].tobytes()
            before = self.names[-1] if self.names else b""
            self.names.append(hashlib.blake2b(before + content, digest_size=16).digest())
        return self.names[index]


@dataclass(slots=True)
class Piece:
    """Compute the ids `start` to `start + count` of a stream; with `draws`, the id after them is drawn then.

    Keys and values of the first `shared` of these ids stand in the stream's blocks already, which others may hold.
    """

    stream: Stream
    start: int
    count: int
    draws: bool
    shared: int = 0


class Scheduler:
    """Plans steps for streams. `max_streams` run at a time, and a step computes at most `budget` ids."""

    def __init__(self, pool: BlockPool, max_streams: int, budget: int) -> None:
        """Raises ValueError when a step could not hold one id of each stream."""
        if not 1 <= max_streams <= budget:
            raise ValueError(f"a step of {budget} tokens is too small for {max_streams} sequences")
        self.pool = pool
        self.max_streams = max_streams
        self.budget = budget
        # In the order in which they came: all that run came before all that wait.
        self.running: list[Stream] = []
        self.waiting: deque[Stream] = deque()
        self.reused = 0
        """Ids of prompts that did not have to be computed."""
        self._unnamed: list[Stream] = []
        """Those of which blocks are full that have no name yet: they get it while a device computes."""
        self._slots = list(range(max_streams))
        """Those that nobody has."""

    def add(self, stream: Stream) -> None:
        """Let a stream wait for its turn. Raises ValueError when there are too few blocks for it ever to end."""
        if blocks_of(stream.end) > self.pool.blocks:
            raise ValueError(f"{blocks_of(stream.end)} blocks are needed, and there are {self.pool.blocks}")
        self.waiting.append(stream)

    def remove(self, stream: Stream) -> None:
        """Forget a stream, wherever it is."""
        if stream in self.running:
            self.running.remove(stream)
            self._give_back(stream)
        else:
            self.waiting.remove(stream)

    def forget(self) -> None:
        """Find nothing again that was computed, nor take results of what was planned: what runs is computed again."""
        while self.running:
            self._interrupt()
        for stream in self.waiting:
            stream.length = len(stream.ids)
        self.pool = BlockPool(self.pool.blocks)

    def append(self, stream: Stream, token: int) -> None:
        """The first of a stream's pending ids is known now."""
        stream.ids.append(token)
        if len(stream.ids) // BLOCK_TOKENS > stream.named:
            self._name_blocks(stream)

    def plan(self) -> list[Piece]:
        """The pieces of the next step; the streams are then as they will be after it."""
        self._name_full_blocks()
        pieces: list[Piece] = []
        left = self.budget
        for stream in self.running:  # an interruption takes the last ones away, and nothing before them
            if stream.remaining == 1 and self._has_room(stream):
                pieces.append(self._advance(stream, 1))
        left -= len(pieces)
        if len(pieces) < len(self.running):
            for stream in self.running:
                if left and stream.remaining > 1:
                    pieces.append(self._advance(stream, min(stream.remaining, left)))
                    left -= pieces[-1].count
        while left and self.waiting and len(self.running) < self.max_streams:
            stream = self.waiting[0]
            if not self._start(stream):
                break
            shared = max(0, stream.named * BLOCK_TOKENS - stream.computed)
            pieces.append(self._advance(stream, min(stream.remaining, left), shared))
            left -= pieces[-1].count
        return pieces

    def _has_room(self, stream: Stream) -> bool:
        """Find a place for the next id of a running stream, at the cost of the one that came last, or of itself."""
        if stream.computed < len(stream.blocks) * BLOCK_TOKENS:
            return True
        while not self.pool.free:
            if self._interrupt() is stream:
                return False
        stream.blocks += self.pool.take(1)
        return True

    def _interrupt(self) -> Stream:
        """Let the stream that came last wait again."""
        last = self.running.pop()
        self._give_back(last)
        self.waiting.appendleft(last)
        return last

    def _start(self, stream: Stream) -> bool:
        """Let the first one that waits run, when there are blocks for all of its ids."""
        if stream.pending:
            return False
        self._name_full_blocks()
        full = len(stream.ids) // BLOCK_TOKENS if stream.reuse else 0
        found = self.pool.find(map(stream.name_of, range(full)))  # no more names are made than are found
        needed = blocks_of(len(stream.ids)) - len(found)
        free = self.pool.free - sum(map(self.pool.is_free, found))
        # One more is left to the others, if they need any: who would be interrupted at once need not begin.
        if free < needed + any(len(other.blocks) < blocks_of(other.end) for other in self.running):
            return False
        for block in found:
            self.pool.hold(block)
        stream.blocks = found + self.pool.take(needed)
        # What is drawn needs the outputs at the last id, so that one is computed in any case.
        stream.computed = min(len(found) * BLOCK_TOKENS, len(stream.ids) - 1)
        stream.named = len(found)
        stream.slot = self._slots.pop()
        self.reused += stream.computed
        if stream.reused is None:
            stream.reused = stream.computed
        self.running.append(self.waiting.popleft())
        return True

    def _advance(self, stream: Stream, count: int, shared: int = 0) -> Piece:
        start = stream.computed
        stream.computed = end = start + count
        draws = end == stream.length < stream.total
        stream.length += draws
        if end // BLOCK_TOKENS > stream.named:
            self._unnamed.append(stream)
        return Piece(stream, start, count, draws, shared)

    def _name_full_blocks(self) -> None:
        for stream in self._unnamed:
            self._name_blocks(stream)
        self._unnamed.clear()

    def _name_blocks(self, stream: Stream) -> None:
        full = min(stream.computed, len(stream.ids)) // BLOCK_TOKENS
        for index in range(stream.named, full):
            self.pool.name(stream.blocks[index], stream.name_of(index))
        stream.named = max(stream.named, full)

    def _give_back(self, stream: Stream) -> None:
        self._name_full_blocks()
        self.pool.release(stream.blocks)
        self._slots.append(stream.slot)
        stream.blocks, stream.computed, stream.named = [], 0, 0


def blocks_of(tokens: int) -> int:
    """How many blocks so many tokens take."""
    return -(-tokens // BLOCK_TOKENS)
