"""The model card of an exported model: what it is, what it was trained on, how well it does, how it was made."""

from pathlib import PurePath
from typing import Any

from alpha import __version__
from alpha.checkpoint import Checkpoint
from alpha.config import ModelConfig, TrainingConfig
from alpha.exchange import Architecture
from alpha.option import options_of, spelled, to_mapping
from alpha.tokenizer import Tokenizer

_MADE_WITH = ("iters", "batch", "accumSteps", "lr", "lrMin", "warmupIters", "schedule", "optim", "weightDecay", "seed")


def model_card(
    checkpoint: Checkpoint, architecture: Architecture, tokenizer: Tokenizer, parameters: int, is_custom: bool
) -> str:
    """Markdown with the front matter that the Hub reads. Paths of the data are named without their folders."""
    model, training = checkpoint.model, checkpoint.training
    shape = {
        "parameters": f"{parameters:,}",
        "architecture": architecture.name,
        "blocks": model.layers,
        "width": model.dim,
        "heads": f"{model.heads}, of keys and values {model.kv_heads}, each {model.head_width} wide",
        "context": f"{model.block:,} tokens",
        "vocabulary": f"{tokenizer.vocab_size:,} tokens ({tokenizer.kind})",
    }
    loss = checkpoint.state.get("valLoss")
    results = {"optimizer steps": f"{checkpoint.step:,}", "validation loss": _loss(loss)}
    custom = ", trust_remote_code=True" if is_custom else ""
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- alpha", "---"]
    parts = [
        "\n".join(front),
        f"# A language model of {_count(parameters)} parameters",
        f"Trained from scratch with Alpha {__version__}.",
        f"## Shape\n\n{_table(shape)}",
        f"## Data\n\n{_data(training)}",
        f"## Losses\n\n{_table(results)}",
        f"## How it was made\n\n    alpha train {' '.join(_options(checkpoint))}",
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{custom})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{custom})\n```',
    ]
    if is_custom:
        parts.append(
            "The model caps its scores smoothly, which no architecture in transformers does in this combination; "
            "`modeling_alpha.py` adds that and nothing else, hence `trust_remote_code`."
        )
    return "\n\n".join(parts) + "\n"


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _loss(value: Any) -> str:
    return f"{value:.4f} nats per token" if isinstance(value, int | float) else "not measured"


def _data(training: TrainingConfig) -> str:
    names = [PurePath(path).name for path in training.data.split(",") if path]
    text = ", ".join(f"`{name.replace('`', '')}`" for name in names) or "not recorded"
    return f"{text}; domain {training.domain}" if training.domain else text


def _options(checkpoint: Checkpoint) -> list[str]:
    """The options of the model that are not their defaults, and those of the training that matter most."""
    model, training = checkpoint.model, to_mapping(checkpoint.training)
    defaults = {each.flag: each.default for each in options_of(ModelConfig)}
    changed = {name: value for name, value in to_mapping(model).items() if value != defaults[name]}
    values = {**changed, "tokenizer": training["tokenizer"], **{name: training[name] for name in _MADE_WITH}}
    return [spelled(name, str(value).lower() if isinstance(value, bool) else value) for name, value in values.items()]


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return f"{parameters:,}"
