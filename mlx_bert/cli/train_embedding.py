"""Training an embedding model on pairs, triplets, scores, classes, or a teacher's scores or embeddings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_bert.cli.data_options import read_rows_of
from mlx_bert.cli.embedding_data import EMBEDDING_LOSSES, evaluator_of, held_out_rows, read_texts, texts_kind
from mlx_bert.cli.train_run import callbacks, model_line, print_summary, run
from mlx_bert.inference.encode import SentenceEncoder
from mlx_bert.training import sentence_losses
from mlx_bert.training.distributed import World
from mlx_bert.training.hard_negatives import HardNegatives
from mlx_bert.training.sentence import SentenceEncoderTrainer


def train(args: argparse.Namespace, settings: Any) -> int:
    """Read, build, train, print."""
    name = args.loss or _usual_loss(args)
    if name not in EMBEDDING_LOSSES:
        raise ValueError(f"[train] expected --loss to be one of {', '.join(EMBEDDING_LOSSES)} but got {name!r}.")
    kind = EMBEDDING_LOSSES[name][1]
    if args.teacher and (kind != "teacher" or args.label_column):
        raise ValueError("[train] expected --loss embedding_mse and no --label-column with --teacher.")
    rows = read_rows_of(args.train, kind, args, labelled=False) if args.teacher else read_texts(args.train, kind, args)
    held_out = []
    if args.eval:
        held_out = read_texts(args.eval, None, args)
    elif kind not in ("class", "distillation", "teacher"):  # whose rows say nothing about how near texts should be
        rows, held_out = held_out_rows(rows, args, kind, settings.seed)
    if kind == "class":
        classes = {label: number for number, label in enumerate(dict.fromkeys(row["label"] for row in rows))}
        rows = [{**row, "label": classes[row["label"]]} for row in rows]
    encoder = SentenceEncoder.from_pretrained(args.model, dtype="float32")
    if args.teacher:
        rows = _taught(rows, args.teacher, encoder)
    mining = HardNegatives(num_negatives=args.hard_negatives) if args.hard_negatives else None
    trainer = SentenceEncoderTrainer(
        encoder,
        settings,
        rows,
        loss=_loss(name, args),
        evaluator=evaluator_of(held_out, settings.eval_batch_size or 32) if held_out else None,
        prompts=args.prompt,
        batch_sampler=args.batch_sampler,
        hard_negatives=mining,
        gather_across_ranks=args.gather_across_ranks,
        callbacks=callbacks(),
    )
    lines = {
        "model": model_line(args.model, encoder.core),
        "loss": name,
        "evaluation": f"{len(held_out):,} examples" if held_out else "none",
    }
    print_summary(trainer, lines)
    try_it = f'mlx-bert embed --model {settings.output_dir}/{"best" if held_out else "final"}_model "some text"'
    return run(trainer, args, {"loss": name}, try_it)


def _usual_loss(args: argparse.Namespace) -> str:
    if args.teacher:
        return "embedding_mse"
    return "cosent" if texts_kind(args.train, args) == "scored_pair" else "multiple_negatives"


def _taught(rows: Sequence[dict[str, Any]], teacher: str, student: SentenceEncoder) -> list[dict[str, Any]]:
    """Rows with the teacher's embeddings of their first texts as labels; rank 0 computes them for all."""
    world = World()
    model = SentenceEncoder.from_pretrained(teacher)
    width, wanted = model.get_embedding_dimension(), student.get_embedding_dimension()
    if width != wanted:
        raise ValueError(
            f"[train] expected a teacher with embeddings of {wanted} values, as the model's, but {teacher} gives "
            f"{width}. Choose another."
        )
    texts = [row["text"] for row in rows]
    found = {"embeddings": mx.array(model.encode(texts))} if world.is_main else None
    embeddings = np.array(world.share_arrays(found)["embeddings"])
    return [{**row, "labels": embedding} for row, embedding in zip(rows, embeddings, strict=True)]


def _loss(name: str, args: argparse.Namespace) -> Any:
    """The loss that the options describe."""
    try:
        loss = getattr(sentence_losses, EMBEDDING_LOSSES[name][0])(**(args.loss_options or {}))
    except TypeError:
        given = ", ".join(args.loss_options)
        raise ValueError(f"[train] --loss {name} does not have all of the options {given}. Correct them.") from None
    if args.matryoshka:
        try:
            dims = tuple(int(dim) for dim in str(args.matryoshka).split(","))
        except ValueError:
            raise ValueError(f"[train] expected --matryoshka such as 384,128 but got {args.matryoshka!r}.") from None
        loss = sentence_losses.Matryoshka(loss, dims)
    return sentence_losses.Cached(loss, args.chunk_size) if args.chunk_size else loss
