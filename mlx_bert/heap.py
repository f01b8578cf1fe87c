"""Memory that the C library keeps for MLX's CPU backend on Linux.

MLX takes each result's memory from ``malloc`` and gives it back at once. glibc asks the kernel for large pieces and
returns them, so that every result begins with page faults: they cost more than an elementwise kernel, and threads that
fault at the same time wait for each other (GELU on two streams ran no faster than on one). Here glibc keeps what was
freed, up to ``KEPT`` bytes, and hands it out again. macOS and other C libraries are left as they are.

Set ``MLX_BERT_HEAP=0`` to switch it off.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "MLX_BERT_HEAP"
KEPT = 2**31 - 1  # bytes at the top of the heap; what is free beyond goes back to the system

# Parameters of mallopt(3), and glibc's defaults for them.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
DEFAULTS = {TRIM_THRESHOLD: 128 << 10, TOP_PAD: 0, MMAP_MAX: 65536}
KEEP = {TRIM_THRESHOLD: KEPT, TOP_PAD: 16 << 20, MMAP_MAX: 0}


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next results. Returns whether it does."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    if os.environ.get(SWITCH, "1").lower() in {"0", "off", "false", "no"}:
        return False
    return _set(KEEP)


@contextmanager
def as_installed() -> Iterator[None]:
    """The C library's own behaviour for a while: to measure what keeping memory brings."""
    if not kept:
        yield
        return
    _set(DEFAULTS)
    try:
        yield
    finally:
        _set(KEEP)


def _set(options: dict[int, int]) -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(name, value) for name, value in options.items()]  # all of them, whatever the first says
    return all(result == 1 for result in done)


kept = keep_freed_memory()
