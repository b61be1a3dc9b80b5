"""Alpha beside PyTorch on one GPU, in turn: ratios with intervals. perf/compare_train.sh, _ops.sh and _serve.sh run it.

    python perf/compare.py train|ops|serve --python=PYTHON [--dtype=bf16] [--mode=MODE] [--rounds=5] [--json=FILE]
        [MODEL]...

PYTHON is an interpreter that has torch. MODEL is a subject of `alpha bench`, such as gpt2-124m; without one quickstart
and chars10m. MODE says how PyTorch runs, see perf/torch_peer.py: bf16-compile without one, and as one CUDA graph for
serving and for whole steps of quickstart and chars10m. A ratio is PyTorch's time over Alpha's: above 1 Alpha is faster.
Its interval (95 %) is Student's, over the rounds.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from peer import LineProcess, RunError  # noqa: E402  (these lie in this folder)
from ratio import paired  # noqa: E402

from alpha.bench_cases import GPU_SUBJECTS, MORE_GPU_SUBJECTS, SUBJECTS  # noqa: E402

MODELS = {
    name: subject
    for name, subject in (SUBJECTS | GPU_SUBJECTS | MORE_GPU_SUBJECTS).items()
    if not name.startswith("cpu-")
}
LATENCY_BOUND = ("quickstart", "chars10m-b8", "chars10m")

Seconds = dict[str, float]


def alpha_step(name: str, dtype: str) -> Seconds:
    """A training step of `alpha bench`."""
    return {"step": _cases("train", f"train/{name}", dtype)[f"train/{name}"]}


def alpha_serving(name: str, dtype: str) -> Seconds:
    """What an engine does, by the part of the cases' names after the model's."""
    whole = f"serve/{name}/"
    return {case.removeprefix(whole): seconds for case, seconds in _cases("serve", whole, dtype).items()}


def alpha_operations(name: str, dtype: str) -> Seconds:
    """The operations of a step, by the part of their names after the model's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "operations.json"
        command = [str(ROOT / "perf" / "helios_operations.py"), f"--precision={dtype}", f"--match={name}/"]
        _output([*command, f"--json={out}"])
        cases = json.loads(out.read_text())["cases"]
    return {each["case"].partition(f"{name}/")[2]: each["us"] * 1e-6 for each in cases}


def _cases(suite: str, match: str, dtype: str) -> Seconds:
    options = [f"--suite={suite}", f"--match={match}", "--backend=helios", f"--dtype={dtype}", "--json"]
    rows = json.loads(_output([str(ROOT / "alpha.py"), "bench", *options]))
    return {row["case"]: row["medianSeconds"] for row in rows}


def _output(command: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RunError(f"{' '.join(command)} ended with {done.returncode}.")
    return done.stdout


SIDES = {"train": alpha_step, "ops": alpha_operations, "serve": alpha_serving}


def compare(measure: Callable[[], Seconds], peer: LineProcess, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(Alpha's, PyTorch's) seconds of each round, for each thing that both measure; each goes first in turn."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        sides = [measure, lambda: peer.ask("once more")][:: 1 if number % 2 else -1]
        first, second = sides[0](), sides[1]()
        ours, theirs = (first, second) if number % 2 else (second, first)
        for name in ours.keys() & theirs.keys():
            found.setdefault(name, []).append((ours[name], theirs[name]))
    return found


def main() -> int:
    """Compare each model; 1 when a side gives no figure."""
    parser = argparse.ArgumentParser(description="Compare Alpha's speed with PyTorch's on one GPU.")
    parser.add_argument("what", choices=list(SIDES))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--python", required=True, help="interpreter that has torch")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "f16", "bf16"], help="Alpha's precision")
    parser.add_argument("--mode", help="how PyTorch runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of each round, too")
    arguments = parser.parse_intermixed_args()
    if unknown := [each for each in arguments.models if each not in MODELS]:
        parser.error(f"there is no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2, for an interval")
    everything = {}
    print(f"{'model':<21}{'what':<32}{'alpha':>12}{'torch':>12}  torch / alpha (95 %)", flush=True)
    for name in arguments.models or ["quickstart", "chars10m"]:
        is_graph = arguments.what == "serve" or (arguments.what == "train" and name in LATENCY_BOUND)
        mode = arguments.mode or "bf16-compile" + "-graph" * is_graph
        side = SIDES[arguments.what]
        peer = None
        try:
            shape = json.dumps(asdict(MODELS[name]))
            torch_peer = str(ROOT / "perf" / "torch_peer.py")
            peer = LineProcess([arguments.python, torch_peer, arguments.what, mode, shape])
            pairs = compare(functools.partial(side, name, arguments.dtype), peer, arguments.rounds)
        except (RunError, OSError) as error:
            print(f"compare: error: {error}", file=sys.stderr)
            return 1
        finally:
            if peer is not None:
                peer.end()
        everything[name] = {"mode": mode, "dtype": arguments.dtype, "seconds": pairs}
        for what, rounds in sorted(pairs.items()):
            ratio = paired([theirs / ours for ours, theirs in rounds])
            ours, theirs = (sorted(each)[len(each) // 2] for each in zip(*rounds, strict=True))
            print(
                f"{name:<21}{what:<32}{1e3 * ours:>9.3f} ms{1e3 * theirs:>9.3f} ms"
                f"  {ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
                flush=True,
            )
        if arguments.json:
            arguments.json.write_text(json.dumps(everything, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
