"""Training a compact sentence encoder from scratch on triplets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlx_bert.cli.embedding_data import read_texts, texts_kind
from mlx_bert.cli.train_run import callbacks, model_line, print_summary, run
from mlx_bert.data.triplets import Triplet, scored_triplets, split_by_anchor
from mlx_bert.tokenizer import Tokenizer
from mlx_bert.training.args import given_arguments
from mlx_bert.training.compact import compact_trainer, triplet_examples


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    tokenizer = Tokenizer.from_pretrained(args.model)
    triplets, held_out = read_triplets(args.train, args), []
    if args.eval:
        held_out = read_triplets(args.eval, args)
    elif args.eval_size:
        triplets, held_out = split_by_anchor(triplets, (1 - args.eval_size, args.eval_size), settings.seed)
    parts = [triplet_examples(part, tokenizer, settings.max_length) for part in (triplets, held_out)]
    trainer = compact_trainer(
        tokenizer, parts[0], parts[1] or None, given_arguments(args), args.head_options, callbacks()
    )
    lines = {
        "model": model_line("new", trainer.model),
        "tokenizer": f"{args.model} ({tokenizer.fast.get_vocab_size():,} ids)",
        "evaluation": f"{len(held_out):,} triplets" if held_out else "none",
    }
    print_summary(trainer, lines, "triplets")
    try_it = f'mlx-bert embed --model {settings.output_dir}/{"best" if held_out else "final"}_model "some text"'
    code = run(trainer, args, try_it=try_it)
    if code == 0 and trainer.world.is_main:
        for name in ("best_model", "final_model"):
            if (folder := Path(settings.output_dir) / name).is_dir():
                add_sentence_modules(folder)
    return code


def add_sentence_modules(folder: Path) -> None:
    """Write what makes an encoder's folder one of an embedding model: its sentence is the first token's, projected."""
    import mlx.core as mx

    from mlx_bert.core import BertCore
    from mlx_bert.inference.encode import SentenceEncoder
    from mlx_bert.inference.sentence_modules import Dense, LayerNorm, Pooling

    core = BertCore.from_pretrained(folder)
    pooler, width, size = core.encoder.pooler, core.get_hidden_size(), core.config.projection_size
    identity = {"bias": True, "activation_function": "torch.nn.modules.linear.Identity"}
    dense = Dense({"in_features": width, "out_features": size, **identity})
    norm = LayerNorm({"dimension": size})
    dense.linear.update(pooler.dense.parameters())
    norm.norm.update(pooler.norm.parameters())
    first = Pooling({"word_embedding_dimension": width, "pooling_mode_cls_token": True})
    encoder = SentenceEncoder(core, Tokenizer.from_pretrained(folder), [first, dense, norm])
    mx.eval(core.parameters())  # the files that they come from are about to be replaced
    encoder.save_pretrained(folder, overwrite=True)


def read_triplets(source: str, args: argparse.Namespace) -> list[Triplet]:
    """The triplets of a source, or those that its scored pairs give.

    Raises:
        ValueError: other rows, or pairs that give no triplet.
    """
    kind = texts_kind(source, args)
    if kind not in ("triplet", "scored_pair"):
        raise ValueError(
            f"[train] expected triplets, or pairs with a score, in {source} but got neither. Name columns."
        )
    rows = read_texts(source, kind, args)
    if kind == "scored_pair":
        found = scored_triplets({"text_a": r["text"], "text_b": r["text_pair"], "score": r["score"]} for r in rows)
        if not found:
            raise ValueError(
                f"[train] the pairs of {source} give no triplet: none scores 0.6 or more. See --largest-score."
            )
        return found
    return [
        Triplet(row["anchor"], row["positive"], negative)
        for row in rows
        for negative in ([row["negative"]] if isinstance(row["negative"], str) else row["negative"])
    ]
