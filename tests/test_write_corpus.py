"""The larger corpus: what becomes of the files of packages, and what held-out documents share with the others."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build_scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "perf"))

import corpus_tokens
import write_corpus

from alpha import tokenizer_registry

MAN = """.\\" A comment
.TH LS 1
.SH NAME
ls \\- list \\fIfiles\\fR
.PP
With
.B \\-l
it\\(aqs long.
"""


def test_files_become_text(tmp_path: Path) -> None:
    page = "<head><title>T</title></head><nav>Menu</nav><p>One &amp; <b>two</b>.</p><script>x()</script><td>3</td><td>4"
    for name, content in {
        "a-doc/usr/doc/page.html": page.encode(),
        "b/usr/share/man/man1/ls.1.gz": gzip.compress(MAN.encode()),
        "c/usr/doc/guide.rst": b"Guide\n=====\n",
        "c/usr/doc/changelog.txt": b"no",
        "cmake-doc/usr/doc/page.html": page.encode(),
        "d/usr/doc/fr-FR/page.html": page.encode(),
        "e/words.dict.dz": gzip.compress(b"cat\n  An animal.\ndog\n  Another."),
        "f/picture.png": b"\x89PNG",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f" / "link.txt").symlink_to(tmp_path / "c/usr/doc/guide.rst")
    found = {name.split("/")[0]: write_corpus.cleaned(text, set()) for name, text in write_corpus.documents(tmp_path)}
    assert found == {
        "a-doc": "One & two.\n\n3 4",
        "b": "NAME\nls - list files\n\nWith\n-l\nit's long.",
        "c": "Guide\n=====",
        "e": "cat\n  An animal.\n\ndog\n  Another.",
    }


def test_held_out_documents_are_whole_and_share_no_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_corpus, "HELD_OUT", 4)
    monkeypatch.setattr(write_corpus, "LEAST_CHARACTERS", 100)
    (tmp_path / "root" / "doc").mkdir(parents=True)
    for number in range(40):
        own = "\n\n".join(
            f"Words of {chr(97 + number % 26)}{chr(97 + number // 26)}, line {'x' * line}." for line in range(9)
        )
        text = f"Every page has this, version {number}.\n\n{own}\n\n<|endoftext|> is text."
        (tmp_path / "root" / "doc" / f"{number}.txt").write_text(text)
    write_corpus.main(tmp_path / "root", tmp_path / "out")
    parts = [
        (tmp_path / "out" / name).read_text().split("<|endoftext|>\n") for name in ("training.txt", "held-out.txt")
    ]
    assert [len(part) for part in parts] == [40 - len(parts[1]), len(parts[1])]
    assert 4 <= len(parts[1]) <= 20
    paragraphs = [{line for each in part for line in each.strip().split("\n\n")} for part in parts]
    assert not paragraphs[0] & paragraphs[1]
    assert sum("Every page" in each for part in parts for each in part) == 1
    assert sum("< |endoftext|>" in each for part in parts for each in part) == 1
    assert "0.00% of the sections" in capsys.readouterr().out


def test_documents_for_choices_and_tokens_for_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    documents = [f"Document {number} says hello." for number in range(corpus_tokens.CHOSEN + 2)]
    write_corpus.write(tmp_path / "training.txt", iter(documents))
    write_corpus.write(tmp_path / "held-out.txt", iter(["Hello, document.", "Another."]))
    capsys.readouterr()
    out = tmp_path / "out"
    assert corpus_tokens.main([f"--corpus={tmp_path}", f"--out={out}", "--vocabSize=300"]) == 0
    found = json.loads(capsys.readouterr().out)
    chosen = (out / "choices.txt").read_text().split(write_corpus.SEPARATOR)
    assert [text.strip() for text in chosen] == [documents[0], documents[corpus_tokens.CHOSEN]]
    trained = (out / "training.txt").read_text().split(write_corpus.SEPARATOR)
    assert [text.strip() for text in trained] == documents[1 : corpus_tokens.CHOSEN] + documents[-1:]
    assert {name: each["documents"] for name, each in found.items()} == {"training": 160, "choices": 2, "held-out": 2}
    tokenizer = tokenizer_registry.load(out / "tokenizer.json")
    tokens = np.fromfile(out / "held-out.bin", "<u2")
    text = tokenizer.decode(tokens[tokens != tokenizer.end_of_text])
    assert (len(tokens), len(text)) == (found["held-out"]["tokens"], found["held-out"]["bytes"])
    assert text.split() == ["Hello,", "document.", "Another."]
