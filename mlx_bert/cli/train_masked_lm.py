"""Continued pre-training of a masked language model on plain texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlx_bert.cli.data_options import read_rows_of
from mlx_bert.cli.train_run import callbacks, model_line, print_summary, run
from mlx_bert.data.masking import Masking
from mlx_bert.data.splits import split_examples
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.masked_lm import MaskedLMTrainer, load_masked_lm


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    import mlx.core as mx

    from mlx_bert.checkpoint import ready_folder

    texts, held_out = plain_texts(args.train, args), []
    if args.eval:
        held_out = plain_texts(args.eval, args)
    else:
        split = split_examples([None] * len(texts), args.eval_size, 0.0, seed=settings.seed)
        texts, held_out = ([texts[place] for place in places] for places in (split.train, split.validation))
    mx.random.seed(settings.seed)
    model = load_masked_lm(args.model)
    trainer = MaskedLMTrainer(
        model,
        Tokenizer.from_pretrained(ready_folder(args.model)),
        settings,
        texts,
        held_out or None,
        Masking(probability=args.mask_probability, whole_words=args.whole_words),
        packed=args.packed,
        callbacks=callbacks(),
    )
    lines = {
        "model": model_line(args.model, model.bert),
        "texts": f"{len(texts):,}{', packed into full rows' if args.packed else ''}",
        "evaluation": f"{len(held_out):,} texts" if held_out else "none",
    }
    print_summary(trainer, lines, "rows")
    mask = next(t for t in ("[MASK]", "<mask>") if trainer.tokenizer.fast.token_to_id(t) is not None)
    try_it = f'mlx-bert predict --model {settings.output_dir} "some {mask} text"'
    return run(trainer, args, try_it=try_it)


def plain_texts(source: str, args: argparse.Namespace) -> list[str]:
    """The texts of a .txt file, a text a line, or of any other source."""
    if Path(source).suffix.lower() == ".txt":
        from mlx_bert.inference.text_files import TextFiles

        texts = [record.text for record in TextFiles(source) if record.text.strip()]
        if not texts:
            raise ValueError(f"[data] {source} has no texts. Give at least one line.")
        return texts
    return [row["text"] for row in read_rows_of(source, "text", args)]
