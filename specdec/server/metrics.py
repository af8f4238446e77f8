"""Counters of the whole server for Prometheus: `Metrics`. Names are vLLM's with the prefix `specdec:`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from specdec.engine.stats import Stats

FINISHED_REASONS = ("stop", "length", "abort", "error")
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)


class Metrics:
    """What the server has done since it started; all methods may be called from any thread.

    Args:
        model_name: label of every metric.
    """

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._model_name = model_name
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, cached ones included.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self._cache_queries = self._counter("prefix_cache_queries", "Prompt tokens looked for in the prefix cache.")
        self._cache_hits = self._counter("prefix_cache_hits", "Prompt tokens that the prefix cache held.")
        self._drafts = self._counter("spec_decode_num_drafts", "Verify passes that checked a draft.")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Drafted tokens.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.")
        self._accepted_per_position = Counter(
            "specdec:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by place in the draft.",
            ("model_name", "position"),
            registry=self._registry,
        )
        self._requests = Counter(
            "specdec:request_success",
            "Answers by the reason that they ended for.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        for reason in FINISHED_REASONS:
            self._requests.labels(model_name, reason)
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request to its first token.", _FIRST_TOKEN_S
        )
        self._token = self._histogram(
            "inter_token_latency_seconds", "Between tokens; tokens of one pass share its time.", _TOKEN_S
        )
        self._request = self._histogram("e2e_request_latency_seconds", "From a request to its last token.", _REQUEST_S)

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value `read` tells whenever it is asked for."""
        made = Gauge(f"specdec:{name}", description, ("model_name",), registry=self._registry)
        made.labels(self._model_name).set_function(read)

    def first_token(self, seconds: float, *, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a prompt that was read."""
        self._first_token.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)
        self._cache_queries.inc(prompt_tokens)
        self._cache_hits.inc(cached_tokens)

    def tokens(self, count: int) -> None:
        """Count tokens of an answer."""
        self._generation_tokens.inc(count)

    def gap(self, count: int, seconds: float) -> None:
        """Count the time between one piece and the next, which has `count` tokens."""
        for _ in range(count):
            self._token.observe(seconds / count)

    def speculation(self, stats: Stats, counted: Speculated) -> None:
        """Count what speculation has done since `counted` was last brought up to date, which happens here."""
        now = (stats.rounds - stats.plain_rounds, stats.drafted, stats.accepted)
        counters = (self._drafts, self._draft_tokens, self._accepted)
        for counter, new, old in zip(counters, now, counted.totals, strict=True):
            counter.inc(max(0, new - old))
        by_position = list(stats.accepted_per_position)
        for position, new in enumerate(by_position):
            old = counted.by_position[position] if position < len(counted.by_position) else 0
            self._accepted_per_position.labels(self._model_name, str(position)).inc(max(0, new - old))
        counted.totals, counted.by_position = now, by_position

    def finished(self, reason: str, seconds: float) -> None:
        """Count the end of an answer."""
        self._requests.labels(self._model_name, reason).inc()
        self._request.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str) -> Counter:
        made = Counter(f"specdec:{name}", description, ("model_name",), registry=self._registry)
        return made.labels(self._model_name)

    def _histogram(self, name: str, description: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(
            f"specdec:{name}", description, ("model_name",), registry=self._registry, buckets=tuple(buckets)
        )
        return made.labels(self._model_name)


class Speculated:
    """What of one answer's speculation the metrics hold already."""

    def __init__(self) -> None:
        self.totals = (0, 0, 0)
        self.by_position: list[int] = []
