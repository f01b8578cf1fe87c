"""Go on with the pre-training of an encoder on plain texts, by masked words, before it is fine-tuned.

    python examples/continue_pretraining.py ENCODER [--train FILE] [--test FILE] [--packed] [--output DIR]

ENCODER is the folder or hub id of a masked language model, or of any encoder, which gets a new head. FILE has one text
in each line (examples/data/texts). DIR (pretraining_output) gets best_model: an encoder to fine-tune, and a model for
pipeline("fill-mask", ...).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mlx.core as mx

from mlx_bert import Tokenizer, TrainingArgs, pipeline
from mlx_bert.checkpoint import ready_folder
from mlx_bert.data.masking import Masking, mask_token_id
from mlx_bert.training.masked_lm import MaskedLMTrainer, load_masked_lm

DATA = Path(__file__).parent / "data" / "texts"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("encoder", help="folder or hub id")
    parser.add_argument("--train", type=Path, default=DATA / "train.txt", help="a text in each line")
    parser.add_argument("--test", type=Path, default=DATA / "test.txt", help="the same, to measure the perplexity on")
    parser.add_argument("--packed", action="store_true", help="fill rows with as many texts as fit")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a row (128)")
    parser.add_argument("--probability", type=float, default=0.15, help="share of the tokens that is masked (0.15)")
    parser.add_argument("--tokens", action="store_true", help="mask tokens by themselves, not whole words")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data (10)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the encoder (1e-4)")
    parser.add_argument("--output", type=Path, default=Path("pretraining_output"), help="folder to write")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch's checkpoint")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"continue_pretraining: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, float]:
    """Train, print the perplexity by epoch, and fill a masked word of the first test text."""
    train, test = (path.read_text("utf-8").splitlines() for path in (options.train, options.test))
    folder = ready_folder(options.encoder)
    mx.random.seed(0)  # of a new head
    model, tokenizer = load_masked_lm(folder), Tokenizer.from_pretrained(folder)
    args = TrainingArgs(
        output_dir=str(options.output),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        batch_size=8,
    )
    masking = Masking(probability=options.probability, whole_words=not options.tokens)
    trainer = MaskedLMTrainer(model, tokenizer, args, train, test, masking, options.packed)
    print(f"perplexity before: {trainer.evaluate()['perplexity']:.2f}")
    result = trainer.train(options.resume)
    print("epoch  train loss  perplexity  accuracy")
    for record in result.history["epochs"]:
        values = f"{record['eval_perplexity']:>10.2f}  {record['eval_accuracy']:>8.4f}"
        print(f"{record['epoch']:>5}  {record['train_loss']:>10.4f}  {values}")
    best = options.output / "best_model"
    words = test[0].split()
    words[len(words) // 2] = tokenizer.fast.id_to_token(mask_token_id(tokenizer))
    found = pipeline("fill-mask", best)(" ".join(words), top_k=3)
    print(f"{' '.join(words)}: {', '.join(hit['token_str'] for hit in found)}")
    print(f"written to {best}")
    return result.metrics


if __name__ == "__main__":
    sys.exit(main())
