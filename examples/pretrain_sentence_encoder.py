"""Train a compact sentence encoder from scratch on triplets: an anchor, a text like it, and one unlike it.

    python examples/pretrain_sentence_encoder.py TOKENIZER [--sts FILE] [--triplets FILE] [--output DIR]

TOKENIZER is a folder that train_tokenizer.py wrote. --sts is a JSON Lines file with text_a, text_b and score (of at
most --largest-score), --triplets one with query, pos and neg; without either, sentences about a few things are made up.
DIR (sentence_encoder_output) gets best_model, which joint_intent_ner.py takes.

Dimensions: B batch, P width of a sentence.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_bert import BertCore, Tokenizer, Trainer, TrainingArgs  # before mlx.core: it enables the fast BLAS

import mlx.core as mx  # isort: skip

from heads.losses import triplet_loss
from heads.metrics import similarity_metrics
from mlx_bert.data.collate import PartsCollator
from mlx_bert.data.readers import read_table
from mlx_bert.data.triplets import Triplet, query_triplets, scored_triplets, split_by_anchor

PARTS = ("anchor", "positive", "negative")
MARGIN = 0.2
# 4 layers of 8 heads on 64 features; sentences of 32 features
SIZES = {"model_type": "compact", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
         "intermediate_size": 128, "projection_size": 32, "max_position_embeddings": 512}  # fmt: skip


OPENINGS = ("I would like to talk about", "there is something new about", "we saw", "nobody remembers", "tell me about")
ENDINGS = ("today", "again", "in the morning", "if you can", "with my sister", "before we leave")
TOPICS = {
    "music": ("the old song", "a loud concert", "the jazz record", "her guitar", "this melody"),
    "weather": ("the heavy rain", "a cold storm", "the sunny sky", "some snow", "the warm wind"),
    "food": ("the fresh bread", "a bowl of soup", "the best pizza", "some cheese", "this apple cake"),
}


class TripletObjective:
    """``mean max(0, d(a, p) - d(a, n) + 0.2)`` with ``d = 1 - cosine`` of the projected first tokens."""

    needs_labels = False

    def forward(self, model: BertCore, batch: Mapping[str, Any]) -> dict[str, mx.array]:
        """The three sentences of each triplet, ``(B, P)`` each."""
        return {
            name: model(part["input_ids"], part.get("attention_mask"), compute_pooling=False).pooler_output
            for name, part in zip(PARTS, batch["parts"], strict=True)
        }

    def loss(
        self, model: BertCore, outputs: Mapping[str, mx.array], batch: Mapping[str, Any]
    ) -> tuple[mx.array, mx.array]:
        """The mean loss of a batch and its number of triplets."""
        rows = [outputs[name] for name in PARTS]
        return triplet_loss(*rows, margin=MARGIN, distance="cosine"), mx.array(float(rows[0].shape[0]))

    def metrics(self, model: BertCore, outputs: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """How often the positive is nearer than the negative, and the mean cosine of each with the anchor."""
        anchor, positive, negative = (unit(np.array(outputs[name])) for name in PARTS)
        near, far = (anchor * positive).sum(-1), (anchor * negative).sum(-1)
        return {"accuracy": float((near > far).mean()), "positive": float(near.mean()), "negative": float(far.mean())}


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
    train, validation, test = (examples(part, tokenizer) for part in split_by_anchor(triplets))
    print(f"{len(train)} triplets to train on, {len(validation)} for validation, {len(test)} for the test")
    mx.random.seed(42)
    config = {**SIZES, "vocab_size": tokenizer.fast.get_vocab_size(), "pad_token_id": tokenizer.pad_id}
    model = BertCore(config)
    args = TrainingArgs(
        output_dir=str(options.output),
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule="cosine_per_epoch",
        warmup_ratio=0.0,
        max_grad_norm=1.0,
        patience=options.patience,
        dtype=options.dtype,
    )
    collate = PartsCollator(tokenizer.pad_id, max_length=config["max_position_embeddings"])
    trainer = Trainer(
        model, args, train, validation, tokenizer=tokenizer, collate=collate, objective=TripletObjective()
    )
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


def examples(triplets: Sequence[Triplet], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Triplets as three rows of ids each."""
    encodings = iter(tokenizer.encode([text for triplet in triplets for text in triplet]))
    return [{"input_ids": [np.array(next(encodings).ids, dtype=np.int32) for _ in PARTS]} for _ in triplets]


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
            unit(np.array(model(*tokenizer([pair[name] for pair in part])).pooler_output))
            for name in ("text_a", "text_b")
        ]
        cosines += (sides[0] * sides[1]).sum(-1).tolist()
    return similarity_metrics(np.array(cosines), np.array([float(pair["score"]) for pair in pairs]))["spearman"]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


if __name__ == "__main__":
    sys.exit(main())
