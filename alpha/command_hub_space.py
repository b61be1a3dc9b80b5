"""`alpha hub space`: a Space that serves a trained model, in a folder or on Hugging Face's Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpha.errors import UsageError
from alpha.option import option
from alpha.terminal import print_json, print_text


@dataclass(frozen=True)
class HubSpaceOptions:
    """The options of `alpha hub space`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    repo: str = option("", "Repository of the Space, such as user/model.", metavar="NAME")
    out: str = option("", "Write the folder here instead.", metavar="FOLDER")
    private: bool = option(False, "Make a Space that only you see.")
    yes: bool = option(False, "Replace the files of a Space that exists.")
    json: bool = option(False, "Print JSON.")


OPTIONS = (HubSpaceOptions,)
DETAILS = """
The folder holds the checkpoint, Alpha's sources and a Dockerfile that runs alpha serve; it can be
looked at, and run wherever there is Docker.

Examples:
  alpha hub space --checkpoint=runs/20261123-101500-3f2a1b --out=space
  alpha hub space --checkpoint=runs/20261123-101500-3f2a1b --repo=me/stories
"""


def run(given: dict[str, Any]) -> None:
    """Write the folder, and send it where a repository is named."""
    from alpha import files, hub
    from alpha.exchange_space import write_space
    from alpha.model_source import read_whole

    options = HubSpaceOptions(**given)
    if bool(options.repo) == bool(options.out):
        raise UsageError("Give either --repo=NAME, to send the Space, or --out=FOLDER, to look at it.")
    _, saved = read_whole(options.checkpoint)
    if options.out:
        place = options.out
        write_space(Path(place), saved, Path(place).resolve().name)
    else:
        with files.temporary_folder("hub") as folder:
            write_space(folder / "space", saved, options.repo.rpartition("/")[2])
            place = hub.push(folder / "space", options.repo, "space", options.private, options.yes)
    if options.json:
        print_json({"repo": options.repo or None, "out": options.out or None, "place": place})
    else:
        print_text(f"The Space is at {place}")
