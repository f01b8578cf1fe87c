"""Turn texts into embeddings.

Texts come from the command line, from a file, or from standard input, one a line. Embeddings go to a file or, as JSON
lines, to standard output. Files of any size are read and written in bounded memory, and an output file appears only
when it is complete."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from mlx_bert.inference.encode import SentenceEncoder

EXAMPLES = """examples:
  mlx-bert embed --model minilm "The sun is out." "It is a bright day."
  mlx-bert embed --model minilm --similarity "The sun is out." "It is a bright day." "Cats sleep."
  mlx-bert embed --model minilm --input notes.txt --output notes.npy
  mlx-bert embed --model e5 --input docs.jsonl --field body --prompt-name document --output docs.npy
  mlx-bert embed --model minilm --input items.csv --column title --precision int8 --output items.npy
  cat questions.txt | mlx-bert embed --model minilm --normalize > questions.jsonl"""

WINDOW = 4096  # texts read, sorted and batched at a time


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add this verb's options."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed; without any, standard input is read")
    parser.add_argument("--model", "-m", required=True, metavar="MODEL", help="folder of a model, or hub id")
    parser.add_argument("--input", "-i", metavar="FILE", help=".txt (a text a line), .jsonl, .csv or .tsv")
    parser.add_argument("--field", "--column", dest="column", default="text", metavar="NAME",
                        help="field of a .jsonl or column of a .csv that holds the text (default: text)")  # fmt: skip
    parser.add_argument(
        "--output", "-o", metavar="FILE", help=".npy or .jsonl (default: JSON lines to standard output)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N",
                        help="a batch holds as many tokens as N texts of 128 (default: 32)")  # fmt: skip
    parser.add_argument("--prompt-name", metavar="NAME", help="put this prompt of the model before each text")
    parser.add_argument("--prompt", metavar="TEXT", help="put this before each text")
    parser.add_argument("--normalize", action="store_true", help="scale embeddings to length 1")
    parser.add_argument("--truncate-dim", type=int, metavar="D", help="keep the first D values")
    parser.add_argument("--max-length", type=int, metavar="N", help="truncate texts to N tokens (default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="compute in this type")
    parser.add_argument("--precision", choices=("float32", "int8", "uint8", "binary", "ubinary"), default="float32",
                        help="bytes or bits for each value of the result (default: float32)")  # fmt: skip
    parser.add_argument("--similarity", action="store_true", help="print a table of similarities between the texts")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser


def main(args: argparse.Namespace) -> int:
    """Embed and write. Raises ValueError or OSError for what the user can mend."""
    from mlx_bert.inference.embedding_files import check_output, quantize_parts, write_embeddings, write_jsonl
    from mlx_bert.inference.encode import SentenceEncoder

    texts = _texts(args)
    output = check_output(args.output) if args.output else None
    if args.similarity and (args.precision != "float32" or output):
        raise ValueError("[embed] --similarity prints a table: leave out --output and --precision.")
    settings = {} if args.max_length is None else {"max_seq_length": args.max_length}
    encoder = SentenceEncoder.from_pretrained(args.model, dtype=args.dtype, **settings)
    parts = _embed(encoder, texts, args)
    if args.similarity:
        _print_similarities(encoder, parts)
        return 0
    if args.precision != "float32":
        parts = quantize_parts(parts, args.precision)
    if output:
        count = write_embeddings(parts, output)
        print(f"{count} embeddings in {output}", file=sys.stderr)
    else:
        write_jsonl(parts, sys.stdout)
    return 0


def _texts(args: argparse.Namespace) -> Iterable[str]:
    from mlx_bert.inference.text_files import line_texts, text_reader

    if args.texts and args.input:
        raise ValueError("[embed] expected texts or --input but got both. Leave one out.")
    if args.input:
        return text_reader(args.input, args.column)()
    if args.texts:
        return args.texts
    if sys.stdin.isatty():
        raise ValueError("[embed] expected texts, --input FILE or a pipe but got nothing. Try: mlx-bert embed --help")
    sys.stdin.reconfigure(encoding="utf-8")
    return line_texts(sys.stdin)


def _embed(
    encoder: SentenceEncoder, texts: Iterable[str], args: argparse.Namespace
) -> Iterator[tuple[list[str], np.ndarray]]:
    from itertools import islice

    from tqdm.auto import tqdm

    options = {"prompt_name": args.prompt_name, "prompt": args.prompt, "truncate_dim": args.truncate_dim}
    options |= {"normalize_embeddings": args.normalize, "show_progress_bar": False}
    hidden = args.no_progress or not sys.stderr.isatty()
    source = iter(texts)
    with tqdm(unit=" texts", desc="Embedding", disable=hidden) as progress:
        while part := list(islice(source, WINDOW)):
            yield part, encoder.encode(part, args.batch_size, **options)
            progress.update(len(part))


def _print_similarities(encoder: SentenceEncoder, parts: Iterable[tuple[list[str], np.ndarray]]) -> None:
    import numpy as np

    texts, embeddings = [], []
    for some, vectors in parts:
        texts += some
        embeddings.append(vectors)
    if len(texts) < 2:
        raise ValueError(f"[embed] expected at least 2 texts for --similarity but got {len(texts)}.")
    matrix = np.concatenate(embeddings)
    scores = np.asarray(encoder.similarity(matrix, matrix))
    width = max(7, len(f"{scores.min():.3f}"), len(f"{scores.max():.3f}"))
    print(f"{encoder.similarity_fn_name:>8} " + " ".join(f"{f'[{i}]':>{width}}" for i in range(1, len(texts) + 1)))
    for index, (text, row) in enumerate(zip(texts, scores, strict=True), 1):
        print(f"{f'[{index}]':>8} " + " ".join(f"{score:>{width}.3f}" for score in row) + f"  {text}")
