"""Fine-tune an encoder: with a task head, with heads of several tasks, as an embedding model or a cross-encoder, on
plain text, or from few examples; or train a tokenizer and a small encoder from scratch.

Data are CSV or TSV files with a header line, JSON, JSON Lines, CoNLL or Parquet files, folders that Hugging Face's
datasets saved, or data sets of the hub (hub:NAME[:CONFIG][@SPLIT]). Bad rows are all reported, with their lines.

tasks, and what a row has (other columns: --text-column, --label-column, --column ROLE=NAME):
  multiclass_classification, binary_classification, text_classification, ordinal_regression    text, label
  multilabel_classification    text, label (names joined by |, a list, or columns of 0 and 1)
  ensemble, time_series_classification, metric_learning    text, label
  hierarchical                 text, label (a node of the tree in --head-option hierarchy={"parent": ["child", ...]})
  regression                   text, label (a number, a list, or several columns)
  time_series_regression       text, label (the next values: a number, a list, or several columns)
  ranking                      query, documents, labels (their relevance); or a document a row, or pos and neg
  text_similarity              text, text_pair, score
  contrastive                  text, label; or anchor, positive, maybe negative; or text, text_pair, score
  auto                         any table: task, columns and settings follow from it, and are said; --target names the
                               column of the label
  token_classification         tokens, tags (one per token)
  question_answering           question, context, answers (text and answer_start, none for "no answer")
  multiple_choice              question, choices, label
  multi_task                   text and a column per task, or a file per task: see --tasks
  sentence_mtl                 as multi_task; the tasks are read from sentence embeddings, which the model gives too
  embedding                    two or more texts, maybe a score or label: see --loss
  cross_encoder                text, text_pair, label; or query, documents, labels: see --loss
  masked_lm                    text
  few_shot                     text, label
  joint                        tokens (or text, cut at blanks), intent, tags (one per token, O for none)
  tokenizer                    text: trains a byte-level BPE, without --model
  compact                      anchor, positive, negative; or query, pos, neg; or two texts and a score: trains a small
                               sentence encoder from scratch; --model is the folder of its tokenizer

few_shot, joint, sentence_mtl and compact have training settings of their own where the defaults below are not given:
train_config.json says what was used.

examples:
  mlx-bert train --model minilm --train reviews.csv --output reviews-model
  mlx-bert train --model minilm --train data.csv --task auto --target stars --output stars-model
  mlx-bert train --model minilm --train a.jsonl --eval b.jsonl --text-column review --label-column stars \\
      --task ordinal_regression --epochs 8 --learning-rate 1e-4 --patience 2 --output stars-model
  mlx-bert train --model minilm --train big.csv --freeze backbone --output quick-model   (the head alone: seconds)
  mlx-bert train --model minilm --train big.csv --lora "*.attention.*" --learning-rate 1e-3 --output adapted-model
  mlx-bert train --model minilm --task token_classification --train train.conll --eval dev.conll --output ner-model
  mlx-bert train --model minilm --task question_answering --train squad.json --max-length 384 --output qa-model
  mlx-bert train --model minilm --task multi_task --train mails.csv --tasks intent=intent mood=mood --output mails-model
  mlx-bert train --model minilm --task sentence_mtl --train news.csv --tasks topic mood --output news-model
  mlx-bert train --model minilm --task joint --train snips.jsonl --epochs 20 --output joint-model
  mlx-bert train --model minilm --task embedding --loss multiple_negatives --train pairs.jsonl --output my-embedder
  mlx-bert train --task tokenizer --train corpus.txt --vocab-size 4000 --output my-tokenizer
  mlx-bert train --task compact --model my-tokenizer --train triplets.jsonl --output my-encoder
  mlx-bert train --model minilm --train reviews.csv --output reviews-model --resume       (after an interruption)
  mlx.launch -n 2 -- mlx-bert train --model minilm --train reviews.csv --output out       (docs/distributed.md)

A TOML or JSON file can hold any of the options, named as below without the dashes (learning-rate = 1e-4); options on
the command line win over it:
  mlx-bert train --config run.toml --epochs 3

Ctrl-C writes a checkpoint and stops; the same command with --resume continues exactly where it was.
The output folder holds best_model/ and final_model/ (both for mlx-bert predict and evaluate), checkpoints,
history.json, and train_config.json: all options of the run, which --config takes again."""

from __future__ import annotations

import argparse
import importlib

