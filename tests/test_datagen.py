"""Making files of text: determinism, formats, corpora and concordances from sources, errors."""

import ast
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha import corpus, corpus_files, datagen, datagen_files, datagen_grammar, datagen_mixtures, domain
from alpha.corpus import END_OF_TEXT
from alpha.datagen import GENERATORS, DatagenOptions, document, run, write
from alpha.datagen_files import Summary, normalized, paragraphs
from alpha.datagen_grammar import (
    FUNCTIONS,
    GRAMMAR,
    Chooser,
    Grammar,
    article,
    data_files,
    in_words,
    listed,
    ordinal,
    plural,
    read_lists,
    roman,
)
from alpha.errors import AlphaError, UsageError
from alpha.option import from_mapping, parse_size
from alpha.rng import random_bits, stream_of


def quiet(done: int, wanted: int) -> None:
    """Report nothing."""


@lru_cache
def documents(domain: str) -> list[str]:
    """Enough documents for about a megabyte."""
    return [document(domain, index, 42) for index in range(600 if domain in ("novels", "concordance") else 2000)]


def options(**values: object) -> DatagenOptions:
    return DatagenOptions(**values)  # type: ignore[arg-type]


# --- random choices -------------------------------------------------------------------------------------------------


def test_every_document_has_its_own_random_words() -> None:
    indices = (0, 1, 63, 64, 5000)
    drawn = [[Chooser("test", index, 7)._word() for _ in range(1)] for index in indices]
    assert len({words[0] for words in drawn}) == len(indices)
    chooser = Chooser("test", 65, 7)
    words = [chooser._word() for _ in range(600)]
    # Document 65 is member 1 of group 1; its blocks of 256 words stand 64 x 256 apart in that group's sequence.
    stream = stream_of("datagen", "test")
    expected = [
        word
        for block in range(3)
        for word in random_bits(256, 7, stream, 1, block * 64 * 256 + 256).tolist()
    ]  # fmt: skip
    assert words == expected[:600]


def test_choices_are_even() -> None:
    chooser = Chooser("test", 0, 1)
    counts = [0] * 5
    for _ in range(5000):
        counts[chooser.below(5)] += 1
    assert all(900 < count < 1100 for count in counts)
    assert {chooser.between(3, 5) for _ in range(100)} == {3, 4, 5}
    assert sum(chooser.chance(25) for _ in range(4000)) == pytest.approx(1000, abs=120)
    assert sorted(chooser.sample(range(10), 10)) == list(range(10))
    assert len(set(chooser.sample("abcdef", 4))) == 4


