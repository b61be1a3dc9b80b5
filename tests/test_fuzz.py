"""Every reader that a stranger's file can reach, on some damaged files; `perf/fuzz.py` tries many more."""

from pathlib import Path

import fuzzing
import pytest

ATTEMPTS = {
    "checkpoint bytes": 25, "checkpoint to sample": 15, "checkpoint to resume": 8, "run to resume": 10,
    "run to list": 20, "tokenizers": 30, "configuration": 60, "environment file": 30, "kernels": 40,
    "token cache": 5, "plain corpus": 3, "compressed corpus": 3, "sources": 15, "pipelines": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", fuzzing.READERS)
def test_a_damaged_file_is_an_error_or_does_no_harm(name: str, tmp_path: Path) -> None:
    if name == "pipelines" and not fuzzing.has_vulkan():
        pytest.skip("NO VULKAN DEVICE, so files of compiled pipelines are NOT tested here")
    fuzzer = fuzzing.Fuzzer(name, tmp_path)
    for seed in range(ATTEMPTS[name]):
        fuzzer.attempt(seed)
