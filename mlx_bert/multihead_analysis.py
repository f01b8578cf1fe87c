"""Where a classifier is right and wrong on labelled texts: figures, confusions, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def analysis_of(
    names: Sequence[str], examples: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        names: the labels, in the order of their ids.
        examples: dicts with ``text`` and ``label``.
        predictions: for each a dict with ``label`` and ``confidence``.

    Returns:
        ``accuracy``, ``f1`` (macro, over the labels that occur), ``class_metrics`` {label: {precision, recall, f1,
        support}}, ``confusion_matrix`` (true label by predicted label, in the order of ``labels``), ``labels`` and
        ``errors``, the most confident first; rounded to four digits.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    wanted = [example["label"] for example in examples]
    got = [prediction["label"] for prediction in predictions]
    columns = precision_recall_fscore_support(wanted, got, labels=names, zero_division=0)
    errors = [
        {
            "text": example["text"],
            "true_label": example["label"],
            "predicted_label": prediction["label"],
            "confidence": round(prediction["confidence"], 4),
        }
        for example, prediction in zip(examples, predictions, strict=True)
        if example["label"] != prediction["label"]
    ]
    return {
        "accuracy": round(float(accuracy_score(wanted, got)), 4),
        "f1": round(float(f1_score(wanted, got, average="macro", zero_division=0)), 4),
        "class_metrics": {
            name: {
                "precision": round(float(precision), 4),
                "recall": round(float(recall), 4),
                "f1": round(float(f1), 4),
                "support": int(support),
            }
            for name, precision, recall, f1, support in zip(names, *columns, strict=True)
        },
        "confusion_matrix": confusion_matrix(wanted, got, labels=names).tolist(),
        "labels": list(names),
        "errors": sorted(errors, key=lambda error: -error["confidence"]),
    }


def display_report(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print what a training came to: the figures of each task, and of the last part its classes and confusions.

    Args:
        parts: {``"validation"`` or ``"test"``: {task: :func:`analysis_of`}}; without any, nothing is printed.
    """
    if not parts:
        return
    tasks = list(dict.fromkeys(task for found in parts.values() for task in found))
    width = max(map(len, (*tasks, "task")))
    print(f"\n{'task':<{width}}" + "".join(f"  {f'{part} accuracy':>19}  {'macro f1':>8}" for part in parts))
    for task in tasks:
        cells = (found.get(task) for found in parts.values())
        shown = (f"  {own['accuracy']:19.4f}  {own['f1']:8.4f}" if own else f"  {'-':>19}  {'-':>8}" for own in cells)
        print(f"{task:<{width}}" + "".join(shown))
    *_, (part, found) = parts.items()
    print(f"\n{part} data, class by class:", end="")
    display_analysis(found, max_errors=0)


def display_analysis(result: Mapping[str, Mapping[str, Any]], max_errors: int = 10) -> None:
    """Print {task: :func:`analysis_of`}: a table per task, the commonest confusions, the most confident errors."""
    for task, found in result.items():
        width = max(map(len, (*found["labels"], "label")))
        print(f"\n{task}: accuracy {found['accuracy']:.4f}, macro f1 {found['f1']:.4f}")
        print(f"  {'label':<{width}}  precision  recall      f1  support")
        for name, row in found["class_metrics"].items():
            figures = f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['support']:7d}"
            print(f"  {name:<{width}}  {figures}")
        pairs = Counter((error["true_label"], error["predicted_label"]) for error in found["errors"])
        for (true, predicted), count in pairs.most_common(5):
            print(f"  {count} x {true} taken for {predicted}")
        for error in found["errors"][:max_errors]:
            taken = f"{error['confidence']:.2f} {error['predicted_label']}, not {error['true_label']}"
            print(f"  {taken}: {error['text']}")
