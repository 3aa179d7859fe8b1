"""vLLM's own figures of a running engine: a few numbers kept in this process, for whoever asks.

vLLM's Ray logger would publish them itself, but needs Ray Serve, and its gauges vanish while an engine is idle.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from rollout.engine import EngineFigures


class FiguresLogger(StatLoggerBase):
    """A stat logger, as `AsyncLLM` takes them, that keeps sums and the last state."""

    def __init__(self, figures: EngineFigures) -> None:
        self.figures = figures

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM after each of its steps; either part may be None."""
        figures = self.figures
        if scheduler_stats is not None:
            figures.running = scheduler_stats.num_running_reqs
            figures.waiting = scheduler_stats.num_waiting_reqs
            figures.kv_cache_usage = scheduler_stats.kv_cache_usage
            figures.prefix_queries += scheduler_stats.prefix_cache_stats.queries
            figures.prefix_hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            figures.prompt_tokens += iteration_stats.num_prompt_tokens
            figures.generated_tokens += iteration_stats.num_generation_tokens
            figures.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say: the rollout worker says when it is ready."""
