"""Evaluation against the definition of the loss in float64, and how much of a file it holds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from definitions import initial_values
from traced_memory import traced_peak

from alpha import evaluation, rng
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ARCHITECTURES, ModelConfig, resolve_model
from alpha.evaluation import WINDOWS, Evaluation, Evaluator
from alpha.gpt import GPT
from alpha.thread_choice import ThreadChoice
from alpha.token_file import TokenFile
from alpha.tokenizer import END_OF_TEXT, UNKNOWN
from alpha.tokenizer_simple import CharTokenizer

VOCABULARY = 11
BLOCK = 8
CHARACTERS = "abcdeé語🙂 "
END, LOST = 9, 10
TOKENIZER = CharTokenizer([*CHARACTERS, END_OF_TEXT, UNKNOWN], {END_OF_TEXT: END, UNKNOWN: LOST})


@pytest.fixture(autouse=True, params=[1, 3], ids=["one-step", "three-steps"])
def small_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a few windows, of which as many may be under way as on a CPU, and as on a GPU."""
    monkeypatch.setattr(evaluation, "STEP_TOKENS", 4 * BLOCK)
    monkeypatch.setattr(CpuRef, "steps_in_flight", request.param)


def model_of(arch: str = "gpt2", dtype: npt.DTypeLike = np.float64, **options: Any) -> GPT:
    shape = {"block": BLOCK, "layers": 2, "dim": 8, "heads": 2, "dropout": 0.5}
    config = resolve_model(ModelConfig(**(shape | ARCHITECTURES[arch] | {"arch": arch} | options)))
    model = GPT(CpuRef(), config, VOCABULARY, dtype=dtype)
    values = {}
    for spec in model.parameters.specs:
        noise = rng.normal(spec.size, 1, rng.stream_of("test", spec.name)).reshape(spec.shape)
        values[spec.name] = initial_values(spec) + 0.2 * noise
    model.parameters.load(values)
    return model


def file_of(count: int, vocabulary: int = VOCABULARY) -> TokenFile:
    tokens = (rng.random_bits(count, 3, rng.stream_of("tokens")) % vocabulary).astype(np.uint16)
    return TokenFile(Path("tokens.npy"), tokens, 1, count, "")


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
        result = Evaluator(model, TOKENIZER).file(file, batch)
        assert result.tokens == count - 1 == len(expected)
        assert result.loss == pytest.approx(float(np.mean(expected)), rel=1e-12)


def test_float32_is_close_to_float64() -> None:
    file = file_of(200)
    assert Evaluator(model_of(dtype=np.float32), TOKENIZER).file(file, 4).loss == pytest.approx(
        float(np.mean(all_losses(model_of(), file))), rel=1e-6
    )


