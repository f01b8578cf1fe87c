"""From many texts to few well-filled batches, with tokenising, copying and computing at the same time.

Texts are sorted by length, tokenised in windows one ahead of the device, cut into batches by a token budget, and
evaluated once per batch. Callers get results in the order of the batches, with the places they belong to.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers import Encoding
from tqdm.auto import tqdm

from mlx_bert import blas
from mlx_bert.encoders import cpu
from mlx_bert.tokenizer import Batch, Tokenizer

TOKENS_PER_TEXT = 128  # one of batch_size texts is taken to be this long: the budget is batch_size times it
CPU_BUDGET = 1024  # tokens of a batch on a CPU: what it computes with stays in the caches, and the cores end together
WINDOW_BATCHES = 16  # batches tokenised at a time, at most: a larger window pads less
FIRST_BATCHES = 2  # of the first window, which nothing is computed beside; each has twice as many as the one before
BUCKET = 8  # rows are padded to a multiple of this many tokens
GPU_BUCKET = 32  # the same on a GPU: fewer shapes, whose compiled graphs (mlx_bert/graphs.py) come again
MAX_STREAMS = 8  # each has a batch in memory
CACHE_LIMIT = 1 << 30  # bytes of freed buffers that MLX may hoard during a job; its own default is most of the RAM

_own = threading.local()  # MLX streams belong to the thread that made them
_worker: Worker | None = None
_worker_lock = threading.Lock()
_device = threading.RLock()
_cache_lock = threading.Lock()
_limits: list[int] = []  # of the jobs that run now
_limit_before = 0  # MLX's own, to be put back


class Worker(threading.Thread):
    """The thread that builds and evaluates batches for all threads but the main one.

    Any number of threads may use a model: they take turns. Each thread that touches MLX gets streams, with threads
    of their own, that outlive it and end the process with an abort unless they are cleared; this one clears its own.
    """

    def __init__(self) -> None:
        super().__init__(name="mlx-bert-device", daemon=True)
        self._calls: SimpleQueue[tuple[Future, Callable[[], Any]] | None] = SimpleQueue()
        self.start()
        atexit.register(self.stop)

    def run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del item, future, call
        mx.synchronize()
        mx.clear_streams()

    def do(self, call: Callable[[], Any]) -> Any:
        """Run ``call`` there, and wait for it."""
        future: Future = Future()
        self._calls.put((future, call))
        return future.result()

    def stop(self) -> None:
        """At the end of the process."""
        self._calls.put(None)
        self.join()


def on_device(call: Callable[[], Any]) -> Any:
    """Run ``call`` while no other batch is built or evaluated: here in the main thread, else in the worker's.

    (The main thread may hold weights that are not evaluated yet: only the thread that made such an array can do it.)
    """
    global _worker
    if threading.current_thread() is _worker:
        return call()
    if _is_main():
        with _device:
            return call()
    with _worker_lock:
        if _worker is None:
            _worker = Worker()
    device = mx.default_device()

    def turn() -> Any:
        if mx.default_device() != device:
            mx.set_default_device(device)
        with _device:
            return call()

    return _worker.do(turn)


def compute(call: Callable[..., Any], *inputs: Any) -> Any:
    """``call(*inputs)`` on the device, for inputs of a caller in any thread and results that go back to it.

    Outside the main thread arrays are evaluated before they change hands: only the thread that made them can do it.
    """
    if _is_main():
        return on_device(partial(call, *inputs))
    mx.eval(_arrays(inputs))

    def run() -> Any:
        result = call(*inputs)
        mx.eval(_arrays(result))
        return result

    return on_device(run)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def plan_batches(lengths: Sequence[int], token_budget: int, bucket: int = BUCKET) -> list[list[int]]:
    """Cut texts into batches of similar length.

    A batch holds at most ``token_budget`` tokens, padding included (but at least one text). It closes early when it is
    a quarter full and the next text would be padded by more than a quarter of the batch's length.

    Args:
        lengths: tokens of each text.
        token_budget: the largest ``B * L``.
        bucket: ``L`` is a multiple of this.

    Returns:
        Indices into ``lengths``, the longest texts first; every index once.

    >>> plan_batches([3, 64, 5], token_budget=64)
    [[1], [2, 0]]
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = round_up(lengths[index], bucket)
        tokens = width * len(batches[-1]) if batches else 0
        wasteful = length < 0.75 * width and tokens >= token_budget / 4
        if not batches or wasteful or tokens + width > token_budget:
            batches.append([])
            width = length
        batches[-1].append(index)
    return batches


