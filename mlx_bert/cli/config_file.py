"""Options of a command from a TOML or JSON file, and all options of a run written to one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
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


def read_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Make the options in the files of ``--config`` the defaults of a parser that has it.

    What the command line gives then wins wherever it stands, also where it gives the parser's own default. Of several
    files the later wins.

    Args:
        parser: the command's; the program stops with its usage for a file that cannot be used.
        argv: the command line.
    """
    if "--config" not in parser._option_string_actions:
        return
    only = argparse.ArgumentParser(prog=parser.prog, add_help=False, usage=argparse.SUPPRESS, exit_on_error=False)
    only.add_argument("--config", action="append", default=[])
    try:
        files = only.parse_known_args(argv)[0].config
    except argparse.ArgumentError:  # no file after it: the parser itself says so
        return
    known = {text.lstrip("-"): action for action in parser._actions for text in action.option_strings}
    for file in files:
        try:
            options = _read(Path(file))
            for name, value in options.items():
                action = known.get(name.replace("_", "-"))
                _check(file, name, value, action)
                if isinstance(action, Assignments):
                    value = {**(parser.get_default(action.dest) or {}), **value}
                parser.set_defaults(**{action.dest: value})
        except ValueError as error:
            parser.error(f"argument --config: {error}")


def _check(file: str, name: str, value: Any, action: argparse.Action | None) -> None:
    if action is None or action.dest in NOT_SAVED:
        raise ValueError(f"{file} has an unknown option {name!r}. Correct its name.")
    if action.choices and value not in action.choices:
        wanted = ", ".join(map(str, action.choices))
        raise ValueError(f"expected {name} to be one of {wanted} but got {value!r}.")
    if not _fits(action, value):
        raise ValueError(f"{file}: {name} = {value!r} is not what --{name} takes.")


def _read(path: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        options = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Give a TOML or JSON file.") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path} cannot be read: expected options by name.")
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
