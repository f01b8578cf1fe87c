"""Train a cross-encoder that orders documents for a query, and look at what it puts first.

    python examples/train_reranker.py ENCODER [--train FILE] [--test FILE] [--loss NAME] [--output DIR]

ENCODER is any encoder's folder or hub id, or a cross-encoder's. FILE is JSON Lines with query, positive and negative (a
text or a list each), or with query, documents and labels (examples/data/reranking). DIR (reranker_output) gets
best_model, which sentence-transformers loads too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mlx.core as mx

from mlx_bert import CrossEncoder, TrainingArgs
from mlx_bert.data.groups import as_groups
from mlx_bert.data.readers import read_table
from mlx_bert.training.cross_encoder import LOSSES, CrossEncoderTrainer

DATA = Path(__file__).parent / "data" / "reranking"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("encoder", help="folder or hub id")
    parser.add_argument("--train", type=Path, default=DATA / "train.jsonl", help="queries with documents")
    parser.add_argument("--test", type=Path, default=DATA / "test.jsonl", help="the same, to choose the best epoch by")
    parser.add_argument("--loss", choices=LOSSES, default="lambda", help="what is made small (lambda)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data (8)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the encoder (1e-4)")
    parser.add_argument("--max-query-length", type=int, help="longer queries are cut to so many tokens")
    parser.add_argument("--output", type=Path, default=Path("reranker_output"), help="folder to write")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch's checkpoint")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"train_reranker: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, float]:
    """Train, print the metrics by epoch, and order the first test query's documents."""
    train, test = (list(read_table(path)) for path in (options.train, options.test))
    mx.random.seed(0)  # of the new classifier
    model = CrossEncoder.from_pretrained(options.encoder, num_labels=1, max_query_length=options.max_query_length)
    args = TrainingArgs(
        output_dir=str(options.output), epochs=options.epochs, learning_rate=options.learning_rate, batch_size=4
    )
    trainer = CrossEncoderTrainer(model, args, train, test, options.loss)
    shown = [name for name in trainer.evaluate() if name != "loss"]
    result = trainer.train(options.resume)
    print("epoch  train loss  " + "  ".join(f"{name:>7}" for name in shown))
    for record in result.history["epochs"]:
        cells = "  ".join(f"{record[f'eval_{name}']:>{max(7, len(name))}.4f}" for name in shown)
        print(f"{record['epoch']:>5}  {record['train_loss']:>10.4f}  {cells}")
    first = as_groups(test)[0]
    print(first.query)
    for hit in model.rank(first.query, first.documents, return_documents=True):
        print(f"  {hit['score']:.3f}  {hit['text']}")
    print(f"written to {options.output / 'best_model'}")
    return result.metrics


if __name__ == "__main__":
    sys.exit(main())
