"""`alpha sample --interactive`: in a terminal, through a pipe, and what is behind both."""

import codecs
import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_models import make_checkpoint
from test_engine import Failing
from test_lora import adapt

from alpha import checkpoint, line_input
from alpha.backend_cpu_ref import CpuRef
from alpha.chat_format import encode_chat
from alpha.checkpoint import Checkpoint
from alpha.cli import main
from alpha.config import DrawingOptions, ModelConfig, TrainingConfig, resolve_model
from alpha.conversation import Chat, Text, conversation
from alpha.domain import dialogue
from alpha.engine import Engine
from alpha.errors import AlphaError
from alpha.exchange_folder import CHAT_TEMPLATE
from alpha.generation import Generator
from alpha.gpt import GPT, parameter_specs
from alpha.interactive import Session, begin
from alpha.line_input import LineInput
from alpha.model_loading import LoadedModel, load_model
from alpha.sampling import SamplingOptions
from alpha.terminal import escape_text
from alpha.tokenizer_simple import build_char

SECONDS = 60
SCRIPT = [sys.executable, str(Path(__file__).parents[1] / "alpha.py"), "sample", "--interactive", "--backend=cpu_ref"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("ALPHA_HISTORY", raising=False)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer has the markers of chats."""
    return make_checkpoint(tmp_path / "chat", "gpt2", block=160)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of a model that knows no chats, and writes escapes as gladly as letters."""
    tokenizer = build_char(["abcdef \n\x1b\x07é"])
    config = resolve_model(ModelConfig(block=32, layers=1, dim=16, heads=2))
    draw = np.random.Generator(np.random.PCG64(1))
    specs = parameter_specs(config, tokenizer.vocab_size)
    tensors = {each.name: 0.2 * draw.normal(size=each.shape).astype(np.float32) for each in specs}
    saved = Checkpoint(3, config, TrainingConfig(data="a.txt"), tokenizer.to_mapping(), tensors, {})
    return checkpoint.save(tmp_path / "base", saved)


class Terminal:
    """The command in a terminal of 80 columns and 24 lines."""

    def __init__(self, path: Path, *options: str) -> None:
        self._leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (24, 80))
        self._settings = termios.tcgetattr(follower)
        environment = {**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *SCRIPT, f"--checkpoint={path}", *options],
            stdin=follower, stdout=follower, stderr=follower, env=environment,
        )  # fmt: skip
        self._follower = follower
        self._seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, text: str) -> None:
        if text == "\x03":
            time.sleep(0.3)  # readline misses a signal that comes just before it waits
        os.write(self._leader, text.encode())

    def until(self, pattern: str) -> str:
        """What was shown up to something, without what readline shows beside the text."""
        end = time.monotonic() + SECONDS
        while not (match := re.search(pattern, self._seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self._seen!r}"
            if select.select([self._leader], [], [], 0.1)[0]:
                shown = self._decoder.decode(os.read(self._leader, 1 << 16))
                self._seen += re.sub(r"\x1b\[\?2004[hl]\r?|\x1b\[K", "", shown).replace("\r\n", "\n")
        shown, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return shown

    def end(self) -> int:
        """The exit code; the terminal is as it was."""
        code = self.process.wait(SECONDS)
        assert termios.tcgetattr(self._follower) == self._settings
        os.close(self._leader)
        os.close(self._follower)
        return code


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(path: Path, *options: str) -> Terminal:
        opened.append(Terminal(path, *options))
        return opened[-1]

    yield open_one
    for each in opened:
        each.process.kill()
        each.process.wait()


def piped(path: Path, text: str | bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    content = text.encode() if isinstance(text, str) else text
    return subprocess.run(
        [*SCRIPT, f"--checkpoint={path}", *options], input=content, capture_output=True, check=False, timeout=SECONDS
    )


def sampled(capsys: pytest.CaptureFixture[str], path: Path, prompt: str, *options: str) -> str:
    """What `alpha sample` adds to a prompt."""
    assert main(["sample", f"--checkpoint={path}", "--backend=cpu_ref", f"--prompt={prompt}", "--json", *options]) == 0
    text: str = json.loads(capsys.readouterr().out)["texts"][0]
    return text


# --- in a terminal ----------------------------------------------------------------------------------------------------


def test_a_chat_in_a_terminal(
    chat: Path, terminal: Callable[..., Terminal], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompt = dialogue([("<|user|>", "The cat\nsees")], reply=True)
    expected = escape_text(sampled(capsys, chat, prompt, "--steps=9"))
    screen = terminal(chat, "--steps=9")
    begun = screen.until("> ")
    assert re.search(r"alpha: .*checkpoint-10\.safetensors was loaded in \d+\.\d s\.\n", begun)
    assert "160 tokens of context. This is a chat in the model's own format." in begun
    screen.type('"""The cat\r')
    screen.until(r"\n\. ")
    screen.type('sees"""\r')
    screen.until("\n")
    assert screen.until("> ").removesuffix("> ") == f"{expected}\n(Cut off: 9 tokens.)\n"
    screen.type("/set seed 41\r")  # and one more for the second answer
    screen.until("> ")
    screen.type("/retry\r")
    screen.until("\n")
    assert screen.until("> ").startswith(f"{expected}\n")
    screen.type("\x04")
    screen.until(r"prefill .* decode .* tokens/s")
    assert screen.end() == 0


def test_ctrl_c_stops_the_answer_and_twice_ends(base: Path, terminal: Callable[..., Terminal]) -> None:
    screen = terminal(base, "--steps=1000000", "--stopAtEnd=false")
    screen.until("> ")
    for _ in range(2):
        screen.type("abc\r")
        screen.until("abc\n")
        screen.until(r".{40}(?s:.)*\n")  # it is writing
        screen.type("\x03")
        screen.until(r"\(Stopped\.\)\n> ")
    screen.type("half a line")
    screen.until("half a line")
    screen.type("\x03")
    screen.until("\n> ")
    screen.type("\x03")
    screen.until(r"Ctrl-C again, or Ctrl-D, ends\.\n> ")
    screen.type("/set\r")
    screen.until("minp 0   repetitionPenalty 1   seed 42\n> ")  # then it is no longer the second in a row
    screen.type("\x03")
    screen.until("again.*\n> ")
    screen.type("\x03")
    assert screen.end() == 0


def test_what_the_model_writes_does_nothing_to_the_terminal(base: Path, terminal: Callable[..., Terminal]) -> None:
    screen = terminal(base, "--steps=400", "--stopAtEnd=false", "--temp=5")
    screen.until("> ")
    screen.type("a\r")
    screen.until("a\n")
    answer = screen.until("\n> ")
    assert "\\x1b" in answer
    assert "\\x07" in answer
    assert not set(answer) & {"\x1b", "\x07"}
    assert "é" in answer
    while screen.process.poll() is None:  # readline misses a signal that comes just before it waits
        screen.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert screen.end() == 130


def test_what_was_typed_is_kept_for_the_user_alone(
    chat: Path, terminal: Callable[..., Terminal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHA_HISTORY", "2")
    history = tmp_path / "state" / "alpha" / "history"
    screen = terminal(chat, "--steps=1")
    screen.until("> ")
    for entry in ("one", "two \\\rlines", "two \\\rlines", "   ", "three"):
        screen.type(f"{entry}\r")
        screen.until("\n> ")
    screen.type("/exit\r")
    assert screen.end() == 0
    assert [json.loads(line) for line in history.read_text().splitlines()] == ["three", "/exit"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    history.write_text('damaged\n5\n"two \\nlines"\n"/set"\n')
    screen = terminal(chat)
    screen.until("> ")
    screen.type("\x1b[A")
    screen.until("/set")
    screen.type("\r")
    screen.until("seed 42\n> ")
    history.unlink()
    history.symlink_to(tmp_path / "elsewhere")
    screen.type("\x04")
    screen.until("What was typed is not kept for the next time.")
    assert screen.end() == 0
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("ALPHA_HISTORY", "0")
    history.unlink()
    screen = terminal(chat)
    screen.until("> ")
    screen.type("/set\r/exit\r")
    assert screen.end() == 0
    assert not history.exists()


# --- through a pipe ---------------------------------------------------------------------------------------------------


def test_through_a_pipe_only_answers_are_printed(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--steps=12", "--stopAtEnd=false", "--temp=0")
    first = sampled(capsys, base, "ab\ncd", *options)
    again = sampled(capsys, base, f"ab\ncd{first} fe", *options)
    on = sampled(capsys, base, f"ab\ncd{first} fe{again}", *options)
    result = piped(base, 'ab\\\ncd\n""" fe"""\n\n/set seed 7\n/help\n', *options)
    assert result.stdout.decode() == f"{first}\n{again}\n{on}\n"
    assert result.returncode == 0
    assert b"> " not in result.stderr
    assert b"/retry" in result.stderr
    assert piped(base, b"", *options).stdout == b""
    assert piped(base, b"\xff\n", *options).returncode == 0
    reset = piped(base, "ab\n/reset\nab\n", *options).stdout.splitlines()
    assert reset[: len(reset) // 2] == reset[len(reset) // 2 :]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("/rest\n", 2, b"There is no /rest. Did you mean 'reset'?"),
        ("/set temp high\n", 2, b"temp must be a number"),
        ("/set color 1\n", 2, b"There is no option 'color'"),
        ("/retry\n", 2, b"There is no answer yet"),
        ("cat " * 200 + "\n", 1, b"the context holds 160; say less"),
        ("x" * (line_input.MOST_CHARACTERS + 1), 1, b"more than 1,048,576 characters"),
        ('"""' + "x\n" * line_input.MOST_CHARACTERS, 1, b"more than 1,048,576 characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_ends_a_pipe(chat: Path, text: str, code: int, words: bytes) -> None:
    result = piped(chat, text)
    assert (result.returncode, result.stdout) == (code, b"")
    assert words in result.stderr.splitlines()[-1]


def test_options_that_do_not_go_together(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other in ("--n=2", "--beam=2", "--json", "--slide=false"):
        assert main(["sample", f"--checkpoint={chat}", "--interactive", other]) == 2
        assert "--interactive does not go together" in capsys.readouterr().err


# --- what is behind it ------------------------------------------------------------------------------------------------


def converse(
    talk: Chat | Text, generator: Generator, entries: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(entries))
    begin(talk, generator, DrawingOptions(**{"steps": 12, **options}))


def loaded_of(path: Path) -> LoadedModel:
    return load_model(str(path), CpuRef())


def test_turns_find_computed_what_was_said_before(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_of(chat)
    generator = Generator(loaded.model, engine=Engine(loaded.model, 1))
    talk = Chat(loaded, 160)
    converse(talk, generator, f"/system Be brief.\n{'The cat sees the dog. ' * 4}\nThe dog.\n", monkeypatch)
    assert [message["role"] for message in talk.content] == ["user", "assistant"] * 2
    before = [{"role": "system", "content": "Be brief."}, *talk.content[:3]]
    prompt = encode_chat(loaded.tokenizer, CHAT_TEMPLATE, before)
    assert generator.engine is not None
    assert generator.engine.reused_tokens >= 32
    # Nothing of that shows in the answer.
    fresh = Generator(loaded.model).generate(prompt, 12, SamplingOptions(0.8, 40, seed=43), ends=talk.asked().ends)
    assert talk.asked().text(token for [token] in fresh if token is not None) == talk.content[3]["content"]


def test_the_oldest_turns_go_where_the_context_is_full(
    chat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = loaded_of(chat)
    generator = Generator(loaded.model, engine=Engine(loaded.model, 1))
    talk = Chat(loaded, 160)
    talk.system = "You are a cat."
    entries = "".join(f"The cat sees the dog. {number}\n" for number in range(12))
    converse(talk, generator, entries, monkeypatch)
    said = [message["content"] for message in talk.content if message["role"] == "user"]
    assert said == [f"The cat sees the dog. {number}" for number in range(12)][-len(said) :]
    assert 1 < len(said) < 12
    assert talk.content[0]["role"] == "user"
    forgotten = re.findall(r"the oldest (\d+) messages are forgotten", capsys.readouterr().err)
    assert sum(map(int, forgotten)) == 2 * (12 - len(said))
    assert len(forgotten) < 12 - len(said), "each turn moves what is left"
    # What is too long alone leaves the conversation as it was.
    before = talk.content
    with pytest.raises(AlphaError, match="say less"):
        converse(talk, generator, "cat " * 200 + "\n", monkeypatch)
    assert talk.content == before
    # An answer ends where the context does.
    talk.reset()
    talk.said("The cat.")
    assert len(talk.asked().ids) + (talk.room(talk.asked()) or 0) == 161


def test_what_a_model_knows_decides_the_form(chat: Path, base: Path, tmp_path: Path) -> None:
    assert isinstance(conversation(loaded_of(chat), 160), Chat)
    assert isinstance(conversation(loaded_of(base), 32), Text)
    adapter = adapt(chat, tmp_path / "adapter")
    result = piped(adapter, "The cat.\n", "--steps=3")
    assert (result.returncode, result.stdout.count(b"\n") >= 1) == (0, True)
    assert b"a chat in the model's own format" in result.stderr


def test_a_device_that_fails_ends_an_answer_and_then_all(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = loaded_of(base)

    def failing() -> GPT:
        """A model whose device fails in the second answer."""
        model = loaded_of(base).model
        Failing(model, 13)
        return model

    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\nc\nd\ne\n"))
    lines = LineInput()
    lines.is_terminal = True
    generator = Generator(loaded.model, engine=Engine(failing(), 1, reload=failing))
    talk, answers = Text(loaded, stop_at_end=False), []
    take = talk.answered
    monkeypatch.setattr(talk, "answered", lambda text: (answers.append(text), take(text)))
    with pytest.raises(AlphaError, match="device failed"):
        Session(talk, generator, DrawingOptions(steps=8), lines).run()
    assert capsys.readouterr().err.count("The device failed while this was computed: the device was lost") == 1
    first, second = answers
    assert talk.content == f"a{first}c{second}", "what could not be answered is still there"
