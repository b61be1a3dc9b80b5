"""`alpha sample`: continue a prompt with a trained model."""

from dataclasses import dataclass

from alpha.option import option


@dataclass(frozen=True)
class SampleOptions:
    """The options of `alpha sample`."""

    checkpoint: str = option("", "A checkpoint, a run's folder or its id.", metavar="RUN", required=True)
    prompt: str = option("The ", "Text to continue.")
    steps: int = option(200, "Tokens to add, at most.", minimum=1)
    temp: float = option(0.8, "Temperature; 0 = always the likeliest token.", minimum=0)
    topk: int = option(40, "Choose among this many likeliest tokens; 0 = all.", minimum=0)
    topp: float = option(1.0, "Choose among the likeliest tokens of this total probability.", minimum=0, maximum=1)
    beam: int = option(
        1, "Hypotheses of a search for the likeliest text, instead of drawing; 1 = draw.", minimum=1, maximum=256
    )
    n: int = option(1, "Texts to make.", minimum=1, maximum=4096)
    seed: int = option(42, "Seed of every random choice.", minimum=0, maximum=(1 << 64) - 1)
    stop_at_end: bool = option(True, "Stop where the model ends the text.")
    backend: str = option("cpu_ref", "Where to compute.", choices=("cpu_ref",))
    threads: int = option(0, "CPU threads; 0 = one per core.", minimum=0, maximum=1024)
    json: bool = option(False, "Print JSON.")


OPTIONS = (SampleOptions,)
DETAILS = ""
