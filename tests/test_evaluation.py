"""Evaluation against the definition of the loss in float64, and how much of a file it holds."""

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpha import rng
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ARCHITECTURES, ModelConfig, resolve_model
from alpha.evaluation import Evaluation, evaluate, evaluate_part
from alpha.gpt import GPT
from alpha.thread_choice import ThreadChoice
from alpha.token_file import TokenFile

VOCABULARY = 11
BLOCK = 8


def model_of(arch: str = "gpt2", dtype: npt.DTypeLike = np.float64, **options: Any) -> GPT:
    shape = {"block": BLOCK, "layers": 2, "dim": 8, "heads": 2, "dropout": 0.5}
    config = resolve_model(ModelConfig(**(shape | ARCHITECTURES[arch] | {"arch": arch} | options)))
    model = GPT(CpuRef(), config, VOCABULARY, dtype=dtype)
    values = {}
    for spec in model.parameters.specs:
        noise = rng.normal(spec.size, 1, rng.stream_of("test", spec.name)).reshape(spec.shape)
        values[spec.name] = spec.initial() + 0.2 * noise
    model.parameters.load(values)
    return model


def file_of(count: int, text_bytes: int = 0) -> TokenFile:
    tokens = (rng.random_bits(count, 3, rng.stream_of("tokens")) % VOCABULARY).astype(np.uint16)
    return TokenFile(Path("tokens.npy"), tokens, 1, text_bytes or count, "")


def losses_by_definition(model: GPT, ids: npt.NDArray[Any]) -> list[float]:
    """-log p of each id of a window but the first, from the logits one by one."""
    logits = model.logits(ids[None, :-1].astype(np.int32)).data[0].astype(np.float64)
    return [
        math.log(sum(math.exp(logit - row[target]) for logit in row))
        for row, target in zip(logits, ids[1:].tolist(), strict=True)
    ]


def all_losses(model: GPT, file: TokenFile) -> list[float]:
    starts = range(0, len(file.tokens) - 1, BLOCK)
    return [loss for start in starts for loss in losses_by_definition(model, file.tokens[start : start + BLOCK + 1])]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("count", [2, 3, BLOCK, BLOCK + 1, BLOCK + 2, 50, 4 * BLOCK + 1, 101])
def test_every_token_but_the_first_counts_once(arch: str, count: int) -> None:
    model, file = model_of(arch), file_of(count)
    expected = all_losses(model, file)
    for batch in (1, 3, 4):
        result = evaluate(model, file, batch)
        assert result.tokens == count - 1 == len(expected)
        assert result.loss == pytest.approx(float(np.mean(expected)), rel=1e-12)


def test_float32_is_close_to_float64() -> None:
    file = file_of(200)
    assert evaluate(model_of(dtype=np.float32), file, 4).loss == pytest.approx(
        float(np.mean(all_losses(model_of(), file))), rel=1e-6
    )


def test_a_number_of_batches_is_the_beginning_of_the_file() -> None:
    model, file = model_of(), file_of(200)
    expected = all_losses(model, file)[: 2 * 3 * BLOCK]
    result = evaluate(model, file, batch=3, batches=2)
    assert result.tokens == len(expected)
    assert result.loss == pytest.approx(float(np.mean(expected)), rel=1e-12)
    assert evaluate(model, file, batch=3, batches=1000) == evaluate(model, file, batch=3)


def test_a_part_is_spread_over_the_file_and_always_the_same() -> None:
    model, file = model_of(), file_of(4000)
    result = evaluate_part(model, file, batch=3, batches=4, seed=5)
    assert result.tokens == 3 * 4 * BLOCK
    assert evaluate_part(model, file, 3, 4, seed=5) == result
    assert evaluate_part(model, file, 3, 4, seed=6) != result
    # As many windows as the file has, in another order and shifted by a phase: near the mean over all.
    everything = evaluate_part(model, file, batch=10, batches=49, seed=5)
    assert everything.loss == pytest.approx(evaluate(model, file, 10).loss, rel=0.02)


@pytest.mark.parametrize(("count", "is_all"), [(6 * (BLOCK + 1), True), (7 * (BLOCK + 1), False), (4, True)])
def test_a_file_of_few_windows_is_taken_whole(count: int, is_all: bool) -> None:
    model, file = model_of(), file_of(count)
    part = evaluate_part(model, file, batch=2, batches=3, seed=1)
    assert (part == evaluate(model, file, 2)) is is_all
    assert part.tokens == (count - 1 if is_all else 6 * BLOCK)


def test_evaluation_leaves_the_model_as_it_is() -> None:
    model = model_of()
    before = model.backend.to_numpy(model.parameters.values).tobytes()
    gradients = model.backend.to_numpy(model.parameters.gradients).tobytes()
    evaluate(model, file_of(60), 4)
    assert model.backend.to_numpy(model.parameters.values).tobytes() == before
    assert model.backend.to_numpy(model.parameters.gradients).tobytes() == gradients


def test_perplexity_and_bits_per_byte() -> None:
    result = Evaluation(loss=math.log(8.0), tokens=10, bytes_per_token=1.5)
    assert result.perplexity == pytest.approx(8.0)
    assert result.bits_per_byte == pytest.approx(3.0 / 1.5)
    assert evaluate(model_of(), file_of(100, text_bytes=250), 4).bytes_per_token == 2.5


@pytest.mark.parametrize(("loss", "perplexity"), [(1e4, math.inf), (math.inf, math.inf), (math.nan, math.nan)])
def test_the_perplexity_of_extreme_losses(loss: float, perplexity: float) -> None:
    assert Evaluation(loss, 10, 1.0).perplexity == pytest.approx(perplexity, nan_ok=True)


def test_a_ruined_model_has_a_loss_that_is_not_a_number_and_no_warnings() -> None:
    model = model_of(dtype=np.float32)
    model.parameters["h.0.mlp.c_fc.weight"].data[:] = 1e38
    assert not math.isfinite(evaluate(model, file_of(60), 4).loss)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    model = model_of(dtype=np.float32)

    def peak(count: int) -> int:
        array = np.lib.format.open_memmap(tmp_path / f"{count}.npy", "w+", np.uint16, (count,))
        file = TokenFile(tmp_path / f"{count}.npy", array.view(np.ndarray), 1, count, "")
        evaluate(model, file, 16)
        tracemalloc.start()
        try:
            evaluate(model, file, 16)
            evaluate_part(model, file, 16, 2, 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(2_000), peak(40_000)
    assert large < small + 20_000  # a copy of the larger file would be 80,000 bytes


def test_the_number_of_threads_is_chosen_on_the_way_and_changes_no_bit() -> None:
    model, file = model_of(dtype=np.float32), file_of(400)
    threads = ThreadChoice(model.backend)
    assert evaluate(model, file, 4, threads=threads) == evaluate(model, file, 4)
    assert len(model.backend.thread_choices()) == 1 or threads.report() is not None
