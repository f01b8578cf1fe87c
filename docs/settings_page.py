"""Writes ``settings.md``, the page of all training settings, from where these are declared.

python docs/settings_page.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlx_bert import joint, mtl_training
from mlx_bert.multihead_config import GROUPS, MultiheadConfig
from mlx_bert.training import compact, few_shot
from mlx_bert.training.args import TrainingArgs

PAGE = Path(__file__).with_name("settings.md")
RECIPES: dict[str, dict[str, Any]] = {
    "few shot": few_shot.DEFAULTS,
    "joint intent and slots": joint.DEFAULTS,
    "sentence MTL": mtl_training.DEFAULTS,
    "compact encoder": compact.DEFAULTS,
}
OPENING = """# Training settings

Made by `python docs/settings_page.py` from the declarations of the settings: change those, not this page.

## Every run

`TrainingArgs` in `mlx_bert.training.args`. On the command line they are options of `mlx-bert train`; in the file of
`--config` the same without the dashes in front. Options of the type bool have an opposite, `--no-...`.
"""
RECIPES_TEXT = """## Recipes

Where a recipe's default is not that of every run. Patience counts only where there are validation data.
"""
MULTIHEAD_TEXT = """## MultiheadClassifier

`MultiheadConfig` in `mlx_bert.multihead`: groups of settings, given as objects or as nested dicts.
"""


def page() -> str:
    """The whole page, Markdown."""
    parts = [OPENING, table(("setting", "option", "type", "default", "meaning"), map(_argument, fields(TrainingArgs)))]
    parts += [RECIPES_TEXT, table(("setting", "every run", *RECIPES), _recipes())]
    parts += [MULTIHEAD_TEXT, _group(MultiheadConfig, set(GROUPS))]
    for name, group in GROUPS.items():
        parts += [f"### {name}\n\n{_plain(inspect.getdoc(group).splitlines()[0])}\n", _group(group)]
    return "\n".join(parts)


def fields(kind: type) -> list[dataclasses.Field]:
    """The fields of a dataclass, in order."""
    return list(dataclasses.fields(kind))


def table(head: Any, rows: Any) -> str:
    """A Markdown table, with a line end."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def meanings(kind: type) -> dict[str, str]:
    """What the ``Attributes`` of a docstring say of each field; several may share an entry, ``one, two: text``."""
    section = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"(?m)^    (?=\w)", section)[1:]
    found = {}
    for entry in entries:
        names, _, text = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), _plain(text).removesuffix("."))
    return found


def _plain(text: str) -> str:
    """Markdown from the marks of a docstring."""
    return re.sub(r":\w+:`(\w+\.)?(\w+)`", r"`\2`", text).replace("``", "`")


def _argument(field: dataclasses.Field) -> list[str]:
    option = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
    return [f"`{field.name}`", f"`{option}`", field.type, _value(field.default), _help(field)]


def _help(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    shown = re.sub(r"\*\S*", r"`\g<0>`", field.metadata["help"])
    return f"{shown}; one of {', '.join(f'`{choice}`' for choice in choices)}" if choices else shown


def _value(value: Any) -> str:
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _recipes() -> list[list[str]]:
    return [
        [f"`{field.name}`", _value(field.default)]
        + ["" if own.get(field.name, field.default) == field.default else _value(own[field.name])
           for own in RECIPES.values()]
        for field in fields(TrainingArgs)
        if any(own.get(field.name, field.default) != field.default for own in RECIPES.values())
    ]  # fmt: skip


def _group(kind: type, without: set[str] = frozenset()) -> str:
    told = meanings(kind)
    rows = [
        [f"`{field.name}`", field.type, _value(_default(field)), told[field.name]]
        for field in fields(kind)
        if field.name not in without
    ]
    return table(("setting", "type", "default", "meaning"), rows)


if __name__ == "__main__":
    PAGE.write_text(page())
