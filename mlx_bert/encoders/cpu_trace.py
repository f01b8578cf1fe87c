"""Compiled functions while gradients are traced, on MLX's CPU backend.

``mx.compile`` inlines a function whose arguments are being differentiated (mlx 0.32.4): each of its operations becomes
a pass over memory of its own, several times slower than the one kernel that it is elsewhere. Its tracing is a matter of
the thread, so a function that brings its own derivative can be built in another thread and stay compiled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

_own = threading.local()
_builder = ThreadPoolExecutor(1, thread_name_prefix="mlx-bert-trace")  # its thread starts with the first use


@contextmanager
def gradients_traced() -> Iterator[None]:
    """Gradients are traced meanwhile in this thread, and no ``mx.vmap``: what is built apart has none."""
    before = is_traced()
    _own.traced = True
    try:
        yield
    finally:
        _own.traced = before


def is_traced() -> bool:
    """Whether :func:`gradients_traced` lasts in this thread."""
    return getattr(_own, "traced", False)


def apart(function: Callable[..., Any], *arrays: mx.array) -> Any:
    """``function(*arrays)``, under :func:`gradients_traced` built where its compiled parts stay compiled.

    Its derivative is MLX's own of what it computes, which is slow: bring a better one with ``mx.custom_function``.

    Args:
        function: returns an array or several. It must not draw random numbers: each thread has its own.
        arrays: all that it depends on.
    """
    if not is_traced():
        return function(*arrays)
    stream = mx.default_stream(mx.default_device())

    @mx.custom_function
    def built(*arrays: mx.array) -> Any:
        return _builder.submit(_build, stream, function, arrays).result()

    @built.vjp
    def derivative(primals: Any, cotangents: Any, _: Any) -> Any:
        return mx.vjp(lambda *arrays: _listed(function(*arrays)), _listed(primals), _listed(cotangents))[1]

    return built(*arrays)


def _build(stream: mx.Stream, function: Callable[..., Any], arrays: Sequence[mx.array]) -> Any:
    # Not mx.stream: to restore the thread's own stream afterwards, it would first have to start that one's thread.
    mx.set_default_device(stream.device)
    mx.set_default_stream(stream)
    try:
        return function(*arrays)
    finally:
        mx.clear_streams()  # any that came into being in this thread: left over, they abort the process as it ends


def _listed(arrays: mx.array | Sequence[mx.array]) -> list[mx.array]:
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)
