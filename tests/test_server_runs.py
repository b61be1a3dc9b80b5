"""The API of runs, as a program and a hostile one ask it."""

import contextlib
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, serving
from small_checkpoint import MODEL, TRAINING, small_checkpoint

from alpha import server_runs
from alpha.run import Run
from alpha.server import Access
from alpha.server_runs import RunPages

SAFETENSORS = "checkpoint-20.safetensors"


def make(root: Path, name: str, steps: int = 20) -> Path:
    with Run.create(MODEL, TRAINING, folder=root / name) as run:
        for step in range(1, steps + 1):
            run.add_metrics({"step": step, "loss": 4 / step, "time": 1.8e9 + step, "elapsed_ms": 10.0 * step})
        run.add_sample({"step": steps, "prompt": "p", "text": "t"})
        run.save(small_checkpoint(steps))
    return root / name


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    make(tmp_path / "runs", "a")
    make(tmp_path / "runs", "b")
    with serving(tmp_path, root=tmp_path / "runs") as running:
        yield running


@pytest.fixture
def editable(tmp_path: Path) -> Iterator[Serving]:
    make(tmp_path / "runs", "a")
    make(tmp_path / "runs", "b")
    with serving(tmp_path, root=tmp_path / "runs", allow_edit=True) as running:
        yield running


def get(server: Serving, path: str, status: int = 200, **headers: str) -> Any:
    actual, _, content = server.ask(path, headers=headers)
    assert actual == status, content
    return json.loads(content)


@contextlib.contextmanager
def stream(server: Serving, path: str, last: str = "") -> Iterator[Iterator[tuple[str, Any]]]:
    """The events of a stream: id and data."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path, headers={"accept": "text/event-stream"} | ({"last-event-id": last} if last else {}))
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")

    def events() -> Iterator[tuple[str, Any]]:
        event_id = ""
        while line := answer.readline():
            if line.startswith(b"id: "):
                event_id = line[4:].decode().strip()
            elif line.startswith(b"data: "):
                yield event_id, json.loads(line[6:])

    try:
        yield events()
    finally:
        connection.close()
        answer.close()


def stream_status(server: Serving) -> int:
    """Of a stream that is asked for and left at once."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/api/events", headers={"accept": "text/event-stream"})
    answer = connection.getresponse()
    connection.close()
    answer.close()
    return answer.status


def test_everything_that_is_asked_is_answered(server: Serving) -> None:
    assert {run["runId"] for run in get(server, "/api/runs")["runs"]} == {"a", "b"}
    assert get(server, "/api/runs/a")["rows"] == 20
    metrics = get(server, "/api/runs/a/metrics?column=loss&axis=time&from=1800000005&to=1800000010&pixels=50")
    assert metrics["columns"]["loss"]["x"] == [1.8e9 + step for step in range(4, 12)]
    assert get(server, "/api/runs/a/samples")["samples"] == [{"step": 20, "prompt": "p", "text": "t"}]
    assert get(server, "/api/runs/a/samples?after=20")["samples"] == []
    assert "Saved" in get(server, "/api/runs/a/log")["lines"][-1]
    assert [each["name"] for each in get(server, "/api/runs/a/checkpoints")["checkpoints"]] == [SAFETENSORS]
    assert get(server, "/api/compare?run=a&run=b")["options"] == {}
    assert [(each["runId"], each["step"]) for each in get(server, "/api/models")["models"]] == [("b", 20), ("a", 20)]
    assert get(server, "/api/sparklines?run=a&run=none")["losses"] == {"a": [4 / step for step in range(1, 21)]}
    domains = get(server, "/api/domains")["domains"]
    assert len(domains) == 10
    assert all(each["specimen"] and each["prompts"] and each["model"]["dim"] for each in domains)


