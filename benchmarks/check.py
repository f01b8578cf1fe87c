"""A new result against a stored one: what got slower, what needs more memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Which way is better. Columns not named here are not judged: tails (p99), first calls and spreads are noise.
HIGHER = {"texts/s", "tokens/s", "samples/s", "of peak"}
LOWER = {"seconds", "p50", "peak MB", "active MB", "process MB", "growth MB", "float32", "float16", "bfloat16"}
KEYS = ("what", "type", "tokens", "threads", "calls", "engine", "way", "architecture", "task", "converting", "recipe")
TOLERANCE = 0.15  # a change smaller than this share is not reported


def check(new: Mapping[str, Any], old: Mapping[str, Any], tolerance: float = TOLERANCE) -> tuple[list[str], list[str]]:
    """Compare two results of one benchmark.

    Args:
        new: the result just measured.
        old: the stored one.
        tolerance: the share by which a figure may be worse.

    Returns:
        A line for each figure that got worse, and notes on what could not be compared or makes comparing doubtful.

    Raises:
        ValueError: results of different benchmarks.
    """
    if new["benchmark"] != old["benchmark"]:
        raise ValueError(
            f"[check] expected a stored result of {new['benchmark']} but got {old['benchmark']}. Name the right file."
        )
    if "results" in new:
        return _check_each(new["results"], old["results"], tolerance)
    notes = [
        f"{name} was {old['machine'][name]!r} and is {new['machine'][name]!r}: speeds do not compare."
        for name in ("processor", "device", "cores", "blas", "power")
        if old["machine"][name] != new["machine"][name]
    ]
    notes += [
        f"{name} was {value!r} and is {new['settings'].get(name)!r}."
        for name, value in old["settings"].items()
        if new["settings"].get(name) != value
    ]
    stored = {_key(row): row for row in old["rows"]}
    worse = []
    for row in new["rows"]:
        before = stored.pop(_key(row), None)
        name = " ".join(str(part) for part in _key(row) if part is not None)
        if before is None:
            notes.append(f"{name}: not in the stored result.")
            continue
        for column in (HIGHER | LOWER) & row.keys() & before.keys():
            then, now = before[column], row[column]
            if not then or not now:
                continue
            change = then / now - 1 if column in HIGHER else now / then - 1
            if change > tolerance:
                worse.append(f"{name}: {column} was {then:.4g} and is {now:.4g} ({change:+.0%}).")
    notes += [f"{' '.join(str(p) for p in key if p is not None)}: not measured now." for key in stored]
    return sorted(worse), notes


def _check_each(
    new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]], tolerance: float
) -> tuple[list[str], list[str]]:
    """:func:`check` for the results of several benchmarks, each against the one of its name."""
    stored = {result["benchmark"]: result for result in old}
    worse, notes = [], []
    for result in new:
        name = result["benchmark"]
        if before := stored.pop(name, None):
            for lines, found in zip((worse, notes), check(result, before, tolerance), strict=True):
                lines += [f"{name}, {line}" for line in found]
        else:
            notes.append(f"{name}: not in the stored result.")
    return worse, notes + [f"{name}: not measured now." for name in stored]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEYS)
