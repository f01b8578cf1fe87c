"""Tables of an evaluation: metrics, classes, entities, values, the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_CLASSES = 15  # above it the confusion matrix becomes a list of the commonest confusions


def class_report(predictions: Any, targets: Any, names: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support per class, and the confusion matrix ``[true][predicted]``.

    Args:
        predictions, targets: class ids, as many of each.
        names: of the classes.
    """
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, found, every = np.array(targets).reshape(-1), np.asarray(predictions).astype(int), list(range(len(names)))
    scores = precision_recall_fscore_support(truth, found, labels=every, zero_division=0)
    return {"classes": _per_class(scores, names), "confusion": confusion_matrix(truth, found, labels=every).tolist()}


def label_report(predictions: Any, targets: Any, names: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each label of a multi-label task."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    return _per_class(precision_recall_fscore_support(np.array(targets) > 0, predictions > 0, zero_division=0), names)


def entity_report(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each type of entity: right if type and both ends are.

    Args:
        found, wanted: BIO tags of the words of each text.
    """
    from collections import Counter

    from heads.tagging_metrics import bio_entities

    guesses, truth, hits = Counter(), Counter(), Counter()
    for row, reference in zip(found, wanted, strict=True):
        own, right = set(bio_entities(row)), set(bio_entities(reference))
        for counter, entities in ((guesses, own), (truth, right), (hits, own & right)):
            counter.update(kind for kind, *_ in entities)
    return {
        kind: {
            "precision": hits[kind] / guesses[kind] if guesses[kind] else 0.0,
            "recall": hits[kind] / truth[kind] if truth[kind] else 0.0,
            "f1": 2 * hits[kind] / (guesses[kind] + truth[kind]),
            "support": truth[kind],
        }
        for kind in sorted(guesses | truth)
    }


def value_report(predictions: Any, targets: Any, names: Sequence[str]) -> dict[str, Any]:
    """RMSE, MAE, R2 and Pearson correlation of each target of a regression.

    Args:
        predictions, targets: ``(N, T)``.
        names: of the T targets.
    """
    import numpy as np
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    found, truth = (np.asarray(values, dtype=np.float64).reshape(len(values), -1) for values in (predictions, targets))
    report = {}
    for name, own, right in zip(names, found.T, truth.T, strict=True):
        report[name] = {
            "rmse": float(root_mean_squared_error(right, own)),
            "mae": float(mean_absolute_error(right, own)),
            "r2": float(r2_score(right, own)) if len(own) > 1 else 0.0,
            "pearson": float(np.corrcoef(own, right)[0, 1]) if own.std() > 0 and right.std() > 0 else 0.0,
        }
    return report


def _per_class(scores: Any, names: Sequence[str]) -> dict[str, Any]:
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(names, *scores, strict=True)
    }


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report as tables."""
    print(f"{report['model']} on {report['examples']:,} examples of {report['data']}")
    _print_parts(report)
    for task, own in report.get("tasks", {}).items():
        print(f"\n{task}: {own['examples']:,} examples")
        _print_parts(own)


def _print_parts(report: Mapping[str, Any]) -> None:
    if metrics := report.get("metrics"):
        print()
        width = max(len(name) for name in metrics)
        for name, value in metrics.items():
            print(f"{name:<{width}}  {value:.4f}")
    for part, title in (("classes", "class"), ("entities", "entity"), ("targets", "target")):
        if rows := report.get(part):
            print_rows(rows, title)
    if confusion := report.get("confusion"):
        _print_confusion(confusion, list(report["classes"]))


def print_rows(rows: Mapping[str, Mapping[str, float]], title: str) -> None:
    """A table of a row per name; counts are whole numbers."""
    columns = list(next(iter(rows.values())))
    width = max(len(title), *(len(name) for name in rows))
    print(f"\n{title:<{width}}" + "".join(f"  {name:>{7 if name == 'support' else 9}}" for name in columns))
    for name, row in rows.items():
        cells = "".join(f"  {v:>7}" if column == "support" else f"  {v:>9.4f}" for column, v in row.items())
        print(f"{name:<{width}}{cells}")


def _print_confusion(confusion: list[list[int]], names: list[str]) -> None:
    if len(names) <= SHOWN_CLASSES:
        width, cell = max(len(name) for name in names), max(4, *(len(str(n)) for row in confusion for n in row))
        print("\nconfusion matrix: rows are true, columns predicted, numbered as the rows")
        print(" " * (width + 4) + "".join(f"  {number:>{cell}}" for number in range(1, len(names) + 1)))
        for number, (name, row) in enumerate(zip(names, confusion, strict=True), 1):
            print(f"{number:>2}  {name:<{width}}" + "".join(f"  {count:>{cell}}" for count in row))
        return
    pairs = [
        (count, true, found) for true, row in enumerate(confusion) for found, count in enumerate(row) if true != found
    ]
    print("\ncommonest confusions (true -> predicted)")
    for count, true, found in sorted(pairs, key=lambda pair: -pair[0])[:SHOWN_CLASSES]:
        if count:
            print(f"{count:>5}  {names[true]} -> {names[found]}")
