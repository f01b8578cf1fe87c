"""Pictures for people: training curves and confusion matrices as PNG files. Needs matplotlib, the extra ``plot``.

Dimension key: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_bert.checkpoint import new_file

ANNOTATED_CLASSES = 30  # above it the numbers in the cells of a confusion matrix could not be read
DOTS_PER_INCH = 150
MOST_INCHES = 40  # of a side: a matrix of hundreds of classes stays a file that opens


def require_matplotlib() -> None:
    """Say at once that pictures cannot be drawn here.

    Raises:
        ImportError: matplotlib is missing.
    """
    _figure(1.0, 1.0)


def confusion_png(matrix: Any, names: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix; a cell's shade is its part of the row, its number the count.

    Args:
        matrix: counts ``(C, C)``, rows true and columns predicted classes.
        names: of the C classes.
        path: the PNG file; written completely or not at all.

    Returns:
        The path.

    Raises:
        ValueError: not a square matrix of counts, or another number of names.
        FileNotFoundError: no such folder.
        ImportError: matplotlib is missing.
    """
    return _save(_confusion_figure(matrix, names), path)


def _confusion_figure(matrix: Any, names: Sequence[str]) -> Any:
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size or counts.dtype.kind not in "iuf":
        raise ValueError(
            f"[plots] expected a square matrix of counts but got shape {counts.shape}, {counts.dtype}. "
            "Give confusion_matrix(true, predicted)."
        )
    if (counts < 0).any() or not np.isfinite(counts).all():
        raise ValueError("[plots] expected counts of 0 or more but got others. Give confusion_matrix(true, predicted).")
    if len(names) != len(counts):
        raise ValueError(f"[plots] expected {len(counts)} names for {len(counts)} classes but got {len(names)}.")
    size = len(counts)
    annotated = size <= ANNOTATED_CLASSES
    longest = min(max(len(str(name)) for name in names), 40)
    side = min(2.5 + size * (0.55 if annotated else 0.2) + 0.08 * longest, MOST_INCHES)
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="part of the true class", fraction=0.046)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    font = 9 if annotated else 6
    axes.set_xticks(range(size), [_label(name) for name in names], rotation=90, fontsize=font)
    axes.set_yticks(range(size), [_label(name) for name in names], fontsize=font)
    if annotated:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def curves_png(history: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path:
    """Draw a run's curves over its updates: losses, learning rate, and the metrics of each evaluation.

    Args:
        history: what ``history.json`` holds: ``steps`` and ``epochs``, lists of records.
        path: the PNG file; written completely or not at all.

    Returns:
        The path.

    Raises:
        ValueError: a history without any record.
        FileNotFoundError: no such folder.
        ImportError: matplotlib is missing.
    """
    panels = curves(history)
    figure = _figure(6.0 * len(panels), 4.2)
    for place, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, (steps, values) in lines.items():
            axes.plot(steps, values, marker="." if len(steps) < 60 else None, label=_label(name), linewidth=1.2)
        axes.set_title(title)
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=8)
    return _save(figure, path)


Line = tuple[list[int], list[float]]


def curves(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Line]]:
    """The lines of :func:`curves_png`: panel title -> name -> updates and values. Empty panels are left out.

    Metrics within [-1, 1] share a panel; each other one (errors in the units of the labels) has its own.
    """
    steps, evaluations = history.get("steps", ()), history.get("epochs", ())
    names = dict.fromkeys(name for record in evaluations for name in record if name.startswith("eval_"))
    lines = {name.removeprefix("eval_"): _line(evaluations, name) for name in names}
    loss = {"training": _line(steps, "loss") if steps else _line(evaluations, "train_loss")}
    if "loss" in lines:
        loss["evaluation"] = lines.pop("loss")
    panels = {"loss": loss, "learning rate": {"learning rate": _line(steps or evaluations, "learning_rate")}}
    panels["metrics"] = {name: line for name, line in lines.items() if all(abs(value) <= 1 for value in line[1])}
    panels |= {name: {name: line} for name, line in lines.items() if name not in panels["metrics"]}
    panels = {title: {n: line for n, line in group.items() if line[0]} for title, group in panels.items()}
    panels = {title: group for title, group in panels.items() if group}
    if not panels:
        raise ValueError("[plots] expected records of a training run but got an empty history. Train first.")
    return panels


def _line(records: Sequence[Mapping[str, Any]], name: str) -> Line:
    """Updates and values of the records that have a finite value of this name."""
    points = [(int(r["step"]), float(r[name])) for r in records if r.get(name) is not None and np.isfinite(r[name])]
    return [step for step, _ in points], [value for _, value in points]


def _label(name: Any) -> str:
    """A name as text that fits: shortened, and with ``$`` taken as itself, not as a formula."""
    text = str(name)
    return (text if len(text) <= 40 else f"{text[:39]}…").replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, free of matplotlib's global state and of any display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("[plots] drawing needs matplotlib: pip install 'mlx-bert[plot]'.") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"[plots] {path.parent} is no folder. Make it first, or choose another.")
    with new_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return path
