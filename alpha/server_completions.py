"""Completions as OpenAI's API has them: what a request asks for, and the answer while its tokens arrive.

Pure: knows fields, tokenizers and the engine's events, nothing of HTTP or threads.
"""

import codecs
import dataclasses
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from alpha.engine import Event, Request
from alpha.sampling import LogProbs, SamplingOptions
from alpha.server_fields import LARGEST_SEED, Fields, RefusedError
from alpha.text_stream import Continuation, TextReader, continuation
from alpha.tokenizer import Tokenizer

MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_STOPS = 16
LONGEST_STOP = 1000
DEFAULT_TOKENS = 16
"""What a completion has where nothing is said, as at OpenAI."""

MOST_TOKENS = (1 << 31) - 1
MOST_ENTRIES = 1 << 20
"""How many log-probabilities an answer of several texts has, at most."""

LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of 0, which JSON cannot hold."""

NOT_THERE: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar": ("",),
}
"""What clients may ask for and there is not, with the values that ask for nothing."""


NUMBERS = {
    "temperature": (1.0, 0.0, 100.0),
    "top_p": (1.0, 0.0, 1.0),
    "min_p": (0.0, 0.0, 1.0),
    "repetition_penalty": (1.0, 0.01, 100.0),
    "presence_penalty": (0.0, -2.0, 2.0),
    "frequency_penalty": (0.0, -2.0, 2.0),
}
"""Options of sampling: what they are where nothing is said, the least, the most."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for: `choices` continuations of each of the prompts."""

    prompts: list[Continuation]
    texts: list[str]
    choices: int
    max_tokens: int | None
    sampling: SamplingOptions
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool
    field: str = "prompt"
    """Which one the prompts came from."""

    def requests(self) -> list[Request]:
        """One for each choice, in the order of their indices; a choice draws the same whatever else is asked."""
        return [
            Request(
                prompt.ids,
                self.max_tokens,
                self.sampling,
                prompt.stop_ids,
                prompt.first,
                row,
                logprobs=self.logprobs,
                # With nothing to draw, the engine's work is to look at the prompt.
                prompt_logprobs=self.logprobs or 0 if self.echo and (self.logprobs is not None or not self.max_tokens)
                else None,
            )
            for prompt in self.prompts
            for row in range(self.choices)
        ]  # fmt: skip


@dataclass(frozen=True)
class TokenEntry:
    """A token of an answer: its id, its bytes, where its text begins in the answer, how likely it was."""

    token: int
    content: bytes
    offset: int
    logprobs: LogProbs | None


@dataclass
class Part:
    """A piece of an answer: text and tokens that are new, and at the end why it ended."""

    text: str
    entries: list[TokenEntry]
    finish: str | None = None


@dataclass
class Choice:
    """One continuation under way."""

    index: int
    asked: Asked
    prompt: Continuation
    prompt_text: str
    finish: str | None = None
    tokens: int = 0
    reused: int = 0
    """Tokens of the prompt that were found in the cache."""
    _waiting: list[tuple[int, TokenEntry]] = field(default_factory=list)
    """Entries whose text is not decided yet, with the byte where it begins."""

    def __post_init__(self) -> None:
        self._reader = TextReader(self.prompt)
        self._offsets = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0 if self.asked.echo else -len(self._held_back())
        self._bytes = 0

    def take(self, event: Event) -> Part:
        """What an event adds. The choice has ended when `finish` is set; an event of an error is the caller's."""
        text, ended = "", None
        entries: list[TokenEntry] = []
        if self.asked.echo and not self.tokens and (event.token is not None or event.reason):
            text, entries = self.prompt_text, self._prompt_entries(event)
        if event.token is not None:
            self.tokens += 1
            self.reused = event.generation.reused
            text += self._reader.read(event.token)
            ended = self._reader.ended
            if self.asked.logprobs is not None:
                entry = self._entry(event.token, event.logprobs)
                self._waiting.append((self._bytes, entry))
                self._bytes += len(entry.content) - (self.prompt.held_back if self.tokens == 1 else 0)
        if ended or event.reason:
            text += self._reader.rest()
            self.finish = "stop" if ended or event.reason == "stop" else "length"
        if self.asked.logprobs is not None:
            entries += self._ready(ended)
        return Part(text, entries, self.finish)

    def _ready(self, ended: str | None) -> list[TokenEntry]:
        """The entries whose text was given out; at the end all but those that lie behind a stop text."""
        released = self._reader.released
        keep_all = self.finish is not None and (ended != "text" or self.asked.echo)
        ready = [entry for start, entry in self._waiting if start < released or keep_all]
        self._waiting = [] if self.finish else self._waiting[len(ready) :]
        return ready

    def _entry(self, token: int, logprobs: LogProbs | None) -> TokenEntry:
        content = self.prompt.tokenizer.token_bytes(token)
        entry = TokenEntry(token, content, max(0, self._characters), logprobs)
        self._characters += len(self._offsets.decode(content))
        return entry

    def _prompt_entries(self, event: Event) -> list[TokenEntry]:
        known = event.generation.prompt_logprobs or [None] * len(self.prompt.ids)
        return [
            self._entry(token, logprobs) for token, logprobs in zip(self.prompt.ids, known, strict=True)
        ] if self.asked.logprobs is not None else []  # fmt: skip

    def _held_back(self) -> str:
        return self.prompt_text[-1:] if self.prompt.held_back else ""


