"""Two recipes of training side by side: held-out bits per byte over paired seeds, the difference with its interval.

    python perf/compare_recipes.py A B [--seeds=3] [--seconds=N] [--json] [-- OPTIONS]

A and B are options of `alpha train` in quotes ('' for none), OPTIONS those of both, for example

    python perf/compare_recipes.py --optim=adamw "--optim=muon --lr=4e-3" -- --layers=2 --dim=64 --block=64 --iters=300

For each seed both are trained, each first in every other pair, and `alpha eval` then predicts the whole of the held-out
text once, in float32, with the weights of the last step. Both make the same number of steps (`--iters`), or, with
--seconds=N, each as many as it makes in N seconds on this machine; a short trial says how many those are.

Without --data and --valData in OPTIONS the text is the quick start's packages of Python's standard library; every tenth
file is held out, so no document is on both sides. --seed, --runDir, --evalInterval and --sampleInterval are set here.

Options: --alpha=PATH measures this program (alpha.py here) and --alphaB=PATH another one for B, as that of another
checkout; --out=DIR keeps each run's files there (runs/recipes-<time>), weights excepted; --json prints JSON for
programs. Exit codes: 0 done, 1 a run failed or diverged, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ratio

ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED = 1
TRIAL_STEPS = 40
TRIAL_MILLISECONDS = 1000
HELD_OUT = 10
"""One of this many documents is held out."""


class RecipeError(Exception):
    """A sentence about what failed, and why."""


@dataclass(frozen=True)
class Recipe:
    """One side: its name, the program, and all options of its runs but the seed and the folder."""

    name: str
    program: str
    options: tuple[str, ...]

    def command(self, command: str, *options: str) -> list[str]:
        """A command line of Alpha."""
        start = [sys.executable] if self.program.endswith(".py") else []
        return [*start, self.program, command, *options]

    def train(self, folder: Path, seed: int, *options: str) -> list[float]:
        """Train into `folder`; returns the milliseconds of each step."""
        set_here = (f"--seed={seed}", f"--runDir={folder}", "--evalInterval=0", "--sampleInterval=0", "--logEvery=1")
        quiet = ("--minTokensPerParam=0", "--warnDatasetPasses=1e9", "--maxDatasetPasses=1e9")
        _run(self.command("train", *quiet, *self.options, *options, *set_here))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [float(row["ms_per_iter"]) for row in rows]

    def measure(self, folder: Path, seed: int, held_out: str, *options: str) -> dict[str, Any]:
        """Train and evaluate: `bitsPerByte`, `steps`, `tokens` and `seconds` of the training."""
        milliseconds = self.train(folder, seed, *options)
        where = [option for option in self.options if option.startswith(("--backend=", "--device="))]
        text = _run(
            self.command(
                "eval", f"--checkpoint={folder}", f"--data={held_out}", "--nBatches=0", "--batch=16", "--json", *where
            )
        )
        bits = json.loads(text).get("bitsPerByte")
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
        if bits is None or not math.isfinite(bits):
            raise RecipeError(
                f"{self.name} with seed {seed} has no bits per byte of {held_out}: it diverged, or its tokenizer "
                f"cannot say all of the text; its run is in {folder}"
            )
        config = json.loads((folder / "config.json").read_text())
        tokens_each = config["model"]["block"] * config["training"]["batch"] * config["training"]["accumSteps"]
        steps = len(milliseconds)
        return {"bitsPerByte": bits, "steps": steps, "tokens": steps * tokens_each, "seconds": sum(milliseconds) / 1e3}

    def steps_in(self, seconds: float, folder: Path) -> int:
        """How many steps it makes in that time, from trials that are long enough to tell."""
        steps = TRIAL_STEPS
        while True:
            settled = self.train(folder / f"trial-{self.name}-{steps}", FIRST_SEED, f"--iters={steps}")[steps // 2 :]
            if sum(settled) >= min(TRIAL_MILLISECONDS, 500 * seconds):
                return max(1, round(1e3 * seconds / statistics.fmean(settled)))
            steps *= 4


def _run(command: Sequence[str]) -> str:
    """What a command prints. Raises RecipeError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RecipeError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RecipeError(f"{shlex.join(command)} ended with {done.returncode}: {''.join(said)}")
    return done.stdout