def test_columns_are_exported_as_they_are(server: Serving, tmp_path: Path) -> None:
    """Every row that has a number, of one run or several, over the part of the axis that is asked for."""
    with (tmp_path / "runs" / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21}\n{"step": 22, "valLoss": 0.5}\n')
    status, headers, content = server.ask("/api/csv?run=a&column=loss&axis=time&from=1800000019")
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert headers["content-disposition"].startswith("attachment;")
    assert content.decode() == f"step,time,loss\n19,1800000019,{4 / 19!r}\n20,1800000020,0.2\n"
    both = server.ask("/api/csv?run=a&run=b&from=20")[2].decode()
    assert both == "run,step,loss,valLoss\na,20,0.2,\nb,20,0.2,\nb,22,,0.5\n"
    with (tmp_path / "runs" / "a" / "metrics.jsonl").open("w") as file:
        file.writelines(f'{{"step": {step}, "loss": 1.5, "more": "{"x" * 150}"}}\n' for step in range(120_000))
    lines = server.ask("/api/csv?run=a")[2].decode().splitlines()
    assert lines[1:] == [f"{step},1.5," for step in range(120_000)]
    (tmp_path / "runs" / "a" / "metrics.jsonl").unlink()
    (tmp_path / "runs" / "a" / "metrics.jsonl").mkdir()
    assert "it is not a regular file" in get(server, "/api/csv?run=a", 503)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/runs/none", 404), ("/api/runs/..%2f..%2fetc", 404), ("/api/runs/%2e%2e", 404), ("/api/runs/a%00", 404),
        ("/api/runs/a/checkpoints/..%2fconfig.json", 404), ("/api/runs/a/checkpoints/config.json", 404),
        ("/api/runs/none/events", 404), ("/api/runs/a/metrics?axis=stp", 400), ("/api/runs/a/metrics?pixels=1e9", 400),
        ("/api/runs/a/metrics?pixels=nan", 400), ("/api/runs/a/metrics?from=x", 400),
        ("/api/runs/a/metrics?from=2&to=1", 400), ("/api/runs/a/metrics?smoothing=1", 400),
        ("/api/runs/a/metrics?" + "&".join(f"column=c{i}" for i in range(99)), 400),
        ("/api/events?" + "&".join(f"run=r{i}" for i in range(99)), 400),
        ("/api/sparklines?" + "&".join(f"run=r{i}" for i in range(999)), 400),
        ("/api/csv", 400), ("/api/csv?run=a&run=..%2fa", 404), ("/api/csv?" + "run=a&" * 99, 400),
        ("/api/csv?run=a&axis=none", 400),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(server: Serving, path: str, status: int) -> None:
    assert get(server, path, status)["error"]["message"]


def test_news_go_on_after_the_last_event(server: Serving, tmp_path: Path) -> None:
    with stream(server, "/api/runs/a/events") as events:
        last, first = next(events)
        assert first["reset"] is True
        assert first["run"]["runId"] == "a"
        with Run.open(tmp_path / "runs" / "a") as run:
            run.add_metrics({"step": 21, "loss": 0.5})
            seen: dict[str, Any] = {}
            while not seen.get("metrics"):
                later, seen = next(events)
            assert (seen["begin"], seen["metrics"]["step"]) == (20, [21])
            assert later != last
            run.add_metrics({"step": 22, "loss": 0.25})
    with stream(server, "/api/runs/a/events", later) as events:  # a page whose connection was lost
        assert next(events)[1]["metrics"]["step"] == [22]
    polled = get(server, f"/api/runs/a/events?after={later}")  # one that cannot have streams
    assert polled["events"][0]["metrics"]["step"] == [22]
    assert get(server, f"/api/runs/a/events?after={polled['id']}")["events"][0]["metrics"] == {}
    with stream(server, "/api/events?run=a&run=b", f",{get(server, '/api/runs/b/events')['id']}") as events:
        assert [event.get("reset", False) for _, event in (next(events), next(events))] == [True, False]


def test_the_list_says_what_changed_and_what_is_gone(server: Serving, tmp_path: Path) -> None:
    with stream(server, "/api/events") as events:
        _, first = next(events)
        assert (first["whole"], len(first["runs"])) == (True, 2)
        make(tmp_path / "runs", "c")
        (tmp_path / "runs" / "b" / "config.json").unlink()
        told: dict[str, Any] = {"runs": [], "gone": []}
        while not (told["gone"] and told["runs"]):
            news = next(events)[1]
            told = {key: told[key] + news[key] for key in told}
        assert ({run["runId"] for run in told["runs"]}, told["gone"]) == ({"c"}, ["b"])


def test_a_run_that_vanishes_is_said_to_be_gone(server: Serving, tmp_path: Path) -> None:
    with stream(server, "/api/runs/a/events") as events:
        next(events)
        (tmp_path / "runs" / "a").rename(tmp_path / "elsewhere")
        while "gone" not in (event := next(events)[1]):
            pass
        assert event == {"runId": "a", "gone": True}
        (tmp_path / "elsewhere").rename(tmp_path / "runs" / "a")
        assert next(events)[1]["reset"] is True