def choices_of(asked: Asked) -> list[Choice]:
    """One for each of `asked.requests()`."""
    return [
        Choice(number * asked.choices + row, asked, prompt, text)
        for number, (prompt, text) in enumerate(zip(asked.prompts, asked.texts, strict=True))
        for row in range(asked.choices)
    ]


def read_completion(fields: Fields, tokenizer: Tokenizer, domain: str, context: int) -> Asked:
    """What a request for /v1/completions asks for, of a model with this context. Raises RefusedError, which names the
    field that is wrong."""
    check_absent(fields)
    choices = fields.whole("n", 1, 1, MOST_CHOICES) or 1
    fields.refuse("best_of", 1, choices)
    echo = fields.flag("echo")
    logprobs = fields.whole("logprobs", None, 0, MOST_LOGPROBS)
    max_tokens = read_max_tokens(fields, DEFAULT_TOKENS, 0 if echo else 1)
    stop, ignores_end = read_stop(fields), fields.flag("ignore_eos")
    prompts, texts = _read_prompts(fields, tokenizer, domain, context, stop, not ignores_end, echo)
    return Asked(
        prompts, texts, choices, max_tokens, read_sampling(fields, tokenizer), logprobs, echo, *read_stream(fields)
    )


def check_size(asked: Asked, most_texts: int, context: int) -> None:
    """Refuse what is too much for one answer, of a model with this context."""
    texts = len(asked.prompts) * asked.choices
    if texts > most_texts:
        raise RefusedError(
            f"The request asks for {texts:,} texts, and {most_texts:,} are the most; send fewer prompts at a time.",
            "n" if len(asked.prompts) == 1 else "prompt",
        )
    drawn = context if asked.max_tokens is None else min(asked.max_tokens, context)
    echoed = sum(len(prompt.ids) for prompt in asked.prompts) * asked.choices if asked.echo else 0
    entries = (texts * drawn + echoed) * (1 + (asked.logprobs or 0))
    if asked.logprobs and texts > 1 and entries > MOST_ENTRIES:
        raise RefusedError(
            f"The request asks for {entries:,} log-probabilities, and {MOST_ENTRIES:,} are the most; send fewer "
            "prompts at a time.",
            "logprobs" if asked.field == "prompt" else "top_logprobs",
        )


def check_length(texts: Sequence[str], tokenizer: Tokenizer, context: int, field: str) -> None:
    """Refuse texts that are clearly longer than a context holds, before they are divided into tokens."""
    least = sum(map(tokenizer.fewest_tokens, texts))
    if least > context:
        raise RefusedError(
            f"{field} has more than {least:,} tokens, but the model's context holds {context:,}; shorten it.",
            field,
            code="context_length_exceeded",
        )


def check_absent(fields: Fields) -> None:
    """Refuse by its name what there is not."""
    for name, harmless in NOT_THERE.items():
        fields.refuse(name, *harmless)
    wanted = fields.part("response_format").text("type", "text")
    if wanted != "text":
        raise RefusedError(f"This server has no response_format {wanted!r}; only text.", "response_format")


