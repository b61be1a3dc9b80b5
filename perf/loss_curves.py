"""Training curves of one small model on several backends: the same initial weights, batches and schedule.

    python perf/loss_curves.py --data=FILE [--steps=2000] [--json=FILE] RUN ...

A RUN is BACKEND:DTYPE of Alpha, as cpu_ref:f32 or helios:f16, or torch:fp32, torch:fp16 or torch:bf16 for PyTorch where
that is installed (under autocast; on its GPU if there is one). The model is the quick start's. Prints the mean loss
over windows of steps, side by side, and each curve's largest distance from the first one's; --json writes every loss.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpha import backends
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.gpt import GPT
from alpha.optimizer import make_optimizer
from alpha.sampler import Sampler
from alpha.tokenizer_simple import build_char
from alpha.training_step import TrainingStep, learning_rate

MODEL = resolve_model(ModelConfig(layers=4, heads=4, dim=128, block=128))
BATCH, SEED, LEARNING_RATE = 16, 42, 2e-3
WINDOW = 50
SHOWN = (1, 50, 100, 200, 400, 700, 1000, 1400, 2000)

Losses = list[float]
Weights = dict[str, npt.NDArray[np.floating[Any]]]


def alpha_run(backend_name: str, dtype: str, vocabulary: int, sampler: Sampler, steps: int) -> tuple[Losses, Weights]:
    """The loss of each step, and the initial weights."""
    training = resolve_training(TrainingConfig(batch=BATCH, lr=LEARNING_RATE, iters=steps, dtype=dtype))
    backend = backends.create(backend_name, dtype=dtype)
    model = GPT(backend, MODEL, vocabulary, SEED)
    model.parameters.initialize()
    initial = model.parameters.to_numpy()
    step = TrainingStep(model, make_optimizer(model.parameters, training), training)
    results, losses = [], []
    for index in range(steps):
        results.append(step.run(sampler.batch_at(index)[None], learning_rate(index, training)))
        if len(results) >= backend.steps_in_flight:
            losses.append(results.pop(0).read()["loss"])
    return losses + [each.read()["loss"] for each in results], initial


def torch_run(dtype: str, weights: Weights, sampler: Sampler, steps: int) -> Losses:
    """The same training in PyTorch: GPT-2, AdamW with decay on matrices only, clipping at norm 1."""
    import torch
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = resolve_training(TrainingConfig(batch=BATCH, lr=LEARNING_RATE, iters=steps))
    values = {name: torch.tensor(each, device=device, requires_grad=True) for name, each in weights.items()}
    decayed = [each for each in values.values() if each.dim() >= 2]
    plain = [each for each in values.values() if each.dim() < 2]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(training.beta1, training.beta2), eps=training.eps)
    half = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    scaler = torch.amp.GradScaler(device, enabled=half == torch.float16)
    heads, width = MODEL.heads, MODEL.dim

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (width,), values[name + ".weight"], values[name + ".bias"])

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, values[name + ".weight"].T, values[name + ".bias"])

    def loss_of(tokens: Any) -> Any:
        ids, targets = tokens[:, :-1], tokens[:, 1:]
        B, T = ids.shape
        x = values["wte.weight"][ids] + values["wpe.weight"]
        for layer in range(MODEL.layers):
            prefix = f"h.{layer}."
            qkv = linear(norm(x, prefix + "ln_1"), prefix + "attn.c_attn").view(B, T, 3, heads, width // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, width)
            x = x + linear(y, prefix + "attn.c_proj")
            hidden = functional.gelu(linear(norm(x, prefix + "ln_2"), prefix + "mlp.c_fc"), approximate="tanh")
            x = x + linear(hidden, prefix + "mlp.c_proj")
        logits = functional.linear(norm(x, "ln_f"), values["wte.weight"])
        return functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1))

    losses = []
    for index in range(steps):
        tokens = torch.tensor(sampler.batch_at(index), device=device, dtype=torch.long)
        with torch.autocast(device, dtype=half or torch.float32, enabled=half is not None):
            loss = loss_of(tokens)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(list(values.values()), training.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(index, training)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [float(each) for each in losses]


def smoothed(losses: Losses) -> Losses:
    """The mean of each loss with the WINDOW - 1 before it, or fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    return [(sums[end] - sums[max(0, end - WINDOW)]) / min(end, WINDOW) for end in range(1, len(losses) + 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare training curves of backends.")
    parser.add_argument("--data", required=True, help="text file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", help="write every loss to this file")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    arguments = parser.parse_args()
    text = Path(arguments.data).read_text(encoding="utf-8")
    tokenizer = build_char([text])
    sampler = Sampler(np.array(tokenizer.encode(text), np.int32), MODEL.block, BATCH, SEED, packed=False)
    curves: dict[str, Losses] = {}
    initial: Weights | None = None
    for run in arguments.runs:
        name, _, dtype = run.partition(":")
        start = time.perf_counter()
        if name == "torch":
            if initial is None:
                raise SystemExit("loss_curves: error: name a run of Alpha before those of torch, for its weights.")
            curves[run] = torch_run(dtype, initial, sampler, arguments.steps)
        else:
            curves[run], initial = alpha_run(name, dtype, tokenizer.vocab_size, sampler, arguments.steps)
        print(f"{run}: {arguments.steps} steps in {time.perf_counter() - start:.1f} s", flush=True)
    smooth = {run: smoothed(losses) for run, losses in curves.items()}
    shown = [step for step in SHOWN if step <= arguments.steps]
    print(f"\nmean loss of the last {WINDOW} steps\n{'step':>6}" + "".join(f"{run:>15}" for run in curves))
    for step in shown:
        print(f"{step:>6}" + "".join(f"{smooth[run][step - 1]:>15.4f}" for run in curves))
    first = smooth[arguments.runs[0]]
    distances = [max(map(_distance(first), smooth[run], range(len(first)))) for run in curves]
    print(f"{'max |d|':>6}" + "".join(f"{each:>14.4f} " for each in distances))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"steps": arguments.steps, "losses": curves}))
    return 0 if all(math.isfinite(losses[-1]) for losses in curves.values()) else 1


def _distance(first: Losses) -> Callable[[float, int], float]:
    return lambda loss, index: abs(loss - first[index])


if __name__ == "__main__":
    sys.exit(main())
