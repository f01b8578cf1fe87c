"""Train a compact sentence encoder from scratch on triplets: an anchor, a text like it, and one unlike it.

    python examples/pretrain_sentence_encoder.py TOKENIZER [--sts FILE] [--triplets FILE] [--output DIR]

TOKENIZER is a folder that train_tokenizer.py wrote. --sts is a JSON Lines file with text_a, text_b and score (of at
most --largest-score), --triplets one with query, pos and neg; without either, sentences about a few things are made up.
DIR (sentence_encoder_output) gets best_model, which joint_intent_ner.py takes.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_bert import BertCore, Tokenizer  # before heads, which import mlx.core: it enables the fast BLAS
from mlx_bert.data.readers import read_table
from mlx_bert.data.triplets import Triplet, query_triplets, scored_triplets, split_by_anchor
from mlx_bert.training.compact import compact_trainer, triplet_examples, unit_rows

from heads.metrics import similarity_metrics  # isort: skip

OPENINGS = ("I would like to talk about", "there is something new about", "we saw", "nobody remembers", "tell me about")
ENDINGS = ("today", "again", "in the morning", "if you can", "with my sister", "before we leave")
TOPICS = {
    "music": ("the old song", "a loud concert", "the jazz record", "her guitar", "this melody"),
    "weather": ("the heavy rain", "a cold storm", "the sunny sky", "some snow", "the warm wind"),
    "food": ("the fresh bread", "a bowl of soup", "the best pizza", "some cheese", "this apple cake"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="folder of train_tokenizer.py")
    parser.add_argument("--sts", type=Path, help="pairs with a score")
    parser.add_argument("--largest-score", type=float, default=5.0, help="of --sts (5)")
    parser.add_argument("--triplets", type=Path, help="queries with positives and negatives")
    parser.add_argument("--output", type=Path, default=Path("sentence_encoder_output"), help="folder to write")
    parser.add_argument("--epochs", type=int, default=50, help="at most (50)")
    parser.add_argument("--patience", type=int, default=3, help="epochs without progress that end the run (3)")
    parser.add_argument("--batch-size", type=int, default=32, help="triplets per update (32)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch's checkpoint")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"pretrain_sentence_encoder: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, float]:
    """Train, and report on triplets whose anchors the training has not seen."""
    tokenizer = Tokenizer.from_pretrained(options.tokenizer)
    pairs = read_table(options.sts) if options.sts else []
    triplets = scored_triplets(pairs, largest=options.largest_score)
    triplets += query_triplets(read_table(options.triplets)) if options.triplets else []
    if not (options.sts or options.triplets):
        triplets = made_up()
    train, validation, test = (triplet_examples(part, tokenizer) for part in split_by_anchor(triplets))
    print(f"{len(train)} triplets to train on, {len(validation)} for validation, {len(test)} for the test")
    settings = {name: getattr(options, name) for name in ("epochs", "batch_size", "patience", "dtype")}
    trainer = compact_trainer(tokenizer, train, validation, {"output_dir": str(options.output), **settings})
    model = trainer.model
    result = trainer.train(options.resume)
    print(f"best validation loss {result.metrics['loss']:.4f} after {result.best_step} updates")
    found = trainer.evaluate(test)
    print(
        f"test: the positive is nearer in {found['accuracy']:.1%}; cosine {found['positive']:.3f} with positives, "
        f"{found['negative']:.3f} with negatives"
    )
    if pairs:
        found["spearman"] = spearman(model, tokenizer, pairs)
        print(f"Spearman correlation with all scores of {options.sts}: {found['spearman']:.3f}")
    print(f"written to {options.output / 'best_model'}")
    return found


def made_up(count: int = 600, seed: int = 0) -> list[Triplet]:
    """Sentences about one thing of ``TOPICS`` each: the positive is about the anchor's topic, the negative is not."""
    rng = random.Random(seed)

    def sentence(topic: str) -> str:
        return f"{rng.choice(OPENINGS)} {rng.choice(TOPICS[topic])} {rng.choice(ENDINGS)}"

    triplets = []
    for number in range(count):
        topic = list(TOPICS)[number % len(TOPICS)]
        other = rng.choice([name for name in TOPICS if name != topic])
        triplets.append(Triplet(sentence(topic), sentence(topic), sentence(other)))
    return triplets


def spearman(model: BertCore, tokenizer: Tokenizer, pairs: Sequence[Mapping[str, Any]], size: int = 64) -> float:
    """Rank correlation of cosines with scores."""
    model.eval()
    cosines: list[float] = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        sides = [
            unit_rows(np.array(model(*tokenizer([pair[name] for pair in part])).pooler_output))
            for name in ("text_a", "text_b")
        ]
        cosines += (sides[0] * sides[1]).sum(-1).tolist()
    return similarity_metrics(np.array(cosines), np.array([float(pair["score"]) for pair in pairs]))["spearman"]


if __name__ == "__main__":
    sys.exit(main())
