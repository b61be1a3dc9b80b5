"""How fast runs are looked at: listing a thousand, opening one of a million steps, following one that grows, and what
training loses to it.

    python perf/dashboards.py [--runs 1000] [--steps 1000000] [--seconds 60]

Prints JSON. Times are of the processor as well as of the clock, because a machine that does something else takes longer
by the clock only. What training loses is measured on one run that goes on: watched and not watched in turns, a few
seconds each. The browser is the distribution's Chromium, driven by playwright.
"""

import argparse
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

from alpha.config import ModelConfig, TrainingConfig
from alpha.run import Run
from alpha.run_api import RunsApi, View

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
    streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.DEVNULL, "env": environment}
    with started("tui", f"--dir={root}", cwd=root, **streams) as process:
        os.close(theirs)
        threading.Thread(target=read, daemon=True).start()
        yield process


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share_of_core(pid: int, seconds: float) -> float:
    """What a process uses of a core in some seconds from now, in percent."""
    clock, used = time.monotonic(), cpu_seconds(pid)
    time.sleep(seconds)
    return round(100 * (cpu_seconds(pid) - used) / (time.monotonic() - clock), 2)


class Page:
    """A page in a browser."""

    def __init__(self, browser: Any) -> None:
        self.page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
        self.session = self.page.context.new_cdp_session(self.page)
        self.session.send("Performance.enable")

    def open(self, address: str, ready: str) -> dict[str, float]:
        """How long it takes until something is there."""
        begin = time.perf_counter()
        self.page.goto(address)
        self.page.wait_for_selector(ready)
        return {"seconds": round(time.perf_counter() - begin, 3)}

    def busy_seconds(self) -> float:
        """How long the page has computed and drawn."""
        metrics = {each["name"]: each["value"] for each in self.session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    def share_of_core(self, seconds: float) -> float:
        before = self.busy_seconds()
        self.page.wait_for_timeout(1000 * seconds)
        return round(100 * (self.busy_seconds() - before) / seconds, 2)


def watched_training(root: Path, seconds: float, browser: Any) -> dict[str, Any]:
    """A real training beside the page and the terminal that follow it, which are stopped every other second or so."""
    (root / "text.txt").write_text("the cat sees the dog and the bird . " * 4000)
    arguments = ("train", "--data=text.txt", "--backend=cpu_ref", "--tokenizer=char", "--iters=1000000", "--dim=64",
                 "--layers=2", "--heads=2", "--block=64", "--batch=8", "--threads=1", "--evalInterval=1000000",
                 "--sampleInterval=0", "--minTokensPerParam=0", f"--runDir={root}/live", "--logEvery=1")  # fmt: skip
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    metrics = root / "live" / "metrics.jsonl"
    with served(root) as (server, address), started(*arguments, cwd=root, **silent), terminal(root) as tui:
        page = Page(browser)
        while not metrics.exists():
            time.sleep(0.1)
        page.open(f"{address}/run?id=live", "canvas[aria-label^='Loss: training']")
        time.sleep(5)
        results: dict[str, Any] = {
            "server, percent of a core": share_of_core(server.pid, seconds / 3),
            "terminal, percent of a core": share_of_core(tui.pid, seconds / 3),
            "page, percent of a core": page.share_of_core(seconds / 3),
        }
        turns: dict[bool, list[float]] = {True: [], False: []}
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            for is_watched in (True, False):
                for process in (server, tui):
                    process.send_signal(signal.SIGCONT if is_watched else signal.SIGSTOP)
                page.page.wait_for_timeout(200)
                before = len(metrics.read_bytes().splitlines())
                page.page.wait_for_timeout(2000)
                rows = [json.loads(line) for line in metrics.read_bytes().splitlines()[before:]]
                turns[is_watched].append(statistics.median(row["ms_per_iter"] for row in rows))
        ratios = [watched / alone for watched, alone in zip(turns[True], turns[False], strict=True)]
        results["step while watched / alone, median of pairs"] = round(statistics.median(ratios), 4)
        results["pairs"] = len(ratios)
    return results


def in_browser(many: Path, long: Path, live: Path, seconds: float) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    results: dict[str, Any] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        with served(many) as (server, address):
            page = Page(browser)
            results["page: list, first"] = page.open(f"{address}/runs", "tbody tr:nth-child(100)")
            results["page: list, again"] = page.open(f"{address}/runs", "tbody tr:nth-child(100)")
            time.sleep(2)
            results["server of the list, percent of a core"] = share_of_core(server.pid, seconds / 3)
            page.page.close()
        with served(long) as (_, address):
            page = Page(browser)
            results["page: long run, first picture"] = page.open(
                f"{address}/run?id=long", "canvas[aria-label^='Loss: training']"
            )
            while json.load(urllib.request.urlopen(f"{address}/api/runs/long", timeout=60))["share"] < 1:
                time.sleep(0.5)
            page.page.wait_for_timeout(3000)
            results["page: long run, again"] = page.open(
                f"{address}/run?id=long", "canvas[aria-label^='Loss: training']"
            )
            page.page.close()
        results |= watched_training(live, seconds, browser)
        browser.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    results: dict[str, Any] = {"runs": options.runs, "steps": options.steps, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lines = [json.dumps(row(step), separators=(",", ":")) + "\n" for step in range(1, 2001)]
        for i in range(options.runs):
            make_run(root / "many", f"run-{i:05}", lines)
        api = RunsApi(root / "many")
        results["list, first"] = timed(api.runs)
        results["list, again"] = timed(api.runs)

        long = make_run(root / "long", "long", [json.dumps(row(step)) + "\n" for step in range(1, options.steps + 1)])
        results["megabytes"] = round((long / "metrics.jsonl").stat().st_size / 1e6, 1)
        api = RunsApi(root / "long")
        results["open, first picture"] = timed(lambda: api.metrics("long", COLUMNS, View(smoothing=0.98)))

        def read_all() -> None:
            while api.run("long")["share"] < 1:
                pass

        results["open, read to the end"] = timed(read_all)
        results["picture of all, five charts"] = timed(lambda: api.metrics("long", COLUMNS, View(smoothing=0.98)))
        zoomed = View(low=options.steps * 0.4, high=options.steps * 0.41, smoothing=0.98)
        results["picture of a hundredth"] = timed(lambda: api.metrics("long", COLUMNS, zoomed))
        event_id, _ = api.event("long")
        with (long / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row(options.steps + 1)) + "\n")
        results["an event of one new row"] = timed(lambda: api.event("long", event_id))
        (root / "live").mkdir()
        results |= in_browser(root / "many", root / "long", root / "live", options.seconds)
    results["load at the end"] = os.getloadavg()[0]
    print(json.dumps(results, indent=2))


main()
