"""Folders of transformers, in both directions, against what transformers wrote and computed (golden/exchange)."""

import dataclasses
import json

import exchange_models
import jinja2
import numpy as np
import pytest
from exchange_models import (
    CASES,
    GOLDEN,
    MODELS,
    change_json,
    contents,
    golden_folder,
    logits_of,
    make_checkpoint,
    relative_difference,
    run,
)
from safetensors.numpy import load_file, save_file

from alpha import checkpoint, exchange
from alpha.config import ModelConfig, resolve_model
from alpha.errors import AlphaError
from alpha.safetensors_file import SafetensorsFile

TOLERANCE = 1e-5
"""Of logits, relative to the largest; transformers computed in float32, too."""


@pytest.mark.parametrize("name", CASES)
def test_an_imported_model_has_the_logits_of_transformers(name, tmp_path):
    run("import", f"--from={golden_folder(name, tmp_path / 'in')}", f"--out={tmp_path / 'out'}")
    stored = load_file(GOLDEN / name / "logits.safetensors")
    assert relative_difference(logits_of(tmp_path / "out", stored["ids"]), stored["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_export_writes_what_transformers_wrote(name, tmp_path):
    folder = golden_folder(name, tmp_path / "in")
    dtype = "bf16" if name == "llama_shards" else "f32"
    run("import", f"--from={folder}", f"--out={tmp_path / 'checkpoint'}")
    run("export", f"--checkpoint={tmp_path / 'checkpoint'}", f"--out={tmp_path / 'out'}", f"--dtype={dtype}")
    theirs = {}
    for path in folder.glob("*.safetensors"):
        with SafetensorsFile(path) as file:
            theirs |= {each: file.content(each).tobytes() for each in file.entries}
    with SafetensorsFile(tmp_path / "out" / "model.safetensors") as file:
        assert {each: file.content(each).tobytes() for each in file.entries} == theirs
    expected = json.loads((folder / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    same = {key: value for key, value in written.items() if key in expected and not key.endswith("token_id")}
    if "gpt2" in name and expected["n_inner"] is None:
        assert same.pop("n_inner") == 4 * same["n_embd"]
    assert same == {key: expected[key] for key in same}
    assert not set(written) - set(expected) - {"rope_theta", "rope_scaling", "head_dim"}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_export_import_export_gives_the_same_bytes(name, dtype, tmp_path):
    path = make_checkpoint(tmp_path, name)
    run("export", f"--checkpoint={path}", f"--out={tmp_path / 'first'}", f"--dtype={dtype}")
    run("import", f"--from={tmp_path / 'first'}", f"--out={tmp_path / 'again.safetensors'}")
    run("export", f"--checkpoint={tmp_path / 'again.safetensors'}", f"--out={tmp_path / 'second'}", f"--dtype={dtype}")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    ids = np.random.Generator(np.random.PCG64(1)).integers(0, 280, (2, 20))
    tolerance = {"f32": 1e-6, "f16": 0.01, "bf16": 0.05}[dtype]
    assert relative_difference(logits_of(tmp_path / "again.safetensors", ids), logits_of(path, ids)) < tolerance


def test_an_imported_model_is_one_like_any_other(tmp_path, capsys):
    run("import", f"--from={golden_folder('llama', tmp_path / 'in')}", f"--out={tmp_path / 'out'}", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["out"] == str(tmp_path / "out" / "checkpoint-0.safetensors")
    assert printed["vocabSize"] == 24
    run("sample", f"--checkpoint={tmp_path / 'out'}", "--prompt=abc", "--steps=5", "--backend=cpu_ref")
    (tmp_path / "text.txt").write_text("abcdefgh" * 20)
    run("eval", f"--checkpoint={tmp_path / 'out'}", f"--data={tmp_path / 'text.txt'}", "--backend=cpu_ref")


def test_rows_without_a_token_get_one_that_is_never_text(tmp_path):
    run("import", f"--from={golden_folder('llama', tmp_path / 'in')}", f"--out={tmp_path / 'out'}")
    saved = checkpoint.load(tmp_path / "out" / "checkpoint-0.safetensors")
    assert saved.tokenizer["tokens"][-1] == "<|unused_23|>"
    assert "<|unused_23|>" in saved.tokenizer["special_tokens"]


def test_the_card_says_what_the_model_is_and_no_folders(tmp_path):
    run("export", f"--checkpoint={make_checkpoint(tmp_path, 'apertus')}", f"--out={tmp_path / 'out'}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for part in ("`corpus.txt`", "2.5000 nats", "| architecture | apertus |", "--activation=relu2", "--iters=10"):
        assert part in card
    assert "private" not in card
    assert "trust_remote_code" not in card


@pytest.mark.parametrize(("card", "said"), [(7, "`\\udcff.txt`"), ("A \udcff card", "A \\udcff card"), ("", "udcff")])
def test_a_card_that_is_no_text_and_a_name_that_is_none_are_no_errors(tmp_path, card, said):
    saved = checkpoint.load(make_checkpoint(tmp_path, "llama"))
    saved.state["imported"] = {"card": card, "chatTemplate": 3}
    saved = dataclasses.replace(saved, training=dataclasses.replace(saved.training, data="private/\udcff.txt"))
    run("export", f"--checkpoint={checkpoint.save(tmp_path, saved)}", f"--out={tmp_path / 'out'}")
    assert said in (tmp_path / "out" / "README.md").read_text()


def test_soft_caps_come_with_a_modeling_file_and_are_told(tmp_path, capsys):
    run("export", f"--checkpoint={make_checkpoint(tmp_path, 'apertus_caps')}", f"--out={tmp_path / 'out'}")
    assert "modeling_alpha.py" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "alpha_apertus"
    assert "trust_remote_code" in (tmp_path / "out" / "README.md").read_text()
    compile((tmp_path / "out" / "modeling_alpha.py").read_text(), "modeling_alpha.py", "exec")


def test_the_chat_template_is_what_training_reads(tmp_path):
    run("export", f"--checkpoint={make_checkpoint(tmp_path, 'llama')}", f"--out={tmp_path / 'out'}")
    template = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    compiled = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)  # as transformers does
    said = "<|user|>Hi<|end|>\n<|assistant|>Yes?<|end|>"
    assert compiled.render(messages=messages) == said
    assert compiled.render(messages=messages, add_generation_prompt=True) == said + "\n<|assistant|>"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm": "layernorm", "position": "rope"}, "--position=rope"),
        ({"activation": "swiglu"}, "--activation=swiglu"),
        ({"head_dim": 16}, "--headDim=16"),
        ({**exchange_models.ROPE, "qk_norm": True, "bias": True, "activation": "relu2"}, "--bias=true"),
    ],
)
def test_what_no_architecture_says_is_refused_by_the_options(options, named):
    with pytest.raises(AlphaError, match=named):
        exchange.architecture_of(resolve_model(ModelConfig(layers=1, dim=8, heads=2, **options)))


def refused(folder, tmp_path, capsys):
    """The error of importing a folder; nothing was written."""
    run("import", f"--from={folder}", f"--out={tmp_path / 'refused'}", code=1)
    assert not (tmp_path / "refused").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "rope_parameters", {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ("llama", "head_dim", 3),
        ("llama", "head_dim", -4),
        ("llama", "hidden_act", "quick_gelu"),
        ("llama", "mlp_bias", True),
        ("llama", "model_type", "mamba"),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "pretraining_tp", 2),
        ("llama", "num_hidden_layers", 10**9),
        ("llama", "vocab_size", -1),
        ("llama", "num_attention_heads", 3),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "layer_types", ["sliding_attention", "full_attention"]),
        ("qwen3", "attention_bias", True),
        ("apertus", "hidden_act", "xielu"),
        ("apertus", "rope_parameters", None),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "n_layer", None),
    ],
)
def test_what_alpha_cannot_compute_is_refused_by_its_key(name, key, value, tmp_path, capsys):
    folder = golden_folder(name, tmp_path / "in")
    change_json(folder / "config.json", **{key: value})
    error = refused(folder, tmp_path, capsys)
    spoken = {
        "rope_parameters": "rotary" if "partial" in str(value) else "rope",
        "num_attention_heads": "self_attn.q_proj",
    }
    spoken |= {"model_type": "mamba", "num_hidden_layers": "layers", "head_dim": "heads" if value == 3 else "headDim"}
    assert spoken.get(key, key) in error


