"""The whole story in a few seconds: train, save, stop, resume, sample, evaluate."""

import math
from pathlib import Path

import pytest
from small_training import RecordingDisplay, bits_of, newest, resume, rows_of, steps_saved, train, write_corpus

from alpha import corpus_files, dataset
from alpha.backend_cpu_ref import CpuRef
from alpha.config import ARCHITECTURES, ModelConfig
from alpha.evaluation import Evaluator
from alpha.generation import Generator
from alpha.model_loading import load_model
from alpha.sampling import SamplingOptions


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_train_save_resume_sample_evaluate(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path)
    model = ModelConfig(**{"block": 16, "layers": 2, "dim": 32, "heads": 2, "arch": arch} | ARCHITECTURES[arch])
    options = {"iters": 120, "batch": 16, "lr": 0.01, "eval_interval": 40, "sample_interval": 60}

    # Train, save, stop, resume.
    whole = train(corpus, tmp_path / "whole", RecordingDisplay(), model, **options)
    folder = train(corpus, tmp_path / "run", RecordingDisplay(stop_after=70), model, **options)
    assert steps_saved(folder) == [40, 70]
    resume(folder)
    assert bits_of(folder) == bits_of(whole)
    assert rows_of(folder) == rows_of(whole)

    # It learned: far better than a uniform guess, and better than the frequencies of single characters.
    rows = rows_of(folder)
    saved = newest(folder)
    loaded = load_model(str(folder), CpuRef())
    assert loaded.model.parameters.gradients.shape == (0,)
    assert loaded.step == saved.step == 120
    assert rows[0]["loss"] == pytest.approx(math.log(loaded.tokenizer.vocab_size), abs=0.4)
    text = corpus.read_text()
    shares = [text.count(character) / len(text) for character in set(text)]
    entropy = -sum(share * math.log(share) for share in shares)
    assert rows[-1]["valLoss"] < 0.7 * entropy

    # Sample: words of the corpus.
    prompt = loaded.tokenizer.encode("The ")
    sampling = SamplingOptions(temperature=0.3)
    drawn = [token for [token] in Generator(loaded.model).generate(prompt, 60, sampling) if token is not None]
    written = loaded.tokenizer.decode(drawn)
    assert len(written) == 60
    assert sum(word in text.split() for word in written.split()) > 0.5 * len(written.split())

    # Evaluate: the model knows its own text better than a text of other words.
    def loss_of(name: str, content: str) -> float:
        path = tmp_path / name
        path.write_text(content)
        file = dataset.encode_whole(corpus_files.find(str(path)), loaded.tokenizer, tmp_path / "cache")
        result = Evaluator(loaded.model, loaded.tokenizer).file(file, batch=8)
        assert result.tokens == len(file.tokens) - 1
        assert result.perplexity == pytest.approx(math.exp(result.loss))
        return result.loss

    assert loss_of("known.txt", text[:1000]) < 0.7 * loss_of("mixed.txt", text[:1000][::-1])
