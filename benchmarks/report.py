"""Results as JSON with everything that a figure depends on, and as a Markdown table to read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.devices import this_machine
from mlx_bert.checkpoint import new_file, write_json

RESULTS = Path(__file__).parent / "results"
FORMAT = 1

Row = Mapping[str, Any]


def build(verb: str, settings: Mapping[str, Any], rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """One result: what was asked, where, and what came out."""
    return {
        "format": FORMAT,
        "benchmark": verb,
        "command": "python -m benchmarks " + " ".join(sys.argv[1:] or [verb]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(this_machine()),
        "settings": dict(settings),
        **more,
        "rows": [dict(row) for row in rows],
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Machine, versions and command, then the rows as a table."""
    machine = result["machine"]
    lines = [
        f"### {result['benchmark']}: {result['settings'].get('model', '')} on the {machine['device'].upper()}",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}"
        + (f", {machine['gpu_cores']} GPU cores" if machine["gpu_cores"] else "")
        + (f", on {machine['power']}" if machine["power"] else "")
        + f"; BLAS {machine['blas']}, threads {machine['blas_threads'] or 'as installed'}.",
        *([warning] if (warning := busy(machine)) else []),
        ", ".join(f"{name} {number}" for name, number in machine["versions"].items()) + ".",
        f"`{result['command']}`, {result['date']}.",
    ]
    if peak := roofline_line(result):
        lines.append(peak)
    if note := result.get("note"):
        lines.append(note)
    return "\n".join([*lines, "", table(result["rows"])])


def roofline_line(result: Mapping[str, Any]) -> str | None:
    """What the machine itself was measured to do, if the result has it."""
    if not (roofline := result.get("roofline")):
        return None
    return (
        f"Measured here: matrix products {roofline['matmul_flops'] / 1e9:.1f} GFLOP/s, copy "
        f"{roofline['copy_bytes'] / 1e9:.1f} GB/s, empty evaluation {roofline['empty_seconds'] * 1e6:.0f} µs."
    )


def busy(machine: Mapping[str, Any]) -> str | None:
    """A warning if others used the machine: then only ratios within a round mean something."""
    if machine["load_average"] < 2 * machine["cores"]:
        return None
    return (
        f"**Other programs were running** (load average {machine['load_average']} on {machine['cores']} cores): "
        "figures are too low, only ratios compare."
    )


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The keys of all rows, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; numbers with three significant digits. Columns are the keys of all rows, in order."""
    if not rows:
        return "No rows."
    columns = columns_of(rows)
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    numeric = [all(not isinstance(row.get(column), str) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if right else v.ljust(w) for v, w, right in zip(values, widths, numeric, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|" + "|".join("-" * (w + 1) + (":" if right else "-") for w, right in zip(widths, numeric, strict=True)) + "|"
    )
    return "\n".join([line(columns), rule, *map(line, cells)])


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def save(result: Mapping[str, Any], path: Path | None = None, picture: bytes | None = None) -> Path:
    """Write JSON, and the same as Markdown beside it, and a PNG if there is a picture.

    By default into ``benchmarks/results``, named by what was run.
    """
    path = path or default_path(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    write_text(path.with_suffix(".md"), markdown(result) + "\n")
    if picture is not None:
        with new_file(path.with_suffix(".png"), "wb") as file:
            file.write(picture)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    with new_file(path, "w") as file:
        file.write(text)


def default_path(result: Mapping[str, Any]) -> Path:
    """Where :func:`save` puts a result: in ``benchmarks/results``, named by benchmark, device and model."""
    model = str(result["settings"].get("model", "model")).strip("/").replace("/", "-")
    return RESULTS / f"{result['benchmark']}-{result['machine']['device']}-{model}.json"


def load(path: Path) -> dict[str, Any]:
    """A stored result.

    Raises:
        ValueError: not one of ours.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        result = None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"[benchmarks] expected {path} to be a result of format {FORMAT}. Run the benchmark again.")
    return result