def test_a_checkpoint_is_downloaded_bit_for_bit(server: Serving, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a" / SAFETENSORS
    status, headers, content = server.ask(f"/api/runs/a/checkpoints/{SAFETENSORS}")
    assert (status, content) == (200, path.read_bytes())
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''a-{SAFETENSORS}"
    path.unlink()
    os.mkfifo(path)
    assert get(server, f"/api/runs/a/checkpoints/{SAFETENSORS}", 503)["error"]["message"].startswith("Cannot read")


def test_nothing_is_changed_without_permission(server: Serving, tmp_path: Path) -> None:
    for method, body in (("PATCH", {"name": "x"}), ("DELETE", None)):
        status, _, content = server.ask(
            "/api/runs/a", body, {"origin": f"http://127.0.0.1:{server.port}"}, method=method
        )
        assert (status, "allowEdit" in content.decode()) == (403, True)
    assert b"token" not in server.ask("/runs")[2]
    assert not (tmp_path / "runs" / "a" / "notes.json").exists()


def test_only_own_pages_change_runs(editable: Serving, tmp_path: Path) -> None:
    own = f"http://127.0.0.1:{editable.port}"
    token = editable.ask("/runs")[2].decode().partition('name="token" content="')[2].partition('"')[0]
    assert len(token) > 30
    for headers in (
        {}, {"origin": own}, {"x-alpha-token": token}, {"origin": own, "x-alpha-token": "x"},
        {"origin": own, "x-alpha-token": "\u00ff"},
        {"origin": "http://evil.example", "x-alpha-token": token}, {"origin": "null", "x-alpha-token": token},
        {"origin": f"http://127.0.0.1:{editable.port + 1}", "x-alpha-token": token},
    ):  # fmt: skip
        assert editable.ask("/api/runs/a", {"name": "x"}, headers, method="PATCH")[0] == 403
        assert editable.ask("/api/runs/a", None, headers, method="DELETE")[0] == 403
    page = {"origin": own, "x-alpha-token": token}
    status, _, content = editable.ask("/api/runs/a", {"name": "best", "group": "g"}, page, method="PATCH")
    assert (status, json.loads(content)["name"]) == (200, "best")
    assert editable.ask("/api/runs/a", {"name": "a\nb"}, page, method="PATCH")[0] == 400
    assert editable.ask("/api/runs/a", {"status": "finished"}, page, method="PATCH")[0] == 400
    assert editable.ask("/api/runs/..%2fruns%2fa", None, page, method="DELETE")[0] == 404
    with Run.open(tmp_path / "runs" / "b"):
        assert editable.ask("/api/runs/b", None, page, method="DELETE")[0] == 400
    assert editable.ask("/api/runs/a", None, page, method="DELETE")[0] == 200
    assert not (tmp_path / "runs" / "a").exists()


def test_runs_need_the_key_and_pages_do_not(tmp_path: Path) -> None:
    make(tmp_path / "runs", "a")
    with serving(tmp_path, Access("key"), root=tmp_path / "runs") as server:
        assert server.ask("/api/runs")[0] == 401
        assert server.ask("/api/runs/a/events")[0] == 401
        assert len(get(server, "/api/runs", authorization="Bearer key")["runs"]) == 1
        for page in ("/runs", "/run", "/compare", "/models", "/domains"):
            assert server.ask(page)[0] == 200


def test_a_server_of_named_models_shows_no_runs(tmp_path: Path) -> None:
    with serving(tmp_path / "toy") as server:
        assert server.ask("/api/runs")[0] == 404
        assert server.ask("/runs")[0] == 404
        assert b"<nav" not in server.ask("/")[2]


def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    make(tmp_path / "runs", "a")
    with contextlib.ExitStack() as streams, serving(tmp_path, root=tmp_path / "runs") as server:
        for path in ("/api/events", "/api/runs/a/events"):
            next(streams.enter_context(stream(server, path)))
        begin = time.monotonic()
    assert time.monotonic() - begin < 5


def test_who_does_not_read_is_left_and_streams_are_counted(
    server: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpha.server_connection.SEND_SECONDS", 0.5)
    monkeypatch.setattr(server_runs, "EVENT_SECONDS", 0.02)
    monkeypatch.setattr(server_runs, "MOST_STREAMS", 1)
    monkeypatch.setattr(server_runs, "_LARGEST_SHARE", 1.0)
    with socket.create_connection(("127.0.0.1", server.port)) as silent, Run.open(tmp_path / "runs" / "a") as run:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.sendall(b"GET /api/runs/a/events HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
        time.sleep(0.5)
        assert stream_status(server) == 429
        assert get(server, "/api/runs/a")["rows"] == 20  # nobody else waits
        step, end = 21, time.monotonic() + 30
        while stream_status(server) == 429:
            assert time.monotonic() < end
            run.add_sample({"step": step, "prompt": "p", "text": "t" * 200_000})
            run.add_metrics({"step": step, "loss": 1.0})
            step += 1


def test_the_description_has_every_route(server: Serving, tmp_path: Path) -> None:
    described = get(server, "/openapi.json")
    for name in re.findall(r"'#/components/schemas/(\w+)'", str(described)):
        assert name in described["components"]["schemas"]
    routes: dict[str, set[str]] = {}
    for route in RunPages(tmp_path).routes():
        routes.setdefault(route.path, set()).update(method.lower() for method in route.methods or ())
    runs = {path: set(methods) for path, methods in described["paths"].items() if path.startswith("/api/")}
    assert runs == {path: methods - {"head"} for path, methods in routes.items()}
    for path, schema in (("/api/runs/a", "Run"), ("/api/runs/a/metrics", "Curves"), ("/api/domains", "Domains")):
        assert set(described["components"]["schemas"][schema]["required"]) <= set(get(server, path))
