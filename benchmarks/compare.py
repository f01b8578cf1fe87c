"""Against others, and against ourselves with one optimisation switched off: same weights, same texts, same run.

Every engine runs once so that outputs can be checked equal, then once in every round, which measures the machine first.
What counts is the median of the ratios within the rounds. Others run in processes and environments of their own
(:mod:`benchmarks.peers`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from benchmarks import report, roofline
from benchmarks.corpus import ragged_texts
from benchmarks.fixed_shapes import in_pieces
from benchmarks.models import ARCHITECTURES, find_model, label, name_of, random_folder, weight_type
from benchmarks.peers.client import CHOICES, PEERS, Peer, python_of
from benchmarks.timing import interleaved, ratios
from mlx_bert import graphs, heap
from mlx_bert.encoders import cpu, modernbert
from mlx_bert.inference import batching
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.inference.precision import on_gpu
from mlx_bert.tokenizer import Batch

CLOSE = 0.9999  # least cosine between two engines' embeddings of a text
OURS = "mlx-bert"
LARGE = "large batches"

Engine = Callable[[], Any]


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--texts", type=int, default=256, metavar="N", help="texts of the ragged corpus (default: 256)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="as for encode (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument(
        "--peer", nargs="+", choices=(*CHOICES, "none"),
        help="whom to compare with; those not installed are installed into environments of their own (default: all "
        "that are there already)",
    )  # fmt: skip
    parser.add_argument(
        "--shape", type=_shape, metavar="BxL", help="one batch of B rows of L tokens in place of ragged texts"
    )
    parser.add_argument(
        "--no-switches", action="store_true", help="ourselves as we are only, no row with an optimisation switched off"
    )
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES, help="a model of this size with made-up weights instead of --model"
    )


def _shape(text: str) -> tuple[int, int]:
    try:
        rows, length = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected such as 8x512 but got {text!r}") from None
    if min(rows, length) < 1:
        raise argparse.ArgumentTypeError(f"expected positive numbers but got {text!r}")
    return rows, length


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result.

    Raises:
        ValueError: options that do not fit, engines that do not agree, or a result of ours above the peak.
    """
    if args.rounds < 1:
        raise ValueError(f"[benchmarks] expected --rounds of at least 1 but got {args.rounds}.")
    if args.architecture and not args.shape:
        raise ValueError("[benchmarks] expected --shape with --architecture, whose model knows no words.")
    with ExitStack() as stack:
        folder = find_model(args.model)
        if args.architecture:
            folder = random_folder(args.architecture, stack.enter_context(tempfile.TemporaryDirectory()))
        # On a GPU the others compute in the type that is stored.
        encoder = SentenceEncoder.from_pretrained(folder, dtype=args.dtype or ("stored" if on_gpu() else None))
        if args.shape:
            inputs: list[Any] = token_rows(encoder, *args.shape)
            engines = engines_of(encoder, lambda: fixed(encoder, inputs))
            if args.shape[0] == 1:
                del engines[LARGE]  # a row is a batch, however large
            lengths = [args.shape[1]] * args.shape[0]
        else:
            inputs = ragged_texts(args.texts)
            engines = ours(encoder, inputs, args.batch_size)
            lengths = [len(e) for e in encoder.tokenizer.encode(inputs, max_length=encoder.max_seq_length)]
        if args.no_switches:
            engines = {OURS: engines[OURS]}
        outputs = {name: engine() for name, engine in engines.items()}
        about = {}
        for name in chosen_peers(args.peer, fixed=args.shape is not None):
            peer = Peer(name, python_of(PEERS[name][0], install=True), folder, inputs, args.batch_size)
            stack.callback(peer.close)
            engines[name], outputs[name], about[name] = peer, peer.embeddings, peer.about
        check_equal(outputs)
        config, dtype = encoder.core.config, weight_type(encoder.core)
        peaks: list[float] = []
        taken = interleaved(engines, args.rounds, lambda: peaks.append(roofline.matmul_peak(config, dtype=dtype)))
        machine = replace(roofline.measure(config, dtype=dtype, count=2), matmul_flops=max(peaks))
    operations = roofline.model_flops(encoder.core, lengths)
    rows = []
    for name, each in taken.items():
        against = ratios(each, taken[OURS])
        middle = statistics.median(each)
        # Others may compute in another type than the one that was measured: their share is left out then.
        same = name not in about or dtype == mx.float32
        shares = roofline.shares_of_peak(operations, each, peaks) if same else None
        rows.append(
            {
                "engine": name,
                "seconds": middle,
                "texts/s": len(inputs) / middle,
                "GFLOP/s": operations / middle / 1e9,
                "of peak": shares and statistics.median(shares),
                "mlx-bert is faster by": against["median"],
                "least": against["min"],
                "most": against["max"],
            }
        )
    settings = {"model": args.architecture or label(args.model), "dtype": name_of(dtype)}
    settings |= {
        "texts": len(inputs),
        "batch_size": args.batch_size,
        "shape": args.shape and "x".join(map(str, args.shape)),
    }
    note = None if about else "No peer is installed: compared with ourselves only (--peer NAME installs one)."
    return report.build("compare", settings, rows, note=note, peers=about, roofline=asdict(machine))


