"""GGUF in both directions, against files of the gguf package and logits of llama.cpp (golden/exchange_gguf)."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from exchange_models import GOLDEN_GGUF as GOLDEN
from exchange_models import MODELS, logits_of, make_checkpoint, relative_difference, run
from safetensors.numpy import load_file

from alpha import checkpoint
from alpha.errors import AlphaError
from alpha.exchange_gguf_tokenizer import merges_by_score, read_tokenizer, tokenizer_keys
from alpha.gguf_file import TYPES, GgufFile, write_in_turn
from alpha.tokenizer_json import from_tokenizer_json
from alpha.tokenizer_sentencepiece import SentencePieceTokenizer
from alpha.tokenizer_simple import build_char

CASES = ("gpt2", "llama", "qwen3", "arcee", "apertus")
TOLERANCE = {"gpt2": 1e-3}
"""llama.cpp looks its GELU up in a table of float16."""


def test_a_tied_head_is_written_where_llama_cpp_wants_one(tmp_path):
    saved = checkpoint.load(make_checkpoint(tmp_path, "apertus"))
    del saved.tensors["lm_head.weight"]
    path = checkpoint.save(tmp_path, dataclasses.replace(saved, model=dataclasses.replace(saved.model, tied=True)))
    run("export", f"--checkpoint={path}", "--format=gguf", f"--out={tmp_path / 'a.gguf'}")
    with GgufFile(tmp_path / "a.gguf") as file:
        assert np.array_equal(file.read("output.weight"), file.read("token_embd.weight"))


@pytest.mark.parametrize("name", CASES)
def test_an_imported_model_has_the_logits_of_llama_cpp(name, tmp_path):
    run("import", f"--from={GOLDEN / name}.gguf", f"--out={tmp_path / 'out'}")
    stored = load_file(GOLDEN / f"{name}.safetensors")
    difference = relative_difference(logits_of(tmp_path / "out", stored["ids"]), stored["logits"])
    assert difference < TOLERANCE.get(name, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_export_writes_the_tensors_that_llama_cpp_read(name, tmp_path):
    run("import", f"--from={GOLDEN / name}.gguf", f"--out={tmp_path / 'out'}")
    run("export", f"--checkpoint={tmp_path / 'out'}", "--format=gguf", f"--out={tmp_path / 'model.gguf'}")
    with GgufFile(GOLDEN / f"{name}.gguf") as theirs, GgufFile(tmp_path / "model.gguf") as ours:
        assert ours.entries.keys() == theirs.entries.keys()
        for each in theirs.entries:
            assert np.array_equal(ours.read(each), theirs.read(each)), each
        assert theirs.metadata.items() <= ours.metadata.items()
        more = {key.removeprefix(f"{name}.") for key in ours.metadata.keys() - theirs.metadata.keys()}
    assert more <= {
        "general.file_type", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token",
    }  # fmt: skip


def test_a_tokenizer_in_gguf_is_one_of_the_model(tmp_path):
    run("import", f"--from={GOLDEN / 'llama.gguf'}", f"--out={tmp_path / 'out'}")
    tokenizer = checkpoint.load(tmp_path / "out" / "checkpoint-0.safetensors").tokenizer
    assert tokenizer["special_tokens"] == {"<|endoftext|>": 259}
    assert tokenizer["added_tokens"] == ["<think>"]
    assert tokenizer["merges"] == ["Ġ t", "t h"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_export_import_export_gives_the_same_bytes(name, dtype, tmp_path):
    path = make_checkpoint(tmp_path, name)
    run("export", f"--checkpoint={path}", "--format=gguf", f"--dtype={dtype}", f"--out={tmp_path / 'first.gguf'}")
    run("import", f"--from={tmp_path / 'first.gguf'}", f"--out={tmp_path / 'again'}")
    again = f"--checkpoint={tmp_path / 'again'}"
    run("export", again, "--format=gguf", f"--dtype={dtype}", f"--out={tmp_path / 'second.gguf'}")
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()
    ids = np.random.Generator(np.random.PCG64(1)).integers(0, 280, (2, 20))
    tolerance = {"f32": 1e-6, "f16": 0.01, "bf16": 0.05, "q8_0": 0.1}[dtype]
    assert relative_difference(logits_of(tmp_path / "again", ids), logits_of(path, ids)) < tolerance


def test_every_type_is_read_and_written_as_the_gguf_package_does(tmp_path):
    stored = load_file(GOLDEN / "types.safetensors")
    with GgufFile(GOLDEN / "types.gguf") as file:
        for name in file.entries:
            assert file.entries[name].dtype == name.lower()
            assert np.array_equal(file.read(name), stored[name]), name
    declared = {kind.upper(): (kind, stored["matrix"].shape) for kind in TYPES}
    write_in_turn(tmp_path / "types.gguf", {}, declared, lambda name: stored["matrix"])
    with GgufFile(tmp_path / "types.gguf") as file:
        for name in file.entries:
            assert np.array_equal(file.read(name), stored[name]), name


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("gpt2_untied", "--activation=relu2"),
        ("gpt2_narrow", "--activation=gelu_exact"),
        ("llama_bias", "--activation=geglu"),
        ("arcee_bias", "--bias=true"),
        ("apertus_caps", "--logitSoftCap=2"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name, named, tmp_path, capsys):
    assert name in MODELS
    path = make_checkpoint(tmp_path, name)
    run("export", f"--checkpoint={path}", "--format=gguf", f"--out={tmp_path / 'model.gguf'}", code=1)
    assert named in capsys.readouterr().err
    assert not (tmp_path / "model.gguf").exists()


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path, capsys):
    saved = checkpoint.load(make_checkpoint(tmp_path, "llama"))
    saved.tokenizer.clear()
    saved.tokenizer.update(build_char(["".join(map(chr, range(0x4E00, 0x4E00 + 274)))]).to_mapping())
    path = checkpoint.save(tmp_path, saved)
    run("export", f"--checkpoint={path}", "--format=gguf", f"--out={tmp_path / 'model.gguf'}", code=1)
    assert "(char)" in capsys.readouterr().err


def of_characters(prefix):
    """A tokenizer of characters whose merges are all the pairs that make a token."""
    mapping = json.loads((GOLDEN.parent / "tokenizer_published.json").read_text())["tokenizers"]["llama2"]["tokenizer"]
    tokenizer = from_tokenizer_json(mapping, "golden")
    ordinary = {token for token in tokenizer.tokens[259:] if token not in tokenizer.special_tokens}
    merges = merges_by_score(tokenizer.tokens, [-float(index) for index in range(tokenizer.vocab_size)], ordinary)
    options = {"prefix": prefix, "splits": False, "strips": prefix == "prepend"}
    return SentencePieceTokenizer(tokenizer.tokens, merges, tokenizer.special_tokens, **options)


@pytest.mark.parametrize("prefix", ["prepend", "never"])
def test_a_tokenizer_of_characters_goes_by_scores(prefix):
    tokenizer = of_characters(prefix)
    again = read_tokenizer(tokenizer_keys(tokenizer), "again")
    for text in ("the cat  sees", " the", "a   b    c     d", "né 你", ""):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(tokenizer.encode(text)) == text
    assert tokenizer_keys(again) == tokenizer_keys(tokenizer)
    assert again.digest() == tokenizer.digest()


def test_a_tokenizer_of_characters_that_scores_cannot_say_is_refused():
    tokenizer = of_characters("prepend")
    options = {"prefix": "prepend", "splits": False, "strips": True}
    for merges, changed in [(tokenizer.merges[:-1], {}), (tokenizer.merges, {"prefix": "first"})]:
        other = SentencePieceTokenizer(tokenizer.tokens, merges, tokenizer.special_tokens, **{**options, **changed})
        with pytest.raises(AlphaError, match="joins characters otherwise"):
            tokenizer_keys(other)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("scores", [0.0], "list of scores"),
        ("scores", None, "list of scores"),
        ("token_type", [1], "type for each"),
        ("model", "bert", "'bert'"),
    ],
)
def test_a_tokenizer_of_characters_that_is_malformed_is_refused(key, value, said):
    values = {**tokenizer_keys(of_characters("prepend")), f"tokenizer.ggml.{key}": value}
    with pytest.raises(AlphaError, match=said):
        read_tokenizer(values, "bad")


def test_q8_0_is_for_gguf(tmp_path, capsys):
    path = make_checkpoint(tmp_path, "llama")
    run("export", f"--checkpoint={path}", "--dtype=q8_0", f"--out={tmp_path / 'out'}", code=2)
    assert "--format=gguf" in capsys.readouterr().err


def rewritten(path, target, change):
    """A copy of a GGUF file whose metadata were changed."""
    with GgufFile(path) as file:
        metadata = dict(file.metadata)
        change(metadata)
        declared = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
        write_in_turn(target, metadata, declared, file.read)


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("llama", "llama.rope.scaling.type", "yarn", "rope.scaling.type"),
        ("llama", "llama.rope.dimension_count", 4, "rope.dimension_count"),
        ("llama", "llama.expert_count", 8, "expert_count"),
        ("llama", "llama.block_count", None, "block_count"),
        ("llama", "llama.attention.head_count", 3, "heads"),
        ("llama", "general.architecture", "mamba", "mamba"),
        ("llama", "tokenizer.ggml.model", "llama", "'<think>' is not special"),
        ("llama", "tokenizer.ggml.pre", "viking", "'viking'"),
        ("llama", "tokenizer.ggml.tokens", ["a"], "type for each"),
        ("apertus", "xielu.alpha_n", [-100.0, 0.5], "xielu.alpha_n"),
    ],
)
def test_what_alpha_cannot_compute_is_refused_by_its_key(name, key, value, said, tmp_path, capsys):
    def change(metadata):
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value

    rewritten(GOLDEN / f"{name}.gguf", tmp_path / "changed.gguf", change)
    run("import", f"--from={tmp_path / 'changed.gguf'}", f"--out={tmp_path / 'out'}", code=1)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "content", "said"),
    [
        (0, b"GGML", "begin with GGUF"),
        (4, struct.pack("<I", 1), "version"),
        (8, struct.pack("<Q", 1 << 40), "tensors"),
        (16, struct.pack("<Q", 1 << 60), "keys"),
        (24, struct.pack("<Q", 1 << 62), "does not end"),
    ],
)
def test_sizes_that_lie_are_refused_before_anything_is_allocated(place, content, said, tmp_path):
    whole = bytearray((GOLDEN / "types.gguf").read_bytes())
    whole[place : place + len(content)] = content
    (tmp_path / "bad.gguf").write_bytes(whole)
    with pytest.raises(AlphaError, match=said):
        GgufFile(tmp_path / "bad.gguf")


def test_a_file_cut_short_is_refused(tmp_path):
    whole = (GOLDEN / "types.gguf").read_bytes()
    for size in range(0, len(whole) - 32, 37):  # padding at the end is no loss
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(AlphaError, match="GGUF"):
            GgufFile(tmp_path / "cut.gguf")


def test_the_chat_template_goes_along(tmp_path, capsys):
    path = make_checkpoint(tmp_path, "llama")
    run("export", f"--checkpoint={path}", "--format=gguf", f"--out={tmp_path / 'a.gguf'}", "--json")
    assert json.loads(capsys.readouterr().out)["architecture"] == "llama"
    with GgufFile(tmp_path / "a.gguf") as file:
        assert "<|assistant|>" in file.metadata["tokenizer.chat_template"]
        assert file.metadata["tokenizer.ggml.eot_token_id"] == 275
