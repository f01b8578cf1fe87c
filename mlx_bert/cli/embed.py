"""Turn texts into embeddings.

Texts come from the command line, from files, or from standard input, one a line. Embeddings go to a file or, as JSON
lines, to standard output. Files of any size are read and written in bounded memory. An output file appears only when
it is complete; until then, what is done is kept in OUTPUT.partial, and --resume goes on from there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_bert.inference.embedding_files import Part
    from mlx_bert.inference.encode import SentenceEncoder
    from mlx_bert.inference.text_files import Record

EXAMPLES = """examples:
  mlx-bert embed --model minilm "The sun is out." "It is a bright day."
  mlx-bert embed --model minilm --similarity "The sun is out." "It is a bright day." "Cats sleep."
  mlx-bert embed --model minilm --input notes.txt --output notes.npy
  mlx-bert embed --model e5 --input docs/*.jsonl --field body --prompt-name document --output docs.parquet
  mlx-bert embed --model minilm --input items.csv --column title --precision int8 --output items.npy
  cat questions.txt | mlx-bert embed --model minilm --normalize > questions.jsonl

after an interruption, the same with --resume; with several processes or machines:
  mlx-bert embed --model minilm --input docs.parquet --output docs.npy --resume
  mlx.launch -n 2 -- mlx-bert embed --model minilm --input docs.parquet --output docs.npy"""

WINDOW = 4096  # texts read, sorted and batched at a time


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add this verb's options."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed; without any, standard input is read")
    parser.add_argument("--model", "-m", required=True, metavar="MODEL", help="folder of a model, or hub id")
    parser.add_argument("--input", "-i", nargs="+", metavar="FILE",
                        help=".txt (a text a line), .jsonl, .csv, .tsv, .parquet; or folders of them")  # fmt: skip
    parser.add_argument("--field", "--column", dest="column", default="text", metavar="NAME",
                        help="field or column that holds the text (default: text)")  # fmt: skip
    parser.add_argument("--id-column", metavar="NAME",
                        help="field or column of an id to keep (default: id, where every file has it)")  # fmt: skip
    parser.add_argument("--output", "-o", metavar="FILE",
                        help=".npy, .jsonl or .parquet (default: JSON lines to standard output)")  # fmt: skip
    parser.add_argument("--resume", action="store_true",
                        help="go on with what an interrupted run of --input and --output has left")  # fmt: skip
    parser.add_argument("--window", type=int, default=WINDOW, metavar="N",
                        help=f"texts sorted, embedded and kept at a time (default: {WINDOW})")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, metavar="N",
                        help="a batch holds as many tokens as N texts of 128 (default: 32)")  # fmt: skip
    parser.add_argument("--prompt-name", metavar="NAME", help="put this prompt of the model before each text")
    parser.add_argument("--prompt", metavar="TEXT", help="put this before each text")
    parser.add_argument("--normalize", action="store_true", help="scale embeddings to length 1")
    parser.add_argument("--truncate-dim", type=int, metavar="D", help="keep the first D values")
    parser.add_argument("--max-length", type=int, metavar="N", help="truncate texts to N tokens (default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "stored"),
                        help="compute in this type, or as stored (default: float16 on a GPU)")  # fmt: skip
    parser.add_argument("--precision", choices=("float32", "int8", "uint8", "binary", "ubinary"), default="float32",
                        help="bytes or bits for each value of the result (default: float32)")  # fmt: skip
    parser.add_argument("--similarity", action="store_true", help="print a table of similarities between the texts")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser


def main(args: argparse.Namespace) -> int:
    """Embed and write. Raises ValueError or OSError for what the user can mend."""
    from mlx_bert.inference.embedding_files import check_output, quantize_parts, write_embeddings, write_jsonl

    if args.texts and args.input:
        raise ValueError("[embed] expected texts or --input but got both. Leave one out.")
    if args.similarity and (args.precision != "float32" or args.output):
        raise ValueError("[embed] --similarity prints a table: leave out --output and --precision.")
    if args.window < 1:
        raise ValueError(f"[embed] expected a --window of at least 1 but got {args.window}.")
    if args.input and args.output:
        return _run_job(args)
    if args.resume:
        raise ValueError("[embed] --resume goes on with a file: give --input and --output as before.")
    records, total = _records(args)
    output = check_output(args.output) if args.output else None
    encoder = _load(args)
    parts = _embed(encoder, records, total, args)
    if args.similarity:
        _print_similarities(encoder, parts)
        return 0
    if args.precision != "float32":
        parts = quantize_parts(parts, args.precision)
    if output:
        print(f"{write_embeddings(parts, output):,} embeddings in {output}", file=sys.stderr)
    else:
        write_jsonl(parts, sys.stdout)
    return 0


def _records(args: argparse.Namespace) -> tuple[Iterable[Record], int | None]:
    """What is embedded, and how many there are if that is known."""
    from mlx_bert.inference.text_files import Record, line_records

    if args.input:
        source = _source(args)
        return source, source.check()
    if args.texts:
        return [Record(text) for text in args.texts], len(args.texts)
    if sys.stdin.isatty():
        raise ValueError("[embed] expected texts, --input FILE or a pipe but got nothing. Try: mlx-bert embed --help")
    sys.stdin.reconfigure(encoding="utf-8")
    return line_records(sys.stdin), None


def _source(args: argparse.Namespace) -> Any:
    from mlx_bert.inference.text_files import TextFiles

    return TextFiles(args.input, args.column, args.id_column)


def _load(args: argparse.Namespace) -> SentenceEncoder:
    from mlx_bert.inference.encode import SentenceEncoder

    settings = {} if args.max_length is None else {"max_seq_length": args.max_length}
    return SentenceEncoder.from_pretrained(args.model, dtype=args.dtype, **settings)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "batch_size": args.batch_size,
        "prompt_name": args.prompt_name,
        "prompt": args.prompt,
        "truncate_dim": args.truncate_dim,
        "normalize_embeddings": args.normalize,
    }


def _progress(args: argparse.Namespace, total: int | None, done: int = 0, first: bool = True) -> Any:
    from tqdm.auto import tqdm

    hidden = args.no_progress or not first or not sys.stderr.isatty()
    return tqdm(unit=" texts", desc="Embedding", total=total, initial=done, disable=hidden)


def _embed(
    encoder: SentenceEncoder, records: Iterable[Record], total: int | None, args: argparse.Namespace
) -> Iterator[Part]:
    from itertools import islice

    source = iter(records)
    with _progress(args, total) as progress:
        while part := list(islice(source, args.window)):
            yield part, encoder.encode([record.text for record in part], show_progress_bar=False, **_options(args))
            progress.update(len(part))


def _run_job(args: argparse.Namespace) -> int:
    """Files to a file: what can be interrupted, and shared by processes."""
    import mlx.core as mx

    from mlx_bert.checkpoint import ready_folder
    from mlx_bert.inference.embedding_files import check_output
    from mlx_bert.inference.embedding_job import EmbeddingJob
    from mlx_bert.inference.fingerprint import fingerprint

    group = mx.distributed.init()
    first = group.rank() == 0
    output = check_output(args.output) if first else Path(args.output)
    source = _source(args)
    settings = {
        "model": fingerprint(ready_folder(args.model)),
        "device": mx.default_device().type.name,
        "dtype": args.dtype,
        "max_length": args.max_length,
        **_options(args),
    }
    job = EmbeddingJob(source, output, settings, args.window, group if group.size() > 1 else None)
    done = job.open(args.resume)
    if done:
        print(f"{done:,} of {job.count:,} embeddings are done already.", file=sys.stderr)

    def load() -> Any:
        encoder = _load(args)
        return lambda texts: encoder.encode(texts, show_progress_bar=False, **_options(args))

    try:
        with _progress(args, job.count, done, first) as progress:
            job.run(load, progress.update)
        if first:
            print(f"{job.finish(args.precision):,} embeddings in {output}", file=sys.stderr)
    except KeyboardInterrupt:
        if first and job.folder.is_dir():
            print(f"\nWhat is done is kept in {job.folder}: go on with --resume.", file=sys.stderr)
        raise
    return 0


def _print_similarities(encoder: SentenceEncoder, parts: Iterable[Part]) -> None:
    import numpy as np

    texts, embeddings = [], []
    for some, vectors in parts:
        texts += [record.text for record in some]
        embeddings.append(vectors)
    if len(texts) < 2:
        raise ValueError(f"[embed] expected at least 2 texts for --similarity but got {len(texts)}.")
    matrix = np.concatenate(embeddings)
    scores = np.asarray(encoder.similarity(matrix, matrix))
    width = max(7, len(f"{scores.min():.3f}"), len(f"{scores.max():.3f}"))
    print(f"{encoder.similarity_fn_name:>8} " + " ".join(f"{f'[{i}]':>{width}}" for i in range(1, len(texts) + 1)))
    for index, (text, row) in enumerate(zip(texts, scores, strict=True), 1):
        print(f"{f'[{index}]':>8} " + " ".join(f"{score:>{width}.3f}" for score in row) + f"  {text}")