def chosen_peers(asked: Sequence[str] | None, fixed: bool = False) -> list[str]:
    """The rows for the peers that were asked for; without asking, for those that can run at once.

    Rows of one length cannot be sorted: with ``fixed`` each peer has one row.
    """
    if asked is not None:
        names = [name for name in PEERS if name.split(",")[0] in asked]
    else:
        names = [name for name, (script, _) in PEERS.items() if python_of(script, install=False)]
    first = {PEERS[name][0]: name for name in reversed(names)}
    return [name for name in names if not fixed or first[PEERS[name][0]] == name]


def token_rows(encoder: SentenceEncoder, rows: int, length: int) -> list[list[int]]:
    """Made-up ids: ``rows`` lists of ``length``.

    Raises:
        ValueError: the encoder does not take so many tokens.
    """
    if length > encoder.core.config.max_tokens:
        raise ValueError(f"[benchmarks] expected at most {encoder.core.config.max_tokens} tokens but got {length}.")
    high = encoder.core.config.vocab_size
    return np.random.default_rng(0).integers(high // 4, high // 2, (rows, length)).tolist()


def fixed(encoder: SentenceEncoder, rows: list[list[int]]) -> np.ndarray:
    """The embeddings of rows of ids."""
    return np.asarray(in_pieces(lambda ids: encoder(Batch(ids, None, None))["sentence_embedding"], mx.array(rows)))


def ours(encoder: SentenceEncoder, texts: Sequence[str], batch_size: int) -> dict[str, Engine]:
    """The encoder on texts as it is, and with each optimisation off in turn."""
    engines = engines_of(encoder, lambda: encoder.encode(texts, batch_size, show_progress_bar=False))
    engines["unsorted, as they come"] = lambda: unsorted(encoder, texts, batch_size)
    return engines


def engines_of(encoder: SentenceEncoder, whole: Engine) -> dict[str, Engine]:
    """A call as it is, and with each optimisation off in turn."""

    def run(*off: Callable[[], Any]) -> Engine:
        def engine() -> np.ndarray:
            with ExitStack() as stack:
                for switch in off:
                    stack.enter_context(switch())
                return whole()

        return engine

    engines: dict[str, Engine] = {OURS: run()}
    if heap.kept:
        engines["freed memory returned to the system"] = run(heap.as_installed)
    if mx.default_device().type == mx.DeviceType.cpu:
        engines["without CPU GELU and softmax"] = run(lambda: mock.patch.object(cpu, "suits", return_value=False))
        engines["attention in one piece"] = run(lambda: mock.patch.object(cpu, "TILE", 1 << 62))
        engines[LARGE] = run(lambda: mock.patch.object(batching, "CPU_BUDGET", 1 << 30))
        engines["on one CPU stream"] = run(one_stream)
    other = None if graphs.wanted() else graphs.Graphs(encoder.core.encoder)
    switched = run(lambda: mock.patch.object(encoder.core, "_graphs", other))
    engines["encoder as compiled graphs" if other else "without compiled graphs"] = switched
    for _ in range(2 if other else 0):
        switched()  # shapes are compiled when they come again
    if getattr(encoder.core.config, "local_attention", None):
        engines["local attention among all tokens"] = run(lambda: mock.patch.object(modernbert, "BLOCKS_FROM", 1 << 62))
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
