"""Mixtures: several corpora, each with a share of a run's windows: `--data=chats.jsonl:0.7,novels.txt:0.3`.

Which part a window comes from, and which of the part's own windows it is, follow from its number alone. Shares are kept
exactly, not on average: after any number of windows no part is more than one or two from its share. Knows nothing about
models or files.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath

import numpy as np

from alpha.config import TrainingConfig
from alpha.dataset import Dataset
from alpha.errors import UsageError
from alpha.loss_mask import LossMask
from alpha.option import spelled
from alpha.packing import PackedDocuments, PackedSampler
from alpha.sampler import Sampler, Tokens
from alpha.tokenizer import Tokenizer

_NO_SHARE = re.compile(r"(.+):([-+]?(?:[0-9.]+(?:e[-+]?[0-9]+)?%?|nan|inf))", re.DOTALL | re.IGNORECASE)
_PART = re.compile(r"(.+):([0-9]{0,9}\.?[0-9]{1,9})", re.DOTALL)


def shares(data: str) -> dict[str, int]:
    """What `--data` names with shares: the paths, with whole numbers in the ratio of the shares; empty without shares.

    Raises UsageError when only some have one, when one is 0, and for a path that is named twice.
    """
    parts = [part.strip() for part in data.split(",") if part.strip()]
    matches = [_PART.fullmatch(part) for part in parts]
    if not any(matches) and not (len(parts) > 1 and all(map(_NO_SHARE.fullmatch, parts))):
        return {}
    flag = spelled("data", data)
    fractions: dict[str, Fraction] = {}
    for part, match in zip(parts, matches, strict=True):
        if match is None and (number := _NO_SHARE.fullmatch(part)):
            raise UsageError(f"{flag} gives {number[1]} the share {number[2]}; a share is a number such as 3 or 0.5.")
        if match is None:
            raise UsageError(f"{flag} gives no share for {part}; give each a share, such as {part}:0.5, or none.")
        if match[1] in fractions:
            raise UsageError(f"{flag} names {match[1]} twice; name it once.")
        fractions[match[1]] = Fraction(match[2])
        if not fractions[match[1]]:
            raise UsageError(f"{flag} gives {match[1]} a share of 0; leave it out, or give it more.")
    whole = math.lcm(*(each.denominator for each in fractions.values()))
    return {path: int(each * whole) for path, each in fractions.items()}


@dataclass(frozen=True)
class Part:
    """One corpus of a mixture; of all windows, `share` in as many as all shares add up to are its."""

    name: str
    share: int
    data: Dataset


@dataclass(frozen=True)
class Mixture:
    """What a run trains on: parts, or one alone, which has no name. `evaluated` are those whose validation data it is
    evaluated on."""

    parts: tuple[Part, ...]
    evaluated: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Of all that is trained on, and in which shares."""
        if len(self.parts) == 1:
            return self.parts[0].data.train.digest
        each = [[part.share, part.data.train.digest] for part in self.parts]
        return hashlib.sha256(json.dumps(each).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """All that are trained on."""
        return sum(len(part.data.train.tokens) for part in self.parts)

    def require_whole(self) -> None:
        """See `TokenFile.require_whole`."""
        for part in self.parts:
            part.data.train.require_whole()


def mixture_of(datasets: Sequence[Dataset], named: dict[str, int], one_validation: bool) -> Mixture:
    """The mixture of what `shares` gives, in its order; `one_validation`: all have the same, which was given."""
    short = [PurePath(path).name for path in named]
    names = short if len(set(short)) == len(short) else list(named)
    parts = tuple(map(Part, names or [""], named.values() or [1], datasets))
    evaluated = [index for index, part in enumerate(parts) if part.data.validation is not None]
    return Mixture(parts, tuple(evaluated[:1] if one_validation else evaluated))


class MixtureSampler:
    """Batches of windows of several samplers; see `Sampler` for the methods."""

    def __init__(self, samplers: Sequence[Sampler | PackedSampler], parts: Sequence[int], batch: int) -> None:
        """`parts` are the shares."""
        self._samplers = samplers
        self._shares = parts
        self._batch = batch

    def batch_from(self, first: int) -> tuple[Tokens, ...]:
        places = [place(first + row, self._shares) for row in range(self._batch)]
        found = []
        for part, sampler in enumerate(self._samplers):
            numbers = [number for each, number in places if each == part]  # which follow each other
            if numbers:
                found.append(sampler.batch_from(numbers[0], len(numbers)))
        rows = np.argsort(np.argsort([part for part, _ in places], kind="stable"))
        return tuple(np.concatenate(each)[rows] for each in zip(*found, strict=True))


def place(window: int, parts: Sequence[int]) -> tuple[int, int]:
    """The part that a window comes from, given the shares, and its number among the windows of that part.

    The first part has its share of all windows, as evenly spread as can be; the next has its own of those that are left
    over, and so on.
    """
    rest = sum(parts)
    for part, share in enumerate(parts):
        before, after = ((2 * count * share + rest) // (2 * rest) for count in (window, window + 1))
        if after > before:
            return part, before
        window -= before
        rest -= share
    raise AssertionError("the last part has all that is left")


def sampler_of(
    mixture: Mixture,
    masks: Sequence[LossMask | None],
    tokenizer: Tokenizer,
    block: int,
    training: TrainingConfig,
    say: Callable[[str], None],
) -> Sampler | PackedSampler | MixtureSampler:
    """What draws the windows of a run; `masks` are those of the parts.

    `say` is told what becomes of documents that share windows.
    """
    batch = training.batch
    samplers: list[Sampler | PackedSampler] = []
    for index, (part, mask) in enumerate(zip(mixture.parts, masks, strict=True)):
        seed = (training.seed + index) % (1 << 64)
        if training.pack_documents:
            documents = PackedDocuments(part.data.train, block, tokenizer, mask)
            for sentence in documents.in_words():
                say(sentence)
            samplers.append(PackedSampler(documents, batch, seed))
        else:
            samplers.append(Sampler(part.data.train.tokens, block, batch, seed, training.packed, mask))
    shares = [part.share for part in mixture.parts]
    return samplers[0] if len(samplers) == 1 else MixtureSampler(samplers, shares, batch)