@pytest.mark.parametrize("name", exchange.ARCHITECTURES)
def test_what_config_json_leaves_out_is_what_transformers_takes(name):
    defaults = json.loads((GOLDEN.parent / "exchange_defaults.json").read_text())[name]
    for option, key in exchange.ARCHITECTURES[name].keys.items():
        if key.absent not in (None, 0):
            assert key.absent == defaults[key.name], option
    for key, value in exchange.ARCHITECTURES[name].constants.items():
        assert defaults[key] == value


def test_what_is_missing_left_over_or_misshapen_is_named(tmp_path, capsys):
    def with_tensors(name, change):
        folder = golden_folder("llama", tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return refused(folder, tmp_path, capsys)

    norm = "model.norm.weight"
    assert f"lacks the tensor '{norm}'" in with_tensors("missing", lambda tensors: tensors.pop(norm))
    assert "'model.extra'" in with_tensors(
        "extra", lambda tensors: tensors.update({"model.extra": np.ones(1, np.float32)})
    )
    assert norm in with_tensors("shape", lambda tensors: tensors.update({norm: np.ones(9, np.float32)}))
    assert "int8" in with_tensors("dtype", lambda tensors: tensors.update({norm: np.ones(8, np.int8)}))


def test_a_model_without_its_head_and_with_buffers_is_read(tmp_path):
    folder = golden_folder("gpt2", tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32), "lm_head.weight": bare["wte.weight"]}
    save_file(bare, folder / "model.safetensors")
    run("import", f"--from={folder}", f"--out={tmp_path / 'out'}")
    stored = load_file(GOLDEN / "gpt2" / "logits.safetensors")
    assert relative_difference(logits_of(tmp_path / "out", stored["ids"]), stored["logits"]) < TOLERANCE


