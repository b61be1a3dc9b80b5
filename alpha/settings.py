"""Putting together what a training run is to do, from every place that may say so.

Later ones win: the defaults, what `--arch` sets, what `--domain` or `--recipe` sets, the file of `--config`, the
command line. With `--init` the model's options are those of the model that is named, in place of the first three.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpha import domain, recipe
from alpha.config import ARCHITECTURES, ModelConfig, TrainingConfig
from alpha.errors import UsageError
from alpha.files import read_json
from alpha.model_source import model_options
from alpha.option import camel_case, read_mapping

_LARGEST_FILE = 1 << 20
_MODEL_FIELDS = {field.name for field in dataclasses.fields(ModelConfig)}
_OWN_TO_A_RUN = ("config", "resume", "run_dir")


def merge(given: Mapping[str, Any]) -> tuple[ModelConfig, TrainingConfig]:
    """The configurations that the options given on the command line, by field name, amount to.

    A value that is chosen from the rest (such as lrMin = 0, or the tokenizer where --tokenizerArtifacts is given) is
    still to be resolved. Raises AlphaError when a file cannot be read, UsageError for wrong values.
    """
    if "iters" in given and given.get("minutes"):
        raise UsageError("--minutes chooses the number of steps; leave out --iters, or --minutes.")
    explicit = dict(given)
    if given.get("config"):
        from_file = read_file(Path(given["config"]))
        if given.get("tokenizer_artifacts"):  # then what the file says of its own run's tokenizer means another one
            from_file = {name: value for name, value in from_file.items() if name not in ("tokenizer", "vocab_size")}
        if "iters" in given:
            from_file.pop("minutes", None)
        explicit = {**from_file, **given}
    if explicit.get("tokenizer_artifacts") or explicit.get("init"):
        explicit.setdefault("tokenizer", "")  # whichever there is: no preset and no default contradicts it
    if not explicit.get("lora") and (adapter := next((name for name in given if name.startswith("lora_")), None)):
        raise UsageError(f"--{camel_case(adapter)} is about an adapter; give its rank with --lora, or leave it out.")
    asked = {name: value for name, value in explicit.items() if name in _MODEL_FIELDS}
    if explicit.get("domain") and explicit.get("recipe"):
        raise UsageError("--domain and --recipe set the same options; leave out one of them.")
    if explicit.get("domain"):
        preset = domain.get(explicit["domain"])
        explicit = {**preset.model, **preset.training, **explicit}
    if explicit.get("recipe"):
        if "iters" in explicit:
            explicit.setdefault("minutes", 0.0)
        if "tokenizer" in explicit:
            explicit.setdefault("vocab_size", 0)
        explicit = {**recipe.get(explicit["recipe"]), **explicit}
    architecture = ARCHITECTURES[explicit.get("arch", ModelConfig.arch)]
    values = {**architecture, **explicit}
    model = {name: value for name, value in values.items() if name in _MODEL_FIELDS}
    training = TrainingConfig(**{name: value for name, value in values.items() if name not in _MODEL_FIELDS})
    return model_options(training.init, asked) if training.init else ModelConfig(**model), training


def read_file(path: Path) -> dict[str, Any]:
    """The options in a JSON file, by field name: an object of camelCase keys, or the config.json of a run.

    What a run's file says about that run alone, such as its folder, is left out.
    """
    content = read_json(path, "configuration", _LARGEST_FILE)
    if not isinstance(content, dict):
        raise UsageError(f'The configuration {path} must be a JSON object of options, such as {{"iters": 500}}.')
    if not isinstance(content.get("model"), dict) or not isinstance(content.get("training"), dict):
        return _without_config(read_mapping((ModelConfig, TrainingConfig), content, str(path)), path)
    fields = read_mapping((ModelConfig,), content["model"], str(path))
    fields |= read_mapping((TrainingConfig,), content["training"], str(path))
    return {name: value for name, value in fields.items() if name not in _OWN_TO_A_RUN}


def _without_config(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    if fields.get("config"):
        raise UsageError(f"The configuration {path} cannot name a further one with 'config'; merge the two files.")
    return fields
