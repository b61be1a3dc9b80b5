"""What a server measures of itself, for Prometheus: requests, tokens, waiting, times."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from alpha.server_models import ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        by_model = ("model",)
        self._requests = Counter(
            "alpha_requests", "Requests answered, by path and status.", ("path", "status"), registry=self._registry
        )
        self._prompt = Counter("alpha_prompt_tokens", "Tokens of prompts.", by_model, registry=self._registry)
        self._drawn = Counter("alpha_completion_tokens", "Tokens drawn.", by_model, registry=self._registry)
        self._first = Histogram(
            "alpha_time_to_first_token_seconds", "From the request to its first token.", by_model,
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._each = Histogram(
            "alpha_time_per_token_seconds", "Between two tokens of a request, in the mean.", by_model,
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._running = Gauge("alpha_running", "Texts that are computed.", by_model, registry=self._registry)
        self._waiting = Gauge("alpha_waiting", "Texts that wait.", by_model, registry=self._registry)
        self._cache = Gauge(
            "alpha_cache_use_ratio", "The share of the cache that texts hold.", by_model, registry=self._registry
        )
        self._reused = Gauge(
            "alpha_reused_tokens", "Tokens of prompts that were found in the cache.", by_model, registry=self._registry
        )

    def answered(self, path: str, status: int) -> None:
        """A request of one of the server's own paths has its status."""
        self._requests.labels(path, str(status)).inc()

    def generated(self, model: str, prompt_tokens: int, start: float, times: "Times") -> None:
        """A request has ended; `start` is when it came, by `time.perf_counter`."""
        self._prompt.labels(model).inc(prompt_tokens)
        self._drawn.labels(model).inc(times.tokens)
        if times.tokens:
            self._first.labels(model).observe(times.first - start)
        if times.tokens > 1:
            self._each.labels(model).observe((times.last - times.first) / (times.tokens - 1))

    def text(self, models: Iterable[ServedModel]) -> bytes:
        """All numbers, as Prometheus reads them."""
        for model in models:
            self._running.labels(model.name).set(model.engine.running)
            self._waiting.labels(model.name).set(model.engine.waiting)
            self._cache.labels(model.name).set(model.engine.cache_use)
            self._reused.labels(model.name).set(model.engine.reused_tokens)
        return generate_latest(self._registry)


class Times:
    """When the tokens of a request came."""

    def __init__(self) -> None:
        self.tokens = 0
        self.first = self.last = 0.0

    def token(self) -> None:
        """One more, now."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens += 1
