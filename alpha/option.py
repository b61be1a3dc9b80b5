"""Declaring an option once: its flag, type, default, limits and help text stand on one dataclass field.

The same declaration reads the command line, reads a JSON configuration file, writes `config.json` and renders the usage
text.

A class of options is a frozen dataclass whose fields are made by `option`; field `eval_interval` is the flag
`--evalInterval` and the JSON key `evalInterval`. Field types are int, float, bool, str
and tuple[str, ...], which is given several times on a command line and not in a file.
"""

import dataclasses
import difflib
import functools
import os
import re
import reprlib
import shlex
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from alpha.errors import UsageError

T = TypeVar("T")

_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_METAVARS = {int: "N", float: "X", bool: "BOOL", str: "TEXT"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
LARGEST_INTEGER = (1 << 63) - 1
_RANGES = {int: (-LARGEST_INTEGER - 1, LARGEST_INTEGER), float: (-sys.float_info.max, sys.float_info.max)}
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"([+-]?)([0-9]+)(?:(?:\.([0-9]*))?e([+-]?[0-9]{1,400}))?", re.ASCII | re.IGNORECASE)
_DIGITS = 400
"""A whole number with more digits is taken for this power of ten, which is beyond every limit, too."""
_WITH_SUFFIX = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmg])", re.ASCII | re.IGNORECASE)
_THOUSANDS = {"k": 3, "m": 6, "g": 9}
_SIZE = re.compile(r"([0-9.e]+) ?(B|kB|MB|GB)?", re.ASCII | re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_LONGEST_LIST = 12
_SHORTENER = reprlib.Repr()
_SHORTENER.maxstring = _SHORTENER.maxother = 80


HABITS = {
    "accumSteps": "gradient_accumulation_steps grad_accum_steps",
    "activation": "hidden_act",
    "batch": "batch_size micro_batch_size device_batch_size per_device_train_batch_size per_device_eval_batch_size",
    "beam": "num_beams",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "block": "block_size context_length max_seq_len max_seq_length n_positions seq_len sequence_length",
    "checkpoint": "model model_path model_name_or_path checkpoint_path ckpt ckpt_path",
    "checkpointInterval": "save_steps save_interval save_every",
    "data": "dataset dataset_name data_dir data_path train_file train_data",
    "dim": "n_embd hidden_size d_model embed_dim",
    "dtype": "bf16 precision torch_dtype",
    "eps": "adam_epsilon",
    "evalInterval": "eval_steps eval_every val_every val_loss_every",
    "evalIters": "eval_batches",
    "ffnDim": "intermediate_size",
    "gradClip": "max_grad_norm clip_grad gradient_clipping",
    "headDim": "head_size d_head d_k head_width",
    "heads": "n_head n_heads num_heads num_attention_heads",
    "init": "init_from_checkpoint base_model pretrained finetune_from from_pretrained",
    "interactive": "chat conversation",
    "iters": "max_iters max_steps num_steps num_iterations train_steps lr_decay_iters epochs num_train_epochs",
    "keep": "save_total_limit",
    "kvHeads": "n_kv_head num_key_value_heads",
    "layers": "n_layer n_layers num_layers num_hidden_layers depth",
    "logEvery": "log_interval logging_steps",
    "lora": "lora_r lora_rank rank",
    "loraTargets": "target_modules lora_target_modules lora_target",
    "lossOn": "assistant_only_loss train_on_inputs completion_only_loss",
    "lr": "learning_rate",
    "lrMin": "min_lr min_learning_rate",
    "n": "num_samples num_return_sequences",
    "normEps": "layer_norm_eps layer_norm_epsilon layernorm_epsilon norm_epsilon rms_norm_eps",
    "optim": "optimizer",
    "out": "output output_file",
    "packed": "packing",
    "prompt": "start text",
    "recompute": "gradient_checkpointing activation_checkpointing",
    "repetitionPenalty": "repeat_penalty presence_penalty frequency_penalty",
    "resume": "resume_from_checkpoint init_from",
    "ropeBase": "rope_theta rotary_emb_base theta",
    "runDir": "out_dir output_dir",
    "sampleInterval": "sample_every",
    "schedule": "lr_scheduler_type",
    "steps": "max_new_tokens max_length max_tokens num_tokens num_predict n_predict",
    "stop": "stop_sequences stop_strings",
    "temp": "temperature",
    "threads": "num_threads n_threads",
    "tied": "tie_word_embeddings tie_embeddings",
    "tokenizer": "tokenizer_name",
    "valData": "validation_file val_file eval_file",
    "warmupIters": "warmup warmup_steps",
}
"""What nanoGPT, Hugging Face and others call the options that Alpha calls otherwise."""


@dataclass(frozen=True)
class Option:
    """One option as everything else sees it; made from a dataclass field by `options_of`."""

    name: str
    kind: type
    default: Any
    help: str
    group: str
    metavar: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    aliases: tuple[str, ...]
    required: bool
    repeated: bool
    """Given several times, it has several values: a tuple."""
    words: int
    """After a space instead of an equals sign it takes up to so many words, `--compare A B`, and is then `A,B`."""

    @functools.cached_property
    def flag(self) -> str:
        """The name on the command line and in JSON files: `eval_interval` is `evalInterval`."""
        return camel_case(self.name)


def option(
    default: Any,
    help: str,
    *,
    group: str = "Options",
    metavar: str = "",
    choices: Iterable[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: Iterable[str] = (),
    required: bool = False,
    words: int = 1,
) -> Any:
    """A dataclass field that is an option; `aliases` are further flag names, `required` forbids leaving it out."""
    metadata = {
        "help": help,
        "group": group,
        "metavar": metavar,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "aliases": tuple(aliases),
        "required": required,
        "words": words,
    }
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def options_of(options_class: type) -> tuple[Option, ...]:
    """The options that a dataclass declares, in order."""
    kinds = typing.get_type_hints(options_class)
    result = []
    for field in dataclasses.fields(options_class):
        repeated = kinds[field.name] == tuple[str, ...]
        kind = str if repeated else kinds[field.name]
        metadata = dict(field.metadata)
        metadata["metavar"] = metadata["metavar"] or ("NAME" if metadata["choices"] else _METAVARS[kind])
        result.append(Option(name=field.name, kind=kind, default=field.default, repeated=repeated, **metadata))
    return tuple(result)


def camel_case(name: str) -> str:
    """`eval_interval` or `eval-interval` as `evalInterval`."""
    first, *rest = re.split("[-_]", name)
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def nearest(word: str, valid: Iterable[str], see: str = "") -> str:
    """A phrase that names the nearest valid word, else the few valid words, else `see` ("See alpha train --help.")."""
    candidates = list(valid)
    by_folded = {_folded(candidate): candidate for candidate in candidates}
    close = difflib.get_close_matches(_folded(word), by_folded, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {by_folded[close[0]]!r}?"
    if see and len(candidates) > _LONGEST_LIST:
        return see
    return f"Valid: {', '.join(sorted(candidates))}."


def suggestion(name: str, declared: Mapping[str, Option], see: str) -> str:
    """A phrase that names the option which `name` was meant for: by the habits of other programs, else the nearest.

    `declared` is what `names_of` gives; when `name` begins with dashes, so does the answer.
    """
    dashes = "--" if name.startswith("-") else ""
    for own, others in HABITS.items():
        if own in declared and declared[own].flag == own and _folded(name) in map(_folded, others.split()):
            return f"Did you mean {dashes + own!r}?"
    return nearest(name, [dashes + each for each in declared], see)


def spelled(flag: str, value: Any) -> str:
    """`--flag=value` as it is to be typed into a shell."""
    text = str(value)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if text.isprintable() and text.encode(encoding, "replace").decode(encoding, "replace") == text:
        return f"--{flag}={shlex.quote(text)}"
    # What a terminal must not be sent, or cannot show, is spelled as bash and its kin read it.
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(text)
    )
    return f"--{flag}=$'{plain}'"


def flag_of(options: Any, name: str) -> str:
    """A field of an options class as it is to be typed: `--kvHeads=2`."""
    value = getattr(options, name)
    return spelled(camel_case(name), str(value).lower() if isinstance(value, bool) else value)


def convert(declared: Option, value: Any, where: str) -> Any:
    """`value` (text from the command line, or a JSON value) as the option's type, checked against its limits.

    `where` names the place in errors, such as "--lr" or "'lr' in config.json". Raises UsageError.
    """
    converted = _from_text(declared.kind, value) if isinstance(value, str) else _from_json(declared.kind, value)
    if converted is None:
        wrong = f"{_SHORTENER.repr(value)}{_without_suffix(declared, value)}"
        raise UsageError(f"{where} must be {_KIND_NAMES[declared.kind]}, not {wrong}.")
    if declared.choices and converted not in declared.choices:
        raise UsageError(f"{where} cannot be {_SHORTENER.repr(converted)}. {nearest(str(converted), declared.choices)}")
    if declared.kind in _RANGES:
        least, most = _RANGES[declared.kind]
        minimum = least if declared.minimum is None else declared.minimum
        maximum = most if declared.maximum is None else declared.maximum
        if not minimum <= converted <= maximum:
            limit = f"at least {_number(minimum)}" if converted < minimum else f"at most {_number(maximum)}"
            shown = _SHORTENER.repr(value).strip("'")
            raise UsageError(f"{where} must be {limit}, not {shown}.")
    return converted


def read_mapping(options_classes: Iterable[type], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields that camelCase keys as in `config.json` set, by field name; several classes share the keys.

    `source` names the file in errors. Raises UsageError for an unknown key, a bad value, or one option given twice.
    """
    declared = _names_of_classes(tuple(options_classes))
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if key not in declared:
            raise UsageError(
                f"Unknown key {_SHORTENER.repr(key)} in {source}. {suggestion(key, declared, 'Check its name.')}"
            )
        name = declared[key].name
        if name in fields:
            raise UsageError(f"{source} sets {declared[key].flag!r} twice, once by its alias; keep one.")
        fields[name] = convert(declared[key], value, f"{key!r} in {source}")
    return fields


def from_mapping(options_class: type[T], values: Mapping[str, Any], source: str) -> T:
    """An instance from camelCase keys; absent keys take their defaults. Raises UsageError as `read_mapping` does."""
    return options_class(**read_mapping((options_class,), values, source))


def names_of(options: Iterable[Option]) -> dict[str, Option]:
    """Every camelCase name, aliases included, of some options."""
    return {name: each for each in options for name in (each.flag, *each.aliases)}


@functools.cache
def _names_of_classes(options_classes: tuple[type, ...]) -> dict[str, Option]:
    return names_of(each for options_class in options_classes for each in options_of(options_class))


def to_mapping(instance: Any) -> dict[str, Any]:
    """The camelCase keys and values that `from_mapping` reads back."""
    options_class: type = type(instance)
    return {each.flag: getattr(instance, each.name) for each in options_of(options_class)}


def _folded(word: str) -> str:
    return word.replace("-", "").replace("_", "").lower()


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _from_text(kind: type, text: str) -> Any:
    if kind is str:
        return text if _is_portable(text) else None
    if kind is bool:
        return _BOOLEANS.get(text.lower())
    return whole_number(text) if kind is int else decimal(text)


def whole_number(text: str) -> int | None:
    """The number that ASCII digits spell; 1e3 and 2.5e3 are whole numbers, too. None for anything else."""
    match = _WHOLE.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction, exponent = match.groups("")
    digits = (whole + fraction).rstrip("0")
    zeros = int(exponent or 0) + len(whole) - len(digits)
    digits = digits.lstrip("0")
    if not digits:
        return 0
    if zeros < 0:
        return None
    size = int(digits) * 10**zeros if len(digits) + zeros <= _DIGITS else 10**_DIGITS
    return -size if sign == "-" else size


def parse_size(text: str, where: str) -> int:
    """Bytes in a size such as "5MB", "500 kB" or "123456" (units of powers of 1000). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    number = whole_number(match[1]) if match else None
    if match is None or not number:
        raise UsageError(f"{where} must be a number of bytes or such as 500kB, 5MB or 2GB, not {text[:80]!r}.")
    size = number * _UNITS[(match[2] or "B").lower()]
    if size > LARGEST_INTEGER:
        raise UsageError(f"{where} must be at most {LARGEST_INTEGER}, not {text[:80]}.")
    return size


def decimal(text: str) -> float | None:
    """The number that ASCII digits spell, with a point and an exponent or without; None for anything else."""
    return float(text) if _DECIMAL.fullmatch(text) else None


def _without_suffix(declared: Option, value: Any) -> str:
    """How a number with k, M or G after it is written without; Alpha does not guess whether 1000 or 1024 is meant."""
    match = _WITH_SUFFIX.fullmatch(value) if isinstance(value, str) and declared.kind in (int, float) else None
    return f"; write it out, such as {match[1]}e{_THOUSANDS[match[2].lower()]}" if match else ""


def _is_portable(text: str) -> bool:
    """Whether the operating system can take the text as a file name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _from_json(kind: type, value: Any) -> Any:
    if isinstance(value, bool) or kind is bool:
        return value if kind is bool and isinstance(value, bool) else None
    if kind is float and isinstance(value, int | float):
        return float(value) if abs(value) <= sys.float_info.max else None
    return value if kind is int and isinstance(value, int) else None
