"""Mixtures of corpora: shares, and that a run on one is the same however it is divided."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_training import TRAINING, RecordingDisplay, bits_of, resume, rows_of, text_of, train

from alpha.config import ModelConfig, TrainingConfig
from alpha.errors import AlphaError, UsageError
from alpha.evaluation import Evaluation, Evaluator
from alpha.mixture import MixtureSampler, place, shares
from alpha.sampler import Sampler
from alpha.training_setup import examples

MODEL = ModelConfig(block=48, layers=2, dim=16, heads=2)
"""A window has room for a conversation."""


pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Conversations and text."""
    chats = [
        {"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * 3}]}
        for word in text_of(4000, "chats").split()
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (tmp_path / "text.txt").write_text(text_of(9000).upper())
    return "chats.jsonl:0.7,text.txt:0.3"


def test_shares_are_read_exactly() -> None:
    assert shares("a.jsonl:0.7, b.txt:0.3") == {"a.jsonl": 7, "b.txt": 3}
    assert shares("a:b:2,c:.5") == {"a:b": 4, "c": 1}
    assert shares("a.txt,b.txt") == shares("a.txt") == shares("C:a.txt") == shares("a:5%") == {}
    for wrong, message in (
        ("a:1,b", "gives no share for b; give each a share, such as b:0.5, or none"),
        ("a:1,a:2", "names a twice"),
        ("a:1,b:0.0", "gives b a share of 0"),
        ("a:1,b:-1", "gives b the share -1; a share is a number"),
        ("a:1,b:1e5", "gives b the share 1e5"),
        ("a:1,b:nan", "gives b the share nan"),
        ("a:50%,b:50%", "gives a the share 50%; a share is a number"),
    ):
        with pytest.raises(UsageError, match=message):
            shares(wrong)


@pytest.mark.parametrize("parts", [[7, 3], [1], [1, 1, 1], [999, 1], [3, 5, 1, 11]])
def test_windows_are_shared_out_evenly_and_each_parts_are_counted(parts: list[int]) -> None:
    seen: Counter[int] = Counter()
    for window in range(1000):
        part, number = place(window, parts)
        assert number == seen[part]
        seen[part] += 1
        for index, share in enumerate(parts):
            assert abs(seen[index] - (window + 1) * share / sum(parts)) < len(parts)
    assert place(10**12, [1, 1]) == (0, 10**12 // 2)


def test_each_part_is_evaluated_by_itself(data: str, tmp_path: Path) -> None:
    display = RecordingDisplay()
    folder = train(Path(data), tmp_path / "run", display, model=MODEL, batch=10, iters=6)
    row = rows_of(folder)[-1]
    losses = [row["valLoss/chats.jsonl"], row["valLoss/text.txt"]]
    assert row["valLoss"] == pytest.approx(0.7 * losses[0] + 0.3 * losses[1])
    assert abs(losses[0] - losses[1]) > 0.01
    assert "70% of the windows are from chats.jsonl." in display.messages
    ended = f"validation loss {row['valLoss']:.4f} (chats.jsonl {losses[0]:.4f}, text.txt {losses[1]:.4f})"
    assert 0 < row["valBitsPerByte"] < row["valLoss"] / np.log(2), "a token is more than a byte"
    ended += f", {row['valBitsPerByte']:.4f} bits per byte"
    assert any(message.endswith(ended) for message in display.messages)


@pytest.mark.parametrize(("unknown", "bits"), [(0, 0.7 * 2.0 + 0.3 * 4.0), (1, None)])
def test_bits_per_byte_are_the_mean_by_the_shares(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: int, bits: float | None
) -> None:
    """And there are none where a part of the text is lost."""
    parts = itertools.cycle([Evaluation(1.0, 10, 0, 20.0, 10), Evaluation(1.0, 10, unknown, 40.0, 10)])
    monkeypatch.setattr(Evaluator, "file", lambda *_: next(parts))
    row = rows_of(train(Path(data), tmp_path / "run", model=MODEL, batch=10, iters=1))[-1]
    assert row.get("valBitsPerByte") == (None if bits is None else pytest.approx(bits))


@pytest.mark.parametrize(
    "options",
    [{}, {"packed": True}, {"loss_on": "assistant", "accum_steps": 2, "tokenizer": "bpe-chat-4k", "vocab_size": 300}],
)
def test_a_resumed_run_has_the_same_bits(options: dict[str, Any], data: str, tmp_path: Path) -> None:
    whole = train(Path(data), tmp_path / "whole", model=MODEL, **options)
    folder = train(Path(data), tmp_path / "run", RecordingDisplay(stop_after=4), model=MODEL, **options)
    with pytest.raises(AlphaError, match="The training data has changed"):
        resume(folder, data="chats.jsonl:0.6,text.txt:0.4")
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert rows_of(folder) == rows_of(whole)


def test_a_batch_has_the_shares_of_its_parts(data: str) -> None:
    training = TrainingConfig(data=data, **TRAINING)
    shown = ["".join(part for part, _ in parts) for parts in examples(MODEL, training, 20, RecordingDisplay())]
    assert 0 < sum(text.upper() == text for text in shown) <= 6  # a window of chats has several of them
    again = examples(MODEL, training, 40, RecordingDisplay())[:20]
    assert ["".join(part for part, _ in parts) for parts in again] == shown
    assert len(set(shown)) > 10


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("parts", [[7, 3], [1, 1, 1], [999, 1]])
def test_a_batch_asks_each_part_once_for_the_windows_it_would_give_one_by_one(parts: list[int], packed: bool) -> None:
    asked = []

    class Counting(Sampler):
        def batch_from(self, first: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
            asked.append(first)
            return super().batch_from(first, count)

    texts = [np.arange(1000 * part, 1000 * part + 500, dtype=np.int32) for part in range(len(parts))]
    mixture = MixtureSampler([Counting(each, 16, 32, 1, packed) for each in texts], parts, 32)
    singly = [Sampler(each, 16, 1, 1, packed) for each in texts]
    for first in (0, 5, 990):
        asked.clear()
        ids, targets = mixture.batch_from(first)
        assert len(asked) <= len(parts)
        for row, window in enumerate(range(first, first + 32)):
            part, number = place(window, parts)
            one = singly[part].batch_from(number)
            assert (ids[row] == one[0][0]).all() and (targets[row] == one[1][0]).all()


def test_with_validation_data_there_is_one_loss(data: str, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text(text_of(2000, "other"))
    folder = train(Path(data), tmp_path / "run", model=MODEL, val_data="val.txt", iters=3)
    row = rows_of(folder)[-1]
    assert np.isfinite(row["valLoss"])
    assert not [name for name in row if name.startswith("valLoss/")]
