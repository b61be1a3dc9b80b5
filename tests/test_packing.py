"""Packing: which documents share a window, what becomes of those that are too long, and that none knows of another."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import corpus_files, dataset
from alpha.autograd import Tape
from alpha.backend import Backend
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ModelConfig, resolve_model
from alpha.gpt import GPT
from alpha.loss_mask import LossMask
from alpha.packing import PackedDocuments, PackedSampler, best_fit
from alpha.token_file import TokenFile
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe

CHAT = build_bpe(["The cat sees the dog. " * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))


def text_file(lengths: list[int]) -> TokenFile:
    """Documents of so many tokens, each of another token, and ends of text."""
    parts = [[*[number + 1] * length, 0] for number, length in enumerate(lengths)]
    tokens = np.array([token for each in parts for token in each], np.uint16)
    return TokenFile(Path("tokens.npy"), tokens, len(lengths), 1, "", ends=np.cumsum([len(each) for each in parts]))


def best_fit_one_by_one(lengths: list[int], room: int) -> list[list[int]]:
    """The definition: the longest first, each into the window that it leaves the least room in."""
    windows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        fitting = [place for place in range(len(left)) if left[place] >= lengths[number]]
        if not fitting:
            windows.append([])
            left.append(room)
        place = min(fitting, key=lambda each: left[each], default=len(left) - 1)
        windows[place].append(number)
        left[place] -= lengths[number]
    return windows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=60))
def test_best_fit_is_what_the_definition_says(lengths: list[int]) -> None:
    order, bounds = best_fit(np.array(lengths, np.int64), 12)
    found = [order[low:high].tolist() for low, high in itertools.pairwise(bounds)]
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert all(each == sorted(each) for each in found)
    assert found == sorted(found)

    # Windows that have equal room left are alike, so which of them a piece is put into is open.
    rooms, expected = (
        sorted(12 - sum(lengths[number] for number in each) for each in windows)
        for windows in (found, best_fit_one_by_one(lengths, 12))
    )
    assert rooms == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_each_token_but_the_first_of_each_document_is_predicted_once(lengths: list[int]) -> None:
    documents = PackedDocuments(text_file(lengths), 12, CHAT)
    ids, targets, begins = documents.windows(np.arange(len(documents)))
    predicted = np.bincount(targets[targets >= 0], minlength=len(lengths) + 1)
    assert predicted.tolist() == [len(lengths), *(length - 1 for length in lengths)]
    places = np.arange(12)
    for row in range(len(ids)):
        for begin in set(begins[row].tolist()):
            own = begins[row] == begin
            assert (places[own] == np.arange(begin, begin + own.sum())).all(), "documents stand side by side"
            assert len(set(ids[row, own].tolist())) == 1
    whole = [length for length in lengths if length <= 12]
    found = [int((begins[row] == begin).sum()) for row in range(len(ids)) for begin in set(begins[row].tolist())]
    assert all(found.count(length) >= whole.count(length) for length in whole)


def test_a_pass_visits_each_window_once_whatever_the_batch() -> None:
    documents = PackedDocuments(text_file([5, 9, 3, 7, 7, 2, 11, 4, 10, 6]), 12, CHAT)
    count = len(documents)
    wide, narrow = (PackedSampler(documents, batch, 7) for batch in (3 * count, 1))
    rows = wide.batch_from(0)
    assert all(np.array_equal(each[7], one[0]) for each, one in zip(rows, narrow.batch_from(7), strict=True))
    passes = [sorted(row.tobytes() for row in rows[0][start : start + count]) for start in (0, count, 2 * count)]
    assert passes[0] == passes[1] == passes[2]
    assert rows[0][:count].tobytes() != rows[0][count : 2 * count].tobytes()


def chats(folder: Path, conversations: list[list[tuple[str, str]]]) -> TokenFile:
    path = folder / "chats.jsonl"
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": role, "content": content} for role, content in each]}) + "\n"
            for each in conversations
        )
    )
    return dataset.encode_whole(corpus_files.find(str(path)), CHAT, folder / "cache")


def shown(documents: PackedDocuments) -> list[tuple[str, str]]:
    """What each piece reads, and what is learned of it."""
    ids, targets, begins = documents.windows(np.arange(len(documents)))
    found = []
    for row in range(len(ids)):
        for begin in sorted(set(begins[row].tolist())):
            own = begins[row] == begin
            learned = targets[row, own]
            found.append((CHAT.decode(ids[row, own]), CHAT.decode(learned[learned >= 0])))
    return [each for each in found if each[0].strip(END_OF_TEXT)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_conversation_that_is_too_long_is_cut_after_an_answer(tmp_path: Path, count: int) -> None:
    turns = [turn for n in range(4) for turn in (("user", f"q{n}"), ("assistant", f"answer {n}"))]
    file = chats(tmp_path, [[("system", "Be"), *turns]] * count)
    mask = LossMask(file.flips, len(file.tokens))
    each = len(file.tokens) // count
    whole = PackedDocuments(file, each - 1, CHAT, mask)
    assert whole.cut.conversations == 0
    assert (
        shown(whole)
        == [
            (
                "<|system|>Be<|end|>"
                + "".join(f"\n<|user|>q{n}<|end|>\n<|assistant|>answer {n}<|end|>" for n in range(4)),
                "".join(f"answer {n}<|end|>" for n in range(4)),
            )
        ]
        * count
    )
    cut = PackedDocuments(file, each // 2 + 1, CHAT, mask)
    text = "".join(f"\n<|user|>q{n}<|end|>\n<|assistant|>answer {n}<|end|>" for n in (2, 3))
    assert sorted(shown(cut))[-1] == (text.strip().removesuffix("<|end|>"), "answer 2<|end|>answer 3<|end|>")
    assert (cut.cut.conversations, cut.cut.pieces) == (count, 2 * count)
    assert "".join(sorted(learned for _, learned in shown(cut))).count("<|end|>") == 4 * count


def test_what_does_not_fit_with_its_question_is_left_out(tmp_path: Path) -> None:
    long = "the cat sees the dog " * 9
    file = chats(
        tmp_path,
        [
            [
                ("user", "a"),
                ("assistant", long),
                ("user", long),
                ("assistant", "no"),
                ("user", "b"),
                ("assistant", "yes"),
            ]
        ],
    )
    documents = PackedDocuments(file, 16, CHAT, LossMask(file.flips, len(file.tokens)))
    (first, begun), (second, whole) = shown(documents)
    assert (second, whole) == ("<|user|>b<|end|>\n<|assistant|>yes", "yes<|end|>")
    assert first.startswith("<|user|>a<|end|>\n<|assistant|>the cat")
    assert begun
    assert long.startswith(begun)
    assert documents.cut.pieces == 2
    learned = sum(int((targets >= 0).sum()) for _, targets, _ in documents.batches(1))
    assert documents.cut.left_out == LossMask(file.flips, len(file.tokens)).total() - learned > 0


# --- a model that reads several documents at once ---------------------------------------------------------------------

LENGTHS = (5, 1, 9, 3, 6)
SHAPES = {
    "learned": ModelConfig(block=24, layers=2, dim=16, heads=2),
    "rope": ModelConfig(arch="modern", block=24, layers=2, dim=16, heads=4, kv_heads=2, position="rope", qk_norm=True),
}


def results(backend: Backend, config: ModelConfig, ids: np.ndarray, begins: np.ndarray | None) -> list[np.ndarray]:
    """The hidden states, and the gradient of the parameters for a loss that is the sum over documents."""
    model = GPT(backend, resolve_model(config), 40, seed=3)
    model.parameters.initialize()
    model.parameters.clear_gradients()
    arrays = [backend.from_numpy(each) for each in (ids, (ids + 1) % 40)]
    places = None if begins is None else backend.from_numpy(begins)
    hidden = backend.to_numpy(model.hidden(arrays[0], begins=places).data)
    with Tape() as tape:
        loss = model.loss(*arrays, begins=places)
    tape.backward(loss, backend.from_numpy(np.array(ids.size, np.float32)))
    return [hidden, backend.to_numpy(model.parameters.gradients)]


def backends() -> list[Any]:
    from helios_device import helios

    return [pytest.param(CpuRef, id="cpu_ref"), pytest.param(helios, id="helios")]


@pytest.mark.parametrize("make", backends())
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_is_what_each_document_gives_alone(make: Any, shape: str) -> None:
    assert_packed_is_what_each_gives_alone(make(), shape, 1e-5)


def assert_packed_is_what_each_gives_alone(backend: Backend, shape: str, tolerance: float) -> None:
    """To rounding; and bit for bit the same whatever the documents beside it are."""
    ids = np.random.default_rng(1).integers(0, 40, (1, sum(LENGTHS)), np.int32)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    begins = np.repeat(starts, LENGTHS).astype(np.int32)[None]
    hidden, gradient = results(backend, SHAPES[shape], ids, begins)
    parts = [
        results(backend, SHAPES[shape], ids[:, start : start + length], None)
        for start, length in zip(starts, LENGTHS, strict=True)
    ]
    alone = np.concatenate([each for each, _ in parts], axis=1)
    assert np.abs(hidden - alone).max() < tolerance
    together = sum(each for _, each in parts)
    assert np.abs(gradient - together).max() < tolerance * np.abs(together).max() + 1e-6

    changed = ids.copy()
    own = (begins == starts[2])[0]
    changed[:, ~own] = (changed[:, ~own] + 7) % 40
    other, _ = results(backend, SHAPES[shape], changed, begins)
    assert np.array_equal(hidden[:, own], other[:, own])
    assert not np.isclose(hidden[:, ~own], other[:, ~own]).all()
