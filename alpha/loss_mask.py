"""Which tokens of conversations a model learns to say: the assistant's text and the marker that ends it.

Where they are was noted when the corpus was encoded (`TokenFile.flips`). Knows nothing about tokenizers or chat
templates.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from alpha.dataset import Dataset
from alpha.errors import AlphaError

Tokens = npt.NDArray[np.integer[Any]]


class LossMask:
    """Says of places in a token file whether the loss of predicting the token there counts.

    That of a document which is no conversation does, its end included. In a conversation, only the text of an assistant
    and the marker at its end do, not what a chat template writes around them, or the end of the document.
    """

    def __init__(self, flips: npt.NDArray[np.int64], length: int) -> None:
        """Of a file of `length` tokens."""
        self._flips = flips
        self._length = length

    def counts(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the tokens at these places count, of the same shape."""
        counted: npt.NDArray[np.bool_] = np.searchsorted(self._flips, places, "right") % 2 == 0
        return counted

    def total(self) -> int:
        """How many tokens count."""
        edges = np.array([0, *self._flips, self._length])[: len(self._flips) // 2 * 2 + 2]
        return int((edges[1::2] - edges[0::2]).sum())

    def masked(self, targets: Tokens, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Targets that stand at these places, with -1 where they do not count; of the same shape."""
        return np.where(self.counts(places), targets.astype(np.int32), np.int32(-1))


def loss_masks(dataset: Dataset, loss_on: str, say: Callable[[str], None]) -> tuple[LossMask | None, LossMask | None]:
    """What counts in the training and in the validation data; None for all of it. AlphaError when nothing does.

    `loss_on` is --lossOn, and `say` is told how much counts.
    """
    if loss_on == "all":
        return None, None
    masks: list[LossMask | None] = []
    for what, file in (("training", dataset.train), ("validation", dataset.validation)):
        mask = None if file is None else LossMask(file.flips, len(file.tokens))
        if file is not None and mask is not None:
            count, total = mask.total(), len(file.tokens)
            if not count:
                raise AlphaError(
                    f"Nothing in the {what} data is an assistant's text, so there is nothing to learn from; "
                    f"give other data, or --lossOn=all."
                )
            say(f"Loss on {count:,} of {total:,} {what} tokens: the assistant's, and text outside of chats.")
        masks.append(mask)
    train, validation = masks
    return train, validation
