"""The larger corpus as perf/LOG.md's figures have it: divided once more, and as tokens for torch_peer.py.

    python perf/corpus_tokens.py [--corpus=data/manuals] [--out=data/manuals-divided] [--vocabSize=8192]

Writes to OUT: training.txt, and choices.txt, every 160th document of CORPUS/training.txt, by which recipes are chosen,
so that held-out.txt is read once, for the final figure; tokenizer.json, byte-level BPE of OUT/training.txt, for `alpha
train --tokenizerArtifacts=`; and of each text a .bin of its tokens, two bytes each, for the peer's data and heldOut.
Prints a JSON object, and writes it to counts.json: tokens and documents of each text, and its bytes without the
separators of documents, which are the peer's `bytes`. Takes a minute or two; what is encoded is then in Alpha's cache,
as if `alpha train` had read it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "build_scripts"))

from write_corpus import SEPARATOR  # noqa: E402

from alpha import chat_format, corpus, corpus_files, dataset, token_cache, tokenizer_registry  # noqa: E402

CHOSEN = 160
"""One of this many documents is for choices."""
TEXTS = ("training", "choices", "held-out")


def divide(text: bytes) -> tuple[bytes, bytes]:
    """Documents to train on, and every CHOSEN-th one, as write_corpus.py divides them from each other."""
    separator = SEPARATOR.encode()
    documents = text.split(separator)
    training = [document for index, document in enumerate(documents) if index % CHOSEN]
    return separator.join(training), separator.join(documents[::CHOSEN])


def main(words: Sequence[str]) -> int:
    """Divide, build the tokenizer, encode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "data" / "manuals")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "manuals-divided")
    parser.add_argument("--vocabSize", type=int, default=8192)
    arguments = parser.parse_args(words)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    training, choices = divide((arguments.corpus / "training.txt").read_bytes())
    held_out = (arguments.corpus / "held-out.txt").read_bytes()
    for name, content in zip(TEXTS, (training, choices, held_out), strict=True):
        (out / f"{name}.txt").write_bytes(content)
    files = {name: corpus_files.find(str(out / f"{name}.txt")) for name in TEXTS}
    tokenizer = tokenizer_registry.build("bpe", corpus.texts(files["training"].files, ()), arguments.vocabSize)
    tokenizer_registry.save(out / "tokenizer.json", tokenizer)
    write, found = chat_format.writer(tokenizer, "", None), {}
    for name, selection in files.items():
        file = dataset.encode_whole(selection, tokenizer, token_cache.folder(), write=write)
        file.tokens.astype("<u2").tofile(out / f"{name}.bin")
        found[name] = {"tokens": len(file.tokens), "bytes": file.text_bytes, "documents": file.documents}
    counts = json.dumps(found, indent=2)
    (out / "counts.json").write_text(counts)
    print(counts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