def test_a_tied_head_that_differs_is_refused(tmp_path, capsys):
    folder = golden_folder("gpt2", tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + 1}, folder / "model.safetensors")
    assert "tie_word_embeddings" in refused(folder, tmp_path, capsys)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, capsys):
    folder = golden_folder("llama", tmp_path / "in")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for place in (folder, folder / "pytorch_model.bin"):
        error = refused(place, tmp_path, capsys)
        assert "pytorch_model.bin" in error
        assert "save_pretrained" in error


def test_the_weights_alone_are_no_model(tmp_path, capsys):
    folder = golden_folder("llama", tmp_path / "in")
    assert f"name the folder, {folder}." in refused(folder / "model.safetensors", tmp_path, capsys)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 5, "model.bin"])
def test_shards_are_files_of_the_folder(shard, tmp_path, capsys):
    folder = golden_folder("llama_shards", tmp_path / "in")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no safetensors file beside it" in refused(folder, tmp_path, capsys)


def test_an_index_that_lies_is_refused(tmp_path, capsys):
    folder = golden_folder("llama_shards", tmp_path / "in")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    name = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: shards[1]}}))
    assert name in refused(folder, tmp_path, capsys)
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "model.more": shards[1]}}))
    assert "'model.more'" in refused(folder, tmp_path, capsys)


def test_nothing_that_exists_is_written_over(tmp_path, capsys):
    folder = golden_folder("llama", tmp_path / "in")
    run("import", f"--from={folder}", f"--out={tmp_path / 'out'}")
    run("import", f"--from={folder}", f"--out={tmp_path / 'out'}", code=1)
    run("export", f"--checkpoint={tmp_path / 'out'}", f"--out={folder}", code=1)
    assert "not an empty folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    run("import", f"--from={tmp_path / 'absent'}", f"--out={tmp_path / 'file'}", code=1)
    assert "is neither a folder nor a name for a new .safetensors file" in capsys.readouterr().err


def test_weights_too_large_for_float16_are_refused(tmp_path, capsys):
    saved = checkpoint.load(make_checkpoint(tmp_path, "llama"))
    saved.tensors["h.1.ln_1.weight"][3] = 1e5
    path = checkpoint.save(tmp_path, saved)
    run("export", f"--checkpoint={path}", f"--out={tmp_path / 'out'}", "--dtype=f16", code=1)
    assert "model.layers.1.input_layernorm.weight" in capsys.readouterr().err
    run("export", f"--checkpoint={path}", f"--out={tmp_path / 'bf16'}", "--dtype=bf16")