from mlx_bert.cli.config_file import Assignments, assignment
from mlx_bert.cli.data_options import SOURCES, add_data_arguments
from mlx_bert.cli.embedding_data import add_loss_arguments
from mlx_bert.cli.head_data import KIND_OF_HEAD, add_window_arguments
from mlx_bert.cli.task_options import add_task_arguments
from mlx_bert.training.args import TrainingArgs, add_arguments, given_arguments

# Task -> the module of mlx_bert.cli that trains it, with train(args, settings).
RECIPES = {
    **dict.fromkeys(KIND_OF_HEAD, "train_head"),
    "auto": "train_auto",
    "multi_task": "train_multi_task",
    "embedding": "train_embedding",
    "cross_encoder": "train_cross_encoder",
    "masked_lm": "train_masked_lm",
    "few_shot": "train_few_shot",
    "joint": "train_joint",
    "sentence_mtl": "train_sentence_mtl",
    "tokenizer": "train_tokenizer",
    "compact": "train_compact",
}
POOLINGS = ("cls", "mean", "max", "attention", "weighted_mean", "last")
TASK_SAMPLINGS = ("proportional", "sqrt", "equal", "dynamic")
# Options that only some tasks have: destination -> the recipes that do. Others must not be given: none is ignored.
ONLY = {
    "hidden_sizes": ("train_head", "train_auto", "train_multi_task"),
    "dropout": ("train_head", "train_auto", "train_multi_task", "train_joint", "train_sentence_mtl"),
    "labels": ("train_head",),
    "class_weights": ("train_head", "train_auto", "train_multi_task"),
    "crf": ("train_head",),
    "head_options": (
        "train_head",
        "train_auto",
        "train_multi_task",
        "train_joint",
        "train_sentence_mtl",
        "train_compact",
    ),
    "stride": ("train_head",),
    "null_threshold": ("train_head",),
    "tasks": ("train_multi_task", "train_sentence_mtl"),
    "pooling": ("train_head", "train_auto", "train_multi_task", "train_sentence_mtl"),
    "loss": ("train_embedding", "train_cross_encoder"),
    "loss_options": ("train_embedding", "train_cross_encoder", "train_sentence_mtl"),
    "teacher": ("train_embedding",),
    "matryoshka": ("train_embedding",),
    "chunk_size": ("train_embedding",),
    "prompt": ("train_embedding",),
    "gather_across_ranks": ("train_embedding",),
    "hard_negatives": ("train_embedding",),
    "max_query_length": ("train_cross_encoder",),
    "packed": ("train_masked_lm",),
    "mask_probability": ("train_masked_lm",),
    "whole_words": ("train_masked_lm",),
    "batch_sampler": ("train_embedding",),
    "largest_score": ("train_head", "train_embedding", "train_cross_encoder", "train_compact"),
    "max_answer_length": ("train_head",),
    "task_sampling": ("train_multi_task", "train_sentence_mtl"),
    "eval_size": (
        "train_head",
        "train_auto",
        "train_multi_task",
        "train_embedding",
        "train_cross_encoder",
        "train_masked_lm",
        "train_joint",
        "train_sentence_mtl",
        "train_compact",
    ),
    "pair_iterations": ("train_few_shot",),
    "max_pairs": ("train_few_shot",),
    "vocab_size": ("train_tokenizer",),
}


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mlx-bert train``; the training settings come from ``TrainingArgs``."""
    data = parser.add_argument_group("model and data")
    data.add_argument("--config", metavar="FILE", help="TOML or JSON file with options")
    data.add_argument("--model", help="folder or hub id of an encoder, or a fine-tuned folder to train on (required)")
    data.add_argument("--train", metavar="DATA", help=f"what to learn from (required): {SOURCES}")
    data.add_argument("--eval", metavar="DATA", help="what to evaluate on; without it a part of --train")
    data.add_argument(
        "--eval-size", type=float, default=0.1, metavar="PART",
        help="part of --train set aside when --eval is not given; 0 for none (default: 0.1)",
    )  # fmt: skip
    add_data_arguments(data)
    head = parser.add_argument_group("task and head")
    head.add_argument(
        "--task", "--head", dest="task", choices=RECIPES, metavar="TASK",
        help="one of the tasks above (default: multiclass_classification)",
    )  # fmt: skip
    head.add_argument("--pooling", choices=POOLINGS, help="how token states become one vector (default: mean)")
    head.add_argument(
        "--hidden-sizes",
        metavar="SIZES",
        help="widths of hidden blocks, such as 384 or 384,128 (default: none, linear)",
    )
    head.add_argument("--dropout", type=float, metavar="PROBABILITY", help="dropout of the head (default: 0.1)")
    head.add_argument(
        "--labels", metavar="NAMES", help="class names in order, joined by commas; without it those of the data, sorted"
    )
    head.add_argument("--class-weights", action="store_true", help="weight rare classes more in the loss")
    head.add_argument(
        "--crf", action="store_true", help="token_classification: a conditional random field over the tags"
    )
    head.add_argument(
        "--head-option", dest="head_options", action=Assignments, type=assignment, metavar="NAME=VALUE",
        help="any other option of the head, such as label_smoothing=0.1; may be given several times",
    )  # fmt: skip
    add_window_arguments(head)
    add_task_arguments(head)
    head.add_argument(
        "--task-sampling", choices=TASK_SAMPLINGS, default="proportional",
        help="multi_task: how often an epoch draws a task: by its size, its root, all alike, or by how hard it is "
        "at present (default: proportional)",
    )  # fmt: skip
    texts = parser.add_argument_group("embedding, cross_encoder, masked_lm, few_shot, tokenizer")
    add_loss_arguments(texts)
    texts.add_argument(
        "--matryoshka", metavar="SIZES", help="also train embeddings cut to these sizes, such as 384,128"
    )
    texts.add_argument(
        "--chunk-size", type=int, metavar="N",
        help="embed N texts at a time and keep no more in memory, for large batches (GradCache)",
    )  # fmt: skip
    texts.add_argument(
        "--batch-sampler", choices=("length_buckets", "no_duplicates"), default="length_buckets",
        help="no_duplicates: no text twice in a batch, which would be a wrong negative (default: length_buckets)",
    )  # fmt: skip
    texts.add_argument(
        "--gather-across-ranks", action="store_true",
        help="embedding: of several ranks (docs/distributed.md), take the loss over the batches of all: more negatives",
    )  # fmt: skip
    texts.add_argument("--hard-negatives", type=int, metavar="N", help="mine N negatives for each pair, every epoch")
    texts.add_argument("--prompt", metavar="TEXT", help="put this before each text")
    texts.add_argument(
        "--max-query-length", type=int, metavar="TOKENS", help="cross_encoder: truncate queries to this many tokens"
    )
    texts.add_argument(
        "--mask-probability", type=float, default=0.15, metavar="PART",
        help="masked_lm: part of the tokens that is predicted (default: 0.15)",
    )  # fmt: skip
    texts.add_argument(
        "--whole-words", action=argparse.BooleanOptionalAction, default=True, help="masked_lm: mask whole words"
    )
    texts.add_argument("--packed", action="store_true", help="masked_lm: fill rows with as many texts as fit")
    texts.add_argument(
        "--pair-iterations", type=int, metavar="N",
        help="few_shot: pairs of each kind made of each example; without it all that there are",
    )  # fmt: skip
    texts.add_argument(
        "--vocab-size", type=int, metavar="N", help="tokenizer: bytes, merges and two special ids (default: 1000)"
    )
    texts.add_argument("--max-pairs", type=int, metavar="N", help="few_shot: pairs at most")
    run = parser.add_argument_group("training")
    run.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    add_arguments(run)


def option_parser() -> argparse.ArgumentParser:
    """A parser with all options of this verb."""
    parser = argparse.ArgumentParser(prog="mlx-bert train", add_help=False)
    build_parser(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Train, print what happens, and return the exit code."""
    own_files = bool(args.tasks) and all(isinstance(task, dict) and task.get("train") for task in args.tasks.values())
    for name in ("model", "train"):
        spared = own_files if name == "train" else args.task == "tokenizer"
        if not getattr(args, name) and not spared:
            raise ValueError(f"[train] expected --{name} but got none. Give it, or {name} in the file of --config.")
    recipe = RECIPES[args.task or "multiclass_classification"]
    options = {action.dest: action for action in option_parser()._actions}
    for name, recipes in ONLY.items():
        if getattr(args, name) != options[name].default and recipe not in recipes:
            option = options[name].option_strings[0]
            raise ValueError(f"[train] expected no {option} with --task {args.task}: it has no meaning there.")
    settings = TrainingArgs(**given_arguments(args))
    if "weight" in (args.columns or {}) and (recipe != "train_head" or settings.sampling != "weighted"):
        raise ValueError("[train] expected --sampling weighted and a task of one head with a column of weights.")
    return importlib.import_module(f"mlx_bert.cli.{recipe}").train(args, settings)
