"""What a model is, how it is trained and how texts are drawn with it: options that several read, declared once.

A zero or empty default means "chosen from the rest", as each help text says; `resolve_model` and `resolve_training` do
that. Knows nothing about files or backends.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from alpha.activation import ACTIVATIONS, GATED_ACTIVATIONS
from alpha.errors import UsageError
from alpha.option import option, to_mapping
from alpha.recipe import RECIPES

OPTIMIZERS = ("adamw", "lion", "adafactor", "sgd", "muon")
BACKENDS = ("cpu_ref", "helios", "auto")
PRECISIONS = ("f32", "f16", "bf16")
BACKEND_HELP = "Where to compute: cpu_ref, helios (Vulkan), or auto (helios where there is a GPU)."
DEVICE_HELP = "Number of the Vulkan device, as `alpha devices` lists them; -1 = that of ALPHA_DEVICE, or the first GPU."
THREADS_HELP = "CPU threads; 0 = the number that the first steps show to be fastest."
EVAL_ITERS_HELP = "Evaluate this many times 4 windows of block tokens, whatever the batch; 0 = all of the text."
DTYPE_HELP = "What matrix products round their operands to; f16 and bf16 need helios."

LARGEST = 1e38
"""What a number that takes part in float32 arithmetic may be at most."""

_MODEL = "Model"
_DATA = "Data"
_OPTIMIZATION = "Optimization"
_ADAPTER = "Adapter (LoRA)"
_RUN = "Run"
_PLANNING = "Planning guards"
_DRAWING = "Drawing"

ARCHITECTURES = {
    "gpt2": {},
    "modern": {
        "norm": "rmsnorm",
        "position": "rope",
        "activation": "relu2",
        "bias": False,
        "tied": False,
        "qk_norm": True,
        "logit_soft_cap": 15.0,
    },
}
"""What `--arch` sets; an option given by its own flag wins."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. The vocabulary size comes from the tokenizer and is not a flag."""

    arch: str = option("gpt2", "Architecture that sets the options below.", group=_MODEL, choices=ARCHITECTURES)
    block: int = option(256, "Context length in tokens (T).", group=_MODEL, minimum=1, maximum=1 << 20)
    layers: int = option(6, "Transformer blocks (L).", group=_MODEL, minimum=1, maximum=1024)
    dim: int = option(256, "Model width (C).", group=_MODEL, minimum=1, maximum=1 << 16)
    heads: int = option(8, "Attention heads (H).", group=_MODEL, minimum=1, maximum=1024)
    kv_heads: int = option(
        0, "Key and value heads shared by groups of query heads; 0 = heads.", group=_MODEL, minimum=0
    )
    head_dim: int = option(
        0, "Width of each head (D); 0 = dim / heads, which must be whole.", group=_MODEL, minimum=0, maximum=1 << 16
    )
    ffn_dim: int = option(
        0,
        "Width of the feed-forward layer; 0 = 4 dim, or 8/3 dim rounded up to 32 when gated.",
        group=_MODEL,
        minimum=0,
        maximum=1 << 18,
    )
    activation: str = option("gelu", "Feed-forward activation.", group=_MODEL, choices=ACTIVATIONS)
    norm: str = option("layernorm", "Normalization.", group=_MODEL, choices=("layernorm", "rmsnorm"))
    norm_eps: float = option(
        1e-5, "Added to the variance, or mean square, in norms.", group=_MODEL, minimum=1e-12, maximum=1
    )
    position: str = option("learned", "Position encoding.", group=_MODEL, choices=("learned", "rope"))
    rope_base: float = option(
        10000.0, "Base of the wavelengths of rope's rotations.", group=_MODEL, minimum=1, maximum=1e12
    )
    qk_norm: bool = option(False, "RMS-normalize queries and keys per head.", group=_MODEL)
    attention_soft_cap: float = option(
        0.0, "Cap attention scores smoothly at this value; 0 = off.", group=_MODEL, minimum=0, maximum=LARGEST
    )
    logit_soft_cap: float = option(
        0.0, "Cap logits smoothly at this value; 0 = off.", group=_MODEL, minimum=0, maximum=LARGEST
    )
    bias: bool = option(True, "Biases in linear layers and layer norms.", group=_MODEL)
    tied: bool = option(True, "Output head shares the token embedding.", group=_MODEL)
    dropout: float = option(0.0, "Dropout probability.", group=_MODEL, minimum=0, maximum=0.95)

    @property
    def head_width(self) -> int:
        """D."""
        return self.head_dim or self.dim // self.heads


