"""The models of alpha serve: several at a time, loaded when they are asked for, and let go."""

import asyncio
import json
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from exchange_models import make_checkpoint
from serving import serving
from waiting import eventually

from alpha import server_models
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ModelConfig, TrainingConfig, resolve_model, resolve_training
from alpha.engine import Request
from alpha.model_loading import read_parts
from alpha.run import Run
from alpha.server_models import Limits, Models

COMPLETIONS = "/v1/completions"
PROMPT = "The cat sees the dog."


def test_runs_are_loaded_when_they_are_asked_for_and_followed(tmp_path: Path) -> None:
    for name in ("gpt2", "llama", "qwen3"):
        with Run.create(resolve_model(ModelConfig()), resolve_training(TrainingConfig()), tmp_path / name):
            make_checkpoint(tmp_path / name, name)
    with serving(tmp_path, limits=Limits(threads=1, max_models=2), root=tmp_path) as server:
        _, _, content = server.ask("/v1/models")
        assert {each["id"] for each in json.loads(content)["data"]} == {"gpt2", "llama", "qwen3"}
        assert server.models.loaded == []
        options: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
        texts = {name: server.post(COMPLETIONS, model=name, **options)["choices"][0]["text"] for name in
                 ("gpt2", "llama", "qwen3", "gpt2")}  # fmt: skip
        assert len(set(texts.values())) == 3
        assert [model.name for model in server.models.loaded] == ["qwen3", "gpt2"]
        (tmp_path / "qwen3").rename(tmp_path / os.fsdecode(b"caf\xe9@5"))  # not UTF-8, and with a mark of steps
        assert "caf\\xe9@5" in {each["id"] for each in json.loads(server.ask("/v1/models")[2])["data"]}
        for name in ("caf\\xe9@5", "caf\\xe9@5@10"):
            assert server.post(COMPLETIONS, model=name, **options)["choices"][0]["text"] == texts["qwen3"]
        (tmp_path / os.fsdecode(b"caf\xe9@5")).rename(tmp_path / "qwen3")
        for wrong in ("gpt3", "gpt2@11", "../gpt2", "@10"):
            assert server.refused(COMPLETIONS, 404, model=wrong)["code"] == "model_not_found"
        assert "gpt2" in server.refused(COMPLETIONS)["message"]
        (tmp_path / "gpt2" / "checkpoint-20.safetensors").write_bytes(
            next((tmp_path / "llama").glob("checkpoint-*")).read_bytes()
        )
        newer = server.post(COMPLETIONS, model="gpt2", **options)
        assert newer["choices"][0]["text"] == texts["llama"]
        assert server.post(COMPLETIONS, model="gpt2@10", **options)["choices"][0]["text"] == texts["gpt2"]
        (tmp_path / "gpt2" / "checkpoint-30.safetensors").write_bytes(b"damaged")
        assert "cannot be loaded" in server.refused(COMPLETIONS, 503, model="gpt2")["message"]


def two_runs(folder: Path) -> None:
    for name in ("gpt2", "llama"):
        with Run.create(resolve_model(ModelConfig()), resolve_training(TrainingConfig()), folder / name):
            make_checkpoint(folder / name, name)


def test_a_model_that_is_loaded_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_runs(tmp_path)
    reads, goes_on = threading.Event(), threading.Event()

    def slow(path: Path, shared: Any) -> Any:
        if "llama" in str(path):
            reads.set()
            assert goes_on.wait(60)
        return read_parts(path, shared)

    monkeypatch.setattr(server_models, "read_parts", slow)
    answers: list[Any] = []
    with serving(tmp_path, root=tmp_path) as server:
        expected = server.post(COMPLETIONS, model="gpt2", prompt=PROMPT, seed=1)["choices"]
        loading = threading.Thread(
            target=lambda: answers.append(server.post(COMPLETIONS, model="llama", prompt=PROMPT))
        )
        loading.start()
        try:
            assert reads.wait(60)
            assert server.post(COMPLETIONS, model="gpt2", prompt=PROMPT, seed=1)["choices"] == expected
            assert answers == []
        finally:
            goes_on.set()
            loading.join()
    assert len(answers) == 1


def test_a_model_that_is_dropped_before_its_turn_answers(tmp_path: Path) -> None:
    two_runs(tmp_path)
    models = Models(CpuRef(), Limits(threads=1, max_models=1), [], tmp_path)

    async def ask() -> list[int]:
        await models.start()
        first = await models.get("gpt2")
        await models.get("llama")
        assert [model.name for model in models.loaded] == ["llama"]
        drawn = []
        async with first.generations([Request([1, 2, 3], 5)] * 2, "prompt") as running:
            while len(drawn) < 10:
                drawn.append((await running.event()).token)
        return drawn

    try:
        drawn = asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        models.close()
    assert len(drawn) == 10


def test_a_model_that_is_dropped_is_freed_by_the_thread_that_computes(tmp_path: Path) -> None:
    two_runs(tmp_path)
    freed: list[str] = []
    with serving(tmp_path, limits=Limits(threads=1, max_models=1), root=tmp_path) as server:
        server.post(COMPLETIONS, model="gpt2", prompt=PROMPT)
        for part in (server.models.loaded[0].loaded.model, server.models.loaded[0].engine):
            weakref.finalize(part, lambda: freed.append(threading.current_thread().name))
        del part
        server.post(COMPLETIONS, model="llama", prompt=PROMPT)
        eventually(lambda: len(freed) == 2)
    assert freed == ["engine", "engine"]


def test_the_cache_has_the_size_that_is_asked_for(tmp_path: Path) -> None:
    token = 2 * 2 * 32 * 4  # keys and values of 2 layers of 32 float32
    with serving(tmp_path / "toy", limits=Limits(threads=1, cache_memory=17 * token)) as server:
        assert server.post(COMPLETIONS, prompt="a", max_tokens=4)
        error = server.refused(COMPLETIONS, prompt="a", max_tokens=20)
        assert (error["param"], "larger cache" in error["message"]) == ("max_tokens", True)
        assert server.refused(COMPLETIONS, prompt="a b c d e f g h i j k l", max_tokens=1)["param"] == "prompt"
