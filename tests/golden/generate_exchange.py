"""Folders as `transformers` writes them, of tiny random models, with the logits that it computes.

Each case is a folder in `exchange/`: config.json and the weights by `save_pretrained`, and `logits.safetensors` with
`ids` [2, 12] and `logits` [2, 12, V] in float32. `exchange_defaults.json` has what each class of configurations is
without anything given. Needs torch and transformers; no test imports it.

    python tests/golden/generate_exchange.py            # write them again
    python tests/golden/generate_exchange.py --check    # recompute the logits of the stored folders
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).resolve().parent / "exchange"
TOLERANCE = 1e-6
COMMON = {
    "vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GPT2 = {
    "vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
CASES = {
    "gpt2": (transformers.GPT2Config, {}),
    "gpt2_relu2": (
        transformers.GPT2Config,
        {"activation_function": "relu2", "n_inner": 20, "layer_norm_epsilon": 1e-4},
    ),
    "gpt2_untied": (transformers.GPT2Config, {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "llama": (transformers.LlamaConfig, {}),
    "llama_bias": (
        transformers.LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    ),
    "llama_shards": (transformers.LlamaConfig, {"rope_parameters": PLAIN_ROPE, "rms_norm_eps": 1e-5}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 4, "tie_word_embeddings": True}),
    "arcee": (transformers.ArceeConfig, {}),
    "arcee_bias": (transformers.ArceeConfig, {"attention_bias": True, "mlp_bias": True, "hidden_act": "silu"}),
    "apertus": (transformers.ApertusConfig, {"hidden_act": "relu2", "rope_parameters": PLAIN_ROPE}),
    "qwen3_wide": (transformers.Qwen3Config, {"head_dim": 10}),
}
BFLOAT16 = {"llama_shards"}


def generate(name: str, seed: int) -> None:
    kind, options = CASES[name]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(kind(**{**(GPT2 if "gpt2" in name else COMMON), **options}))
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # far from the initial values, so that nothing is hidden by a zero or a one
            parameter.add_(0.4 * torch.randn_like(parameter))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in BFLOAT16:
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1KB")
    else:
        model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(0, 24, (2, 12))
    save_file({"ids": ids.int(), "logits": logits(folder, ids)}, folder / "logits.safetensors")


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(ids.long()).logits.contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="recompute the logits of the stored folders")
    check = parser.parse_args().check
    failures = 0
    if not check:
        kinds = {kind.model_type: kind().to_dict() for kind, _ in CASES.values()}
        (FOLDER.parent / "exchange_defaults.json").write_text(json.dumps(kinds, sort_keys=True) + "\n")
    for seed, name in enumerate(CASES):
        if not check:
            generate(name, seed)
            continue
        stored = load_file(FOLDER / name / "logits.safetensors")
        difference = (logits(FOLDER / name, stored["ids"]) - stored["logits"]).abs().max().item()
        failures += difference > TOLERANCE
        print(f"{name}: largest difference {difference:.1e}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
