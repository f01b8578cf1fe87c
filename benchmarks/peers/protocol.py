"""What the scripts of this folder share; see the package's docstring. Only the standard library and numpy."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

Inputs = list[str] | list[list[int]]


class Engine(NamedTuple):
    """A loaded peer. ``encode`` gives float32 ``(N, D)`` in the order of its inputs."""

    encode: Callable[[Inputs], Any]
    about: dict[str, Any]


def serve(load: Callable[[argparse.Namespace], Engine]) -> None:
    """Run the protocol for the engine that ``load`` gives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument("--sort", action="store_true")
    parser.add_argument("--onnx", default=None)
    args = parser.parse_args()
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print what they like
    sys.path.pop(0)  # this folder: its files have the names of the libraries that they import

    asked = commands()

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines)

    try:
        import numpy as np

        inputs = json.loads(Path(args.texts).read_text(encoding="utf-8"))
        engine = load(args)
        np.save(args.out, np.asarray(engine.encode(inputs), dtype=np.float32))
        say(ready=True, **engine.about)
        while line := asked.get():
            if line.strip() != "encode":
                raise ValueError(f"[peers] expected the line 'encode' but got {line.strip()!r}.")
            wall, cpu = time.perf_counter(), time.process_time()
            engine.encode(inputs)
            say(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def commands() -> SimpleQueue[str]:
    """The lines of standard input as they come, from a thread that ends the process with the input."""
    queue: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as source:  # unbuffered: no lock that an ending process needs
            for line in source:
                queue.put(line.decode())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return queue


def fast_blas() -> str:
    """Give MLX the BLAS that mlx-bert gives it: before ``mlx.core`` is imported. Returns the name of what is used."""
    path = Path(__file__).resolve().parents[2] / "mlx_bert" / "blas.py"
    spec = importlib.util.spec_from_file_location("mlx_bert_blas", path)
    blas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blas)
    return blas.enable()


def in_batches(inputs: Inputs, batch_size: int, sort: bool, forward: Callable[[Sequence[Any]], Any]) -> Any:
    """``forward`` over batches, as the inputs come or the longest first, put together in the inputs' order."""
    import numpy as np

    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i])) if sort else list(range(len(inputs)))
    result = None
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        part = np.asarray(forward([inputs[i] for i in chosen]))
        if result is None:
            result = np.empty((len(inputs), part.shape[1]), dtype=np.float32)
        result[chosen] = part
    return result


def pools_first_token(folder: str) -> bool:
    """Whether a sentence-transformers folder takes the first token's state; otherwise the mean, as most do.

    Raises:
        ValueError: another pooling, which the runners here do not have.
    """
    config = Path(folder) / "1_Pooling" / "config.json"
    if not config.is_file():
        return False
    settings = json.loads(config.read_text(encoding="utf-8"))
    modes = {name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True}
    if mode := settings.get("pooling_mode"):
        modes = {f"pooling_mode_{mode}_token" if mode == "cls" else f"pooling_mode_{mode}_tokens"}
    if modes <= {"pooling_mode_cls_token"} and modes:
        return True
    if modes <= {"pooling_mode_mean_tokens"}:
        return False
    raise ValueError(f"[peers] expected mean or first-token pooling but {config} has {sorted(modes)}.")
