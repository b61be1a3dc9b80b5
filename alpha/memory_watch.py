"""How much of a device's memory a training run uses, for metrics.jsonl. Knows nothing about how memory is used."""

from alpha import environment
from alpha.backend import Backend


class MemoryWatch:
    """Looks at the memory after some steps, and reports after some.

    The first step of a process is one of those that report, so that the shortest run says something.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._look_every = environment.read("ALPHA_ADAPTIVE_MEM_STATS_POLL_EVERY")
        self._report_every = environment.read("ALPHA_GPU_METRICS_SAMPLE_EVERY")
        self._steps_since_report = self._report_every - 1
        self._steps_since_look = 0
        self._peak = 0

    def after_step(self) -> None:
        """Call once after each step."""
        self._steps_since_report += 1
        self._steps_since_look += 1
        if self._steps_since_look >= self._look_every:
            self._look()

    def report(self) -> dict[str, int]:
        """Fields for a row of metrics.jsonl, in bytes: memory in use now, the most that was seen since the last report,
        and what this process may use in all. Empty when no report is due, and where the backend does not know."""
        if self._steps_since_report < self._report_every or (known := self._look()) is None:
            return {}
        used, budget = known
        fields = {"gpuMemory": used, "gpuMemoryPeak": self._peak, "gpuMemoryBudget": budget}
        self._steps_since_report = self._peak = 0
        return fields

    def _look(self) -> tuple[int, int] | None:
        self._steps_since_look = 0
        known = self._backend.memory_in_use()
        if known is not None:
            self._peak = max(self._peak, known[0])
        return known
