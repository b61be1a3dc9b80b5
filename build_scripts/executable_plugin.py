"""What Nuitka is told beyond its options when it compiles Alpha.

Only Alpha is compiled to C. Other packages go in as bytecode, as Python itself would run them: compiling them would
take longer than compiling Alpha, and what they spend their time in is C anyway. Nuitka loads this file by its path.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nuitka.plugins.PluginBase import NuitkaPluginBase

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import executable_contents  # noqa: E402  (lies beside this file)


class AlphaPlugin(NuitkaPluginBase):  # type: ignore[misc]
    """Chooses what is compiled, and completes the folder."""

    plugin_name = "alpha-executable"

    def __init__(self) -> None:
        self.packages: set[str] = set()

    @staticmethod
    def isAlwaysEnabled() -> bool:  # noqa: N802  (Nuitka's names)
        return True

    def decideCompilation(self, module_name: Any) -> str:  # noqa: N802
        package, *_ = str(module_name).split(".")
        made_by_nuitka = str(module_name).endswith(("-preLoad", "-postLoad"))  # which it can only compile
        return "compiled" if package in ("__main__", "alpha") or made_by_nuitka else "bytecode"

    def onModuleCompleteSet(self, module_set: Iterable[Any]) -> None:  # noqa: N802
        self.packages = {str(module.getFullName()).split(".")[0] for module in module_set}

    def getExtraCodeFiles(self) -> dict[str, str]:  # noqa: N802
        return {"executable_start.c": (HERE / "executable_start.c").read_text()}

    def onStandaloneDistributionFinished(self, dist_dir: str) -> None:  # noqa: N802
        executable_contents.complete(Path(dist_dir), self.packages, os.environ["ALPHA_BUILD_FACTS"])
