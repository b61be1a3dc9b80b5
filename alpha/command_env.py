"""`alpha env`: the environment variables that Alpha reads, their values and meanings."""

import os
from dataclasses import dataclass
from typing import Any

from alpha import environment
from alpha.errors import UsageError
from alpha.option import option
from alpha.terminal import print_json, print_table, print_warning


@dataclass(frozen=True)
class EnvOptions:
    """The options of `alpha env`."""

    json: bool = option(False, "Print JSON.")


OPTIONS = (EnvOptions,)
DETAILS = ""


def run(given: dict[str, Any]) -> None:
    """Print the table. A variable with a bad value is shown as it is and then refused by UsageError."""
    values: dict[str, int | str] = {}
    problems = []
    for variable in environment.VARIABLES:
        try:
            values[variable.name] = environment.read(variable.name)
        except UsageError as error:
            values[variable.name] = os.environ[variable.name]
            problems.append(error)
    if EnvOptions(**given).json:
        print_json(
            [
                {"name": each.name, "value": values[each.name], "default": each.default, "meaning": each.help}
                for each in environment.VARIABLES
            ]
        )
    else:
        rows = [[each.name, str(values[each.name]), str(each.default), each.help] for each in environment.VARIABLES]
        print_table(("variable", "value", "default", "meaning"), rows, right=("value", "default"))
    for sentence in environment.misspelt():
        print_warning(sentence)
    if problems:
        raise problems[0]
