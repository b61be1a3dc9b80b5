"""Loss on what the assistant says: which tokens count, wherever a window or a section of the corpus begins."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_training import (
    MODEL,
    TRAINING,
    RecordingDisplay,
    begin,
    bits_of,
    newest,
    resume,
    rows_of,
    train,
    write_corpus,
)

from alpha import corpus_files, dataset, tokenizer_registry
from alpha.backend_cpu_ref import CpuRef
from alpha.cli import main
from alpha.errors import AlphaError, UsageError
from alpha.evaluation import evaluate_batches
from alpha.loss_mask import LossMask
from alpha.model_loading import load_model
from alpha.sampler import Sampler, windows
from alpha.terminal import print_parts
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe

CHAT = build_bpe(["The cat sees the dog. " * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))
USER, ASSISTANT, SYSTEM, END = (CHAT.special_tokens[each] for each in CHAT_TOKENS)
END_OF_DOCUMENT = CHAT.end_of_text


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def counted_one_by_one(tokens: list[int]) -> list[bool]:
    """The definition, read token by token."""
    speaker: int | None = None  # None: outside of a conversation
    special = [token for token in tokens if token in (USER, ASSISTANT, SYSTEM, END, END_OF_DOCUMENT)]
    is_turn_open = special[:1] in ([], [END_OF_DOCUMENT])  # else a turn's beginning, and who speaks, is elsewhere
    counted = []
    for token in tokens:
        if token in (USER, ASSISTANT, SYSTEM):
            counted.append(False)
            speaker, is_turn_open = token, True
            continue
        counted.append(is_turn_open and speaker in (None, ASSISTANT))
        if token == END:
            is_turn_open = False
        if token == END_OF_DOCUMENT:
            speaker, is_turn_open = None, True
    return counted


TOKENS = st.lists(st.sampled_from([USER, ASSISTANT, SYSTEM, END, END_OF_DOCUMENT, 65, 66, 67]), min_size=1, max_size=60)


@given(TOKENS)
def test_what_counts_is_what_the_definition_says(tokens: list[int]) -> None:
    mask = LossMask(np.array(tokens, np.uint16), CHAT)
    expected = counted_one_by_one(tokens)
    assert mask.counts(np.arange(len(tokens))).tolist() == expected
    assert mask.total() == sum(expected)


@given(TOKENS.filter(lambda tokens: len(tokens) > 5), st.booleans(), st.integers(0, 20))
def test_batches_have_the_mask_of_their_places(tokens: list[int], packed: bool, first: int) -> None:
    array = np.array(tokens, np.uint16)
    # Each token says where it stands, so that a window shows where it was taken.
    numbered = np.arange(len(tokens), dtype=np.uint16)
    expected = np.array(counted_one_by_one(tokens))
    sampler = Sampler(array, 4, 3, 1, packed, LossMask(array, CHAT))
    where = Sampler(numbered, 4, 3, 1, packed).ids_and_targets_from(first)[1]
    ids, targets = sampler.ids_and_targets_from(first)
    assert (ids == Sampler(array, 4, 3, 1, packed).ids_and_targets_from(first)[0]).all()
    assert (targets == np.where(expected[where], array[where].astype(np.int32), -1)).all()


@given(TOKENS, st.integers(1, 7), st.integers(1, 3))
def test_evaluation_predicts_each_token_that_counts_once(tokens: list[int], block: int, batch: int) -> None:
    array = np.array(tokens, np.uint16)
    found = [targets for _, targets in windows(array, block, batch, mask=LossMask(array, CHAT))]
    counted = [token for each in found for token in each.reshape(-1).tolist() if token >= 0]
    assert counted == [
        token for token, counts in zip(tokens[1:], counted_one_by_one(tokens)[1:], strict=True) if counts
    ]


def test_the_rest_of_a_turn_whose_beginning_is_elsewhere_does_not_count() -> None:
    tokens = CHAT.encode_to_array("is that?<|end|>\n<|assistant|>It.<|end|>", allow_special=True)
    counted = LossMask(tokens, CHAT).counts(np.arange(len(tokens)))
    assert CHAT.decode(tokens[counted]) == "It.<|end|>"


def test_a_conversation_token_by_token() -> None:
    text = "<|system|>Be kind.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>Yes.<|end|>\n<|user|>No<|end|><|endoftext|>"
    tokens = CHAT.encode_to_array(text, allow_special=True)
    counted = LossMask(tokens, CHAT).counts(np.arange(len(tokens)))
    assert CHAT.decode(tokens[counted]) == "Yes.<|end|>"


# --- conversations in a corpus ----------------------------------------------------------------------------------------


def conversations(count: int, turns: int = 3, words: int = 4) -> str:
    """JSON lines in which what a user says is in letters, and what an assistant says in digits."""
    lines = []
    for number in range(count):
        messages = [{"role": "system", "content": "rules " * words}]
        for turn in range(turns):
            messages.append({"role": "user", "content": f"question {chr(97 + (number + turn) % 26)} " * words})
            messages.append({"role": "assistant", "content": f"{number}{turn} " * words})
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("words", [4, 300], ids=["short", "longer than sections"])
def test_wherever_a_conversation_is_divided_only_the_assistant_counts(tmp_path: Path, words: int) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(conversations(40, 6, words))
    data = dataset.prepare(corpus_files.find(str(path)), None, CHAT, tmp_path / "cache", 16)
    assert data.validation is not None
    said = 0
    for file in (data.train, data.validation):
        counted = LossMask(file.tokens, CHAT).counts(np.arange(len(file.tokens)))
        text = CHAT.decode(file.tokens[counted])
        assert not set(text.replace("<|end|>", "")) - set("0123456789 ")
        said += text.count("<|end|>")
    assert said == 40 * 6


def test_text_that_spells_a_marker_is_text(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    said = "<|assistant|>I am no assistant<|end|>"
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "7"}]
    path.write_text((json.dumps({"messages": messages}) + "\n") * 20)
    tokens = dataset.encode_whole(corpus_files.find(str(path)), CHAT, tmp_path / "cache").tokens
    counted = LossMask(tokens, CHAT).counts(np.arange(len(tokens)))
    assert CHAT.decode(tokens[counted]) == "7<|end|>" * 20


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text(conversations(150))
    tokenizer_registry.save(tmp_path / "chat.json", CHAT)
    return path


OPTIONS: dict[str, Any] = {
    "tokenizer": "",
    "tokenizer_artifacts": "chat.json",
    "loss_on": "assistant",
    "accum_steps": 2,
}


def test_a_step_learns_from_the_assistant_alone(chats: Path, tmp_path: Path) -> None:
    display = RecordingDisplay()
    # At a rate of nearly nothing, the weights of the end are those of the first step.
    folder = train(chats, tmp_path / "run", display, **OPTIONS, lr=1e-20, iters=2, weight_decay=0.0)
    loaded = load_model(str(folder), CpuRef())
    data = dataset.prepare(corpus_files.find(str(chats)), None, CHAT, tmp_path / "cache", MODEL.block)
    mask = LossMask(data.train.tokens, CHAT)
    sampler = Sampler(data.train.tokens, MODEL.block, TRAINING["batch"], 42, False, mask)
    step = [sampler.ids_and_targets_from(first) for first in (0, TRAINING["batch"])]
    expected = evaluate_batches(loaded.model, CHAT, step)
    rows = rows_of(folder)
    assert 0 < expected.tokens < 2 * TRAINING["batch"] * MODEL.block
    assert rows[0]["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert data.validation is not None
    held_out = windows(
        data.validation.tokens, MODEL.block, 4, 8, spread=True, mask=LossMask(data.validation.tokens, CHAT)
    )
    assert rows[-1]["valLoss"] == pytest.approx(evaluate_batches(loaded.model, CHAT, held_out).loss, rel=1e-6)
    count, total = mask.total(), len(data.train.tokens)
    assert (
        f"Loss on {count:,} of {total:,} training tokens: the assistant's, and text outside of chats."
        in display.messages
    )


def test_what_does_not_count_is_not_learned(chats: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "iters": 40, "lr": 0.02, "eval_interval": 0}

    def losses(loss_on: str) -> tuple[float, float]:
        loaded = load_model(str(train(chats, tmp_path / loss_on, **{**options, "loss_on": loss_on})), CpuRef())
        tokens = dataset.encode_whole(corpus_files.find(str(chats)), CHAT, tmp_path / "cache").tokens
        mask = LossMask(tokens, CHAT)
        batches = list(windows(tokens, MODEL.block, 8, 40))
        masked = list(windows(tokens, MODEL.block, 8, 40, mask=mask))
        others = [
            (ids, np.where(kept < 0, targets, -1)) for (ids, targets), (_, kept) in zip(batches, masked, strict=True)
        ]
        return evaluate_batches(loaded.model, CHAT, masked).loss, evaluate_batches(loaded.model, CHAT, others).loss

    assistant, others = losses("assistant")
    assistant_of_all, others_of_all = losses("all")
    assert others > math.log(300) - 1 > others_of_all
    assert assistant < 0.6 * math.log(300)
    assert assistant_of_all < 0.7 * math.log(300)


def test_a_resumed_run_has_the_same_bits(chats: Path, tmp_path: Path) -> None:
    whole = train(chats, tmp_path / "whole", **OPTIONS, packed=True)
    folder = train(chats, tmp_path / "run", RecordingDisplay(stop_after=4), **OPTIONS, packed=True)
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert newest(folder).training.loss_on == "assistant"


def test_a_tokenizer_without_markers_is_refused(chats: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--lossOn=assistant needs a tokenizer with the markers of a conversation"):
        begin(chats, tmp_path / "run", loss_on="assistant")
    assert not (tmp_path / "run").exists()


def test_chats_without_an_assistant_are_refused(tmp_path: Path, chats: Path) -> None:
    messages = {"messages": [{"role": "user", "content": "Is anybody there? " * 40}]}
    chats.write_text(json.dumps(messages) * 1)
    with pytest.raises(AlphaError, match="Nothing in the training data is an assistant's text"):
        begin(chats, tmp_path / "run", **OPTIONS)


def test_plain_text_counts_as_a_whole(tmp_path: Path, chats: Path) -> None:
    display = RecordingDisplay()
    run, trainer = begin(write_corpus(tmp_path), tmp_path / "run", display, **OPTIONS)
    run.close()
    total = len(trainer.dataset.train.tokens)
    assert any(message.startswith(f"Loss on {total:,} of {total:,} training") for message in display.messages)


def test_the_data_is_shown_as_the_first_step_sees_it(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"train --data={chats} --tokenizerArtifacts=chat.json --lossOn=assistant --block=16 --showData=30"
    assert main(command.split()) == 0
    output = capsys.readouterr().out
    windows_shown = re.split(r"--- window \d+ of 30\n", output)[1:]
    data = dataset.prepare(corpus_files.find(str(chats)), None, CHAT, tmp_path / "cache", 16)
    sampler = Sampler(data.train.tokens, 16, 30, 42, False)
    assert [re.sub("[⟦⟧]", "", each).rstrip("\n") for each in windows_shown] == [
        CHAT.decode(row).rstrip("\n") for row in sampler.windows_from(0)
    ]
    learned = [part for each in windows_shown for part in re.findall("⟦(.*?)⟧", each, re.DOTALL)]
    assert learned
    assert not set("".join(learned).replace("<|end|>", "")) - set("0123456789 ")
    assert not (tmp_path / "runs").exists()


def test_on_a_terminal_what_is_not_learned_is_dim(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alpha.terminal.terminal_width", lambda: 80)
    monkeypatch.setenv("TERM", "xterm")
    print_parts([("asked\x1b[2J ", False), ("said", True)])
    assert capsys.readouterr().out == "\x1b[2masked\\x1b[2J \x1b[0msaid\n"
