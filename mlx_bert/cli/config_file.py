"""Options of a command from a TOML or JSON file, and all options of a run written to one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_FILE = "train_config.json"
NOT_SAVED = ("help", "config", "resume")


def assignment(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` -> name and value; values are numbers, true, false, lists in brackets, or else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE but got {text!r}")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


class Assignments(argparse.Action):
    """Collects ``NAME=VALUE`` options into a dict."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        present = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, {**present, values[0]: values[1]})


class ConfigFile(argparse.Action):
    """Takes the options of a file, except those that the command line gives itself."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        known = {text.lstrip("-"): action for action in parser._actions for text in action.option_strings}
        for name, value in self._read(Path(values)).items():
            action = known.get(name.replace("_", "-"))
            if action is None or action.dest in NOT_SAVED:
                raise argparse.ArgumentError(self, f"{values} has an unknown option {name!r}. Correct its name.")
            if action.choices and value not in action.choices:
                wanted = ", ".join(map(str, action.choices))
                raise argparse.ArgumentError(self, f"expected {name} to be one of {wanted} but got {value!r}.")
            if not _fits(action, value):
                raise argparse.ArgumentError(self, f"{values}: {name} = {value!r} is not what --{name} takes.")
            present = getattr(namespace, action.dest, argparse.SUPPRESS)
            if isinstance(action, Assignments):
                setattr(namespace, action.dest, {**value, **(present or {})})
            # what stands before --config on the command line stays; what comes after it wins by itself
            elif present == action.default:
                setattr(namespace, action.dest, value)

    def _read(self, path: Path) -> Mapping[str, Any]:
        import tomllib

        try:
            text = path.read_text(encoding="utf-8")
            options = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
            raise argparse.ArgumentError(self, f"{path} cannot be read: {error}. Give a TOML or JSON file.") from None
        if not isinstance(options, dict):
            raise argparse.ArgumentError(self, f"{path} cannot be read: expected options by name.")
        return options


def _fits(action: argparse.Action, value: Any) -> bool:
    """Whether a value of a file is of the kind that the option has."""
    if isinstance(action, Assignments):
        return isinstance(value, dict)
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        return isinstance(value, bool)
    if isinstance(value, (bool, dict)):
        return False
    if action.type in (int, float):
        return isinstance(value, (int, action.type))
    return True


def resolved(parser: argparse.ArgumentParser, args: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a run by its name, with the value that it had, defaults too.

    Args:
        parser: the command's.
        args: what it read.
        settings: values by destination that stand for those of ``args``.
    """
    values = {**vars(args), **settings}
    options: dict[str, Any] = {}
    for action in parser._actions:
        name = next((text.lstrip("-") for text in action.option_strings if text.startswith("--")), None)
        value = values.get(action.dest)
        if name and action.dest not in NOT_SAVED and value is not None:
            options[name] = value
    return options
