"""The command line: ``python -m convert SOURCE --output DIR``.

Nothing heavy is imported before the arguments are read, so ``--help`` answers at once and on a bare Python.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Convert a BERT-family checkpoint from the Hugging Face Hub, or a local folder, to a folder that mlx-bert loads.

Reads model.safetensors and pytorch_model.bin, in one file or in shards, without PyTorch; .bin files can't run code
here. Keeps task heads, the tokenizer and sentence-transformers' modules. Weights in a floating type also load in
transformers and sentence-transformers as before.
"""
EXAMPLES = """\
examples:
  python -m convert sentence-transformers/all-MiniLM-L6-v2
      download and convert to ./mlx_all-MiniLM-L6-v2
  python -m convert --hf-path BAAI/bge-small-en-v1.5 --mlx-path bge --dtype float16 --verify
      half the size, and everything read back and run before it counts as done
  python -m convert ./my-finetuned-bert --output my-bert-8bit -q
      8-bit weights: a quarter of the size, smallest cosine to float32 about 0.999
  python -m convert roberta-base -q --q-mode mxfp8 --output roberta-mxfp8
      another mode: affine (8 bits, groups of 64), mxfp4 (4/32), mxfp8 (8/32), nvfp4 (4/16)
  python -m convert ./bge-8bit --dequantize --dtype float16 --output bge-float
      back from quantised to floating weights
  python -m convert ./my-finetuned-model --export --output for-transformers
      a fine-tuned model as the ...ForSequenceClassification (or other task class) that transformers loads
  python -m convert BAAI/bge-small-en-v1.5 --output bge --upload-repo me/bge-small-mlx
      convert, write a model card, and put both on the Hub
  python -m convert inspect ./some-model
      what a checkpoint is and whether it would convert, without converting
  python -m convert --list
      the architectures that are supported
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``python -m convert``."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="hub id (owner/name) or local folder")
    parser.add_argument("--hf-path", metavar="SOURCE", help="the same, by name")
    parser.add_argument(
        *("--mlx-path", "--output"), dest="output", metavar="DIR", help="folder to write; must not exist (mlx_<name>)"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the Hub (main)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="type of the weights (as stored); float16 is right for Apple GPUs, and overflow is checked",
    )
    parser.add_argument("--verify", action="store_true", help="read back what was written, compare and run it")
    parser.add_argument(
        "--export",
        action="store_true",
        help="the way back: write a model of mlx-bert as transformers would, one folder per task head",
    )
    parser.add_argument("--upload-repo", metavar="ID", help="then write a model card and upload to this hub id")
    parser.add_argument("--list", action="store_true", help="list the supported architectures and exit")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    group = parser.add_argument_group("quantisation", "Saves memory. Norms, biases, poolers and heads stay floating.")
    group.add_argument("-q", "--quantize", action="store_true", help="quantise the encoder's matrices")
    group.add_argument("--q-mode", choices=("affine", "mxfp4", "mxfp8", "nvfp4"), help="kind of quantisation (affine)")
    group.add_argument("--q-bits", type=int, metavar="N", help="bits of a weight: 2 to 6 or 8 in affine mode (8)")
    group.add_argument("--q-group-size", type=int, metavar="N", help="weights per scale: 32, 64 or 128 in affine (64)")
    group.add_argument(
        "--q-override",
        action="append",
        default=[],
        metavar="REGEX=BITS",
        help="other bits for tensors whose name matches, or 'float'; repeatable. Embeddings have 8 bits at least",
    )
    group.add_argument("--dequantize", action="store_true", help="turn a quantised checkpoint into a floating one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for the user's errors, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["inspect"]:
        return _guarded(_inspect, _inspect_parser().parse_args(argv[1:]))
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list:
        return _guarded(_list, args)
    if args.source and args.hf_path and args.source != args.hf_path:
        parser.error(f"two sources: {args.source} and {args.hf_path}. Give one.")
    args.source = args.source or args.hf_path
    if not args.source:
        parser.error("no source: give a hub id or a folder, e.g. python -m convert BAAI/bge-small-en-v1.5")
    if not args.quantize and (
        args.q_mode or args.q_bits is not None or args.q_group_size is not None or args.q_override
    ):
        parser.error("--q-mode, --q-bits, --q-group-size and --q-override need -q.")
    if args.export:
        if args.quantize or args.dequantize or args.verify or args.revision:
            parser.error("--export goes with --output, --dtype and --upload-repo alone.")
        return _guarded(_export, args)
    return _guarded(_convert, args)


def _convert(args: argparse.Namespace) -> None:
    import mlx_bert  # noqa: F401  (the fast BLAS, before mlx)
    from convert.conversion import convert_checkpoint
    from convert.quantize import Quantization

    quantization = None
    if args.quantize:
        overrides = dict(_override(text) for text in args.q_override)
        quantization = Quantization(args.q_mode or "affine", args.q_bits, args.q_group_size, overrides)
    report = convert_checkpoint(
        args.source,
        args.output,
        dtype=args.dtype,
        revision=args.revision,
        quantization=quantization,
        dequantize=args.dequantize,
        verify=args.verify,
        progress=not args.quiet,
    )
    if not args.quiet:
        print(report)
    if args.upload_repo:
        names = {
            "smallest cosine to the unquantised model": report.cosine,
            "largest change of a logit": report.logit,
        }
        metrics = {name: value for name, value in names.items() if value is not None}
        _upload(report.output, args.source, args.upload_repo, metrics)


def _override(text: str) -> tuple[str, int | None]:
    """``"layer.0=6"`` -> ``("layer.0", 6)``."""
    pattern, sign, bits = text.rpartition("=")
    if not sign or not (bits.isdecimal() or bits == "float"):
        raise ValueError(f"[quantize] expected --q-override REGEX=BITS, or REGEX=float, but got {text!r}.")
    return pattern, None if bits == "float" else int(bits)


def _upload(folder: Path, source: str, repo: str, metrics: dict[str, float]) -> None:
    from convert import hub
    from convert.card import write_card

    write_card(folder, source, repo, metrics)
    print(f"uploaded to {hub.upload(folder, repo)}")


def _export(args: argparse.Namespace) -> None:
    import mlx_bert  # noqa: F401
    from convert.export import export_checkpoint, training_metrics

    output = args.output or f"{args.source.rstrip('/')}-export"
    folders = export_checkpoint(args.source, output, args.dtype)
    for folder in folders:
        print(f"written to {folder}")
        if args.upload_repo:  # a repository for each task
            repo = args.upload_repo if len(folders) == 1 else f"{args.upload_repo}-{folder.name}"
            _upload(folder, args.source, repo, training_metrics(args.source))


def _list(_: argparse.Namespace) -> None:
    import mlx_bert  # noqa: F401
    from mlx_bert.encoders import ENCODERS

    for model_type, module in sorted(ENCODERS.items()):
        print(f"{model_type:16} {(module.__doc__ or '').splitlines()[0]}")


def _inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert inspect",
        description="Say what a checkpoint is, what would load and what would not, without converting it.",
    )
    parser.add_argument("source", metavar="SOURCE", help="hub id (owner/name) or local folder")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the Hub (main)")
    return parser


def _inspect(args: argparse.Namespace) -> int:
    import mlx_bert  # noqa: F401
    from convert.inspection import inspect_checkpoint

    findings = inspect_checkpoint(args.source, args.revision)
    print(findings)
    return 0 if findings.converts else 1


def _guarded(action: Any, args: argparse.Namespace) -> int:
    """Warnings and the user's errors as one line each, without a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            return action(args) or 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that nothing half-written stays
    sys.exit(main())