@dataclass(frozen=True)
class TrainingConfig:
    """Everything of a training run but the model's shape."""

    data: str = option(
        "",
        "Corpus: a file, folder or glob, several separated by commas, each with a share (a:0.7,b:0.3) or none; or "
        "- for standard input.",
        group=_DATA,
        metavar="PATHS",
    )
    val_data: str = option(
        "", "Validation corpus; otherwise a part of the data is held out.", group=_DATA, metavar="PATHS"
    )
    domain: str = option("", "Preset of tokenizer, shape and schedule by the kind of text.", group=_DATA, metavar="ID")
    recipe: str = option(
        "", f"Preset of these and of --minutes by the time there is: {', '.join(RECIPES)}.", group=_DATA, metavar="NAME"
    )
    tokenizer: str = option("bpe", "char, word, bpe, bpe-4k to bpe-64k, bpe-chat-4k.", group=_DATA, metavar="NAME")
    vocab_size: int = option(
        0, "Vocabulary size for word and bpe tokenizers; 0 = by the tokenizer's name.", group=_DATA, minimum=0
    )
    tokenizer_artifacts: str = option(
        "", "Tokenizer file: used when it exists, built and written otherwise.", group=_DATA, metavar="FILE"
    )
    packed: bool = option(
        False, "Visit every window of the corpus once per pass instead of drawing windows at random.", group=_DATA
    )
    pack_documents: bool = option(
        False,
        "Fill windows with whole documents, none of which sees another; conversations always are.",
        group=_DATA,
    )
    text_field: str = option(
        "",
        "Key of the text in JSON lines; otherwise each line says by its keys what it is.",
        group=_DATA,
        metavar="KEY",
    )
    skip_bad_lines: bool = option(False, "Count bad JSON lines instead of refusing the first.", group=_DATA)
    loss_on: str = option(
        "all",
        "What counts in conversations: all, or the assistant's text and the marker that ends it.",
        group=_DATA,
        choices=("all", "assistant"),
    )
    iters: int = option(1000, "Optimizer steps.", group=_OPTIMIZATION, minimum=1, aliases=("steps",))
    minutes: float = option(
        0.0,
        "Make as many steps as end in this time from now, as a trial and the first ones show; 0 = iters.",
        group=_OPTIMIZATION,
        minimum=0,
        maximum=1e6,
    )
    batch: int = option(64, "Sequences per micro-batch (B).", group=_OPTIMIZATION, minimum=1, maximum=1 << 16)
    accum_steps: int = option(1, "Micro-batches per optimizer step.", group=_OPTIMIZATION, minimum=1, maximum=1 << 16)
    lr: float = option(3e-4, "Peak learning rate.", group=_OPTIMIZATION, minimum=0, maximum=LARGEST)
    lr_min: float = option(0.0, "Final learning rate; 0 = lr/10.", group=_OPTIMIZATION, minimum=0, maximum=LARGEST)
    warmup_iters: int = option(0, "Steps of linear warm-up; 0 = min(2000, iters/5).", group=_OPTIMIZATION, minimum=0)
    schedule: str = option(
        "cosine", "Learning rate after warm-up: cosine, or wsd (stable, then linear decay).",
        group=_OPTIMIZATION, choices=("cosine", "wsd"),
    )  # fmt: skip
    decay_fraction: float = option(
        0.2, "Part of the steps that wsd spends decaying.", group=_OPTIMIZATION, minimum=0, maximum=1
    )
    optim: str = option("adamw", "Optimizer.", group=_OPTIMIZATION, choices=OPTIMIZERS)
    beta1: float = option(0.9, "First moment decay, or momentum.", group=_OPTIMIZATION, minimum=0, maximum=0.99999)
    beta2: float = option(0.95, "Second moment decay.", group=_OPTIMIZATION, minimum=0, maximum=0.99999)
    muon_momentum: float = option(0.95, "Momentum of muon's matrices.", group=_OPTIMIZATION, minimum=0, maximum=0.99999)
    eps: float = option(
        1e-8, "Added to the denominator of the update.", group=_OPTIMIZATION, minimum=0, maximum=LARGEST
    )
    weight_decay: float = option(
        0.1, "Decoupled weight decay, on matrices only.", group=_OPTIMIZATION, minimum=0, maximum=LARGEST
    )
    grad_clip: float = option(1.0, "Largest global gradient norm; 0 = no clipping.", group=_OPTIMIZATION, minimum=0)
    spike_threshold: float = option(
        0.0, "Skip a step whose gradient norm is above this; 0 = off.", group=_OPTIMIZATION, minimum=0
    )
    seed: int = option(42, "Seed of every random choice.", group=_OPTIMIZATION, minimum=0, maximum=(1 << 64) - 1)
    run_dir: str = option("", "Folder of the run; default runs/<run id>.", group=_RUN, metavar="DIR")
    init: str = option(
        "",
        "Start from the weights of this checkpoint, run, folder of Hugging Face's or GGUF file.",
        group=_RUN,
        metavar="MODEL",
    )
    resume: str = option("", "Continue this run folder or checkpoint.", group=_RUN, metavar="RUN")
    config: str = option("", "JSON file of options; the command line wins.", group=_RUN, metavar="FILE")
    backend: str = option("auto", BACKEND_HELP, group=_RUN, choices=BACKENDS)
    device: int = option(-1, DEVICE_HELP, group=_RUN, minimum=-1, maximum=255)
    dtype: str = option("f32", DTYPE_HELP, group=_RUN, choices=PRECISIONS)
    fp16: bool = option(False, "The same as --dtype=f16.", group=_RUN)
    threads: int = option(0, THREADS_HELP, group=_RUN, minimum=0, maximum=1024)
    recompute: bool = option(
        False, "Recompute activations in the backward pass to save memory.", group=_RUN, aliases=("checkpoint",)
    )
    eval_interval: int = option(100, "Steps between evaluations; 0 = never.", group=_RUN, minimum=0)
    eval_iters: int = option(50, EVAL_ITERS_HELP, group=_RUN, minimum=0, aliases=("nBatches",))
    sample_interval: int = option(100, "Steps between sample texts; 0 = never.", group=_RUN, minimum=0)
    sample_prompts: str = option(
        "",
        "File of prompts to continue each time: one a line, or JSON lines of texts and conversations.",
        group=_RUN,
        metavar="FILE",
    )
    checkpoint_interval: int = option(
        0, "Steps between checkpoints; 0 = at each evaluation. The last step is always saved.", group=_RUN, minimum=0
    )
    keep: int = option(3, "Newest checkpoints kept, beside the best by validation.", group=_RUN, minimum=1)
    log_every: int = option(1, "Steps between rows of metrics.jsonl.", group=_RUN, minimum=1)
    log: str = option("info", "Detail of the log.", group=_RUN, choices=("debug", "info", "warning", "error"))
    trace: bool = option(False, "Record milliseconds of forward, backward, optimizer and data.", group=_RUN)
    lora: int = option(
        0,
        "Rank of an adapter that is trained beside the frozen weights of --init; 0 = train all weights.",
        group=_ADAPTER,
        minimum=0,
        maximum=4096,
    )
    lora_alpha: float = option(
        0.0,
        "The adapter's part counts this over the rank; 0 = twice the rank.",
        group=_ADAPTER,
        minimum=0,
        maximum=LARGEST,
    )
    lora_targets: str = option(
        "attn",
        "Layers that have one: attn, mlp, or by name, such as attn.c_attn; more learn more and take more.",
        group=_ADAPTER,
        metavar="NAMES",
    )
    lora_dropout: float = option(0.0, "Dropout of what the adapter reads.", group=_ADAPTER, minimum=0, maximum=0.95)
    strict_planning: bool = option(False, "Make planning warnings errors.", group=_PLANNING)
    require_val_data: bool = option(False, "Refuse to train without validation data.", group=_PLANNING)
    min_tokens_per_param: float = option(
        20.0, "Warn when the run sees fewer tokens per parameter.", group=_PLANNING, minimum=0
    )
    warn_dataset_passes: float = option(8.0, "Warn above this many passes over the data.", group=_PLANNING, minimum=0)
    max_dataset_passes: float = option(
        20.0, "Warn strongly above this many passes over the data.", group=_PLANNING, minimum=0
    )


