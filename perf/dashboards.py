"""How fast runs are looked at: listing a thousand, opening one of a million steps, following one that grows, and what
training loses to it.

    python perf/dashboards.py [--runs 1000] [--steps 1000000] [--pairs 15] [--folder DIR] [PART ...]

PART is `files` (the readers by themselves), `list` and `long` (pages in the distribution's Chromium, driven by
playwright, of servers that have just been started) or `training` (a real training beside a page and a terminal that
follow it); all by default. Prints JSON. Runs are made in DIR, and used again where they are there.

What training loses is measured on one run that goes on: in pairs of turns of a few seconds, one of them watched and one
with server, page and terminal stopped, in an order that is drawn for each pair. The page's processes are stopped with
the others, and there are moments of no account between turns, so that catching up is not measured.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import pty
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ratio import paired

from alpha.config import ModelConfig, TrainingConfig
from alpha.run import Run
from alpha.run_api import RunsApi, View

TURN_SECONDS, SETTLING_SECONDS = 4.0, 1.0
ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["loss", "valLoss", "lr", "gradNorm", "tokens_per_sec"]


def timed(work: Callable[[], Any]) -> dict[str, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return {"seconds": round(time.perf_counter() - clock, 4), "cpuSeconds": round(time.process_time() - processor, 4)}


def row(step: int) -> dict[str, Any]:
    noise = random.Random(step)
    values = {
        "step": step, "loss": 1 + 3 * math.exp(-step / 1e5) + noise.gauss(0, 0.1), "lr": 3e-4,
        "gradNorm": noise.random(), "clipped": step % 7 == 0, "tokens": 4096 * step, "time": 1.7e9 + step / 20,
        "elapsed_ms": 50.0 * step, "tokens_per_sec": 81_920.3, "ms_per_iter": 50.123, "threads": 2,
    }  # fmt: skip
    return values | ({"valLoss": values["loss"] + 0.1} if step % 1000 == 0 else {})


def make_run(root: Path, name: str, lines: list[str]) -> Path:
    if (root / name / "metrics.jsonl").exists():
        return root / name
    with Run.create(ModelConfig(), TrainingConfig(iters=10**7), root / name):
        pass
    with (root / name / "metrics.jsonl").open("w") as file:
        file.writelines(lines)
    return root / name


@contextmanager
def started(*arguments: str, cwd: Path, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command of Alpha's, which is ended at the end."""
    command = [sys.executable, str(ROOT / "alpha.py"), *arguments]
    with subprocess.Popen(command, cwd=cwd, **how) as process:
        try:
            yield process
        finally:
            process.kill()  # it may be stopped, and what it has written is thrown away