def round_up(length: int, bucket: int) -> int:
    """The next multiple of ``bucket``, at least one."""
    return max(1, -(-length // bucket)) * bucket


def token_budget(batch_size: int) -> int:
    """Tokens of a batch for a ``batch_size``, which a CPU takes as a bound only."""
    budget = batch_size * TOKENS_PER_TEXT
    return min(budget, CPU_BUDGET) if mx.default_device() == mx.Device(mx.cpu) else budget


def bucket_size() -> int:
    """The number of tokens that rows are padded to a multiple of."""
    return BUCKET if mx.default_device() == mx.Device(mx.cpu) else GPU_BUCKET


def compute_streams() -> list[mx.Stream]:
    """Where batches run, in turn.

    A CPU stream is one thread, and most CPU kernels use one core: a stream for each core, with one thread for each
    matrix product. A GPU runs one batch at a time, on the default stream.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return [mx.default_stream(mx.default_device())]
    if not hasattr(_own, "streams"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        others = range(1, min(cores, MAX_STREAMS))
        _own.streams = [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in others)]
    return _own.streams


@contextmanager
def bounded_cache(limit: int = CACHE_LIMIT) -> Iterator[None]:
    """Bound the freed buffers that MLX keeps, in bytes.

    The limit is the process's: of several users at a time the lowest bound counts, and the last puts the old one back.
    """
    global _limit_before
    with _cache_lock:
        if not _limits:
            _limit_before = mx.set_cache_limit(limit)
        _limits.append(limit)
        mx.set_cache_limit(min(_limit_before, *_limits))
    try:
        yield
    finally:
        with _cache_lock:
            _limits.remove(limit)
            mx.set_cache_limit(min(_limit_before, *_limits) if _limits else _limit_before)


def run_batches(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    forward: Callable[[Batch, list[Encoding]], Any],
    *,
    model: nn.Module | None = None,
    pairs: Sequence[str] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    progress: tqdm | None = None,
) -> Iterator[tuple[list[int], Any]]:
    """Tokenise and run ``forward`` over all texts.

    Args:
        texts: any number of strings; ``pairs`` the second text of each, if there are two.
        model: what ``forward`` runs; a message about its numbers then says which type they are in.
        tokenizer: see :class:`mlx_bert.tokenizer.Tokenizer`.
        forward: a padded batch and its encodings to arrays, not yet evaluated (any tree of lists and dicts).
        batch_size: a batch holds as many tokens as this many texts of 128: more texts when they are shorter, fewer when
            they are longer. On a CPU never more than :data:`CPU_BUDGET` tokens.
        max_length: longer texts are truncated to this many tokens; None for the tokenizer's bound.
        progress: advanced by the texts of each finished batch.

    Yields:
        The texts' indices in a batch, and what ``forward`` returned, evaluated. The longest texts come first, so that
        memory that does not suffice shows at once.

    Raises:
        ValueError: ``batch_size`` below 1, something that is no text, or a floating result is NaN or infinite: what
            ``forward`` returns has to be finite everywhere, at padded places too.
    """
    if batch_size < 1:
        raise ValueError(f"[encode] expected batch_size of at least 1 but got {batch_size}.")
    for given in (texts, pairs or ()):
        if wrong := [place for place, text in enumerate(given) if not hasattr(text, "__len__")]:
            raise ValueError(f"[encode] expected texts but number {wrong[0]} is {given[wrong[0]]!r:.80}. Remove it.")
    budget, bucket = token_budget(batch_size), bucket_size()
    size = [len(text) for text in texts]
    if pairs is not None:
        size = [first + len(second) for first, second in zip(size, pairs, strict=True)]
    order = sorted(range(len(texts)), key=lambda i: -size[i])

    def tokenise(window: list[int]) -> list[Encoding]:
        second = None if pairs is None else [pairs[i] for i in window]
        return tokenizer.encode([texts[i] for i in window], second, max_length)

    def start(group: list[list[Encoding]]) -> list[tuple[Any, mx.array]]:
        outputs, streams = [], compute_streams()
        with cpu.spread_over(streams) if len(group) == 1 else nullcontext():
            for chosen, stream in zip(group, streams, strict=False):
                with mx.stream(stream):
                    output = forward(tokenizer.pad(chosen, multiple_of=bucket), chosen)
                    outputs.append((output, _is_finite(output)))
        # In one call: MLX queues about 100 operations ahead, fewer than a batch has, and takes them in turn only from
        # what is evaluated together. Batch after batch, the second stream would wait for most of the first batch.
        mx.async_eval([_arrays(output) for output in outputs])  # with each one's check
        return outputs

    windows = list(_windows(order, size, budget))
    with ExitStack() as stack:
        stack.enter_context(bounded_cache())
        pool = stack.enter_context(ThreadPoolExecutor(1)) if len(windows) > 1 else None
        following = None
        flying: deque[list[tuple[list[int], tuple[Any, mx.array]]]] = deque()
        for number, window in enumerate(windows):
            encodings = following.result() if following else tokenise(window)
            following = pool.submit(tokenise, windows[number + 1]) if number + 1 < len(windows) else None
            plan = plan_batches([len(encoding) for encoding in encodings], budget, bucket)
            is_spread = max(map(len, encodings)) >= cpu.SPREAD_FROM
            if number == 0 and (is_spread or len(windows) + len(plan) > 2):  # a short batch alone may have all threads
                stack.enter_context(blas.single_threaded())
            width = on_device(lambda: len(compute_streams()))
            for first in range(0, len(plan), width):
                group = plan[first : first + width]
                outputs = on_device(partial(start, [[encodings[row] for row in rows] for rows in group]))
                places = [[window[row] for row in rows] for rows in group]
                flying.append(list(zip(places, outputs, strict=True)))
                if len(flying) > 1:
                    yield from _land(flying.popleft(), progress, model)
        while flying:
            yield from _land(flying.popleft(), progress, model)


def _windows(order: list[int], size: list[int], token_budget: int) -> Iterator[list[int]]:
    """Cut sorted texts into windows of so many batches of ``token_budget`` tokens, taken as four characters each."""
    window: list[int] = []
    tokens, batches = 0, FIRST_BATCHES
    for index in order:
        window.append(index)
        tokens += size[index] // 4 + 2
        if tokens >= token_budget * batches:
            yield window
            window, tokens, batches = [], 0, min(2 * batches, WINDOW_BATCHES)
    if window:
        yield window


def _arrays(output: Any) -> list[mx.array]:
    return [array for _, array in tree_flatten(output) if isinstance(array, mx.array)]


def _is_finite(output: Any) -> mx.array:
    """Whether all floating numbers are finite: one boolean, which is evaluated with them."""
    floating = [array.reshape(-1) for array in _arrays(output) if mx.issubdtype(array.dtype, mx.floating)]
    return mx.all(mx.isfinite(mx.concatenate(floating))) if floating else mx.array(True)


def _not_finite(model: nn.Module | None) -> ValueError:
    types = {array.dtype for _, array in tree_flatten(model.parameters())} if model is not None else set()
    if mx.float16 in types:
        why = 'float16, whose range its activations leave. Load it with dtype="float32".'
    elif model is not None:
        name = "bfloat16" if mx.bfloat16 in types else "float32"
        why = f"{name}: its weights or the inputs are broken. Convert or train it again."
    else:
        why = 'its type. In float16, load it with dtype="float32"; otherwise its weights or the inputs are broken.'
    return ValueError(f"[inference] expected finite numbers but the model gave NaN or infinity in {why}")


def _land(
    group: list[tuple[list[int], tuple[Any, mx.array]]], progress: tqdm | None, model: nn.Module | None
) -> Iterator[tuple[list[int], Any]]:
    on_device(lambda: mx.eval([_arrays(output) for _, output in group]))
    for indices, (output, is_finite) in group:
        if not is_finite.item():
            raise _not_finite(model)
        if progress is not None:
            progress.update(len(indices))
        yield indices, output
