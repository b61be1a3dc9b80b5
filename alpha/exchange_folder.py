"""Folders of Hugging Face's `transformers`: config.json, safetensors, tokenizer.json, and what belongs to them.

What is read was written by strangers: sizes are looked at before anything is allocated, names of shards are names in
the folder and nothing else, and pickles are refused.
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from alpha import exchange, files, safetensors_file, tokenizer_registry
from alpha.checkpoint import IMPORTED, Checkpoint, chat_template, imported_text
from alpha.config import ModelConfig
from alpha.errors import AlphaError
from alpha.exchange_card import model_card
from alpha.exchange_weights import Exported, Imported
from alpha.files import Progress
from alpha.new_folder import filling
from alpha.safetensors_file import BFLOAT16, PICKLE_SUFFIXES, Array, SafetensorsFile
from alpha.tokenizer import CHAT_TOKENS, Tokenizer, shown

DTYPES = {"f32": "float32", "f16": "float16", "bf16": BFLOAT16}
CONFIG = "config.json"
CARD = "README.md"

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>' }}{% endif %}"
)
"""A conversation as Alpha writes it for training, in the language of Jinja."""

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_JSON_LIMIT = 1 << 26
_TEXT_LIMIT = 1 << 20
_MOST_SHARDS = 1000
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class ImportedModel:
    """A model from elsewhere, its weights not read yet: `weights.made(name)` reads one parameter."""

    model: ModelConfig
    tokenizer: Tokenizer
    weights: Imported
    state: dict[str, Any]
    """What a checkpoint of it keeps for the next export."""


# --- out --------------------------------------------------------------------------------------------------------------


def write_folder(folder: Path, checkpoint: Checkpoint, dtype: str, progress: Progress) -> str:
    """Write a folder that transformers loads; returns the architecture's name. `dtype` is one of DTYPES.

    Raises AlphaError when no architecture says the same, when the folder is not empty, when a weight does not fit the
    dtype, or when the operating system refuses; there is then no folder.
    """
    config = checkpoint.model
    architecture = exchange.architecture_of(config)
    tokenizer = tokenizer_registry.from_mapping(checkpoint.tokenizer, "the checkpoint")
    weights = Exported(architecture, config, tokenizer.vocab_size, architecture.weights, checkpoint.tensors)
    stored = DTYPES[dtype]
    declared = {name: (stored, piece.shape) for name, piece in weights.pieces.items()}
    made = weights.made_in_turn(progress)

    def make(name: str) -> Array:
        return as_float16(name, made(name)) if stored == "float16" else made(name)

    values = exchange.to_config(architecture, config, tokenizer.vocab_size)
    ids = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    caps = exchange.soft_caps(config)
    own = model_card(checkpoint, architecture, tokenizer, weights.size, bool(caps))
    card = imported_text(checkpoint.state, "card") or own
    template = template_of(tokenizer, checkpoint.state)
    with filling(folder) as new:
        # The key "format" is what transformers looks for.
        safetensors_file.write_in_turn(new / _WEIGHTS, declared, make, lambda: {"format": "pt"})
        tokenizer_registry.save_tokenizer_json(new / _TOKENIZER, tokenizer)
        files.write_json(new / _TOKENIZER_CONFIG, _tokenizer_config(tokenizer, config, template))
        files.write_json(new / "generation_config.json", _generation_config(tokenizer))
        if caps:
            from alpha.exchange_modeling import FILE_NAME, auto_map, modeling_source

            files.write_bytes(new / FILE_NAME, modeling_source(architecture).encode())
            values["auto_map"] = auto_map()
        files.write_bytes(new / CARD, card.encode(errors="backslashreplace"))  # a file's name may have any bytes
        files.write_json(new / CONFIG, {**values, **ids, "dtype": stored})
    return architecture.name


def as_float16(name: str, array: Array) -> Array:
    """Float32 rounded to float16; AlphaError when a weight is too large for it."""
    if np.abs(array).max() > _LARGEST_F16:
        raise AlphaError(f"The tensor {name!r} has weights over {_LARGEST_F16:,.0f}; use --dtype=bf16 or f32.")
    return array.astype(np.float16)


def template_of(tokenizer: Tokenizer, state: Mapping[str, Any]) -> str | None:
    """The chat template that came with the weights, else how Alpha writes conversations where there are markers."""
    return chat_template(state) or (CHAT_TEMPLATE if tokenizer.special_tokens.keys() >= set(CHAT_TOKENS) else None)


def _tokenizer_config(tokenizer: Tokenizer, config: ModelConfig, template: str | None) -> dict[str, Any]:
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    end = names[tokenizer.end_of_text]
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block,
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
    }
    if tokenizer.unknown is not None:
        values["unk_token"] = names[tokenizer.unknown]
    return {**values, "chat_template": template} if template else values


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    ends = [tokenizer.end_of_text, *tokenizer.ends_of_turn]
    return {
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 40,
    }


# --- in ---------------------------------------------------------------------------------------------------------------


class HuggingFaceFolder:
    """A folder open for reading; use it in a `with` statement. Raises AlphaError that names what is in the way."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        values = _read_json(folder / CONFIG, "model configuration")
        self._architecture, self._config, self._vocab_size = exchange.from_config(values, str(folder / CONFIG))
        try:
            with ExitStack() as resources:
                self._places = self._find_tensors(resources)
                self._leave_out_tied_copy()
                self._resources = resources.pop_all()
        except OSError as error:
            raise AlphaError(f"Cannot read the folder {folder}: {error.strerror or error}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: file.entries[stored].shape for name, (file, stored) in self._places.items()}

    def model(self) -> ImportedModel:
        """The model in the folder; its weights are read from the open folder."""
        weights = Imported(self._config, self._vocab_size, self._architecture.weights, self)
        tokenizer, template = self._read_tokenizer()
        imported = {"card": self._optional_text(CARD), "chatTemplate": template}
        return ImportedModel(self._config, tokenizer, weights, {IMPORTED: imported})

    def read(self, name: str) -> Array:
        file, stored = self._places[name]
        return file.read(stored).astype(np.float32, copy=False)

    def _find_tensors(self, resources: ExitStack) -> dict[str, tuple[SafetensorsFile, str]]:
        """The file of each tensor and its name there, by its name in the table."""
        promised = self._read_index()
        shards = [_WEIGHTS] if promised is None else sorted(set(promised.values()))
        found: dict[str, tuple[SafetensorsFile, str]] = {}
        for shard in shards:
            file = resources.enter_context(SafetensorsFile(self._folder / shard))
            for name in file.entries:
                if promised is not None and promised.get(name) != shard:
                    raise AlphaError(f"{self._folder / _INDEX} does not say that the tensor {name!r} is in {shard}.")
                found[self._name_in_table(name)] = (file, name)
                self._require_float(file, name)
        if promised is not None and (missing := set(promised) - {stored for _, stored in found.values()}):
            raise AlphaError(f"The tensor {min(missing)!r} is not where {self._folder / _INDEX} says that it is.")
        return found

    def _require_float(self, file: SafetensorsFile, name: str) -> None:
        dtype = file.entries[name].dtype
        if dtype not in DTYPES.values() and not self._architecture.weights.buffers.fullmatch(name):
            raise AlphaError(f"The tensor {name!r} of {file.path} is {dtype}; Alpha imports {', '.join(DTYPES)}.")

    def _name_in_table(self, name: str) -> str:
        """What was saved from the model without its head lacks the prefix."""
        prefix = self._architecture.prefix
        return name if name.startswith((prefix, "lm_head.")) else prefix + name

    def _leave_out_tied_copy(self) -> None:
        """A tied head may be written beside the embedding that it is."""
        head, embedding = (self._architecture.weights.modules[each][0] + ".weight" for each in ("lm_head", "wte"))
        if not self._config.tied or head not in self._places or embedding not in self._places:
            return
        if not np.array_equal(self.read(head), self.read(embedding)):
            raise AlphaError(
                f"{self._folder / CONFIG} says that the output head is the embedding, but {head!r} is not "
                f"{embedding!r}; set tie_word_embeddings to false if the head is right."
            )
        del self._places[head]

    def _read_index(self) -> dict[str, str] | None:
        """The shard of each tensor, or None where there is one file."""
        if (self._folder / _WEIGHTS).is_file():
            return None
        if not (self._folder / _INDEX).is_file():
            raise self._without_weights()
        index = _read_json(self._folder / _INDEX, "index of shards")
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise AlphaError(f"{self._folder / _INDEX} has no weight_map.")
        for shard in weight_map.values():
            if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
                raise AlphaError(
                    f"{self._folder / _INDEX} names {shown(shard)}, which is no safetensors file beside it."
                )
        if len(set(weight_map.values())) > _MOST_SHARDS:
            raise AlphaError(f"{self._folder / _INDEX} names more than {_MOST_SHARDS:,} files.")
        return weight_map

    def _without_weights(self) -> AlphaError:
        pickles = sorted(path.name for path in self._folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if not pickles:
            return AlphaError(f"{self._folder} has neither {_WEIGHTS} nor {_INDEX}.")
        return pickled(self._folder / pickles[0])

    def _read_tokenizer(self) -> tuple[Tokenizer, str | None]:
        """The tokenizer, with an id for each row of the embedding, and the chat template where there is one."""
        path = self._folder / _TOKENIZER
        if not path.is_file():
            raise AlphaError(
                f'{self._folder} has no {_TOKENIZER}; make it where transformers is installed: python -c "from '
                "transformers import AutoTokenizer as A; A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
            )
        tokenizer = tokenizer_registry.with_unused(tokenizer_registry.load(path), self._vocab_size, str(path))
        template = self._optional_text(_TEMPLATE_FILE)
        if template is None and (self._folder / _TOKENIZER_CONFIG).is_file():
            values = _read_json(self._folder / _TOKENIZER_CONFIG, "tokenizer's configuration")
            template = values.get("chat_template") if isinstance(values, dict) else None
        return tokenizer, template if isinstance(template, str) else None

    def _optional_text(self, name: str) -> str | None:
        path = self._folder / name
        if not path.is_file():
            return None
        try:
            return files.read_bytes(path, "text", _TEXT_LIMIT).decode()
        except UnicodeDecodeError as error:
            raise AlphaError(f"{path} is not UTF-8 text: {error}.") from error


def pickled(path: Path) -> AlphaError:
    """The error for weights that are a pickle."""
    return AlphaError(
        f"{path.parent} has its weights as pickles ({path.name}), which can run code when they are opened, so "
        "Alpha does not. If you trust the folder, convert it where transformers and PyTorch are installed: "
        'python -c "from transformers import AutoModelForCausalLM as A; '
        "A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
    )


def _read_json(path: Path, what: str) -> Any:
    content = files.read_bytes(path, what, _JSON_LIMIT)
    try:
        return safetensors_file.parse_json(content.decode())
    except (ValueError, RecursionError) as error:
        raise AlphaError(f"The {what} {path} is not valid JSON: {error}.") from error
