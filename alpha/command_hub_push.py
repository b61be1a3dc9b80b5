"""`alpha hub push`: send a trained model to Hugging Face's Hub."""

import contextlib
from dataclasses import dataclass
from typing import Any

from alpha.option import option
from alpha.terminal import print_json, print_text


@dataclass(frozen=True)
class HubPushOptions:
    """The options of `alpha hub push`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    repo: str = option("", "Repository, such as user/model.", metavar="NAME", required=True)
    private: bool = option(False, "Make a repository that only you see.")
    yes: bool = option(False, "Replace the files of a repository that exists.")
    dtype: str = option("f32", "Numbers of the weights.", choices=("f32", "f16", "bf16"))
    json: bool = option(False, "Print JSON.")


OPTIONS = (HubPushOptions,)
DETAILS = """
Sends what alpha export writes. Who you are is known from `hf auth login` or HF_TOKEN. What was cut
off goes on when the command is given again, with --yes.

Example:
  alpha hub push --checkpoint=runs/20261123-101500-3f2a1b --repo=me/stories --private
"""


def run(given: dict[str, Any]) -> None:
    """Export into a temporary folder, and send that."""
    from alpha import files, hub
    from alpha.exchange_folder import write_folder
    from alpha.model_source import read_whole
    from alpha.progress import StageProgress

    options = HubPushOptions(**given)
    _, saved = read_whole(options.checkpoint)
    with files.temporary_folder("hub") as folder:
        with contextlib.closing(StageProgress()) as progress:
            architecture = write_folder(folder / "model", saved, options.dtype, progress)
        address = hub.push(folder / "model", options.repo, "model", options.private, options.yes)
    if options.json:
        print_json({"repo": options.repo, "url": address, "architecture": architecture, "dtype": options.dtype})
    else:
        print_text(f"Sent {architecture}, {options.dtype}, to {address}")
