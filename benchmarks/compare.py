"""Against others, and against ourselves with one optimisation switched off: same weights, texts and process.

Outputs are checked equal first; then every engine runs once a round, and what counts is the median of the ratios
within the rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from benchmarks import report
from benchmarks.corpus import ragged_texts
from benchmarks.models import find_model, label
from benchmarks.timing import interleaved, ratios
from mlx_bert.encoders import cpu
from mlx_bert.inference import batching
from mlx_bert.inference.encode import SentenceEncoder

CLOSE = 0.9999  # least cosine between two engines' embeddings of a text

Engine = Callable[[], np.ndarray]


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--texts", type=int, default=256, metavar="N", help="texts of the ragged corpus (default: 256)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="as for encode (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--peer", action="append", choices=("sentence-transformers", "none"), default=None,
                        help="whom to compare with (default: sentence-transformers, if installed)")  # fmt: skip


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    folder = find_model(args.model)
    encoder = SentenceEncoder.from_pretrained(folder, dtype=args.dtype)
    texts = ragged_texts(args.texts)
    engines = ours(encoder, texts, args.batch_size)
    note = None
    if "none" not in (args.peer or []):
        try:
            engines["sentence-transformers"] = sentence_transformers(folder, texts, args.batch_size)
        except ImportError:
            note = "sentence-transformers is not installed: compared with ourselves only."
    check_equal({name: engine() for name, engine in engines.items()})
    taken = interleaved(engines, args.rounds, warmup=0)
    rows = []
    for name, each in taken.items():
        against = ratios(each, taken["mlx-bert"])
        rows.append(
            {
                "engine": name,
                "seconds": statistics.median(each),
                "texts/s": len(texts) / statistics.median(each),
                "mlx-bert is faster by": against["median"],
                "least": against["min"],
                "most": against["max"],
            }
        )
    settings = {"model": label(args.model), "dtype": args.dtype or "as loaded", "texts": len(texts)}
    return report.build("compare", settings | {"batch_size": args.batch_size}, rows, note=note)


def ours(encoder: SentenceEncoder, texts: Sequence[str], batch_size: int) -> dict[str, Engine]:
    """The encoder as it is, and with each optimisation off in turn."""

    def run(*off: Callable[[], Any]) -> Engine:
        def engine() -> np.ndarray:
            with ExitStack() as stack:
                for switch in off:
                    stack.enter_context(switch())
                return encoder.encode(texts, batch_size, show_progress_bar=False)

        return engine

    engines = {"mlx-bert": run()}
    if mx.default_device().type == mx.DeviceType.cpu:
        engines["without CPU GELU and softmax"] = run(lambda: mock.patch.object(cpu, "suits", return_value=False))
        engines["on one CPU stream, one core"] = run(one_stream)
    engines["unsorted, as they come"] = lambda: unsorted(encoder, texts, batch_size)
    return engines


@contextmanager
def one_stream() -> Iterator[None]:
    """All batches on the default stream."""
    streams = [mx.default_stream(mx.default_device())]
    with mock.patch.object(batching, "compute_streams", return_value=streams):
        yield


def unsorted(encoder: SentenceEncoder, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """Batches of ``batch_size`` texts in the order given, each padded to its longest, one after the other."""
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = encoder.tokenizer(texts[start : start + batch_size], max_length=encoder.max_seq_length)
        parts.append(np.asarray(encoder(batch)["sentence_embedding"]))
    return np.concatenate(parts)


def sentence_transformers(folder: str, texts: Sequence[str], batch_size: int) -> Engine:
    """sentence-transformers on torch, with all the cores that torch takes."""
    import torch
    from sentence_transformers import SentenceTransformer

    device = "mps" if torch.backends.mps.is_available() else "cpu"
    model = SentenceTransformer(folder, device=device)
    return lambda: model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)


def check_equal(outputs: dict[str, np.ndarray]) -> None:
    """Refuse to time engines that do not compute the same.

    Raises:
        ValueError: an engine whose embeddings differ.
    """
    reference = next(iter(outputs.values()))
    for name, output in outputs.items():
        lengths = np.linalg.norm(output, axis=1) * np.linalg.norm(reference, axis=1)
        least = float(((output * reference).sum(axis=1) / lengths).min())
        if not least >= CLOSE:
            raise ValueError(f"[benchmarks] expected {name} to agree (cosine >= {CLOSE}) but the least is {least:.6f}.")
