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
    text_of,
    train,
    write_corpus,
)

from alpha import corpus_files, dataset, tokenizer_registry
from alpha.backend_cpu_ref import CpuRef
from alpha.cli import main
from alpha.errors import AlphaError
from alpha.evaluation import Evaluator
from alpha.loss_mask import LossMask
from alpha.model_loading import load_model
from alpha.packing import PackedDocuments, PackedSampler
from alpha.sampler import Sampler, windows
from alpha.terminal import print_parts
from alpha.token_file import TokenFile
from alpha.tokenizer import CHAT_TOKENS, END_OF_TEXT
from alpha.tokenizer_bpe import build_bpe

CHAT = build_bpe(["The cat sees the dog. " * 50], 300, (END_OF_TEXT, *CHAT_TOKENS))
USER, ASSISTANT, SYSTEM, END = (CHAT.special_tokens[each] for each in CHAT_TOKENS)
END_OF_DOCUMENT = CHAT.end_of_text


pytestmark = pytest.mark.usefixtures("own_folders")


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


def mask_of(tokens: Any) -> LossMask:
    """That of tokens of Alpha's own chat format."""
    counted = counted_one_by_one(list(tokens))
    return LossMask(np.flatnonzero(np.diff(counted, prepend=True)), len(counted))


@given(TOKENS)
def test_what_counts_is_what_the_definition_says(tokens: list[int]) -> None:
    mask = mask_of(tokens)
    expected = counted_one_by_one(tokens)
    assert mask.counts(np.arange(len(tokens))).tolist() == expected
    assert mask.total() == sum(expected)


@given(TOKENS.filter(lambda tokens: len(tokens) > 5), st.booleans(), st.integers(0, 20))
def test_batches_have_the_mask_of_their_places(tokens: list[int], packed: bool, first: int) -> None:
    array = np.array(tokens, np.uint16)
    # Each token says where it stands, so that a window shows where it was taken.
    numbered = np.arange(len(tokens), dtype=np.uint16)
    expected = np.array(counted_one_by_one(tokens))
    sampler = Sampler(array, 4, 3, 1, packed, mask_of(array.tolist()))
    where = Sampler(numbered, 4, 3, 1, packed).batch_from(first)[1]
    ids, targets = sampler.batch_from(first)
    assert (ids == Sampler(array, 4, 3, 1, packed).batch_from(first)[0]).all()
    assert (targets == np.where(expected[where], array[where].astype(np.int32), -1)).all()


@given(TOKENS, st.integers(1, 7), st.integers(1, 3))
def test_evaluation_predicts_each_token_that_counts_once(tokens: list[int], block: int, batch: int) -> None:
    array = np.array(tokens, np.uint16)
    found = [targets for _, targets in windows(array, block, batch, mask=mask_of(array.tolist()))]
    counted = [token for each in found for token in each.reshape(-1).tolist() if token >= 0]
    assert counted == [
        token for token, counts in zip(tokens[1:], counted_one_by_one(tokens)[1:], strict=True) if counts
    ]


def mask_of_file(file: TokenFile) -> LossMask:
    return LossMask(file.flips, len(file.tokens))


def learned(file: TokenFile) -> str:
    return CHAT.decode(file.tokens[mask_of_file(file).counts(np.arange(len(file.tokens)))])


@pytest.mark.parametrize("name", ["chats.txt", "chats.jsonl"])
def test_a_file_token_by_token(tmp_path: Path, name: str) -> None:
    """Conversations and text in turn, in the order of the file, also where a file is divided in a turn."""
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes."), ("user", "No")]
    chat = "\n".join(f"<|{role}|>{content}<|end|>" for role, content in turns)
    messages = {"messages": [{"role": role, "content": content} for role, content in turns]}
    lines = [json.dumps(each) for each in (messages, {"text": "Text."}, messages, messages)]
    content = "\n".join(lines) if name.endswith("l") else END_OF_TEXT.join([chat, "Text.", chat, chat])
    (tmp_path / name).write_text(content)
    file = dataset.encode_whole(corpus_files.find(str(tmp_path / name)), CHAT, tmp_path / "cache")
    tokens = file.tokens.tolist()
    counted = np.array(counted_one_by_one(tokens))
    assert mask_of_file(file).counts(np.arange(len(tokens))).tolist() == counted.tolist()
    assert learned(file) == "Yes.<|end|>Text.<|endoftext|>Yes.<|end|>Yes.<|end|>"
    assert [tokens[end - 1] for end in file.ends.tolist()] == [END_OF_DOCUMENT] * 4
    for count in range(1, len(tokens)):
        first, last = file.divide(count, 0)
        found = [mask_of_file(each).counts(np.arange(len(each.tokens))) for each in (first, last)]
        assert np.concatenate(found).tolist() == counted.tolist()
        assert mask_of_file(last).total() == counted[-count:].sum()
        assert [*first.ends.tolist(), *(last.ends + len(first.tokens)).tolist()] == file.ends.tolist()


