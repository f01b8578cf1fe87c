"""Find texts by meaning: build an index of documents on disk, add to it, and ask it.

The index keeps texts, ids and embeddings, and a graph to search them by (usearch). What the graph finds is ordered anew
with the stored embeddings. It remembers its model, prompts and lengths; another model is refused."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_bert.inference.index import EmbeddingIndex

EXAMPLES = """examples:
  mlx-bert search build --model minilm --input docs.jsonl --index docs-index
  mlx-bert search query --index docs-index "how do I reset my password?" --top-k 5
  mlx-bert search add --index docs-index --input more.jsonl
  mlx-bert search query --index docs-index --input questions.txt --json > answers.jsonl
  mlx-bert search info --index docs-index

a large index, from embeddings that several processes have made:
  mlx.launch -n 2 -- mlx-bert embed --model minilm --input docs.jsonl --prompt-name document --output docs.npy
  mlx-bert search build --model minilm --input docs.jsonl --embeddings docs.npy --dtype i8 --index docs-index

mlx-bert search ACTION --help lists the options of an action."""

AT_A_TIME = 1024  # queries embedded and answered at a time


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this verb's actions and their options."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="embed documents and make an index of them")
    add = actions.add_parser("add", help="embed more documents and add them to an index")
    query = actions.add_parser("query", help="find the documents nearest to texts")
    info = actions.add_parser("info", help="say what an index holds and how it was made")
    for action, run in ((build, _build), (add, _add), (query, _query), (info, _info)):
        action.set_defaults(run=run)
        action.add_argument("--index", "-x", required=True, metavar="FOLDER", help="the index")
    build.add_argument("--model", "-m", required=True, metavar="MODEL", help="folder of a model, or hub id")
    for action in (add, query):
        action.add_argument("--model", "-m", metavar="MODEL", help="where the index's model is now, if it was moved")
    for action in (build, add):
        _add_document_options(action)
    build.add_argument("--dtype", choices=("f32", "f16", "i8", "binary"), default="f32",
                       help="values of the graph, which is in memory while searching (default: f32)")  # fmt: skip
    build.add_argument("--vectors", choices=("float32", "int8"), default="float32",
                       help="values on disk, with which results are ordered (default: float32)")  # fmt: skip
    build.add_argument("--metric", choices=("cosine", "dot", "euclidean"), help="how to compare (default: the model's)")
    build.add_argument("--query-prompt", metavar="TEXT", help="put this before queries (default: the model's)")
    build.add_argument("--document-prompt", metavar="TEXT", help="put this before documents (default: the model's)")
    build.add_argument("--max-length", type=int, metavar="N", help="truncate texts to N tokens (default: the model's)")
    build.add_argument("--truncate-dim", type=int, metavar="D", help="keep the first D values of an embedding")
    build.add_argument("--compute-dtype", choices=("float32", "float16", "bfloat16", "stored"),
                        help="compute in this type, or as stored (default: float16 on a GPU)")  # fmt: skip
    build.add_argument("--overwrite", action="store_true", help="replace an index that is there")
    query.add_argument("texts", nargs="*", metavar="TEXT", help="queries; without any, standard input is read")
    query.add_argument("--input", "-i", nargs="+", metavar="FILE", help="files of queries")
    query.add_argument("--column", default="text", metavar="NAME", help="field or column of the query (default: text)")
    query.add_argument("--top-k", "-k", type=int, default=10, metavar="K", help="results for each query (default: 10)")
    query.add_argument("--exact", action="store_true", help="compare with every document")
    query.add_argument("--rescore-multiplier", type=int, default=4, metavar="N",
                       help="order K times N candidates of the graph anew (default: 4)")  # fmt: skip
    query.add_argument("--json", action="store_true", help="a JSON object for each query")


def _add_document_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", "-i", nargs="+", required=True, metavar="FILE",
                        help="documents: .txt (one a line), .jsonl, .csv, .tsv, .parquet; or folders")  # fmt: skip
    parser.add_argument("--column", default="text", metavar="NAME", help="field or column of the text (default: text)")
    parser.add_argument("--id-column", metavar="NAME",
                        help="field or column of the id (default: id, where every file has it)")  # fmt: skip
    parser.add_argument("--embeddings", metavar="FILE", help="their embeddings (.npy), to save embedding them here")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N",
                        help="a batch holds as many tokens as N texts of 128 (default: 32)")  # fmt: skip
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def main(args: argparse.Namespace) -> int:
    """Run the action. Raises ValueError, OSError or ImportError for what the user can mend."""
    args.run(args)
    return 0


def _documents(args: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """Source, the options of adding it, and a progress bar."""
    import numpy as np
    from tqdm.auto import tqdm

    from mlx_bert.inference.text_files import TextFiles

    source = TextFiles(args.input, args.column, args.id_column)
    total = source.check()
    embeddings = None
    if args.embeddings:
        try:
            embeddings = np.load(args.embeddings, mmap_mode="r")
        except (ValueError, EOFError):
            raise ValueError(f"[search] {args.embeddings} is no .npy file of embeddings.") from None
    hidden = args.no_progress or not sys.stderr.isatty()
    progress = tqdm(unit=" texts", desc="Indexing", total=total, disable=hidden)
    options = {"embeddings": embeddings, "batch_size": args.batch_size, "on_documents": progress.update}
    return source, options, progress


def _build(args: argparse.Namespace) -> None:
    from mlx_bert.inference.index import EmbeddingIndex

    if Path(args.index).exists() and not args.overwrite:
        raise FileExistsError(f"[search] {args.index} exists already. Choose another name, or give --overwrite.")
    names = ("dtype", "vectors", "metric", "query_prompt", "document_prompt", "max_length", "truncate_dim")
    settings = {name: getattr(args, name) for name in (*names, "compute_dtype", "overwrite")}
    source, options, progress = _documents(args)
    with progress:
        index = EmbeddingIndex.build(args.index, args.model, source, **settings, **options)
    print(f"{len(index):,} documents in {args.index}", file=sys.stderr)


def _add(args: argparse.Namespace) -> None:
    from mlx_bert.inference.index import EmbeddingIndex

    index = EmbeddingIndex.load(args.index, args.model)
    source, options, progress = _documents(args)
    with progress:
        count = index.add(source, **options)
    print(f"{count:,} documents added, {len(index):,} in {args.index}", file=sys.stderr)


def _query(args: argparse.Namespace) -> None:
    from mlx_bert.inference.index import EmbeddingIndex
    from mlx_bert.inference.text_files import TextFiles

    if args.texts and args.input:
        raise ValueError("[search] expected texts or --input but got both. Leave one out.")
    index = EmbeddingIndex.load(args.index, args.model)
    if args.input:
        queries = [record.text for record in TextFiles(args.input, args.column)]
    elif args.texts:
        queries = args.texts
    elif sys.stdin.isatty():
        raise ValueError("[search] expected a text, --input FILE or a pipe but got nothing.")
    else:
        sys.stdin.reconfigure(encoding="utf-8")
        queries = [line.rstrip("\r\n") for line in sys.stdin]
    for start in range(0, len(queries), AT_A_TIME):
        some = queries[start : start + AT_A_TIME]
        results = index.search(some, args.top_k, args.exact, args.rescore_multiplier)
        for number, (query, hits) in enumerate(zip(some, results, strict=True), start):
            if args.json:
                print(json.dumps({"query": query, "results": hits}, ensure_ascii=False))
            else:
                if len(queries) > 1:
                    print(("\n" if number else "") + " ".join(query.split()))
                print(table(hits))


def table(hits: list[dict[str, Any]]) -> str:
    """Rank, score, id and the beginning of each text, one a line."""
    ids = [str(hit["id"]) for hit in hits]
    wide = max([2, *map(len, ids)])
    room = max(20, shutil.get_terminal_size().columns - wide - 18)
    lines = [f"{'rank':>4} {'score':>9}  {'id':<{wide}}  text"]
    for rank, (name, hit) in enumerate(zip(ids, hits, strict=True), 1):
        text = " ".join(hit["text"].split())
        text = text if len(text) <= room else text[: room - 1] + "…"
        lines.append(f"{rank:>4} {hit['score']:>9.4f}  {name:<{wide}}  {text}".rstrip())
    return "\n".join(lines)


def _info(args: argparse.Namespace) -> None:
    from mlx_bert.inference.index import EmbeddingIndex

    print(describe(EmbeddingIndex.load(args.index)))


def describe(index: EmbeddingIndex) -> str:
    """What an index is, one setting a line."""
    settings = index.settings
    size = sum(path.stat().st_size for path in index.folder.iterdir() if path.is_file())
    rows = {
        "documents": f"{len(index):,}",
        "model": settings["model"],
        "fingerprint": settings["fingerprint"],
        "values": settings["dimension"],
        "metric": settings["metric"],
        "graph": settings["dtype"],
        "vectors": settings["vectors"],
        **{f"{name} prompt": repr(prompt) for name, prompt in settings["prompts"].items()},
        "size": f"{size / 1e6:,.1f} MB",
    }
    return "\n".join(f"{name:<16} {value}" for name, value in rows.items())
