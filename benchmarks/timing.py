"""The one timer. What is timed evaluates inside the timed region: MLX is lazy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rounds(call: Callable[[], Any], count: int, warmup: int = 1) -> list[float]:
    """Seconds of ``count`` calls after ``warmup`` that do not count."""
    for _ in range(warmup):
        call()
    return [seconds(call) for _ in range(count)]


def interleaved(
    calls: Mapping[str, Callable[[], Any]], count: int, first: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each call, one of each a round, so that what else the machine does falls on all alike.

    Args:
        calls: name -> what is timed; each has run once already.
        count: rounds. Every other one runs the calls the other way round.
        first: runs at the beginning of each round, not timed.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(count):
        first()
        order = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in order:
            taken[name].append(seconds(calls[name]))
    return taken


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios within each round."""
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of all values do not exceed (nearest rank).

    >>> percentile([1, 2, 3, 4], 0.5)
    2
    """
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1e6) * len(ordered) // 1_000_000) - 1)]
