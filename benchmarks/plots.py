"""Results as pictures: one figure for each kind of result, PNG, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Draw = Callable[[Any, Sequence[Row]], None]


def png(result: Mapping[str, Any]) -> bytes | None:
    """A result drawn; None for a kind that has no picture, or no rows for it.

    Raises:
        ImportError: matplotlib is missing.
    """
    draw = DRAWN.get(result["benchmark"])
    if draw is None or not result["rows"]:
        return None
    try:
        import matplotlib
    except ImportError:
        raise ImportError("[benchmarks] pictures need matplotlib: pip install 'mlx-bert[plot]'.") from None
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 3.6), dpi=130, layout="constrained")
        axes = figure.subplots()
        draw(axes, result["rows"])
        machine = result["machine"]
        axes.set_title(
            f"{result['benchmark']}: {result['settings'].get('model', '')}, {machine['processor']}", fontsize=9
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _latency(axes: Any, rows: Sequence[Row]) -> None:
    types = list(dict.fromkeys(row["type"] for row in rows))
    for kind in types:
        own = [row for row in rows if row["type"] == kind]
        for name in ("p50", "p90", "p99", "first ms") if len(types) == 1 else ("p50",):
            what = f"{name}, {kind}" if len(types) > 1 else name
            axes.plot([row["tokens"] for row in own], [row[name] for row in own], marker="o", markersize=3, label=what)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds")
    axes.set_xticks([row["tokens"] for row in rows], [str(row["tokens"]) for row in rows])
    axes.minorticks_off()
    axes.legend(frameon=False)


def _throughput(axes: Any, rows: Sequence[Row]) -> None:
    names = [f"{row['what']}, {row['type']}" for row in rows]
    _bars(axes, names, [row["of peak"] for row in rows], "share of the measured matrix-product peak")
    axes.set_xlim(0, 1)


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    calls = [row for row in rows if "calls" in row]
    threads = list(dict.fromkeys(row.get("threads", 1) for row in calls))
    for number in threads:
        own = [row for row in calls if row.get("threads", 1) == number]
        for name in ("active MB", "cache MB", "process MB") if len(threads) == 1 else ("process MB",):
            what = f"{name}, {number} threads" if len(threads) > 1 else name
            axes.plot([row["calls"] for row in own], [row[name] for row in own], marker="o", markersize=3, label=what)
    axes.set(xlabel="calls of all lengths", ylabel="MB", ylim=(0, None))
    axes.legend(frameon=False)


def _load(axes: Any, rows: Sequence[Row]) -> None:
    _bars(axes, [row["what"] for row in rows], [row["seconds"] for row in rows], "seconds")


def _compare(axes: Any, rows: Sequence[Row]) -> None:
    _bars(axes, [row["engine"] for row in rows], [row["texts/s"] for row in rows], "texts a second")


def _train(axes: Any, rows: Sequence[Row]) -> None:
    key = next(name for name in rows[0] if isinstance(rows[0][name], str))
    _bars(axes, [row[key] for row in rows], [row.get("samples/s") or 0 for row in rows], "samples a second")


def _bars(axes: Any, names: Sequence[str], values: Sequence[float], label: str) -> None:
    places = range(len(names))
    axes.barh(places, values, color="#3b6ea5")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {value:.3g}", va="center")


DRAWN: dict[str, Draw] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "load": _load,
    "compare": _compare,
    "train": _train,
}