def read_max_tokens(fields: Fields, default: int | None, least: int) -> int | None:
    """`max_completion_tokens`, or as it was called before, `max_tokens`."""
    newer = fields.whole("max_completion_tokens", None, least, MOST_TOKENS)
    older = fields.whole("max_tokens", default, least, MOST_TOKENS)
    return older if newer is None else newer


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Whether the answer comes piece by piece, and whether its usage comes then."""
    return fields.flag("stream"), fields.part("stream_options").flag("include_usage")


def read_stop(fields: Fields) -> tuple[str, ...]:
    """The texts that end an answer."""
    value = fields.get("stop")
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.wrong("stop", "text or a list of texts")
    if len(texts) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in texts):
        raise RefusedError(f"stop may have {MOST_STOPS} texts of {LONGEST_STOP:,} characters at most.", "stop")
    return tuple(text for text in texts if text)


def read_sampling(fields: Fields, tokenizer: Tokenizer) -> SamplingOptions:
    """How tokens are drawn; without a seed, of each request anew."""
    seed = fields.whole("seed", None, -(1 << 63), LARGEST_SEED)
    return SamplingOptions(
        top_k=max(0, fields.whole("top_k", 0, -1, MOST_TOKENS) or 0),  # -1 is what some call all
        seed=secrets.randbits(64) if seed is None else seed & LARGEST_SEED,
        logit_bias=_read_bias(fields, tokenizer),
        **{name: fields.number(name, *limits) for name, limits in NUMBERS.items()},
    )


def _read_bias(fields: Fields, tokenizer: Tokenizer) -> dict[int, float]:
    given = fields.part("logit_bias")
    bias = {}
    for name in given.values:
        if not (name.isascii() and name.isdigit() and len(name) < 10) or int(name) >= tokenizer.vocab_size:
            raise RefusedError(
                f"logit_bias has the key {name[:20]!r}, which is not the id of one of the {tokenizer.vocab_size:,} "
                "tokens.",
                "logit_bias",
            )
        bias[int(name)] = given.number(name, 0.0, -100, 100)
    return bias


def _read_prompts(
    fields: Fields,
    tokenizer: Tokenizer,
    domain: str,
    context: int,
    stop: tuple[str, ...],
    stop_at_end: bool,
    echo: bool,
) -> tuple[list[Continuation], list[str]]:
    """The prompts, and their texts: text, ids, or a list of either."""
    value = fields.get("prompt")
    if value is None:
        value = ""
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", "text, token ids, or a list of texts or of lists of ids")
    prompts, texts = [], []
    for each in value:
        if isinstance(each, str):
            check_length([each], tokenizer, context, "prompt")
            asked = continuation(tokenizer, each, domain, stop_at_end, stop)
            if echo and asked.held_back:  # what is echoed is what was given, token by token
                ids = tokenizer.encode(each, allow_special=True)
                asked = dataclasses.replace(asked, ids=ids, first=None, held_back=0)
            text = each
        elif isinstance(each, list) and each and all(type(token) is int for token in each):
            for token in each:
                if not 0 <= token < tokenizer.vocab_size:
                    raise RefusedError(
                        f"prompt has the id {token}, and the model's tokens have 0 to {tokenizer.vocab_size - 1}.",
                        "prompt",
                    )
            ending = continuation(tokenizer, "", domain, stop_at_end, stop)
            asked = dataclasses.replace(ending, ids=each, first=None, held_back=0)
            text = tokenizer.decode(each)
        else:
            raise fields.wrong("prompt", "text, token ids, or a list of texts or of lists of ids")
        prompts.append(asked)
        texts.append(text)
    return prompts, texts


def token_name(content: bytes) -> str:
    """How a token is called in an answer: its text, or its bytes where they are not UTF-8, as at OpenAI."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def logprobs_of(entries: Sequence[TokenEntry], tokenizer: Tokenizer) -> dict[str, list[Any]]:
    """Log-probabilities in the shape of /v1/completions. Those of a text's first token are null."""
    result: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        result["tokens"].append(token_name(entry.content))
        result["text_offset"].append(entry.offset)
        noted = entry.logprobs
        result["token_logprobs"].append(None if noted is None else written(noted.chosen))
        result["top_logprobs"].append(None if noted is None else _named(entry.token, noted, tokenizer))
    return result


def _named(token: int, noted: LogProbs, tokenizer: Tokenizer) -> dict[str, float]:
    """The likeliest tokens and the one that stands there, by distinct names."""
    values: dict[str, float] = {}
    pairs = [*zip(noted.ids, noted.values, strict=True)]
    for each, value in pairs if token in noted.ids else [*pairs, (token, noted.chosen)]:
        name = token_name(tokenizer.token_bytes(each))
        values[name if name not in values else f"token_id:{each}"] = written(value)
    return values


def written(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def usage_of(choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens read and drawn; a prompt counts once, however many choices it has."""
    prompt = sum(len(each) for each in {id(choice.prompt): choice.prompt.ids for choice in choices}.values())
    drawn = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}


@dataclass(frozen=True)
class CompletionShape:
    """The answers of /v1/completions."""

    chunk_kind: ClassVar[str] = "text_completion"
    events_have_names: ClassVar[bool] = False
    """Whether events of a stream have the name that is their `type`; others end with one that says DONE."""

    id: str
    created: int
    model: str
    tokenizer: Tokenizer

    def answer(self, choices: Sequence[Choice], parts: Sequence[Part]) -> dict[str, Any]:
        """The whole answer; one part for each choice."""
        written_choices = [
            self._choice(choice, part.text, part.entries, choice.finish)
            for choice, part in zip(choices, parts, strict=True)
        ]
        return self._head(written_choices) | {"usage": usage_of(choices)}

    def opening(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """The chunks that come before the first part."""
        return []

    def chunks(self, choice: Choice, part: Part) -> list[dict[str, Any]]:
        """A part as chunks; why the choice ended has one of its own."""
        chunks = []
        if part.text or part.entries:
            chunks.append(self._head([self._choice(choice, part.text, part.entries, None)]))
        if part.finish:
            chunks.append(self._head([self._choice(choice, "", [], part.finish)]))
        return chunks

    def closing(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """The chunks that come after the last part."""
        return [self._head([]) | {"usage": usage_of(choices)}] if choices[0].asked.include_usage else []

    def failure(self, refusal: RefusedError) -> dict[str, Any]:
        """The last chunk of a stream that cannot go on."""
        return refusal.body()

    def _head(self, choices: list[dict[str, Any]], kind: str = "") -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind or self.chunk_kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(self, choice: Choice, text: str, entries: Sequence[TokenEntry], finish: str | None) -> dict[str, Any]:
        wants = choice.asked.logprobs is not None
        logprobs = logprobs_of(entries, self.tokenizer) if wants and (entries or not finish) else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}
