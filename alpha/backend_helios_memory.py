"""Device memory: a few large blocks, divided among arrays, so that no array costs an allocation of the driver's.

The eager allocator hands ranges out and takes them back as Python forgets their arrays. That is safe while the device
may still be using them, because everything runs in one queue, in order, with barriers between conflicting uses. Memory
that the host writes or reads is different: its ranges come back when the device's timeline says so.
"""

from __future__ import annotations

import bisect
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.backend_helios_array import Storage
from alpha.backend_helios_device import Device, Memory, MemoryKind, OutOfDeviceMemory

ALIGNMENT = 256
DEVICE_BLOCK = 64 << 20
HOST_BLOCK = 8 << 20


def aligned(nbytes: int) -> int:
    """The size that a range of `nbytes` takes."""
    return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)


class FreeRanges:
    """Which ranges of an address space are free. Ranges are aligned; neighbours that are free become one."""

    def __init__(self, size: int = 0) -> None:
        self._starts: list[int] = [0] if size else []
        self._lengths: dict[int, int] = {0: size} if size else {}

    def take(self, size: int) -> int | None:
        """The start of the smallest free range that holds `size` bytes, now taken; None when there is none."""
        best = min((start for start in self._starts if self._lengths[start] >= size), key=self._lengths.__getitem__,
                   default=None)  # fmt: skip
        if best is None:
            return None
        length = self._lengths.pop(best)
        index = bisect.bisect_left(self._starts, best)
        if length == size:
            del self._starts[index]
        else:
            self._starts[index] = best + size
            self._lengths[best + size] = length - size
        return best

    def take_last(self, end: int) -> int | None:
        """The start of the free range that ends at `end`, now taken; None when there is none."""
        if not self._starts or self._starts[-1] + self._lengths[self._starts[-1]] != end:
            return None
        start = self._starts.pop()
        del self._lengths[start]
        return start

    def give_back(self, start: int, size: int) -> None:
        """Make a range free."""
        index = bisect.bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == start + size:
            size += self._lengths.pop(self._starts.pop(index))
        if index and self._starts[index - 1] + self._lengths[self._starts[index - 1]] == start:
            self._lengths[self._starts[index - 1]] += size
            return
        self._starts.insert(index, start)
        self._lengths[start] = size

    @property
    def free(self) -> int:
        """Free bytes in all."""
        return sum(self._lengths.values())


class _Block:
    def __init__(self, memory: Memory, size: int) -> None:
        self.memory = memory
        self.size = size
        self.ranges = FreeRanges(size)


class _Pool:
    """Blocks of one kind of memory."""

    def __init__(self, device: Device, kind: MemoryKind, block_bytes: int) -> None:
        self._device = device
        self._kind = kind
        self._block_bytes = block_bytes
        self._blocks: list[_Block] = []
        self._given_back: deque[tuple[_Block, int, int]] = deque()

    def take(self, nbytes: int) -> tuple[_Block, int]:
        """A block and the offset of a range in it. Raises OutOfDeviceMemory."""
        size = aligned(nbytes)
        self._drain()
        for block in self._blocks:
            start = block.ranges.take(size)
            if start is not None:
                return block, start
        block = self._new_block(size)
        start = block.ranges.take(size)
        assert start is not None
        return block, start

    def _new_block(self, size: int) -> _Block:
        """A block of at least `size` bytes; when memory is short, of no more, and after giving back what is unused."""
        block_size = max(size, self._block_bytes)
        if block_size > self._room()[0]:
            self.release_unused()
            block_size = size
            free, budget = self._room()
            if size > free:
                raise OutOfDeviceMemory(
                    f"{_mebibytes(size)} more of the device's memory are needed, but of the {_mebibytes(budget)} that "
                    f"this process may use {_mebibytes(free)} are free: {_mebibytes(size - free)} are missing."
                )
        block = _Block(self._device.allocate(block_size, self._kind), block_size)
        self._blocks.append(block)
        return block

    def _room(self) -> tuple[int, int]:
        """Bytes that this process may still take from the driver, and may use in all; no limit on the host's side."""
        if self._kind is not MemoryKind.DEVICE:
            return sys.maxsize, sys.maxsize
        budget, usage = self._device.memory()
        return max(0, budget - usage), budget

    def give_back(self, block: _Block, start: int, nbytes: int) -> None:
        """Let a range be taken again. May be called at any moment, by a finalizer too."""
        self._given_back.append((block, start, aligned(nbytes)))

    def _drain(self) -> None:
        while self._given_back:
            block, start, size = self._given_back.popleft()
            block.ranges.give_back(start, size)

    def release_unused(self) -> None:
        """Give blocks of which no range is taken back to the driver, which keeps them while programs still use them."""
        self._drain()
        for block in [each for each in self._blocks if each.ranges.free == each.size]:
            self._device.free(block.memory)
            self._blocks.remove(block)


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"


class DeviceMemory:
    """The memory of one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._local = _Pool(device, MemoryKind.DEVICE, DEVICE_BLOCK)
        self._upload = _Pool(device, MemoryKind.UPLOAD, HOST_BLOCK)
        self._read_back = _Pool(device, MemoryKind.READ_BACK, HOST_BLOCK)
        self._returns: deque[tuple[int, Callable[[], None]]] = deque()

    def allocate(self, nbytes: int) -> Storage:
        """Storage in the device's own memory, whose range comes back when the storage is forgotten."""
        block, start = self._local.take(nbytes)
        return Storage(nbytes, block.memory.address + start, lambda: self._local.give_back(block, start, nbytes))

    def upload(self, values: npt.NDArray[Any]) -> Storage:
        """Storage that the device can read, holding the bytes of `values`."""
        storage = self._mapped(self._upload, values.nbytes)
        assert storage.mapped is not None
        storage.mapped[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data if values.size else b""
        return storage

    def upload_space(self, nbytes: int) -> Storage:
        """Storage that the host can write and the device can read."""
        return self._mapped(self._upload, nbytes)

    def read_back_space(self, nbytes: int) -> Storage:
        """Storage that the device can write and the host can read."""
        return self._mapped(self._read_back, nbytes)

    def _mapped(self, pool: _Pool, nbytes: int) -> Storage:
        self.collect(self._device.completed())
        block, start = pool.take(nbytes)
        assert block.memory.view is not None

        def release() -> None:
            """The host touches this memory: it comes back when what was submitted, which may use it, has been done."""
            self._returns.append((self._device.submitted, lambda: pool.give_back(block, start, nbytes)))

        return Storage(
            nbytes,
            block.memory.address + start,
            release,
            mapped=block.memory.view[start : start + nbytes],
        )

    @property
    def is_waiting(self) -> bool:
        """Whether there is something that `collect` will take back."""
        return bool(self._returns)

    def collect(self, completed: int) -> None:
        """Take back what the device has finished with."""
        while self._returns and self._returns[0][0] <= completed:
            self._returns.popleft()[1]()
