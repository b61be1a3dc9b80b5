"""`alpha tokenizer build`: make a tokenizer from a corpus."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import AlphaError
from alpha.option import option
from alpha.terminal import print_json, print_text

_ALPHA_FORMAT = "alpha"
_ECOSYSTEM_FORMAT = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerBuildOptions:
    """The options of `alpha tokenizer build`."""

    input: str = option(
        "",
        "Corpus: a file, folder or glob, several separated by commas; or - for standard input.",
        metavar="PATHS",
        required=True,
    )
    out: str = option("", "File to write.", metavar="FILE", required=True)
    type: str = option("bpe", "char, word, bpe, bpe-4k to bpe-64k, bpe-chat-4k.", metavar="NAME")
    vocab_size: int = option(0, "Vocabulary size for word and bpe types; 0 = by the type's name.", minimum=0)
    format: str = option(
        _ALPHA_FORMAT,
        "What to write: alpha, its own file, or tokenizer.json, as other programs read it.",
        choices=(_ALPHA_FORMAT, _ECOSYSTEM_FORMAT),
    )
    json: bool = option(False, "Print JSON.")


OPTIONS = (TokenizerBuildOptions,)
DETAILS = """
Examples:
  alpha tokenizer build --input=a.txt --type=char --out=char.json
  alpha tokenizer build --input=texts/ --format=tokenizer.json --out=t.json
"""


def run(given: dict[str, Any]) -> None:
    """Build the tokenizer, write it and print what it is."""
    from alpha import chat_format, corpus, corpus_files, tokenizer_registry
    from alpha.progress import StageProgress
    from alpha.terminal import print_warning

    options = TokenizerBuildOptions(**given)
    out = Path(options.out)
    if out.is_dir():
        raise AlphaError(f"--out={out} is a folder; name a file in it.")
    recipe = tokenizer_registry.check_name(options.type, options.vocab_size)
    start = time.monotonic()
    files = corpus_files.find(options.input).files
    warnings: list[str] = []
    with contextlib.closing(StageProgress()) as progress:
        write = chat_format.writer_before(recipe.special_names)
        texts = corpus.texts(files, recipe.special_names, progress, write)
        tokenizer = tokenizer_registry.build(
            options.type, texts, options.vocab_size, progress=progress, warn=warnings.append
        )
    for warning in warnings:
        print_warning(warning)
    is_ecosystem = options.format == _ECOSYSTEM_FORMAT
    (tokenizer_registry.save_tokenizer_json if is_ecosystem else tokenizer_registry.save)(out, tokenizer)
    seconds = time.monotonic() - start
    if options.json:
        print_json(
            {
                "out": str(out),
                "type": options.type,
                "format": options.format,
                "vocabSize": tokenizer.vocab_size,
                "digest": tokenizer.digest(),
                "files": len(files),
                "seconds": round(seconds, 3),
            }
        )
    else:
        count = f"{len(files)} file" + ("s" if len(files) != 1 else "")
        print_text(f"Wrote {out}: {options.type}, {tokenizer.vocab_size:,} tokens, from {count} in {seconds:.1f} s.")
