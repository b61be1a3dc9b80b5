"""`alpha hub pull`: fetch a model from Hugging Face's Hub and make a checkpoint of it."""

from dataclasses import dataclass
from typing import Any

from alpha.command_import import OUT_HELP, ImportOptions, import_model
from alpha.option import option


@dataclass(frozen=True)
class HubPullOptions:
    """The options of `alpha hub pull`."""

    repo: str = option("", "Repository, such as user/model.", metavar="NAME", required=True)
    out: str = option("", OUT_HELP, metavar="CHECKPOINT", required=True)
    json: bool = option(False, "Print JSON.")


OPTIONS = (HubPullOptions,)
DETAILS = """
Fetches the files into the Hub's own cache (HF_HOME), where other programs find them, too, and
imports them as alpha import does. What was cut off goes on when the command is given again.

Example:
  alpha hub pull --repo=HuggingFaceTB/SmolLM2-135M --out=smol
"""


def run(given: dict[str, Any]) -> None:
    """Fetch and import."""
    from alpha import hub

    options = HubPullOptions(**given)
    import_model(ImportOptions(str(hub.pull(options.repo)), options.out, json=options.json))
