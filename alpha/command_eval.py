"""`alpha eval`: a trained model's loss on a text."""

from dataclasses import dataclass

from alpha.option import option


@dataclass(frozen=True)
class EvalOptions:
    """The options of `alpha eval`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    data: str = option("", "Text: a file, folder or glob; several separated by commas.", metavar="PATHS", required=True)
    batch: int = option(4, "Sequences per batch (B).", minimum=1, maximum=1 << 16)
    n_batches: int = option(50, "Batches to evaluate; 0 = the whole text.", minimum=0)
    backend: str = option("cpu_ref", "Where to compute.", choices=("cpu_ref",))
    threads: int = option(0, "CPU threads; 0 = one per core.", minimum=0, maximum=1024)
    json: bool = option(False, "Print JSON.")


OPTIONS = (EvalOptions,)
DETAILS = ""
