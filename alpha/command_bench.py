"""`alpha bench`: how fast this machine computes."""

from dataclasses import dataclass

from alpha.option import option

SUITES = ("ops", "e2e", "train", "all")


@dataclass(frozen=True)
class BenchOptions:
    """The options of `alpha bench`."""

    suite: str = option("all", "What to measure.", choices=SUITES)
    iters: int = option(100, "Repetitions of each measurement.", minimum=1)
    backend: str = option("cpu_ref", "Where to compute.", choices=("cpu_ref",))
    threads: int = option(0, "CPU threads; 0 = one per core.", minimum=0, maximum=1024)
    out: str = option("", "Write the measurements to this JSON file, too.", metavar="FILE")
    json: bool = option(False, "Print JSON.")


OPTIONS = (BenchOptions,)
DETAILS = ""