def written(files: dict[str, str], symbol: str, **values: object) -> str:
    """A text of a grammar of these files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datagen_grammar, "GRAMMAR", Grammar(files))
        return Chooser("test", 0, 0).write(symbol, **values)


def test_grammar() -> None:
    text = "# A comment\n[s]\n{^a noun} sees {s noun}\n    in {city}.\\n\n[noun]\nowl\n[many: words]\none two\nthree"
    assert written({"t": text}, "t.s", city="Rome") == "An owl sees owls in Rome.\n"
    assert Grammar({"t": text}).lists["t.many"] == ("one", "two", "three")
    assert Reach({"t": text}).of("t.s") == ({"t.s", "t.noun"}, {"city"})
    with pytest.raises(KeyError, match="city"):
        written({"t": text}, "t.s")


def test_values_are_computed_before_a_text_is_written() -> None:
    rules = (
        '[s]\n= whole: 1000 * between(2, 2)\n= part: 7\n= shown: expand("t.inner")\n{whole:,}: {shown}; {inner}\n\n'
        "[inner]\n= twice: 2 * whole + max(each for each in (part, given))\n{twice}"
    )
    assert written({"t": rules}, "t.s", given=9) == "2,000: 4009; 4009"
    assert written({"t": rules}, "t.s", given=9, part=70) == "2,000: 4070; 4070"  # what is given is not computed
    assert Reach({"t": rules}).of("t.s") == ({"t.s", "t.inner"}, {"given"})
    row = '[s]\n= one more: {"more": "mice", "one": "mouse"}\n{one}, {more}'
    assert written({"t": row}, "t.s") == "mouse, mice"
    with pytest.raises(NameError, match="open"):
        written({"t": '[s]\n= text: open("x")\n{text}'}, "t.s")


def test_names_are_looked_for_in_the_own_file_first() -> None:
    files = {"words": "[noun]\nowl\n[verb]\nsings", "t": "[s]\n{noun} {verb}\n[noun]\nfox", "u": "[s]\n{noun} {verb}"}
    assert (written(files, "t.s"), written(files, "u.s")) == ("fox sings", "owl sings")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stray", "'stray' stands before the first"),
        ("[a]\nx\n[a]\ny", r"\[a\] occurs twice"),
        ("[a]\n{b", "a brace is not closed"),
        ("[a]\n{b c}", "a brace is not closed or does not hold a name"),
        ("[a]\n= b: 1\n{b}\n[b]\nx", r"a value of \[t\.a\] cannot be called b, as a function or a list is"),
        ("[a]\n= sorted: 1\nx", r"a value of \[t\.a\] cannot be called sorted"),
    ],
)
def test_mistakes_in_data_files(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar({"t": text})


def test_missing_data_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AlphaError, match=r"datagen_\*\.txt are missing"):
        data_files(tmp_path)


def names_in_the_code() -> list[re.Pattern[str]]:
    """Patterns of the names of lists that the generators' code has as strings; an f-string's values may be anything."""
    patterns = []
    for path in Path(datagen.__file__).parent.glob("datagen*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                patterns.append(re.compile(re.escape(node.value)))
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[-1], ast.Constant):
                pieces = [re.escape(each.value) if isinstance(each, ast.Constant) else r"\w+" for each in node.values]
                patterns.append(re.compile("".join(pieces)))
    return patterns


class Reach:
    """What texts of the lists of data files come from, and what values they need."""

    def __init__(self, files: dict[str, str]) -> None:
        self.grammar = Grammar(files)
        self.lets: dict[str, list[tuple[list[str], ast.expr]]] = {symbol: [] for symbol in self.grammar.lists}
        for file, text in files.items():
            for name, lines in read_lists(text).items():
                for line in (line[2:] for line in lines if line.startswith("= ")):
                    names, _, expression = line.partition(": ")
                    tree = ast.parse(expression.strip(), mode="eval").body
                    self.lets[f"{file}.{name}"].append((names.split(), tree))

    def named(self, tree: ast.AST) -> list[str]:
        """The lists that stand as texts in an expression."""
        constants = [each.value for each in ast.walk(tree) if isinstance(each, ast.Constant)]
        return [each for each in constants if isinstance(each, str) and each in self.grammar.lists]

    def of(self, symbol: str) -> tuple[set[str], set[str]]:
        """The lists that a text of `symbol` may come from, and the values that it may need."""
        reached, values, computed, mentioned, found = set[str](), set[str](), set[str](), set[str](), [symbol]
        while found:
            symbol = found.pop()
            if symbol in reached:
                continue
            reached.add(symbol)
            for names, tree in self.lets[symbol]:
                computed |= set(names)
                mentioned.update(self.named(tree))
                for node in ast.walk(tree):
                    if isinstance(node, ast.Name):
                        (values if isinstance(node.ctx, ast.Load) else computed).add(node.id)
                    elif isinstance(node, ast.arg):
                        computed.add(node.arg)
                    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "expand":
                        found += self.named(node)
            for item in self.grammar.lists[symbol]:
                for _, _, name in datagen_grammar._PLACEHOLDER.findall(item):
                    inner = self.grammar.resolve(symbol.split(".")[0], name)
                    found += [inner] if inner else []
                    values |= set() if inner else {name.partition(":")[0]}
        known = computed | FUNCTIONS.keys() | {"between", "chance", "expand", "pick", "sample", "write"}
        return reached | mentioned, values - known


def test_every_list_is_used_and_every_name_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, set[frozenset[str]]] = {}
    expand = Chooser.expand

    def recorded(self: Chooser, symbol: str, values: Mapping[str, object]) -> str:
        calls.setdefault(symbol, set()).add(frozenset(values))
        return expand(self, symbol, values)

    monkeypatch.setattr(Chooser, "expand", recorded)
    monkeypatch.setattr(Chooser, "write", lambda self, symbol, /, **values: self.expand(symbol, values))
    for name in GENERATORS:
        for index in range(300):
            document(name, index, 7)
    used = set()
    reach = Reach(data_files(Path(datagen.__file__).parent))
    for symbol, values in calls.items():
        lists, needed = reach.of(symbol)
        used |= lists
        for names in values:
            assert needed <= names, f"{symbol} needs values that it is not given"
            for name in lists:
                # A value that has the name of a list would never be seen.
                hidden = {each for each in names if GRAMMAR.resolve(name.split(".")[0], each)}
                assert not [item for item in GRAMMAR.lists[name] for each in hidden if f"{each}}}" in item], symbol
    patterns = names_in_the_code()
    unused = {symbol for symbol in GRAMMAR.lists if symbol not in used}
    unused -= {
        symbol
        for symbol in unused
        for name in (symbol, symbol.split(".")[1])
        if any(each.fullmatch(name) for each in patterns)
    }
    assert unused == set()


def test_words() -> None:
    assert [article(word) for word in ("owl", "hour", "unicorn", "umbrella", "horse", "honest", "one-eyed")] == [
        "an owl", "an hour", "a unicorn", "an umbrella", "a horse", "an honest", "a one-eyed",
    ]  # fmt: skip
    assert [plural(word) for word in ("brush", "mouse", "lady", "boy", "box", "fisherman", "key")] == [
        "brushes", "mice", "ladies", "boys", "boxes", "fishermen", "keys",
    ]  # fmt: skip
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th",
    ]  # fmt: skip
    assert [roman(number) for number in (4, 9, 14, 40, 90, 400, 1994, 3999)] == [
        "IV", "IX", "XIV", "XL", "XC", "CD", "MCMXCIV", "MMMCMXCIX",
    ]  # fmt: skip
    assert in_words(342) == "three hundred and forty-two"
    assert in_words(20_007) == "twenty thousand and seven"
    assert in_words(1_150) == "one thousand one hundred and fifty"
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")


# --- rule-made documents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", GENERATORS)
def test_documents_depend_on_seed_and_index_alone(domain: str) -> None:
    generate = partial(document, domain)
    forward = [generate(index, 5) for index in range(70)]
    datagen_grammar._block.cache_clear()
    assert [generate(index, 5) for index in reversed(range(70))] == forward[::-1]
    assert generate(3, 5) != generate(3, 6)
    assert generate(1_000_000, 5) not in forward


def test_documents_are_the_same_in_another_process() -> None:
    program = (
        "import hashlib\nfrom alpha.datagen import GENERATORS, document\nstate = hashlib.sha256()\n"
        "for name in sorted(GENERATORS):\n    for index in range(12):\n        "
        "state.update(document(name, index, 42).encode())\nprint(state.hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("domain", GENERATORS)
def test_documents_are_distinct_and_varied(domain: str) -> None:
    made = documents(domain)
    count = len(made)
    # The number of an ABC tune would make each distinct by itself.
    bodies = {text.split("\n", 1)[1] if domain == "abc" else text for text in made}
    assert len(bodies) > 0.99 * count
    assert all(text.strip() == text and END_OF_TEXT not in text and text.isprintable() is False for text in made[:100])
    content = "\n".join(made).encode()
    ratio = len(zlib.compress(content, 6)) / len(content)
    recurs = domain == "chat"  # so that a small model can learn the answers
    assert (0.1 if recurs else 0.12) < ratio < 0.6

    # Lines of one half that occur in the other: a handful of templates would make nearly all of them known.
    def long_lines(texts: list[str]) -> set[str]:
        return {line for text in texts for line in text.split("\n") if len(line) > 50}

    first, second = long_lines(made[: count // 2]), long_lines(made[count // 2 :])
    if second and not recurs:
        assert len(first & second) / len(second) < 0.15


@pytest.mark.parametrize("domain", GENERATORS)
def test_text_is_clean(domain: str) -> None:
    for text in documents(domain)[:300]:
        assert unicodedata.normalize("NFC", text) == text
        assert not any(unicodedata.category(letter) == "Cc" for letter in text.replace("\n", ""))
        assert "{" not in text or domain in ("abc", "chaos")
        if domain != "chaos":
            assert all(line == line.rstrip() for line in text.split("\n"))


# --- files ----------------------------------------------------------------------------------------------------------


def said(messages: list[dict[str, str]]) -> str:
    return domain.dialogue((f"<|{each['role']}|>", each["content"]) for each in messages)


def read_back(path: Path) -> list[str]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".jsonl" in path.name:
        rows = [json.loads(line) for line in content.decode().split("\n")[:-1]]
        return [row.get("text") or said(row["messages"]) for row in rows]
    return content.decode().split(END_OF_TEXT)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".txt.gz", ".jsonl.gz"])
def test_formats_hold_the_documents(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"text{ending}"
    summary = write("chat", out, seed=42, report=quiet, documents=40)
    assert read_back(out) == documents("chat")[:40]
    assert summary == Summary(out, documents=40, bytes=summary.bytes)
    if ending in (".txt", ".jsonl"):
        assert summary.bytes == out.stat().st_size


def test_conversations_are_special_where_their_format_says_so(tmp_path: Path) -> None:
    read = []
    for ending in (".txt", ".jsonl"):
        out = tmp_path / f"chats{ending}"
        write("super_chat", out, seed=1, report=quiet, documents=5)
        read.append(list(corpus.sections(corpus_files.find(str(out)).files)))
    assert read[0] == read[1]
    assert all(section.markers for section in read[0])


def test_a_small_file_is_the_beginning_of_a_large_one(tmp_path: Path) -> None:
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    write("abc", small, seed=1, report=quiet, size_bytes=20_000)
    write("abc", large, seed=1, report=quiet, size_bytes=50_000)
    assert large.read_bytes().startswith(small.read_bytes())
    assert 20_000 <= small.stat().st_size < 22_000


def test_compressed_files_are_equal_whatever_their_name_and_time(tmp_path: Path) -> None:
    contents = []
    for name in ("one.txt.gz", "two.txt.gz"):
        write("chords", tmp_path / name, seed=1, report=quiet, documents=5)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0][4:8] == bytes(4), "the header holds no time"


def test_progress_is_reported(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = write(
        "nanochat",
        tmp_path / "a.txt",
        seed=1,
        report=lambda done, wanted: calls.append((done, wanted)),
        size_bytes=600_000,
    )
    assert [wanted for _, wanted in calls] == [600_000] * len(calls)
    assert len(calls) >= 3
    assert calls == sorted(calls)
    assert calls[-1][0] == summary.bytes


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.txt"
    out.write_text("old")

    def broken(chooser: Chooser) -> str:
        if chooser.index == 3:
            raise RuntimeError("broken")
        return "new"

    monkeypatch.setitem(datagen.GENERATORS, "chat", broken)
    with pytest.raises(RuntimeError, match="broken"):
        write("chat", out, seed=1, report=quiet, documents=5)
    assert out.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGINT, ".txt"), (signal.SIGTERM, ".jsonl.gz"), (signal.SIGHUP, ".txt")]
)
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, ending: str) -> None:
    options = [f"--out={tmp_path / 'a'}{ending}", "--domain=chat", "--size=9GB"]
    command = [sys.executable, "-c", "import sys; from alpha.cli import main; sys.exit(main())", "datagen", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, list(tmp_path.iterdir())) == (130, [])
    assert b"Traceback" not in errors


def test_run_by_rule(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a.txt"
    given = {"out": str(out), "domain": "dumb_finance", "size": "30kB", "seed": 9}
    summary = run(from_mapping(DatagenOptions, given, "test"), quiet)
    assert 30_000 <= summary.bytes < 34_000
    assert read_back(out)[1] == document("dumb_finance", 1, 9)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("123456", 123456),
        ("1e6", 10**6),
        ("500kB", 500_000),
        ("5MB", 5_000_000),
        ("2 gb", 2 * 10**9),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--size") == size


@pytest.mark.parametrize("text", ["", "0", "-5MB", "1.5MB", "5TB", "MB", "5 M B", "0kB", "\u0665MB", "e", "1e-3"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="--size must be a number of bytes"):
        parse_size(text, "--size")


@pytest.mark.parametrize("text", ["9" * 40, "9223372036854775808", "1e30", "99999999999GB"])
def test_sizes_that_no_file_has(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--size must be at most 9223372036854775807, not {text}\\.$"):
        parse_size(text, "--size")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": "a.txt", "domain": "novel"}, "Did you mean 'novels'"),
        ({"out": "a.txt"}, "--domain is missing; choose one of novels, chords"),
        ({"domain": "chat"}, "--out is missing"),
        ({"out": "a.csv", "domain": "chat"}, r"must end in \.txt, \.jsonl, \.txt\.gz or \.jsonl\.gz"),
        ({"out": "a.gz", "domain": "chat"}, "must end in"),
        ({"out": "a.txt", "domain": "chat", "size": "big"}, "not 'big'"),
        ({"out": "a.txt", "domain": "chat", "sources": "x"}, "--sources is for --mode=corpus"),
        ({"out": "a.txt", "mode": "corpus", "sources": "x", "domain": "chat"}, "leave it out with --mode=corpus"),
        ({"out": "a.txt", "mode": "corpus"}, "--sources is missing"),
        ({"out": "a.txt", "mode": "corpus", "sources": " , "}, "--sources is missing"),
        ({"out": "a.txt", "mode": "corpus", "sources": "nowhere"}, "no file or folder nowhere"),
        ({"out": "a.txt", "mode": "concordance", "sources": "nowhere"}, "no file or folder nowhere"),
        ({"out": "a.txt", "mode": "concordance", "sources": "x", "max_count": 2}, "--maxCount=2 is below --minCount=5"),
    ],
)
def test_wrong_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        run(options(**values), quiet)
    assert list(tmp_path.iterdir()) == []


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match=r"folder\.txt is a folder"):
        run(options(out=str(tmp_path / "folder.txt"), domain="chat"), quiet)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AlphaError, match=r"Cannot write .*file/a\.txt"):
        run(options(out=str(tmp_path / "file" / "a.txt"), domain="chat", size="1kB"), quiet)


def test_either_size_or_documents(tmp_path: Path) -> None:
    for wrong in ({}, {"documents": 1, "size_bytes": 1}):
        with pytest.raises(UsageError, match="either a size or a number"):
            write("chat", tmp_path / "a.txt", seed=1, report=quiet, **wrong)


# --- corpora from sources -------------------------------------------------------------------------------------------

LONG = "This paragraph is long enough to be recognized when it comes a second time, wherever that is."


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "b" / "deeper").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "a.txt").write_text(f"Title\n\n{LONG}\n\n\n\n\nTrailing   \t\nspaces\r\nand returns\n")
    (root / "a_again.txt").write_text(
        f"title.\n\n{LONG.upper()}\n\nTrailing, spaces - and returns\n"
    )  # differs in form
    (root / "b" / "new.md").write_text(f"# Title\n\n{LONG}\n\nSomething new in a paragraph of its own.\n")
    (root / "b" / "deeper" / "code.py").write_text(f'"""{LONG}"""\n\n\ndef f():\n    return 1\n')
    (root / "b" / "latin.txt").write_bytes("na\u00efve caf\u00e9".encode("latin-1"))
    (root / "b" / "binary.txt").write_bytes(b"MZ\0\1\2")
    (root / "b" / "picture.png").write_bytes(b"\x89PNG")
    (root / ".git" / "config.txt").write_text("hidden")
    (root / ".hidden.txt").write_text("hidden")
    (root / "c.txt").write_bytes("\ufeffcafe\u0301 \u200b\x07bell\x0c\u2028line".encode())
    (root / "two.txt").write_text(f"One document.{END_OF_TEXT}Another document.\n")
    (root / "empty.txt").write_text("\n\n \n")
    (root / "page.html").write_text(
        "<html><head><title>no</title><style>p{}</style></head><body><h1>Head &amp; foot</h1><p>One\n <b>two</b>"
        "<br>three<script>no()</script></p><pre>a\n  b</pre></body></html>"
    )
    (root / "link.txt").symlink_to(root / "a.txt")
    return root


def test_corpus(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    summary = run(options(out=str(out), mode="corpus", sources=str(tree)), quiet)
    assert read_back(out) == [
        f"Title\n\n{LONG}\n\nTrailing\nspaces\nand returns",
        f'"""{LONG}"""\n\ndef f():\n    return 1',
        "# Title\n\nSomething new in a paragraph of its own.",
        "caf\u00e9 bell\n\nline",
        "Head & foot\n\nOne two\nthree\n\na\n  b",
        "One document.",
        "Another document.",
    ]
    assert summary.skipped == {
        "hidden, a link or not a plain file": 2, "not a text file by its name": 1, "binary": 1, "not UTF-8": 1,
    }  # fmt: skip
    assert summary.files_read == 8
    assert summary.documents == 7
    assert summary.duplicate_documents == 1
    assert summary.duplicate_paragraphs == 1
    assert summary.bytes == out.stat().st_size


def test_corpus_does_not_read_its_own_output(tree: Path) -> None:
    out = tree / "out.txt"
    first = run(options(out=str(out), mode="corpus", sources=str(tree)), quiet)
    content = out.read_bytes()
    # A second run finds the first one's output among its sources, under a name that is spelled in another way too.
    sources = f"{tree},{tree / 'b' / '..' / 'out.txt'}"
    second = run(options(out=str(out), mode="corpus", sources=sources), quiet)
    assert out.read_bytes() == content
    assert second.files_read == first.files_read
    assert second.skipped == {**first.skipped, "the output itself": 1}
    with pytest.raises(UsageError, match="has no text files"):
        run(options(out=str(out), mode="corpus", sources=str(out)), quiet)
    assert out.read_bytes() == content


def test_corpus_order_and_formats(tree: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.txt.gz"
    run(options(out=str(one), mode="corpus", sources=f"{tree / 'b'},{tree / 'a.txt'},{tree}"), quiet)
    run(options(out=str(two), mode="corpus", sources=f"{tree / 'b'},{tree / 'a.txt'},{tree}"), quiet)
    assert read_back(one) == read_back(two)
    assert read_back(one)[1].startswith("# Title"), "folders are read in the order given"


def test_a_file_named_by_itself_is_read_whatever_its_ending(tmp_path: Path) -> None:
    (tmp_path / "notes.log").write_text("hello")
    run(options(out=str(tmp_path / "o.txt"), mode="corpus", sources=str(tmp_path / "notes.log")), quiet)
    assert read_back(tmp_path / "o.txt") == ["hello"]


def test_corpus_stops_at_its_size(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(
        "\n\n".join(f"Paragraph number {number} says {number * number}." for number in range(5000))
    )
    out = tmp_path / "o.txt"
    summary = run(options(out=str(out), mode="corpus", sources=str(tmp_path / "in.txt"), size="10kB"), quiet)
    assert 10_000 <= summary.bytes == out.stat().st_size < 10_100
    assert out.read_text().endswith(".")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "cannot be opened"),
        (lambda path: path.write_text(""), "fewer documents than before"),
    ],
)
def test_sources_that_change_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], message: str
) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("one two three")
    judge = datagen_files._document_digests

    def judge_and_change(path: Path) -> list[int]:
        digests = judge(path)
        change(path)
        return digests

    monkeypatch.setattr(datagen_files, "_document_digests", judge_and_change)
    with pytest.raises(AlphaError, match=rf"in\.txt changed while it was being read: .*{message}"):
        run(options(out=str(out), mode="corpus", sources=str(source)), quiet)
    assert not out.exists()


def test_a_very_long_line_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("ab " * 1_000_000)
    pieces = list(paragraphs(path))
    assert max(len(piece or "") for piece in pieces) <= 1 << 21
    assert {word for piece in pieces for word in (piece or "").split()} == {"ab"}
    assert sum((piece or "").count("ab") for piece in pieces) == 1_000_000


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.text(alphabet="ab \n\r\t.<>&é\u0301\u200b\x07\x85", max_size=40), max_size=4),
    st.sampled_from([".txt", ".html"]),
)
def test_any_text_becomes_clean_paragraphs(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], ending: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{ending}"
    path.write_bytes(END_OF_TEXT.join(texts).encode())
    found = list(paragraphs(path))
    if ending == ".txt":
        assert found.count(None) == max(len(texts) - 1, 0)
        kept = normalized("".join(piece or " " for piece in found)).replace(" ", "")
        assert kept == normalized(
            unicodedata.normalize(
                "NFC", "".join(f"{text} " for text in texts).replace("\u200b", "").replace("\x07", "")
            )
        ).replace(" ", "")
    for piece in found:
        if piece is not None:
            assert piece.strip()
            assert "\n\n" not in piece
            assert all(line == line.rstrip() for line in piece.split("\n"))
            assert unicodedata.is_normalized("NFC", piece)
            assert not any(
                unicodedata.category(letter) in ("Cc", "Cf") for letter in piece.replace("\n", "").replace("\t", "")
            )


# --- concordances ---------------------------------------------------------------------------------------------------


def test_concordance_from_sources(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    sentences = [f"on day {number} the Miller met a fox, near the river." for number in range(12)]
    (source / "a.txt").write_text("\n".join(sentences[:6]))
    (source / "b.txt").write_text("\n\n".join(sentences[6:]))
    out = tmp_path / "out.txt"
    summary = run(
        options(out=str(out), mode="concordance", sources=str(source), context=2, lines=4, min_count=12, max_count=12),
        quiet,
    )
    words = [text.split("\n", 1)[0] for text in read_back(out)]
    assert words == sorted(words)
    assert words == ["a", "day", "fox", "met", "miller", "near", "on", "river"]
    assert summary.keywords == summary.documents == len(words)
    miller = read_back(out)[4].split("\n")
    # Every third of twelve occurrences, so that the lines come from the whole text; "0" has no neighbour further left.
    assert miller == [
        "miller",
        "0 the  Miller  met a",
        "3 the  Miller  met a",
        "6 the  Miller  met a",
        "9 the  Miller  met a",
    ]


def test_concordance_takes_the_most_frequent_of_the_band(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(" ".join(["the"] * 900 + ["miller"] * 6 + ["fox"] * 7 + ["heron"] * 5 + ["once"]))
    out = tmp_path / "out.txt"
    sources = str(tmp_path / "in.txt")
    run(options(out=str(out), mode="concordance", sources=sources, keywords=2, max_count=20), quiet)
    assert [text.split("\n", 1)[0] for text in read_back(out)] == ["fox", "miller"]
    with pytest.raises(UsageError, match="No word occurs between 50 and 60 times"):
        run(options(out=str(out), mode="concordance", sources=sources, min_count=50, max_count=60), quiet)


def test_concordance_skips_its_output_and_what_is_not_text(tree: Path) -> None:
    out = tree / "out.txt"
    values = {"out": str(out), "mode": "concordance", "sources": str(tree), "min_count": 2, "max_count": 9}
    first = run(options(**values), quiet)
    content = out.read_bytes()
    second = run(options(**values), quiet)
    assert out.read_bytes() == content
    assert first.skipped["not UTF-8"] == first.skipped["binary"] == 1
    assert second.skipped["the output itself"] == 1


def test_counting_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagen_mixtures, "_MOST_WORDS", 50)
    for name in "abc":
        rare = " ".join(f"{name}x{''.join(chr(97 + digit) for digit in divmod(number, 26))}" for number in range(200))
        (tmp_path / f"{name}.txt").write_text(
            f"heron {rare} heron {rare} heron"
        )  # one pruning of single words is not enough
    out = tmp_path / "out.txt"
    run(options(out=str(out), mode="concordance", sources=str(tmp_path), min_count=1, max_count=100), quiet)
    assert [text.split("\n", 1)[0] for text in read_back(out)] == ["heron"]


def test_generated_concordances_show_each_keyword_in_one_column() -> None:
    for text in documents("concordance")[:200]:
        blocks = [block.split("\n") for block in text.split("\n\n")]
        keywords = [lines[0] for lines in blocks]
        assert keywords == sorted(set(keywords))
        for keyword, *lines in blocks:
            assert lines
            assert any(
                all(datagen_mixtures.key_of(line[column:].split(" ", 1)[0]) == keyword for line in lines)
                for column in range(max(map(len, lines)))
            )
