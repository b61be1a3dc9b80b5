"""Every reader that a stranger's file can reach, on some damaged files; `perf/fuzz.py` tries many more."""

from pathlib import Path

import fuzzing
import pytest

ATTEMPTS = {
    "checkpoint bytes": 60, "checkpoint to sample": 40, "checkpoint to resume": 20, "run to resume": 25,
    "run to list": 60, "tokenizers": 60, "configuration": 150, "folder to import": 60,
    "GGUF to import": 80, "chat template": 60, "environment file": 60, "kernels": 80,
    "token cache": 12, "plain corpus": 8, "compressed corpus": 8, "sources": 30, "pipelines": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", fuzzing.READERS)
def test_a_damaged_file_is_an_error_or_does_no_harm(name: str, tmp_path: Path) -> None:
    if name == "pipelines" and not fuzzing.has_vulkan():
        pytest.skip("NO VULKAN DEVICE, so files of compiled pipelines are NOT tested here")
    fuzzer = fuzzing.Fuzzer(name, tmp_path)
    for seed in range(ATTEMPTS[name]):
        fuzzer.attempt(seed)
