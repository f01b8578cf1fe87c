"""The options of a pipeline's calls: given with each call, or once for all when the pipeline is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import wraps
from inspect import signature
from typing import Any

TOKENIZER_KWARGS = ("tokenizer_kwargs", "tokenize_kwargs")  # transformers spells it either way
TOKENIZER_OPTIONS = ("truncation", "max_length")


def takes_options(call: Callable[..., Any]) -> Callable[..., Any]:
    """Give a pipeline's ``__call__`` the options that the pipeline was made with, where a call has none of its own.

    Beside those that ``call`` names there are ``batch_size``, for one call, and ``tokenizer_kwargs``, a dict of
    ``truncation`` and ``max_length`` as far as ``call`` has them. Others are refused with ValueError.
    """
    own = signature(call)
    _, goes_in, *names = own.parameters  # of self, what is predicted for, and the options

    @wraps(call)
    def run(self: Any, *args: Any, **options: Any) -> Any:
        options, inputs = dict(options), {}
        if goes_in in options:
            inputs = {goes_in: options.pop(goes_in)}
        options = checked_options(self, options, names)
        if "batch_size" in (merged := {**self.options, **options}):
            self = copy(self)  # calls in other threads, and iterators that are not read yet, keep their own
            self.batch_size = merged.pop("batch_size")
        placed = own.bind_partial(self, *args).arguments
        twice = [name for name in options if name in placed]
        if twice:
            raise TypeError(f"{type(self).__name__}() got multiple values for argument {twice[0]!r}")
        return call(self, *args, **inputs, **{name: value for name, value in merged.items() if name not in placed})

    run.option_names = names
    return run


def checked_options(pipe: Any, options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Options of a pipeline by name, what stands in ``tokenizer_kwargs`` among them.

    Raises:
        ValueError: one that the pipeline does not have.
    """
    names = list(names)
    given = {name: value for name, value in options.items() if name not in TOKENIZER_KWARGS}
    for key in TOKENIZER_KWARGS:
        inner = options.get(key) or {}
        mine = [name for name in TOKENIZER_OPTIONS if name in names]
        if unknown := sorted(set(inner) - set(mine)):
            raise ValueError(
                f"[pipeline] expected {key} among {', '.join(mine) or 'none'} for {type(pipe).__name__} but got "
                f"{', '.join(unknown)}. Leave it out."
            )
        given = {**inner, **given}
    if unknown := sorted(set(given) - {*names, "batch_size"}):
        raise ValueError(
            f"[pipeline] expected options among {', '.join([*names, 'batch_size', TOKENIZER_KWARGS[0]])} for "
            f"{type(pipe).__name__} but got {', '.join(unknown)}. Leave it out."
        )
    return given