def split_documents(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Those to train on, and every tenth, which is held out."""
    ordered = sorted(files)
    return [path for i, path in enumerate(ordered) if i % HELD_OUT], ordered[::HELD_OUT]


def make_text(recipe: Recipe, folder: Path) -> tuple[str, str]:
    """Files to train and to evaluate on, from the quick start's packages; whole documents each."""
    names = re.search(r'^names = "(.*)"$', (ROOT / "build_scripts" / "quickstart").read_text(), re.MULTILINE)
    assert names
    library = Path(sysconfig.get_path("stdlib"))
    parts = split_documents([path for name in names[1].split() for path in (library / name).rglob("*.py")])
    texts = (folder / "training.txt", folder / "held-out.txt")
    for documents, text in zip(parts, texts, strict=True):
        _run(recipe.command("datagen", "--mode=corpus", f"--sources={','.join(map(str, documents))}", f"--out={text}"))
    return str(texts[0]), str(texts[1])


def difference(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """B minus A: the mean over the seeds with the bounds of its 95 % interval (Student's t), and which is better.

    One seed says nothing about the noise, so it has no bounds and no verdict.
    """
    differences = [b - a for a, b in pairs]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"mean": mean, "low": None, "high": None, "better": None}
    error = ratio.quantile(len(pairs) - 1) * statistics.stdev(differences) / math.sqrt(len(pairs))
    low, high = mean - error, mean + error
    return {"mean": mean, "low": low, "high": high, "better": "B" if high < 0 else "A" if low > 0 else None}


def sentence(found: dict[str, Any]) -> str:
    """What `difference` found, for people."""
    if found["low"] is None:
        return f"{found['mean']:+.4f}: one seed says nothing about the noise"
    verdict = f"{found['better']} is better" if found["better"] else "no difference beyond the noise"
    return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}): {verdict}"


def compare(a: Recipe, b: Recipe, arguments: argparse.Namespace, held_out: str) -> dict[str, Any]:
    """Run the pairs; prints a line for each."""
    log = sys.stderr if arguments.json else sys.stdout
    options = {
        side.name: [] if arguments.seconds is None else [side.steps_in(arguments.seconds, arguments.out)]
        for side in (a, b)
    }
    print(f"{'seed':>4}  {'A bits/byte':>11}  {'B bits/byte':>11}  {'B - A':>8}", file=log, flush=True)
    rows: list[dict[str, Any]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        row: dict[str, Any] = {"seed": seed}
        for side in (a, b) if seed % 2 else (b, a):
            iters = [f"--iters={steps}" for steps in options[side.name]]
            row[side.name] = side.measure(arguments.out / f"{side.name}-{seed}", seed, held_out, *iters)
        rows.append(row)
        first, second = (row[name]["bitsPerByte"] for name in "AB")
        print(f"{seed:>4}  {first:>11.4f}  {second:>11.4f}  {second - first:>+8.4f}", file=log, flush=True)
    found = difference([(row["A"]["bitsPerByte"], row["B"]["bitsPerByte"]) for row in rows])
    result: dict[str, Any] = {"seconds": arguments.seconds, "heldOut": held_out, "seeds": rows, "difference": found}
    means = []
    for side in (a, b):
        runs = [row[side.name] for row in rows]
        figures = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        result[side.name] = {"options": shlex.join(side.options), "program": side.program, **figures}
        means.append(figures["bitsPerByte"])
        print(
            f"{side.name}: {figures['steps']:,.0f} steps, {figures['tokens']:,.0f} tokens, {figures['seconds']:.1f} s "
            f"a run: {side.program} {shlex.join(side.options)}",
            file=log,
        )
    print(f"mean  {means[0]:>11.4f}  {means[1]:>11.4f}  {sentence(found)}", file=log)
    return result


def main(words: Sequence[str]) -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--alpha", default=str(ROOT / "alpha.py"))
    parser.add_argument("--alphaB", dest="alpha_b")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    own = ("--seeds", "--seconds", "--alpha", "--alphaB", "--out", "--json", "--help", "-h")
    end = words.index("--") if "--" in words else len(words)
    # A recipe begins with dashes as an option does; a space before them tells the two apart.
    arguments = parser.parse_args([each if each.split("=")[0] in own else f" {each}" for each in words[:end]])
    common = tuple(words[end + 1 :])
    given = (*common, *shlex.split(arguments.a), *shlex.split(arguments.b))
    held_out = [word.partition("=")[2] for word in common if word.startswith("--valData=")]
    if arguments.seeds < 1:
        parser.error(f"--seeds must be 1 at least, not {arguments.seeds}")
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        parser.error(f"--seconds must be more than 0, not {arguments.seconds}")
    if arguments.seconds is not None and any(word.startswith(("--iters", "--steps")) for word in given):
        parser.error("with --seconds the time decides how many steps there are; leave out --iters")
    if any(word.startswith("--data") for word in given) and not held_out:
        parser.error("with --data=PATHS give --valData=PATHS as well, after --: text that neither side trains on")
    arguments.out = arguments.out or ROOT / "runs" / f"recipes-{time.strftime('%Y%m%d-%H%M%S')}"
    a, b = (
        Recipe(name, program, (*common, *shlex.split(recipe)))
        for name, program, recipe in (
            ("A", arguments.alpha, arguments.a),
            ("B", arguments.alpha_b or arguments.alpha, arguments.b),
        )
    )
    try:
        arguments.out.mkdir(parents=True)
        if not held_out:
            training, text = make_text(a, arguments.out)
            held_out = [text]
            a, b = (Recipe(side.name, side.program, (f"--data={training}", *side.options)) for side in (a, b))
        result = compare(a, b, arguments, held_out[-1])
    except (RecipeError, OSError, ValueError, KeyError) as error:
        print(
            f"compare_recipes: error: {error if isinstance(error, RecipeError | OSError) else repr(error)}.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"compare_recipes: interrupted; what was run is in {arguments.out}.", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