@contextmanager
def served(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """alpha serve over a folder of runs: the process and its address."""
    arguments = ("serve", f"--dir={root}", "--port=0", "--backend=cpu_ref")
    with started(*arguments, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().split()[-1].removesuffix("/v1")


@contextmanager
def terminal(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """alpha tui in a terminal whose screen somebody reads."""
    ours, theirs = pty.openpty()

    def read() -> None:
        try:
            while os.read(ours, 1 << 16):
                pass
        except OSError:  # the dashboard has ended
            pass

    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": environment}  # it draws on standard error
    with started("tui", f"--dir={root}", cwd=root, **streams) as process:
        os.close(theirs)
        threading.Thread(target=read, daemon=True).start()
        yield process


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shares_of_core(seconds: float, **processes: list[int]) -> dict[str, float]:
    """What groups of processes use of a core in some seconds from now, in percent."""
    clock, used = time.monotonic(), {name: sum(map(cpu_seconds, pids)) for name, pids in processes.items()}
    time.sleep(seconds)
    taken = time.monotonic() - clock
    return {
        name: round(100 * (sum(map(cpu_seconds, pids)) - used[name]) / taken, 2) for name, pids in processes.items()
    }


def browser_processes() -> list[int]:
    """Those of the browser that this process has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
            parents[int(path.parent.name)] = (int(fields.split()[1]), name)
    found = {os.getpid()}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return [pid for pid in found if parents.get(pid, (0, ""))[1].startswith("chrom")]


class Page:
    """A page in a browser."""

    def __init__(self, browser: Any) -> None:
        self.page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
        self.session = self.page.context.new_cdp_session(self.page)
        self.session.send("Performance.enable")

    def open(self, address: str, ready: str) -> float:
        """How long it takes until something is there."""
        begin = time.perf_counter()
        self.page.goto(address)
        self.page.wait_for_selector(ready)
        return round(time.perf_counter() - begin, 3)

    def busy_seconds(self) -> float:
        """How long the page has computed and drawn."""
        metrics = {each["name"]: each["value"] for each in self.session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    def share_of_core(self, seconds: float) -> float:
        before = self.busy_seconds()
        self.page.wait_for_timeout(1000 * seconds)
        return round(100 * (self.busy_seconds() - before) / seconds, 2)


LOSS = "canvas[aria-label^='Loss: training']"


@contextmanager
def browsing() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        Page(browser).open("about:blank", "body")  # what the first page of a browser costs is not ours
        yield browser
        browser.close()


def opened(server: subprocess.Popen[bytes], address: str, ready: str, browser: Any) -> list[float]:
    """Seconds until a page is there: of the clock, that the page was busy, that the server computed."""
    page, used = Page(browser), cpu_seconds(server.pid)
    seconds = page.open(address, ready)
    busy, used = page.busy_seconds(), cpu_seconds(server.pid) - used
    page.page.close()
    return [seconds, round(busy, 3), round(used, 3)]


def opened_anew(root: Path, path: str, ready: str, browser: Any) -> dict[str, list[list[float]]]:
    """What `opened` measures of a server that has just been started, and again; three servers."""
    results: dict[str, list[list[float]]] = {"first": [], "again": []}
    for _ in range(3):
        with served(root) as (server, address):
            for each in results.values():
                each.append(opened(server, f"{address}{path}", ready, browser))
    return results


def listing(many: Path) -> dict[str, Any]:
    with browsing() as browser:
        results: dict[str, Any] = {"page: list": opened_anew(many, "/runs", "tbody tr:nth-child(100)", browser)}
        with served(many) as (server, address):
            page = Page(browser)
            page.open(f"{address}/runs", "tbody tr:nth-child(100)")
            time.sleep(5)
            results |= shares_of_core(10, **{"server of the list, percent of a core": [server.pid]})
            results["page of the list, percent of a core"] = page.share_of_core(10)
    return results


def long_run(long: Path) -> dict[str, Any]:
    with browsing() as browser:
        results: dict[str, Any] = {"page: long run, a sketch": opened_anew(long, "/run?id=long", LOSS, browser)}
        with served(long) as (server, address):
            page = Page(browser)
            page.open(f"{address}/run?id=long", LOSS)
            while json.load(urllib.request.urlopen(f"{address}/api/runs/long", timeout=60))["share"] < 1:
                time.sleep(0.5)
            page.page.wait_for_timeout(3000)
            again = [opened(server, f"{address}/run?id=long", LOSS, browser) for _ in range(3)]
            results["page: long run, all of it"] = again
    return results


def watched_training(root: Path, pairs: int) -> dict[str, Any]:
    """A real training on two threads beside the page and the terminal that follow it, on the same machine."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    (root / "text.txt").write_text("the cat sees the dog and the bird . " * 4000)
    arguments = ("train", "--data=text.txt", "--backend=cpu_ref", "--tokenizer=char", "--iters=1000000", "--dim=64",
                 "--layers=2", "--heads=2", "--block=64", "--batch=8", "--threads=2", "--evalInterval=1000000",
                 "--sampleInterval=0", "--minTokensPerParam=0", f"--runDir={root}/live", "--logEvery=1")  # fmt: skip
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    metrics = root / "live" / "metrics.jsonl"
    with (
        browsing() as browser,
        served(root) as (server, address),
        started(*arguments, cwd=root, **silent),
        terminal(root) as tui,
    ):
        page = Page(browser)
        while not metrics.exists():
            time.sleep(0.1)
        page.open(f"{address}/run?id=live", LOSS)
        time.sleep(10)
        watching = {"server": [server.pid], "terminal": [tui.pid], "browser, all processes": browser_processes()}
        results: dict[str, Any] = {"following, percent of a core": shares_of_core(15, **watching)}
        results["following, percent of a core"]["page, its main thread"] = page.share_of_core(15)
        times: list[dict[bool, float]] = []
        for _ in range(pairs):
            times.append({})
            for is_watched in random.sample([True, False], 2):
                for pid in itertools.chain.from_iterable(watching.values()):
                    os.kill(pid, signal.SIGCONT if is_watched else signal.SIGSTOP)
                time.sleep(SETTLING_SECONDS)
                before = metrics.stat().st_size
                time.sleep(TURN_SECONDS)
                with metrics.open("rb") as file:
                    file.seek(before)
                    rows = [json.loads(line) for line in file.readlines()[1:-1]]
                times[-1][is_watched] = round(statistics.fmean(row["ms_per_iter"] for row in rows), 3)
        for pid in itertools.chain.from_iterable(watching.values()):
            os.kill(pid, signal.SIGCONT)
        slower = paired([each[True] / each[False] for each in times])
        results["a step while watched"] = f"{slower} in {pairs} pairs"
        results["milliseconds a step, watched and alone"] = [[each[True], each[False]] for each in times]
    return results


def files(many: Path, long: Path, steps: int) -> dict[str, Any]:
    """The readers by themselves, without a server."""
    results: dict[str, Any] = {}
    api = RunsApi(many)
    results["list, first"] = timed(api.runs)
    results["list, again"] = timed(api.runs)
    results["megabytes"] = round((long / "long" / "metrics.jsonl").stat().st_size / 1e6, 1)
    api = RunsApi(long)
    results["open, first picture"] = timed(lambda: api.metrics("long", COLUMNS, View(smoothing=0.98)))

    def read_all() -> None:
        event_id, news = api.event("long")
        while news["share"] < 1:
            event_id, news = api.event("long", event_id)

    results["open, read to the end"] = timed(read_all)
    results["picture of all, five charts"] = timed(lambda: api.metrics("long", COLUMNS, View(smoothing=0.98)))
    zoomed = View(low=steps * 0.4, high=steps * 0.41, smoothing=0.98)
    results["picture of a hundredth"] = timed(lambda: api.metrics("long", COLUMNS, zoomed))
    event_id, _ = api.event("long")
    with (long / "long" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(steps + 1)) + "\n")
    results["an event of one new row"] = timed(lambda: api.event("long", event_id))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help="files, list, long, training")
    options = parser.parse_args()
    results: dict[str, Any] = {"runs": options.runs, "steps": options.steps, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        root = options.folder or Path(folder)
        many, long = root / "many", root / "long"
        lines = [json.dumps(row(step), separators=(",", ":")) + "\n" for step in range(1, 2001)]
        for i in range(options.runs):
            make_run(many, f"run-{i:05}", lines)
        if not (long / "long").exists():
            make_run(long, "long", [json.dumps(row(step)) + "\n" for step in range(1, options.steps + 1)])
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "files": lambda: files(many, long, options.steps),
            "list": lambda: listing(many),
            "long": lambda: long_run(long),
            "training": lambda: watched_training(root / "training", options.pairs),
        }
        for part in options.parts or parts:
            results |= parts[part]()
    results["load at the end"] = os.getloadavg()[0]
    print(json.dumps(results, indent=2))


main()