@dataclass(frozen=True)
class DrawingOptions:
    """How texts are drawn."""

    steps: int = option(200, "Tokens to add, at most.", group=_DRAWING, minimum=1)
    temp: float = option(0.8, "Temperature; 0 = always the likeliest token.", group=_DRAWING, minimum=0)
    topk: int = option(40, "Choose among this many likeliest tokens; 0 = all.", group=_DRAWING, minimum=0)
    topp: float = option(
        1.0, "Choose among the likeliest tokens of this total probability.", group=_DRAWING, minimum=0, maximum=1
    )
    minp: float = option(
        0.0,
        "Leave out tokens less likely than this share of the likeliest one's.",
        group=_DRAWING,
        minimum=0,
        maximum=1,
    )
    repetition_penalty: float = option(
        1.0,
        "Above 1, tokens that the text has already become less likely; 1 = off.",
        group=_DRAWING,
        minimum=0.01,
        maximum=100,
    )
    seed: int = option(42, "Seed of every random choice.", group=_DRAWING, minimum=0, maximum=(1 << 64) - 1)


def resolve_model(config: ModelConfig) -> ModelConfig:
    """The configuration with automatic values filled in. Raises UsageError when options contradict each other."""
    kv_heads = config.kv_heads or config.heads
    if config.dim % config.heads and not config.head_dim:
        raise UsageError(
            f"--dim={config.dim} is not a multiple of --heads={config.heads}; change one of them, or give --headDim."
        )
    if config.heads % kv_heads:
        raise UsageError(f"--heads={config.heads} is not a multiple of --kvHeads={kv_heads}; change one of them.")
    if config.position == "rope" and config.head_width % 2:
        raise UsageError(f"--position=rope needs heads of an even width, and theirs is {config.head_width}.")
    head_dim = config.head_dim if config.head_dim * config.heads != config.dim else 0  # equal models are equal
    ffn_dim = config.ffn_dim
    if not ffn_dim:
        gated_width = -(-8 * config.dim // 3)
        ffn_dim = (gated_width + 31) // 32 * 32 if config.activation in GATED_ACTIVATIONS else 4 * config.dim
    return dataclasses.replace(config, kv_heads=kv_heads, head_dim=head_dim, ffn_dim=ffn_dim)


def resolve_training(config: TrainingConfig) -> TrainingConfig:
    """The configuration with automatic values filled in, but for those by `iters` where `minutes` is to choose it.

    Raises UsageError when options contradict each other.
    """
    lr_min = config.lr_min or config.lr / 10
    if lr_min > config.lr:
        raise UsageError(f"--lrMin={lr_min:g} is above --lr={config.lr:g}; lower it.")
    warmup_iters = config.warmup_iters or (0 if config.minutes else min(2000, config.iters // 5))
    if config.fp16 and config.dtype == "bf16":
        raise UsageError("--fp16=true and --dtype=bf16 contradict each other; leave one of them out.")
    dtype = "f16" if config.fp16 else config.dtype
    if config.lora and not (config.init or config.resume):
        raise UsageError(f"--lora={config.lora} needs weights to adapt; name them with --init.")
    lora_alpha = config.lora_alpha or 2.0 * config.lora
    return dataclasses.replace(config, lr_min=lr_min, warmup_iters=warmup_iters, dtype=dtype, lora_alpha=lora_alpha)


def config_hash(model: ModelConfig, training: TrainingConfig) -> str:
    """A short name for a configuration: SHA-256 of its canonical JSON, 12 hexadecimal digits."""
    values = {"model": to_mapping(model), "training": to_mapping(training)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