# --- conversations in a corpus ----------------------------------------------------------------------------------------


def conversations(count: int, turns: int = 3, words: int = 4) -> str:
    """JSON lines in which what a user says is in letters, and what an assistant says in digits."""
    lines = []
    for number in range(count):
        messages = [{"role": "system", "content": "r " * words}]
        for turn in range(turns):
            messages.append({"role": "user", "content": f"{chr(97 + (number + turn) % 26)} " * words})
            messages.append({"role": "assistant", "content": f"{number}{turn} " * words})
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("words", [4, 300], ids=["short", "longer than sections"])
def test_wherever_a_conversation_is_divided_only_the_assistant_counts(tmp_path: Path, words: int) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(conversations(40, 6, words))
    data = dataset.prepare(corpus_files.find(str(path)), None, CHAT, tmp_path / "cache", lambda file: 17)
    assert data.validation is not None
    said = 0
    for file in (data.train, data.validation):
        text = learned(file)
        assert not set(text.replace("<|end|>", "")) - set("0123456789 ")
        said += text.count("<|end|>")
    assert said == 40 * 6


def test_text_that_spells_a_marker_is_text(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    said = "<|assistant|>I am no assistant<|end|>"
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "7"}]
    path.write_text((json.dumps({"messages": messages}) + "\n") * 20)
    assert learned(dataset.encode_whole(corpus_files.find(str(path)), CHAT, tmp_path / "cache")) == "7<|end|>" * 20


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text(conversations(150, words=1))
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
    data = dataset.prepare(corpus_files.find(str(chats)), None, CHAT, tmp_path / "cache", lambda file: 2)
    mask = mask_of_file(data.train)
    documents = PackedDocuments(data.train, MODEL.block, CHAT, mask)
    sampler = PackedSampler(documents, TRAINING["batch"], 42)
    step = [sampler.batch_from(first) for first in (0, TRAINING["batch"])]
    expected = Evaluator(loaded.model, CHAT).batches(step)
    rows = rows_of(folder)
    assert 0 < expected.tokens < 2 * TRAINING["batch"] * MODEL.block
    assert rows[0]["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert data.validation is not None
    validation = PackedDocuments(data.validation, MODEL.block, CHAT, mask_of_file(data.validation))
    held_out = validation.batches(4, 8, spread=True)
    assert rows[-1]["valLoss"] == pytest.approx(Evaluator(loaded.model, CHAT).batches(held_out).loss, rel=1e-6)
    count, total = mask.total(), len(data.train.tokens)
    assert (
        f"Loss on {count:,} of {total:,} training tokens: the assistant's, and text outside of chats."
        in display.messages
    )


def test_alpha_eval_measures_what_training_validates(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(conversations(12, words=1).replace('"content"', '"content" '))
    folder = train(chats, tmp_path / "run", **OPTIONS, val_data=str(held_out))

    def evaluated(*more: str) -> dict[str, Any]:
        command = ["eval", f"--checkpoint={folder}", f"--data={held_out}", "--evalIters=2", "--json"]
        assert main([*command, "--backend=cpu_ref", *more]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    as_trained, everything = evaluated(), evaluated("--lossOn=all")
    assert as_trained["lossOn"] == "assistant"
    assert as_trained["loss"] == pytest.approx(rows_of(folder)[-1]["valLoss"], rel=1e-6)
    assert as_trained["bitsPerByte"] == pytest.approx(rows_of(folder)[-1]["valBitsPerByte"], rel=1e-6)
    assert everything["tokens"] > 2 * as_trained["tokens"]
    held_out.write_text(json.dumps({"body": "1 2 3 4 5"}) + "\nno json\n")
    assert main(["eval", f"--checkpoint={folder}", f"--data={held_out}", "--textField=body"]) == 1
    assert "Line 2" in capsys.readouterr().err
    assert evaluated("--textField=body", "--skipBadLines")["tokens"] > 5


def test_what_does_not_count_is_not_learned(chats: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "iters": 40, "lr": 0.02, "eval_interval": 0}

    def losses(loss_on: str) -> tuple[float, float]:
        loaded = load_model(str(train(chats, tmp_path / loss_on, **{**options, "loss_on": loss_on})), CpuRef())
        file = dataset.encode_whole(corpus_files.find(str(chats)), CHAT, tmp_path / "cache")
        batches = list(PackedDocuments(file, MODEL.block, CHAT).batches(8, 40))
        masked = list(PackedDocuments(file, MODEL.block, CHAT, mask_of_file(file)).batches(8, 40))
        others = [
            (ids, np.where(kept < 0, targets, -1), begins)
            for (ids, targets, begins), (_, kept, _) in zip(batches, masked, strict=True)
        ]
        return Evaluator(loaded.model, CHAT).batches(masked).loss, Evaluator(loaded.model, CHAT).batches(others).loss

    assistant, others = losses("assistant")
    assistant_of_all, others_of_all = losses("all")
    assert others > math.log(300) - 1 > others_of_all
    assert assistant < 0.6 * math.log(300)
    assert assistant_of_all < 0.7 * math.log(300)


@pytest.mark.parametrize("is_text", [False, True], ids=["chats", "text"])
def test_a_resumed_run_has_the_same_bits(chats: Path, tmp_path: Path, is_text: bool) -> None:
    data, options = chats, OPTIONS
    if is_text:
        data, options = tmp_path / "text.jsonl", {"pack_documents": True, "accum_steps": 2}
        data.write_text("".join(json.dumps({"text": line}) + "\n" for line in text_of().splitlines()))
    whole = train(data, tmp_path / "whole", **options)
    folder = train(data, tmp_path / "run", RecordingDisplay(stop_after=4), **options)
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert newest(folder).training.loss_on == ("all" if is_text else "assistant")
    assert newest(folder).training.pack_documents


def test_without_markers_a_chat_is_written_as_the_model_is_talked_to(chats: Path, tmp_path: Path) -> None:
    run, trainer = begin(chats, tmp_path / "run", loss_on="assistant", tokenizer="bpe", vocab_size=300)
    run.close()
    file = trainer.mixture.parts[0].data.train
    assert trainer.training.pack_documents
    text = trainer.tokenizer.decode(file.tokens[: file.ends[0]])
    assert re.fullmatch(r"System: r \n\n(User: [a-z] \n\nAssistant: \d+ \n\n){3}<\|endoftext\|>", text), text
    counted = mask_of_file(file).counts(np.arange(len(file.tokens)))
    said = trainer.tokenizer.decode(file.tokens[: file.ends[0]][counted[: file.ends[0]]])
    assert re.fullmatch(r"( \d+ \n\n){3}", said), said


def test_chats_without_an_assistant_are_refused(tmp_path: Path, chats: Path) -> None:
    messages = {"messages": [{"role": "user", "content": "Is anybody there? " * 40}]}
    chats.write_text(json.dumps(messages) * 1)
    with pytest.raises(AlphaError, match="Nothing in the training data is an assistant's text"):
        begin(chats, tmp_path / "run", **OPTIONS)


def test_plain_text_counts_as_a_whole(tmp_path: Path, chats: Path) -> None:
    display = RecordingDisplay()
    run, trainer = begin(write_corpus(tmp_path), tmp_path / "run", display, **OPTIONS)
    run.close()
    total = len(trainer.mixture.parts[0].data.train.tokens)
    assert any(message.startswith(f"Loss on {total:,} of {total:,} training") for message in display.messages)


def test_the_data_is_shown_as_the_first_step_sees_it(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"train --data={chats} --tokenizerArtifacts=chat.json --lossOn=assistant --block=16 --showData=30"
    assert main(command.split()) == 0
    output = capsys.readouterr().out
    shown = re.split(r"--- example \d+ of 30\n", output)[1:]
    data = dataset.prepare(corpus_files.find(str(chats)), None, CHAT, tmp_path / "cache", lambda file: 2)
    documents = PackedDocuments(data.train, 16, CHAT, mask_of_file(data.train))
    ids, _, begins = PackedSampler(documents, 30, 42).batch_from(0)
    expected = [
        CHAT.decode(ids[row, begins[row] == begin]) for row in range(30) for begin in sorted(set(begins[row].tolist()))
    ]
    expected = [each for each in expected if each.strip(END_OF_TEXT)]
    assert len(shown) == 30
    for each, text in zip(shown, expected, strict=False):
        assert re.sub("[⟦⟧]", "", each).startswith(text)
    said = [part for each in shown for part in re.findall("⟦(.*?)⟧", each, re.DOTALL)]
    assert said
    assert not set("".join(said).replace("<|end|>", "")) - set("0123456789 ")
    assert not (tmp_path / "runs").exists()


def test_on_a_terminal_what_is_not_learned_is_dim(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alpha.terminal.terminal_width", lambda: 80)
    monkeypatch.setenv("TERM", "xterm")
    print_parts([("asked\x1b[2J ", False), ("said", True)])
    assert capsys.readouterr().out == "\x1b[2masked\\x1b[2J \x1b[0msaid\n"
