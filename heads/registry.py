"""The one registry of heads: which exist by name, and which suits a kind of competition best.

`heads/__init__.py` registers the built-in heads in one explicit table; `register_head_class` adds others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from heads.base import BaseKaggleHead
from heads.config import HeadConfig, get_default_config_for_head_type, member_of, resolve_head_type

HEADS: dict[str, type[BaseKaggleHead]] = {}
"""Registry name -> head class, filled by `heads/__init__.py`."""


class CompetitionType(StrEnum):
    """Kinds of competition, for which the registry knows suitable heads."""

    BINARY_CLASSIFICATION = "binary_classification"
    MULTICLASS_CLASSIFICATION = "multiclass_classification"
    MULTILABEL_CLASSIFICATION = "multilabel_classification"
    REGRESSION = "regression"
    ORDINAL_REGRESSION = "ordinal_regression"
    TIME_SERIES = "time_series"
    RANKING = "ranking"
    RECOMMENDATION = "recommendation"


@dataclass(frozen=True)
class HeadEntry:
    """What the registry knows about a head."""

    name: str
    head_class: type[BaseKaggleHead]
    head_type: str
    competition_types: tuple[CompetitionType, ...] = ()
    priority: int = 0
    requirements: frozenset[str] = frozenset()
    description: str = ""


class HeadRegistry:
    """Heads by name, by type and by competition."""

    def __init__(self) -> None:
        self._entries: dict[str, HeadEntry] = {}

    def register(
        self,
        name: str,
        head_class: type[BaseKaggleHead],
        head_type: str | None = None,
        competition_types: Iterable[CompetitionType | str] = (),
        priority: int = 0,
        requirements: Iterable[str] | None = None,
        description: str = "",
    ) -> None:
        """Add a head class.

        Args:
            name: Registry name, unique.
            head_class: A subclass of `BaseKaggleHead`.
            head_type: The `HeadType` that it serves; the name itself by default.
            competition_types: Kinds of competition that it suits.
            priority: Among the heads that suit a competition, the highest is chosen.
            requirements: Capabilities that the head has, for `select_best_head`.
            description: One line for people.

        Raises:
            ValueError: If the name is taken by another class or the class is no head.
        """
        if not (isinstance(head_class, type) and issubclass(head_class, BaseKaggleHead)):
            raise ValueError(
                f"[HeadRegistry] expected a subclass of BaseKaggleHead for {name!r} but got {head_class!r}. Derive it."
            )
        present = self._entries.get(name)
        if present is not None and present.head_class is not head_class:
            raise ValueError(
                f"[HeadRegistry] expected an unused name but got {name!r}, the name of {present.head_class.__name__}. "
                "Choose another name."
            )
        kinds = tuple(member_of(CompetitionType, kind, "HeadRegistry") for kind in competition_types)
        entry = HeadEntry(
            name, head_class, str(head_type or name), kinds, priority, frozenset(requirements or ()), description
        )
        self._entries[name] = entry
        if self is _REGISTRY:
            HEADS[name] = head_class

    def get_entry(self, name: str) -> HeadEntry:
        """Return what is known about a head; ValueError for an unknown name."""
        if name not in self._entries:
            raise ValueError(
                f"[HeadRegistry] expected one of {', '.join(sorted(self._entries))} but got {name!r}. "
                "Choose one of these, or register the class with register_head_class first."
            )
        return self._entries[name]

    def get_head_class(self, name: str) -> type[BaseKaggleHead]:
        """Return the class registered under `name`; ValueError for an unknown name."""
        return self.get_entry(name).head_class

    def get_name(self, head: BaseKaggleHead) -> str:
        """Return the name under which the class of `head` is registered, its own `head_type` if that is one of them."""
        names = [name for name, entry in self._entries.items() if entry.head_class is type(head)]
        if not names:
            raise ValueError(
                f"[HeadRegistry] expected a registered class but got {type(head).__name__}. "
                "Register it with register_head_class, so that a saved model can be loaded."
            )
        return str(head.head_type) if head.head_type in names else names[0]

    def list_heads(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def list_heads_by_type(self, head_type: str) -> list[str]:
        """Return the names of the heads that serve a `HeadType`, sorted."""
        return sorted(name for name, entry in self._entries.items() if entry.head_type == str(head_type))

    def list_heads_by_competition(self, competition_type: CompetitionType | str) -> list[str]:
        """Return the names of the heads that suit a kind of competition, the best first."""
        kind = member_of(CompetitionType, competition_type, "competition_type")
        entries = [entry for entry in self._entries.values() if kind in entry.competition_types]
        return [entry.name for entry in sorted(entries, key=lambda entry: (-entry.priority, entry.name))]

    def select_best_head(
        self,
        competition_type: CompetitionType | str,
        requirements: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> str:
        """Return the name of the head with the highest priority that suits a competition.

        Args:
            competition_type: Kind of competition.
            requirements: Capabilities that the head must have.
            exclude: Names not to consider.

        Raises:
            ValueError: If no registered head fits.
        """
        needed, excluded = set(requirements or ()), set(exclude)
        for name in self.list_heads_by_competition(competition_type):
            if name not in excluded and needed <= self._entries[name].requirements:
                return name
        raise ValueError(
            f"[HeadRegistry] expected a head for {competition_type!s} with {sorted(needed)} beyond {sorted(excluded)} "
            "but got none. Relax the requirements."
        )

    def create_head_from_competition(
        self,
        competition_type: CompetitionType | str,
        input_size: int,
        output_size: int = 2,
        head_name: str | None = None,
        config_overrides: Mapping[str, Any] | None = None,
    ) -> BaseKaggleHead:
        """Build the best head for a competition (or the one called `head_name`) with its recommended options.

        Raises:
            ValueError: For an unknown competition, head, or override.
        """
        overrides = dict(config_overrides or {})
        kind = member_of(CompetitionType, competition_type, "competition_type")
        if head_name is None and kind == CompetitionType.TIME_SERIES:
            head_name = resolve_head_type(kind, output_size, overrides.pop("task", None))
        name = head_name or self.select_best_head(kind)
        entry = self.get_entry(name)
        config = get_default_config_for_head_type(entry.head_type, input_size, output_size, **overrides)
        return entry.head_class(config)


_REGISTRY = HeadRegistry()


def get_head_registry() -> HeadRegistry:
    """Return the registry that `create_head` and the factories read."""
    return _REGISTRY


def register_head_class(
    name: str,
    head_type: str | None = None,
    competition_types: Iterable[CompetitionType | str] = (),
    priority: int = 0,
    requirements: Iterable[str] | None = None,
    description: str = "",
) -> Callable[[type[BaseKaggleHead]], type[BaseKaggleHead]]:
    """Class decorator: register a head; the arguments are those of `HeadRegistry.register`."""

    def register(head_class: type[BaseKaggleHead]) -> type[BaseKaggleHead]:
        _REGISTRY.register(name, head_class, head_type, competition_types, priority, requirements, description)
        return head_class

    return register


def create_head(config: HeadConfig | Mapping[str, Any], **extra: Any) -> BaseKaggleHead:
    """Build the head that a `HeadConfig` (or a mapping of its fields) describes.

    `time_series` resolves to classification or regression by the option `task`, else by `output_size`.

    Example:
        >>> head = create_head(HeadConfig(head_type="multiclass_classification", input_size=384, output_size=3))

    Raises:
        ValueError: For an unknown head type or option.
    """
    config = HeadConfig.of(config)
    name = resolve_head_type(config.head_type, config.output_size, config.extra.get("task"))
    if name != config.head_type:
        options = {key: value for key, value in config.extra.items() if key != "task"}
        config = HeadConfig.from_dict({**config.to_dict(), "head_type": name, "name": None, "extra": options})
    return _REGISTRY.get_head_class(name)(config, **extra)


def create_head_from_competition(
    competition_type: CompetitionType | str,
    input_size: int,
    output_size: int = 2,
    head_name: str | None = None,
    config_overrides: Mapping[str, Any] | None = None,
) -> BaseKaggleHead:
    """Build the best registered head for a competition; see `HeadRegistry.create_head_from_competition`."""
    return _REGISTRY.create_head_from_competition(
        competition_type, input_size, output_size, head_name, config_overrides
    )


def select_best_head(
    competition_type: CompetitionType | str, requirements: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> str:
    """Return the name of the best registered head for a competition; see `HeadRegistry.select_best_head`."""
    return _REGISTRY.select_best_head(competition_type, requirements, exclude)
