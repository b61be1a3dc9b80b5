"""Adapters as `peft` writes them, with the logits and the losses of a training that it computes.

Each case is a folder in `peft/`, an adapter to the model of the same name in `exchange/`: what `save_pretrained`
writes, and `results.safetensors` with `ids` [2, 12] and `logits` [2, 12, V]; where it is trained on from there, also
`tokens` [20, 2, 2, 13] (steps, micro-batches, sequences), `counted` [20, 2, 2, 12], which of their targets count, and
`losses` [20]. The step is AdamW's at a rate of 0.02 with betas 0.9 and 0.95 and a decay of 0.1, gradients clipped to a
norm of 1; the loss is the mean over all targets of a step that count. Needs torch, transformers and peft; no test
imports it.

    python tests/golden/generate_peft.py
    python tests/golden/generate_peft.py --logits=FOLDER    # what peft computes of another adapter to the model `gpt2`
"""

import argparse
import shutil
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
CASES = {
    "gpt2": {"r": 4, "lora_alpha": 6, "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
             "fan_in_fan_out": True},
    "llama": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"],
              "use_rslora": True, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"down_proj": 5}},
}  # fmt: skip
TRAINED = ("gpt2",)
"""Where peft has an adapter for the same matrices as Alpha; of llama, Alpha joins those of some."""


def base(name: str) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(HERE / "exchange" / name, dtype=torch.float32)


def generate(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = peft.get_peft_model(base(name), peft.LoraConfig(task_type="CAUSAL_LM", **CASES[name]))
    with torch.no_grad():
        for parameter in (each for each in model.parameters() if each.requires_grad):
            parameter.copy_(0.3 * torch.randn_like(parameter))
    folder = HERE / "peft" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    ids = torch.randint(0, 24, (2, 12))
    with torch.no_grad():
        results = {"ids": ids.int(), "logits": model.eval()(ids).logits}
    if name in TRAINED:
        tokens = torch.randint(0, 24, (20, 2, 2, 13))
        counted = torch.rand(20, 2, 2, 12) < torch.tensor([0.9, 0.2]).reshape(1, 2, 1, 1)
        results |= {"tokens": tokens.int(), "counted": counted.int(), "losses": train(model.double(), tokens, counted)}
    save_file({key: value.contiguous() for key, value in results.items()}, folder / "results.safetensors")


def train(model: torch.nn.Module, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for step in range(len(tokens)):
        rows, which = tokens[step].flatten(0, 1), counted[step].flatten(0, 1)
        logits = model(rows[:, :-1]).logits[which]
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:][which])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((each.grad**2).sum() for each in parameters))
        for each in parameters:
            each.grad *= min(1.0, 1.0 / (norm.item() + 1e-6))
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--logits", metavar="FOLDER")
    folder = parser.parse_args().logits
    if folder:
        model = peft.PeftModel.from_pretrained(base("gpt2"), folder)
        ids = load_file(HERE / "peft" / "gpt2" / "results.safetensors")["ids"].long()
        with torch.no_grad():
            print(model.eval()(ids).logits.tolist())
        return
    for seed, name in enumerate(CASES):
        generate(name, seed)


if __name__ == "__main__":
    main()
