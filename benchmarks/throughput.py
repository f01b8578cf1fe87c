"""Texts and tokens a second on ragged and on fixed shapes, and what share of the machine that is.

Every round measures the machine's matrix products first; a row's share of the peak is the median of its rounds.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks import report, roofline
from benchmarks.corpus import ragged_texts
from benchmarks.fixed_shapes import in_pieces
from benchmarks.models import (
    ARCHITECTURES,
    add_types,
    chosen_types,
    label,
    load_encoder,
    name_of,
    random_core,
    weight_type,
)
from benchmarks.timing import interleaved
from mlx_bert.core import BertCore
from mlx_bert.inference.batching import run_batches
from mlx_bert.inference.encode import SentenceEncoder

TOKENS = 4096  # of a fixed shape, and of the matrix products that it is held against
LENGTHS = (128, 512, 4096)


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--texts", type=int, default=256, metavar="N", help="texts of the ragged corpus (default: 256)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="as for encode (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds, the median counts (default: 5)")
    add_types(parser)
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES,
        help="a model of this size with made-up weights instead of --model: fixed shapes only",
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row: what runs, on which lengths.

    Attributes:
        what, type: how the row is called.
        call: runs once, evaluated.
        lengths: real tokens of each text.
        operations: that the model needs for them.
        padding: share of padded tokens.
        peak_bytes: most memory during a run.
    """

    what: str
    type: str
    call: Callable[[], Any]
    lengths: Sequence[int]
    operations: int
    padding: float = 0.0
    peak_bytes: int = 0


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    if args.rounds < 1:
        raise ValueError(f"[benchmarks] expected --rounds of at least 1 but got {args.rounds}.")
    cases, dtypes, config = [], {}, None
    for kind in chosen_types(args):
        encoder = None if args.architecture else load_encoder(args.model, None, kind)
        core = random_core(args.architecture, kind) if encoder is None else encoder.core
        config, name = core.config, kind or name_of(weight_type(core))
        dtypes[name] = weight_type(core)
        if encoder is not None:
            cases.append(ragged(encoder, ragged_texts(args.texts), args.batch_size, name))
        cases += [fixed(core, TOKENS // L, L, name) for L in LENGTHS if config.max_tokens >= L]
    cases = [with_memory(case) for case in cases]
    peaks: list[dict[str, float]] = []

    def calibrate() -> None:
        peaks.append({name: roofline.matmul_peak(config, TOKENS, dtype) for name, dtype in dtypes.items()})

    taken = interleaved({(case.what, case.type): case.call for case in cases}, args.rounds, calibrate)
    rows = [row(case, taken[case.what, case.type], [peak[case.type] for peak in peaks]) for case in cases]
    best = max(max(peak.values()) for peak in peaks)
    machine = replace(roofline.measure(config, TOKENS, next(iter(dtypes.values())), 2), matmul_flops=best)
    settings = {"model": args.architecture or label(args.model), "dtype": ", ".join(dtypes)}
    settings |= {"batch_size": args.batch_size, "rounds": args.rounds}
    rounds = [{name: value / 1e9 for name, value in peak.items()} for peak in peaks]
    return report.build("throughput", settings, rows, roofline=asdict(machine), matmul_gflops_of_rounds=rounds)


def ragged(encoder: SentenceEncoder, texts: Sequence[str], batch_size: int, kind: str) -> Case:
    """``encode`` over texts of many lengths, tokenising included."""
    lengths = [len(e) for e in encoder.tokenizer.encode(list(texts), max_length=encoder.max_seq_length)]
    batches = run_batches(
        texts,
        encoder.tokenizer,
        lambda batch, _: batch.input_ids,
        batch_size=batch_size,
        max_length=encoder.max_seq_length,
    )
    padded = sum(ids.size for _, ids in batches)
    return Case(
        f"ragged, {len(texts)} texts",
        kind,
        lambda: encoder.encode(texts, batch_size, show_progress_bar=False),
        lengths,
        roofline.model_flops(encoder.core, lengths),
        1 - sum(lengths) / padded,
    )


def fixed(core: BertCore, batch: int, length: int, kind: str) -> Case:
    """The encoder alone on texts of one length, in the pieces and on the streams that ``encode`` uses; no padding."""
    random = np.random.default_rng(0)
    high = core.config.vocab_size
    ids = mx.array(random.integers(high // 2, high, (batch, length), dtype=np.int32))

    def call() -> None:
        mx.eval(in_pieces(lambda piece: core(piece).last_hidden_state.sum(axis=1), ids))

    lengths = [length] * batch
    return Case(f"{batch} x {length}", kind, call, lengths, roofline.model_flops(core, lengths))


def with_memory(case: Case) -> Case:
    """The case after a first run that does not count, with the memory that it took."""
    mx.clear_cache()
    mx.reset_peak_memory()
    case.call()
    return replace(case, peak_bytes=mx.get_peak_memory())


def row(case: Case, taken: Sequence[float], peaks: Sequence[float]) -> dict[str, Any]:
    """A case's row, from its seconds and the peak of each round."""
    middle = statistics.median(taken)
    shares = roofline.shares_of_peak(case.operations, taken, peaks)
    return {
        "what": case.what,
        "type": case.type,
        "seconds": middle,
        "texts/s": len(case.lengths) / middle,
        "tokens/s": sum(case.lengths) / middle,
        "GFLOP/s": case.operations / middle / 1e9,
        "of peak": statistics.median(shares),
        "least": min(shares),
        "most": max(shares),
        "padding": case.padding,
        "peak MB": case.peak_bytes / 1e6,
    }