def test_a_part_is_the_beginning_of_the_file_or_spread_over_it_whatever_the_batch() -> None:
    model, file, iters = model_of(), file_of(2000), 6
    count, every = WINDOWS * iters, np.array(all_losses(model, file)[: 1999 // BLOCK * BLOCK]).reshape(-1, BLOCK)
    places = [number * len(every) // count for number in range(count)]
    assert places[-1] - places[-2] > 1
    for spread, expected in ((False, every[:count]), (True, every[places])):
        for batch in (1, 5, 16, 1000):
            result = Evaluator(model, TOKENIZER).file(file, batch, iters, spread)
            assert result.tokens == expected.size
            assert result.loss == pytest.approx(float(expected.mean()), rel=1e-12)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(
    ("count", "is_all"), [(4, True), (2 * WINDOWS * BLOCK + 1, True), (2 * WINDOWS * BLOCK + 2, False)]
)
def test_a_file_of_few_windows_is_taken_whole(count: int, is_all: bool, spread: bool) -> None:
    model, file = model_of(), file_of(count)
    part = Evaluator(model, TOKENIZER).file(file, 4, iters=2, spread=spread)
    assert (part == Evaluator(model, TOKENIZER).file(file, 4)) is is_all
    assert part.tokens == (count - 1 if is_all else 2 * WINDOWS * BLOCK)


def test_targets_that_do_not_count_are_left_out_of_every_number() -> None:
    model, tokens = model_of(), file_of(6 * BLOCK + 1).tokens.astype(np.int32)
    ids, targets = tokens[:-1].reshape(6, BLOCK), tokens[1:].reshape(6, BLOCK)
    losses = np.array(
        [losses_by_definition(model, np.append(row, end)) for row, end in zip(ids, targets[:, -1], strict=True)]
    )
    masked = np.where(rng.random_bits(48, 6, 0).reshape(6, BLOCK) % 4 > 0, targets, -1)
    masked[2:4] = -5
    kept = masked >= 0
    batches = [(ids[start : start + 2], masked[start : start + 2]) for start in (0, 2, 4)]
    result = Evaluator(model, TOKENIZER).batches(batches)
    assert result.loss == pytest.approx(float(losses[kept].mean()), rel=1e-12)
    assert (result.tokens, result.unknown) == (kept.sum(), (masked == LOST).sum())
    assert {END, LOST} <= set(masked[kept].tolist())
    assert result.bits == pytest.approx(losses[kept & (masked != END)].sum() / math.log(2.0), rel=1e-12)
    text = "".join(CHARACTERS[each] if each < END else "" for each in masked[kept].tolist())
    assert result.text_bytes == len((text + TOKENIZER.decode([LOST] * result.unknown)).encode())
    nothing = Evaluator(model, TOKENIZER).batches(batches[1:2])
    assert nothing.tokens == nothing.text_bytes == nothing.unknown == 0
    assert math.isnan(nothing.loss)


def test_figures_have_the_same_bits_whatever_the_batch_and_after_other_weights() -> None:
    model, file = model_of(dtype=np.float32, dim=32, ffn_dim=96), file_of(2000)
    evaluator = Evaluator(model, TOKENIZER)
    for iters in (0, 6):
        assert len({evaluator.file(file, batch, iters) for batch in (1, 3, 4, 5, 64, 1000)}) == 1
    before = evaluator.file(file, 4)
    weights = {name: values.copy() for name, values in model.parameters.to_numpy().items()}
    model.parameters.load({name: 0.5 * values for name, values in weights.items()})
    assert evaluator.file(file, 4).loss != before.loss
    assert evaluator.file(file, 4) == Evaluator(model, TOKENIZER).file(file, 4)
    model.parameters.load(weights)
    assert evaluator.file(file, 4) == before


def test_evaluation_leaves_the_model_as_it_is() -> None:
    model = model_of()
    before = model.backend.to_numpy(model.parameters.values).tobytes()
    gradients = model.backend.to_numpy(model.parameters.gradients).tobytes()
    Evaluator(model, TOKENIZER).file(file_of(60), 4)
    assert model.backend.to_numpy(model.parameters.values).tobytes() == before
    assert model.backend.to_numpy(model.parameters.gradients).tobytes() == gradients


@pytest.mark.parametrize("iters", [0, 3])
def test_bits_per_byte_are_of_the_bytes_that_were_predicted(iters: int) -> None:
    model, file = model_of(), file_of(500, END + 1)
    result = Evaluator(model, TOKENIZER).file(file, 4, iters)
    losses = all_losses(model, file)[: result.tokens]
    targets = file.tokens[1 : result.tokens + 1].tolist()
    assert END in targets
    bits = sum(loss for loss, target in zip(losses, targets, strict=True) if target != END) / math.log(2.0)
    text = "".join(CHARACTERS[target] for target in targets if target != END)
    assert (result.text_bytes, result.unknown) == (len(text.encode()), 0)
    assert result.bits_per_byte == pytest.approx(bits / len(text.encode()), rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-12)


def test_where_text_is_lost_there_are_no_bits_per_byte() -> None:
    file = file_of(500)
    result = Evaluator(model_of(), TOKENIZER).file(file, 4, iters=3)
    assert result.unknown == np.count_nonzero(file.tokens[1 : result.tokens + 1] == LOST) > 0
    assert result.bits_per_byte is None
    assert Evaluation(1.0, 2, 0, 0.0, 0).bits_per_byte is None


@pytest.mark.parametrize(("loss", "perplexity"), [(1e4, math.inf), (math.inf, math.inf), (math.nan, math.nan)])
def test_the_perplexity_of_extreme_losses(loss: float, perplexity: float) -> None:
    assert Evaluation(loss, 10, 0, 1.0, 1).perplexity == pytest.approx(perplexity, nan_ok=True)


def test_a_ruined_model_has_a_loss_that_is_not_a_number_and_no_warnings() -> None:
    model = model_of(dtype=np.float32)
    model.parameters["h.0.mlp.c_fc.weight"].data[:] = 1e38
    assert not math.isfinite(Evaluator(model, TOKENIZER).file(file_of(60), 4).loss)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "STEP_TOKENS", 16 * BLOCK)
    model = model_of(dtype=np.float32)

    def peak(count: int) -> int:
        array = np.lib.format.open_memmap(tmp_path / f"{count}.npy", "w+", np.uint16, (count,))
        file = TokenFile(tmp_path / f"{count}.npy", array.view(np.ndarray), 1, count, "")

        def both() -> None:
            Evaluator(model, TOKENIZER).file(file, 16)
            Evaluator(model, TOKENIZER).file(file, 16, 2, spread=True)

        both()
        return traced_peak(both)

    small, large = peak(2_000), peak(40_000)
    assert large < small + 20_000  # a copy of the larger file would be 80,000 bytes


def test_the_number_of_threads_is_chosen_on_the_way_and_changes_no_bit() -> None:
    model, file = model_of(dtype=np.float32), file_of(400)
    threads = ThreadChoice(model.backend)
    assert Evaluator(model, TOKENIZER, threads).file(file, 4) == Evaluator(model, TOKENIZER).file(file, 4)
    assert len(model.backend.thread_choices()) == 1 or threads.report() is not None
