"""What models trained with this package reach on real text, beside figures of others for the same data.

Each recipe trains on ``train.jsonl`` of its data set, chooses its best weights on ``validation.jsonl`` and reports
``test.jsonl`` (sets without one report validation). Rows are kept as they come: a stored result is extended, so that
an interrupted run loses nothing and a single recipe can be run again.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks import report
from benchmarks.accuracy_data import LAYOUT, Context, Recipe
from benchmarks.accuracy_recipes import RECIPES
from benchmarks.models import find_model, label

KEY = ("data", "recipe", "figure")


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the data sets, laid out as below")
    parser.add_argument("--only", metavar="NAMES", help="recipes, joined by commas (default: all whose data is there)")
    parser.add_argument("--limit", type=int, metavar="N", help="take N rows of every file, to try things")
    sets = "\n".join(f"  {name + '/':<16} {fields}" for name, fields in LAYOUT.items())
    recipes = "\n".join(f"  {name:<16} {recipe.what} ({', '.join(recipe.data)})" for name, recipe in RECIPES.items())
    parser.epilog = (
        "FOLDER has a folder for each data set, with train.jsonl, validation.jsonl and test.jsonl (where there is one),"
        f" a JSON object per line:\n{sets}\n\nrecipes:\n{recipes}"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train, measure and return the result; each recipe's rows are stored at once where a result is kept."""
    chosen = choose(args.only, args.data)
    model = find_model(args.model)
    settings = {"model": label(args.model), "dtype": args.dtype or "float32", "limit": args.limit}
    result = report.build("accuracy", settings, [])
    path = args.output or (report.default_path(result) if args.save else None)
    if path is not None and path.is_file():
        result["rows"] = report.load(path)["rows"]
    for name in chosen:
        found = run(name, RECIPES[name], model, args)
        print(report.table(found), end="\n\n", flush=True)
        result = report.build("accuracy", settings, merged(result["rows"], found))
        result["command"] = result["command"].replace(str(args.data), "FOLDER")  # no paths of this machine
        if path is not None:
            report.save(result, path)
    return result


def choose(only: str | None, data: Path) -> list[str]:
    """The recipes to run.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: the data of a recipe asked for is not there, or that of all.
    """
    names = [name.strip() for name in only.split(",")] if only else list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        raise ValueError(f"[accuracy] expected recipes of {', '.join(RECIPES)} but got {', '.join(unknown)}.")
    lacking = {
        name: [part for part in RECIPES[name].data if not (data / part / "train.jsonl").is_file()] for name in names
    }
    present = [name for name in names if not lacking[name]]
    if (only and present != names) or not present:
        files = dict.fromkeys(f"{part}/train.jsonl" for parts in lacking.values() for part in parts)
        raise FileNotFoundError(
            f"[accuracy] expected {', '.join(files)} in {data} but they are not "
            "there. See python -m benchmarks accuracy --help for the layout."
        )
    return present


def run(name: str, recipe: Recipe, model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one recipe."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        context = Context(model, args.data, Path(folder), args.dtype or "float32", args.limit)
        figures = recipe.run(context)
    seconds, peak = time.perf_counter() - started, mx.get_peak_memory() / 1e6
    date = datetime.now(UTC).isoformat(timespec="minutes")
    return [
        {
            "data": figure.data,
            "recipe": name,
            "how": figure.how or recipe.what,
            "figure": figure.name,
            "reached": figure.value,
            "reference": figure.reference,
            "reference is": figure.source,
            "seconds": seconds,
            "peak MB": peak,
            "date": date,
        }
        for figure in figures
    ]


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old rows with those replaced that are measured anew, in place; other new rows follow."""
    fresh = {tuple(row[key] for key in KEY): row for row in new}
    rows = [fresh.pop(tuple(row[key] for key in KEY), row) for row in old]
    return [*rows, *fresh.values()]
