"""Milliseconds for one text at a time, from short to long: the first call of a process, and the calls after it.

Every round measures the machine's matrix products, then calls at each length; a text this short rarely reaches a
large share of that peak, and none may exceed it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import report, roofline
from benchmarks.models import ARCHITECTURES, add_types, chosen_types, label, load_encoder, name_of, weight_type
from benchmarks.timing import percentile, rounds
from mlx_bert.inference.encode import SentenceEncoder

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
ROOT = Path(__file__).parent.parent
FIRST_CALL = """
import json, sys
import mlx_bert
from benchmarks.models import load_encoder
from benchmarks.timing import seconds

encoder = load_encoder(*json.loads(sys.argv[1]))
encoder.max_seq_length = int(sys.argv[2])
print(seconds(lambda: encoder.encode(sys.argv[3])))
"""


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument(
        "--calls", type=int, default=10, metavar="N", help="timed calls at each length in a round (default: 10)"
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, metavar="TOKENS",
        help="tokens of a text, special ones included (default: 8 to 512, as far as the model goes)",
    )  # fmt: skip
    add_types(parser)
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES, help="a model of this size with made-up weights instead of --model"
    )


@dataclass
class Case:
    """One text in one type of weights.

    Attributes:
        type, tokens: how the row is called.
        operations: that the model needs for the text.
        first: seconds of a new process's first call.
        taken: for each round the seconds of its calls.
    """

    encoder: SentenceEncoder
    type: str
    text: str
    tokens: int
    operations: int
    first: float
    taken: list[list[float]] = field(default_factory=list)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result.

    Raises:
        ValueError: fewer than one round or call, no length that the model takes, or a result above the peak.
    """
    for name in ("rounds", "calls"):
        if getattr(args, name) < 1:
            raise ValueError(f"[benchmarks] expected --{name} of at least 1 but got {getattr(args, name)}.")
    cases: list[Case] = []
    for kind in chosen_types(args):
        model = (args.model, args.architecture, kind)
        encoder = load_encoder(*model)
        bound = encoder.max_seq_length = min(max(args.lengths), encoder.core.config.max_tokens)
        kind = kind or name_of(weight_type(encoder.core))
        for tokens in sorted({length for length in args.lengths if length <= bound}):
            text = text_of(encoder, tokens)
            operations = roofline.model_flops(encoder.core, [tokens])
            cases.append(Case(encoder, kind, text, tokens, operations, first_call(model, bound, text)))
    if not cases:
        raise ValueError(f"[benchmarks] expected --lengths up to {bound}, all that the model takes.")
    dtypes = {case.type: weight_type(case.encoder.core) for case in cases}
    config, peaks = cases[0].encoder.core.config, []
    for _ in range(args.rounds):
        peaks.append({name: roofline.matmul_peak(config, dtype=dtype) for name, dtype in dtypes.items()})
        for case in cases:
            case.taken.append(rounds(lambda case=case: case.encoder.encode(case.text), args.calls))
    rows = [row(case, [peak[case.type] for peak in peaks]) for case in cases]
    best = max(max(peak.values()) for peak in peaks)
    machine = replace(roofline.measure(config, dtype=dtypes[cases[0].type], count=2), matmul_flops=best)
    settings = {"model": args.architecture or label(args.model), "dtype": ", ".join(dtypes), "rounds": args.rounds}
    return report.build("latency", settings | {"calls": args.calls}, rows, roofline=asdict(machine))


def first_call(model: tuple[str | None, str | None, str | None], bound: int, text: str) -> float:
    """Seconds of the first call in a process of its own, whose weights are in memory and nothing else is.

    Args:
        model: what :func:`benchmarks.models.load_encoder` takes.
        bound: ``max_seq_length``.
        text: to encode.
    """
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", FIRST_CALL, json.dumps(model), str(bound), text]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    return float(done.stdout.splitlines()[-1])


def row(case: Case, peaks: list[float]) -> dict[str, Any]:
    """A case's row, from its seconds and the peak of each round."""
    roofline.utilisation(case.operations, min(map(min, case.taken)), max(peaks))
    middles = [statistics.median(each) for each in case.taken]
    every = [each for of_round in case.taken for each in of_round]
    percentiles = {f"p{share}": percentile(every, share / 100) * 1e3 for share in (50, 90, 99)}
    return {
        "tokens": case.tokens,
        "type": case.type,
        "first ms": case.first * 1e3,
        **percentiles,
        "GFLOP/s": case.operations / statistics.median(middles) / 1e9,
        "of peak": statistics.median(roofline.shares_of_peak(case.operations, middles, peaks)),
    }


def text_of(encoder: SentenceEncoder, length: int) -> str:
    """A text of exactly ``length`` tokens, special ones included.

    Raises:
        ValueError: the tokenizer makes none of repeated words.
    """
    for word in ("the", "a", "and"):
        text = " ".join([word] * (length - encoder.tokenizer.fast.num_special_tokens_to_add(False)))
        if len(encoder.tokenizer.encode([text], max_length=encoder.max_seq_length)[0]) == length:
            return text
    raise ValueError(f"[benchmarks] expected a text of {length} tokens but this tokenizer splits every word tried.")
