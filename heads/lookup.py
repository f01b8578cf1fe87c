"""Find a block by its name and build it, with an error that lists what exists."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def find_by_name(
    registry: Mapping[str, Any], name: str, where: str, unavailable: Mapping[str, str] | None = None
) -> Any:
    """Return ``registry[name]``.

    Args:
        registry: Name to class or function.
        name: Name to look up; case, surrounding spaces and ``-`` for ``_`` do not matter.
        where: What is looked up; it heads the error message.
        unavailable: Known names that are not offered, with the reason.

    Raises:
        ValueError: if no entry has this name.
    """
    # An enum of names, such as PoolingType.MEAN, stands for its value.
    name = getattr(name, "value", name)
    if not isinstance(name, str):
        raise ValueError(f"[{where}] expected a name but got {name!r}. Choose one of: {', '.join(registry)}.")
    key = name.strip().lower().replace("-", "_")
    if key in registry:
        return registry[key]
    reason = (unavailable or {}).get(key, "unknown name")
    raise ValueError(
        f"[{where}] expected an available name but got {name!r} ({reason}). Choose one of: {', '.join(registry)}."
    )


def check_options(
    build: Callable[..., Any], positional: int, name: str, where: str, options: Mapping[str, Any]
) -> None:
    """Raise ValueError if ``build`` has no parameter, beyond its first ``positional`` ones, for an option."""
    if not options:  # reading a signature takes longer than building some blocks
        return
    parameters = list(inspect.signature(build).parameters)[positional:]
    if unknown := sorted(set(options) - set(parameters)):
        accepted = ", ".join(parameters) or "no options"
        raise ValueError(
            f"[{where}] expected options of {name!r} but got {', '.join(unknown)}. It accepts: {accepted}."
        )


def build_by_name(
    registry: Mapping[str, Callable[..., Any]],
    name: str,
    where: str,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    unavailable: Mapping[str, str] | None = None,
) -> Any:
    """Build ``registry[name](*args, **options)``; an option that the block does not have is a ValueError."""
    build = find_by_name(registry, name, where, unavailable)
    check_options(build, len(args), name, where, options)
    return build(*args, **options)
