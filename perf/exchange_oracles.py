"""Alpha's exports in the programs that they are for: logits of transformers and llama.cpp beside Alpha's.

    .venv/bin/python perf/exchange_oracles.py --transformers=PYTHON --llamaCpp=PYTHON

For every row of the table in tests/exchange_models.py: makes a model, exports it, and has the other program compute its
logits. PYTHON is the interpreter of an environment with torch and transformers, or with cyllama; either may be left
out. Prints the largest difference relative to the largest logit; exit code 1 when one is above 1e-4 (transformers) or
1e-3 (llama.cpp, whose keys and values are float32 here). The tests hold the same against stored results.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from exchange_models import MODELS, logits_of, make_checkpoint

from alpha import checkpoint
from alpha.errors import AlphaError
from alpha.exchange_folder import write_folder
from alpha.exchange_gguf import write_file

LIMITS = {"transformers": 1e-4, "llama.cpp": 1e-3}

TRANSFORMERS = """
import sys, numpy, torch, transformers
folder, out = sys.argv[1:]
model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, trust_remote_code="caps" in folder)
assert not any(info.values()), info
ids = torch.tensor(numpy.load(out + ".ids.npy"))
with torch.no_grad():
    numpy.save(out, model(ids).logits.numpy())
"""
LLAMA_CPP = Path(__file__).resolve().parent.parent / "tests" / "golden" / "llama_cpp_logits.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--llamaCpp", metavar="PYTHON")
    options = parser.parse_args()
    interpreters = {"transformers": options.transformers, "llama.cpp": options.llamaCpp}
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            path = make_checkpoint(Path(name) / model, model)
            ids = np.random.Generator(np.random.PCG64(7)).integers(0, 276, (2, 24))
            own = logits_of(path, ids)
            for program, interpreter in interpreters.items():
                if interpreter:
                    failures += not compare(program, interpreter, model, path, ids, own)
    sys.exit(1 if failures else 0)


def compare(program: str, interpreter: str, model: str, path: Path, ids: np.ndarray, own: np.ndarray) -> bool:
    """Export, compute there, print; whether the difference is within its limit."""
    saved = checkpoint.load(path)
    exported, out = path.parent / f"exported-{program}-{model}", path.parent / f"{program}.npy"
    try:
        write = write_folder if program == "transformers" else write_file
        write(exported, saved, "f32", lambda stage, done, total: None)
    except AlphaError as error:
        print(f"{model:<14} {program:<13} refused: {error}")
        return True
    np.save(f"{out}.ids.npy", ids)
    script = ["-c", TRANSFORMERS] if program == "transformers" else [str(LLAMA_CPP)]
    command = [interpreter, *script, str(exported), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{model:<14} {program:<13} FAILED: {done.stderr.strip().splitlines()[-1]}")
        return False
    theirs = np.load(out)
    difference = float(np.abs(theirs - own).max() / np.abs(own).max())
    print(f"{model:<14} {program:<13} {difference:.1e}")
    return difference <= LIMITS[program]


if __name__ == "__main__":
    main()
